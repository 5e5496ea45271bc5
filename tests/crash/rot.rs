//! Bits that flip on the platter are reported, never skipped.

use dunlin::{
    storage::{ReadError, Store, StoreError},
    types::{Offset, PartitionId, ShardId, TopicId},
    wire::{EntryKind, entry::ENTRY_HEADER_LEN},
};

use super::{
    disk::Disk,
    model::{Step, Truth},
    rng::Rng,
    workload::{Author, OPTIONS, SHARDS, checkpoint, open, shard_of},
};

const ONE: PartitionId = PartitionId { topic: TopicId(0), index: 0 };
const OTHER: PartitionId = PartitionId { topic: TopicId(3), index: 0 };

/// A store with 20 batches each of two partitions of one shard, one after the other in one row.
fn interleaved(checkpointed: bool) -> (Vec<u8>, Truth) {
    let disk = Disk::default();
    let (_, mut writer, _) = Store::open_backend(disk.clone(), OPTIONS).expect("a good disk");
    let mut truth = Truth::new(SHARDS);
    let mut author = Author::new(&truth);
    let mut rng = Rng(1);
    assert_eq!(shard_of(ONE), shard_of(OTHER));
    let entries: Vec<_> =
        (0..40).map(|i| author.records([ONE, OTHER][i % 2], 100, 1, &mut rng)).collect();
    writer.commit(&entries).expect("a good disk");
    truth.apply(&Step::Commit(entries));
    if checkpointed {
        let mut handed = checkpoint(&truth, &mut rng);
        handed.clear();
        for shard in 0..SHARDS {
            let applied = truth.shards[usize::from(shard)].end();
            handed.push(dunlin::storage::ShardCheckpoint {
                shard: ShardId(shard),
                applied,
                ..Default::default()
            });
        }
        writer.checkpoint(handed.clone()).expect("a good disk");
        truth.apply(&Step::Checkpoint(handed));
    }
    writer.close().expect("a good disk");
    (disk.image(), truth)
}

#[test]
fn a_flipped_bit_is_reported_and_never_skipped() {
    let (image, truth) = interleaved(true);
    let victim = &truth.shards[0].entries[18];
    assert_eq!(victim.header.kind, EntryKind::Records);
    let mut bytes = Vec::new();
    victim.encode(&mut bytes);
    let at = find(&image, &bytes);
    let (mut reported, mut harmless) = (0, 0);
    for flip in 0..bytes.len() * 8 {
        let mut image = image.clone();
        image[at + flip / 8] ^= 1 << (flip % 8);
        let (store, ..) = open(image).expect("the row is behind the checkpoint");
        let mut good = true;
        for id in [ONE, OTHER] {
            good &= read_all(&store, id, &truth, flip);
        }
        if good {
            harmless += 1
        } else {
            reported += 1
        }
        // Only what no reader gets may change unseen: lsn, epoch and chain, which replicas check.
        let field = flip / 8;
        assert!(!good || (10..40).contains(&field), "byte {field} of the entry changed unseen");
    }
    println!("flipped bits: {reported} reported, {harmless} outside of what is read, 0 skipped");
    assert!(reported > (bytes.len() - ENTRY_HEADER_LEN) * 8);
}

#[test]
fn a_flipped_bit_in_the_tail_of_the_log_is_found_at_open() {
    let (image, truth) = interleaved(false);
    let mut bytes = Vec::new();
    truth.shards[0].entries[18].encode(&mut bytes);
    let at = find(&image, &bytes);
    for flip in (0..bytes.len() * 8).step_by(7) {
        let mut image = image.clone();
        image[at + flip / 8] ^= 1 << (flip % 8);
        let opened = open(image);
        assert!(matches!(opened, Err(StoreError::Corrupted(_))), "bit {flip} changed unseen");
    }
}

#[test]
fn an_image_of_noise_is_refused() {
    let (good, _) = interleaved(true);
    let mut rng = Rng(7);
    for round in 0..60 {
        let mut image = good.clone();
        let (from, len) = (rng.below(image.len()), 1 + rng.below(20_000));
        for byte in image.iter_mut().skip(from).take(len) {
            *byte = rng.next().to_be_bytes()[0];
        }
        // Refused, or opened with an error for what is broken; a panic would fail the test.
        if let Ok((store, ..)) = open(image) {
            for id in [ONE, OTHER] {
                let _ = store.read(id, Offset(0), Offset(u64::MAX), 1 << 20);
            }
        }
        let cut = good[..rng.below(good.len())].to_vec();
        if let Ok((_, _, recovered)) = open(cut.clone()) {
            assert!(cut.is_empty(), "round {round}: {} bytes pass for {recovered:?}", cut.len());
        }
    }
}

#[test]
fn a_store_for_other_shards_or_of_a_newer_program_is_refused() {
    let (image, _) = interleaved(true);
    let disk = Disk::holding(image.clone());
    let options = dunlin::storage::Options { shards: 4, ..OPTIONS };
    let error = Store::open_backend(disk, options).expect_err("made with 3");
    assert_eq!(
        error.to_string(),
        "store has 3 shards, asked for 4: the number is fixed when the store is made"
    );
    // `format` is stored beside its key; the page has no checksum that is verified on open.
    let mut image = image;
    let mut needle = b"clean".to_vec();
    needle.extend_from_slice(b"diskformatshards");
    let at = find(&image, &needle);
    let values = &mut image[at + needle.len()..];
    // Values in the order of their keys: clean (1 byte), disk (16), format (4), shards (2).
    values[17 + 3] = 9;
    let error = open(image).expect_err("format 9");
    assert!(error.to_string().contains("format 9, this program knows formats up to 1"), "{error}");
}

/// Reads a partition. False if a read reported corruption; panics if anything else than what was written came out.
fn read_all(store: &Store, id: PartitionId, truth: &Truth, flip: usize) -> bool {
    let want = &truth.partitions()[&id];
    let (mut next, mut at, end) = (Offset(0), 0, Offset(want.end()));
    while next < end {
        match store.read(id, next, end, 500) {
            Ok(chunk) => {
                assert!(!chunk.batches.is_empty(), "bit {flip}: nothing at {next}");
                for batch in chunk.batches {
                    assert_eq!(batch, want.batches[at], "bit {flip}: another batch at {next}");
                    at += 1;
                }
                next = chunk.next;
            }
            Err(ReadError::Corrupted { offset, .. }) => {
                assert_eq!(offset.0, want.places[at].0, "bit {flip}");
                return false;
            }
            Err(error) => panic!("bit {flip}: {error}"),
        }
    }
    true
}

/// The last place of `needle`: copy-on-write may have left older ones.
fn find(image: &[u8], needle: &[u8]) -> usize {
    let found: Vec<usize> =
        (0..image.len() - needle.len()).filter(|at| image[*at..].starts_with(needle)).collect();
    assert!(!found.is_empty(), "the store holds what was committed");
    found[found.len() - 1]
}
