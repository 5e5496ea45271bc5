//! Heartbeats: what a node tells all others of itself several times a second, in datagrams.
//!
//! ```text
//! offset  type  field
//!      0  u8    version, 1
//!      1  u8    flags: bit 0 draining, bit 1 damaged, the others 0
//!      2  u8    load
//!      3  u8    number of nodes heard
//!      4  u32   connections
//!      8  u64   node
//!     16  u64   incarnation
//!     24  u64   sent: number of the heartbeat
//!     32  u64   applied: how far the metadata is applied
//!     40        nodes heard: u64 each
//!               digests: u16 shard | u64 lsn | u64 epoch | u64 chain each
//! ```
//! All numbers are big-endian. Digests that do not fit one datagram go in several of the same number.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    limits::{HEARTBEAT_HEARS_MAX, PEER_DATAGRAM_LEN_MAX},
    replication::{LogEnd, ShardDigest},
    types::{Boot, Epoch, Incarnation, Lsn, NodeId, ShardId},
};

const VERSION: u8 = 1;
const DRAINING: u8 = 1;
const DAMAGED: u8 = 2;
const HEADER_LEN: usize = 40;
const DIGEST_LEN: usize = 26;
const HEARD_LEN: usize = 8;
/// Heartbeats that may lack a shard before it is taken to be gone: as many as may be lost before the node is down.
const KEPT: u64 = 6;

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who says it.
    pub from: Boot,
    /// Number of the heartbeat, rising within a boot.
    pub sent: u64,
    /// How far it has applied the metadata.
    pub applied: u64,
    /// Whom it hears. Empty is "I do not say".
    pub hears: Vec<NodeId>,
    /// Its shards.
    pub digests: Vec<ShardDigest>,
    /// Clients that are connected to it.
    pub connections: u32,
    /// How busy it is, in percent.
    pub load: u8,
    /// It stops: nothing new should be given to it.
    pub draining: bool,
    /// A copy of a shard is damaged there, and not made anew yet.
    pub damaged: bool,
}

/// A datagram that is no heartbeat of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram of {0} bytes is no heartbeat of version {VERSION}")]
pub struct BadHeartbeat(pub usize);

impl Heartbeat {
    /// The datagrams that say it: at least one.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let hears = if self.hears.len() <= HEARTBEAT_HEARS_MAX { &self.hears[..] } else { &[] };
        let room = PEER_DATAGRAM_LEN_MAX - HEADER_LEN - hears.len() * HEARD_LEN;
        let mut parts: Vec<_> = self.digests.chunks(room / DIGEST_LEN).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        parts.into_iter().map(|digests| self.datagram(hears, digests)).collect()
    }

    fn datagram(&self, hears: &[NodeId], digests: &[ShardDigest]) -> Bytes {
        let len = HEADER_LEN + hears.len() * HEARD_LEN + digests.len() * DIGEST_LEN;
        let mut out = BytesMut::with_capacity(len);
        out.put_u8(VERSION);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.put_u8(flag(self.draining, DRAINING) | flag(self.damaged, DAMAGED));
        out.put_u8(self.load);
        out.put_u8(u8::try_from(hears.len()).unwrap_or(0));
        out.put_u32(self.connections);
        out.put_u64(self.from.node.0);
        out.put_u64(self.from.incarnation.0);
        out.put_u64(self.sent);
        out.put_u64(self.applied);
        for node in hears {
            out.put_u64(node.0);
        }
        for digest in digests {
            out.put_u16(digest.shard.0);
            out.put_u64(digest.end.lsn.0);
            out.put_u64(digest.end.epoch.0);
            out.put_u64(digest.end.chain);
        }
        out.freeze()
    }

    /// Reads one datagram, with the digests that are in it.
    ///
    /// # Errors
    /// [`BadHeartbeat`].
    pub fn decode(mut bytes: &[u8]) -> Result<Self, BadHeartbeat> {
        let bad = BadHeartbeat(bytes.len());
        if bytes.len() < HEADER_LEN || bytes.len() > PEER_DATAGRAM_LEN_MAX {
            return Err(bad);
        }
        let (version, flags, load, hears) =
            (bytes.get_u8(), bytes.get_u8(), bytes.get_u8(), usize::from(bytes.get_u8()));
        if version != VERSION || flags & !(DRAINING | DAMAGED) != 0 || hears > HEARTBEAT_HEARS_MAX {
            return Err(bad);
        }
        let connections = bytes.get_u32();
        let node = NodeId(bytes.get_u64());
        let from = Boot { node, incarnation: Incarnation(bytes.get_u64()) };
        let (sent, applied) = (bytes.get_u64(), bytes.get_u64());
        let digests_len = bytes.len().checked_sub(hears * HEARD_LEN).ok_or(bad)?;
        if !digests_len.is_multiple_of(DIGEST_LEN) {
            return Err(bad);
        }
        let hears = (0..hears).map(|_| NodeId(bytes.get_u64())).collect();
        let mut digests = Vec::with_capacity(bytes.len() / DIGEST_LEN);
        while !bytes.is_empty() {
            let shard = ShardId(bytes.get_u16());
            let (lsn, epoch) = (Lsn(bytes.get_u64()), Epoch(bytes.get_u64()));
            digests.push(ShardDigest { shard, end: LogEnd { lsn, epoch, chain: bytes.get_u64() } });
        }
        let (draining, damaged) = (flags & DRAINING != 0, flags & DAMAGED != 0);
        Ok(Self { from, sent, applied, hears, digests, connections, load, draining, damaged })
    }
}

