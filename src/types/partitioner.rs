//! Which partition a key belongs to: the same answer in every client of every language.

/// Maps a key to one of `partitions` partitions.
///
/// CRC-32C of the key (the checksum that every client has anyway), mixed by the 32-bit finalizer of
/// MurmurHash3 because a CRC alone is linear, then scaled to the range by multiplication (Lemire,
/// "Fast Random Integer Generation in an Interval", 2019) instead of a biased remainder.
///
/// # Panics
/// If `partitions` is 0: a topic has at least one.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    let mut hash = crc32c::crc32c(key);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    // The product of two 32-bit numbers shifted by 32 fits 32 bits.
    ((u64::from(hash) * u64::from(partitions)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_stay_where_they_are() {
        // These are part of the protocol: a change here scatters the keys of every site.
        let found: Vec<u32> = ["", "a", "b", "plant/line3/temp"]
            .iter()
            .map(|k| partition_of_key(k.as_bytes(), 12))
            .collect();
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [0, 11, 9, 9];

    #[test]
    fn keys_spread_evenly() {
        let mut counts = [0u32; 16];
        for i in 0..16_000 {
            counts[partition_of_key(format!("sensor-{i}").as_bytes(), 16) as usize] += 1;
        }
        for count in counts {
            assert!((850..1150).contains(&count), "{counts:?}");
        }
    }
}
