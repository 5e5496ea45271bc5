//! What a replica must not forget and that is no entry of a log: small records among the entries of the rows.
//!
//! | at | type | field |
//! |---|---|---|
//! | 0 | u32 | length of the body |
//! | 4 | u32 | CRC-32C of all that follows |
//! | 8 | u8 | version, 1 |
//! | 9 | u8 | kind: 64 promise, 65 high watermark; kinds below 64 are those of entries |
//! | 10 | u8 | flags: bit 0 "required", always set |
//! | 11 | u8 | 0 |
//! | 12 | u16 | shard |
//! | 14 | u16 | 0 |
//! | 16 | | body: u64, the epoch or the position |
//!
//! They belong to no chain, and no other node ever sees them. What they say only grows.

use bytes::{Buf, BufMut};

use crate::types::{Epoch, Lsn, ShardId};

const HEADER_LEN: usize = 16;
const BODY_LEN: u32 = 8;
pub(super) const FACT_LEN: usize = HEADER_LEN + BODY_LEN as usize;
/// Where an entry and a fact have their kind.
pub(super) const KIND_AT: usize = 9;
const KIND_MIN: u8 = 64;
const PROMISE: u8 = 64;
const HIGH_WATERMARK: u8 = 65;
const VERSION: u8 = 1;
const REQUIRED: u8 = 1;

/// A fact about one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) shard: ShardId,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Messages of older epochs are refused.
    Promise(Epoch),
    /// Positions below this are committed.
    HighWatermark(Lsn),
}

impl Fact {
    /// Tells whether a fact lies at the front of `bytes`, and not an entry.
    pub(super) fn is_at(bytes: &[u8]) -> bool {
        bytes.get(KIND_AT).is_some_and(|kind| *kind >= KIND_MIN)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, number) = match self.what {
            What::Promise(epoch) => (PROMISE, epoch.0),
            What::HighWatermark(lsn) => (HIGH_WATERMARK, lsn.0),
        };
        let mut rest = [0; FACT_LEN - 8];
        let mut fields = &mut rest[..];
        fields.put_slice(&[VERSION, kind, REQUIRED, 0]);
        fields.put_u16(self.shard.0);
        fields.put_u16(0);
        fields.put_u64(number);
        out.put_u32(BODY_LEN);
        out.put_u32(crc32c::crc32c(&rest));
        out.put_slice(&rest);
    }

    /// Reads the fact at the front of `bytes`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, String> {
        let Some(whole) = bytes.get(..FACT_LEN) else {
            return Err(format!("a fact needs {FACT_LEN} bytes, there are {}", bytes.len()));
        };
        let (body_len, crc) = (bytes.get_u32(), bytes.get_u32());
        if body_len != BODY_LEN || crc != crc32c::crc32c(&whole[8..]) {
            return Err("the checksum of a fact does not match it".into());
        }
        let (version, kind, flags, zero) =
            (bytes.get_u8(), bytes.get_u8(), bytes.get_u8(), bytes.get_u8());
        let (shard, filler) = (ShardId(bytes.get_u16()), bytes.get_u16());
        if version != VERSION || flags != REQUIRED || zero != 0 || filler != 0 {
            return Err("a fact has a version or flags that this program does not know".into());
        }
        let what = match kind {
            PROMISE => What::Promise(Epoch(bytes.get_u64())),
            HIGH_WATERMARK => What::HighWatermark(Lsn(bytes.get_u64())),
            kind => return Err(format!("a fact has kind {kind}, written by a newer program")),
        };
        Ok(Self { shard, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let fact = Fact { shard: ShardId(3), what: What::Promise(Epoch(5)) };
        let mut bytes = Vec::new();
        fact.encode(&mut bytes);
        let found: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let want = "00000008".to_owned() // body length
            + "fa0356d5" // CRC-32C of what follows
            + "01400100" // version, kind, required, 0
            + "00030000" // shard, 0
            + "0000000000000005"; // body: the epoch
        assert_eq!(found, want);
        assert!(Fact::is_at(&bytes));
        let fact = Fact { shard: ShardId(1), what: What::HighWatermark(Lsn(7)) };
        let mut bytes = Vec::new();
        fact.encode(&mut bytes);
        assert_eq!(bytes[9], 65);
        assert_eq!(Fact::decode(&bytes), Ok(fact));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut good = Vec::new();
        Fact { shard: ShardId(3), what: What::HighWatermark(Lsn(9)) }.encode(&mut good);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Fact::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