/// Puts together the digests of one peer, which may come in several datagrams, of which some are lost.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    boot: Boot,
    newest: u64,
    ends: BTreeMap<ShardId, (u64, LogEnd)>,
}

impl Digests {
    /// Takes a datagram; gives it back with the digests of all shards that were heard of lately, or nothing when a newer
    /// one has come before it.
    pub fn take(&mut self, mut beat: Heartbeat) -> Option<Heartbeat> {
        if beat.from != self.boot {
            if beat.from.incarnation < self.boot.incarnation {
                return None;
            }
            *self = Self { boot: beat.from, ..Self::default() };
        }
        if beat.sent < self.newest {
            return None;
        }
        self.newest = beat.sent;
        for digest in &beat.digests {
            self.ends.insert(digest.shard, (beat.sent, digest.end));
        }
        self.ends.retain(|_, (sent, _)| sent.saturating_add(KEPT) >= beat.sent);
        let known = self.ends.iter();
        beat.digests =
            known.map(|(shard, (_, end))| ShardDigest { shard: *shard, end: *end }).collect();
        Some(beat)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn beat(sent: u64, shards: u16) -> Heartbeat {
        let end = |n: u64| LogEnd { lsn: Lsn(sent * 100 + n), epoch: Epoch(2), chain: n };
        let digest = |n| ShardDigest { shard: ShardId(n), end: end(n.into()) };
        Heartbeat {
            from: Boot { node: NodeId(1), incarnation: Incarnation(7) },
            sent,
            applied: 9,
            hears: vec![NodeId(1), NodeId(2)],
            digests: (0..shards).map(digest).collect(),
            connections: 3,
            load: 4,
            draining: true,
            damaged: false,
        }
    }

    #[test]
    fn golden_bytes() {
        let datagrams = beat(5, 1).encode();
        let found: String = datagrams[0].iter().map(|b| format!("{b:02x}")).collect();
        let want = "01010402".to_owned() // version, draining, load, 2 nodes heard
            + "00000003" // connections
            + "0000000000000001" // node
            + "0000000000000007" // incarnation
            + "0000000000000005" // sent
            + "0000000000000009" // applied
            + "0000000000000001" // node heard
            + "0000000000000002" // node heard
            + "0000" // shard
            + "00000000000001f4" // lsn
            + "0000000000000002" // epoch
            + "0000000000000000"; // chain
        assert_eq!((found, datagrams.len()), (want, 1));
    }

    #[test]
    fn two_dozen_shards_fit_one_datagram_and_more_are_split() {
        assert_eq!(beat(1, 24).encode().len(), 1);
        let many = beat(1, 100).encode();
        assert_eq!(many.len(), 3);
        assert!(many.iter().all(|d| d.len() <= PEER_DATAGRAM_LEN_MAX));
        let mut digests = Digests::default();
        let read = many.iter().map(|d| Heartbeat::decode(d).expect("own work"));
        let last = read.filter_map(|beat| digests.take(beat)).last();
        assert_eq!(last, Some(beat(1, 100)));
    }

    #[test]
    fn who_hears_too_many_names_none() {
        let hears = |count: u64| (1..=count).map(NodeId).collect::<Vec<_>>();
        let most = HEARTBEAT_HEARS_MAX as u64;
        for (count, named) in [(0, 0), (most, most), (most + 1, 0)] {
            let datagrams = Heartbeat { hears: hears(count), ..beat(1, 100) }.encode();
            assert!(datagrams.iter().all(|d| d.len() <= PEER_DATAGRAM_LEN_MAX));
            let read = datagrams.iter().map(|d| Heartbeat::decode(d).expect("own work"));
            assert!(read.map(|beat| beat.hears).all(|found| found == hears(named)), "{count}");
        }
        let mut more = beat(1, 0).encode()[0].to_vec();
        more[3] = u8::MAX;
        assert_eq!(Heartbeat::decode(&more), Err(BadHeartbeat(56)));
    }

    #[test]
    fn a_lost_part_leaves_what_was_heard_before_for_a_while() {
        let mut digests = Digests::default();
        for datagram in beat(1, 100).encode() {
            digests.take(Heartbeat::decode(&datagram).expect("own work"));
        }
        let first = |sent| Heartbeat::decode(&beat(sent, 100).encode()[0]).expect("own work");
        let next = digests.take(first(2)).expect("newer");
        assert_eq!(next.digests.len(), 100);
        assert_eq!(next.digests[0].end.lsn, Lsn(200));
        assert_eq!(next.digests[99].end.lsn, Lsn(199));
        assert_eq!(digests.take(first(1)), None, "late");
        assert_eq!(digests.take(first(2 + KEPT)).expect("newer").digests.len(), 40);
    }

    #[test]
    fn another_boot_begins_anew() {
        let mut digests = Digests::default();
        digests.take(beat(9, 3));
        let mut reborn = beat(1, 1);
        reborn.from.incarnation = Incarnation(8);
        assert_eq!(digests.take(reborn.clone()), Some(reborn));
        assert_eq!(digests.take(beat(10, 3)), None, "its former self");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(beat) = Heartbeat::decode(&bytes) {
                prop_assert_eq!(&beat.encode()[0][..], &bytes[..]);
            }
        }
    }
}
