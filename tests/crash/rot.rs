//! Bits that flip on the platter are reported, never skipped.

use bytes::Bytes;
use dunlin::{
    storage::{ReadError, Scrub, Store, StoreError},
    types::{Offset, PartitionId, ShardId, TopicId},
    wire::{EntryKind, entry::ENTRY_HEADER_LEN},
};

use super::{
    disk::{Disk, Image},
    model::{Step, Truth},
    rng::Rng,
    workload::{Author, OPTIONS, SHARDS, checkpoint, open, shard_of},
};

const ONE: PartitionId = PartitionId { topic: TopicId(0), index: 0 };
const OTHER: PartitionId = PartitionId { topic: TopicId(3), index: 0 };

/// A store with 20 batches each of two partitions of one shard, one after the other in one row.
fn interleaved(checkpointed: bool) -> (Image, Truth) {
    let disk = Disk::default();
    let (_, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
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
    let at = find(&image[0], &bytes);
    let (mut reported, mut harmless) = (0, 0);
    for flip in 0..bytes.len() * 8 {
        let mut image = image.clone();
        image[0][at + flip / 8] ^= 1 << (flip % 8);
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
    let at = find(&image[0], &bytes);
    for flip in (0..bytes.len() * 8).step_by(7) {
        let mut image = image.clone();
        image[0][at + flip / 8] ^= 1 << (flip % 8);
        let opened = open(image);
        assert!(matches!(opened, Err(StoreError::Corrupted(_))), "bit {flip} changed unseen");
    }
}

/// The shards that a search over all of a store finds damaged.
fn search(store: &Store) -> Vec<ShardId> {
    let mut scrub = Scrub::begin(store.clone());
    let mut found = Vec::new();
    loop {
        let done = scrub.step(1_000).expect("the database is whole");
        found.extend(done.damage.into_iter().map(|(shard, _)| shard));
        if !done.more {
            return found;
        }
    }
}

#[test]
fn the_search_finds_each_flipped_bit_and_nothing_else() {
    let (image, truth) = interleaved(true);
    let (store, ..) = open(image.clone()).expect("good");
    assert_eq!(search(&store), [], "nothing is damaged");
    let mut bytes = Vec::new();
    truth.shards[0].entries[18].encode(&mut bytes);
    let at = find(&image[0], &bytes);
    for flip in 0..bytes.len() * 8 {
        let mut image = image.clone();
        image[0][at + flip / 8] ^= 1 << (flip % 8);
        let (store, ..) = open(image).expect("the row is behind the checkpoint");
        assert!(search(&store).contains(&ShardId(0)), "bit {flip} is not found");
    }
}

#[test]
fn an_image_of_noise_is_refused() {
    let (good, _) = interleaved(true);
    let mut rng = Rng(7);
    for round in 0..60 {
        let mut image = good.clone();
        let (from, len) = (rng.below(image[0].len()), 1 + rng.below(20_000));
        for byte in image[0].iter_mut().skip(from).take(len) {
            *byte = rng.next().to_be_bytes()[0];
        }
        // Refused, or opened with an error for what is broken; a panic would fail the test.
        if let Ok((store, ..)) = open(image) {
            for id in [ONE, OTHER] {
                let _ = store.read(id, Offset(0), Offset(u64::MAX), 1 << 20);
            }
        }
        let mut cut = good.clone();
        cut[0].truncate(rng.below(good[0].len()));
        let len = cut[0].len();
        if let Ok((_, _, recovered)) = open(cut) {
            assert!(len == 0, "round {round}: {len} bytes pass for {recovered:?}");
        }
    }
}

#[test]
fn a_store_for_other_shards_or_of_a_newer_program_is_refused() {
    let (image, _) = interleaved(true);
    let disk = Disk::holding(image.clone());
    let options = dunlin::storage::Options { shards: 4, ..OPTIONS };
    let error =
        Store::open_backend(disk.clone(), disk.journal(), options).expect_err("made with 3");
    assert_eq!(
        error.to_string(),
        "store has 3 shards, asked for 4: the number is fixed when the store is made"
    );
    // `format` is stored beside its key; the page has no checksum that is verified on open.
    let mut image = image;
    let mut needle = b"clean".to_vec();
    needle.extend_from_slice(b"diskformatjournalshards");
    let at = find(&image[0], &needle);
    let values = &mut image[0][at + needle.len()..];
    // Values in the order of their keys: clean (1 byte), disk (16), format (4), journal (8), shards (2).
    values[17 + 3] = 9;
    let error = open(image).expect_err("format 9");
    assert!(error.to_string().contains("format 9, this program knows formats up to 1"), "{error}");
}

/// A store that was killed with frames in its journal; where each lies, and what is true with it.
fn journaled() -> (Image, Vec<(usize, Truth)>) {
    let disk = Disk::default();
    let options = dunlin::storage::Options { journal_len: 256 << 10, ..OPTIONS };
    let (_, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), options).expect("a good disk");
    let mut truth = Truth::new(SHARDS);
    let mut author = Author::new(&truth);
    let mut rng = Rng(3);
    let (mut at, mut truths) = (4096, Vec::new());
    for size in [100, 5_000, 300, 4_000, 700] {
        let entry = author.records(ONE, size, 1, &mut rng);
        let len = 24 + entry.header.entry_len();
        writer.commit(std::slice::from_ref(&entry)).expect("a good disk");
        truth.apply(&Step::Commit(vec![entry]));
        truths.push((at, truth.clone()));
        at += len.next_multiple_of(4096);
    }
    drop(writer);
    (disk.image(), truths)
}

#[test]
fn a_damaged_frame_of_the_journal_is_never_taken_for_its_end() {
    let (image, truths) = journaled();
    let last = truths.len() - 1;
    let (store, _, recovered) = open(image.clone()).expect("whole");
    truths[last].1.expect().check(&store, &recovered, &mut Rng(0)).expect("all of it");
    for (number, (at, _)) in truths.iter().enumerate() {
        for bit in (0..24 * 8).chain((24 * 8..90 * 8).step_by(5)) {
            let mut image = image.clone();
            image[1][at + bit / 8] ^= 1 << (bit % 8);
            match open(image) {
                Err(StoreError::Corrupted(why)) if number < last => {
                    assert!(why.contains("acknowledged records are damaged"), "{why}");
                }
                // The last frame may also be one that was never flushed: nothing else tells the two apart.
                Ok((store, _, recovered)) if number == last => {
                    let before = truths[last - 1].1.expect();
                    before.check(&store, &recovered, &mut Rng(0)).expect("what was before it");
                }
                opened => panic!("bit {bit} of frame {number}: {:?}", opened.map(|_| ())),
            }
        }
    }
}

#[test]
fn a_journal_that_is_not_the_logs_own_is_refused() {
    let (image, truths) = journaled();
    let other = Disk::default();
    let options = dunlin::storage::Options { disk_id: 77, ..OPTIONS };
    drop(Store::open_backend(other.clone(), other.journal(), options).expect("a good disk"));
    let [_, other] = other.image();
    let mut short = image[1].clone();
    short.truncate(9 * 4096);
    let mut strange = image[1].clone();
    strange[..8].copy_from_slice(b"whatever");
    for (journal, why) in [
        (Vec::new(), "it is missing or empty"),
        (vec![0; 100], "it is cut short"),
        (short, "its length has changed"),
        (strange, "it is of another program"),
        (other, "it belongs to another store"),
    ] {
        let opened = open([image[0].clone(), journal]);
        let Err(StoreError::Foreign(found)) = opened else { panic!("taken: {why}") };
        assert!(found.starts_with("journal: ") && found.contains(why), "{found}");
    }
    // A log older than its journal: what lay between the two is lost, and that must not pass.
    let old = Disk::default();
    drop(Store::open_backend(old.clone(), old.journal(), OPTIONS).expect("a good disk"));
    let disk = Disk::holding(image);
    let (_, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let mut author = Author::new(&truths[4].1);
    let entry = author.control(shard_of(ONE), EntryKind::EpochStart, ONE, Bytes::new());
    writer.commit(&[entry]).expect("a good disk");
    let ([_, journal], [data, _]) = (disk.image(), old.image());
    assert!(matches!(open([data, journal]), Err(StoreError::Corrupted(_))));
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
