//! Which shard's lead goes to another node next.
//!
//! Who should lead a shard is the first of its replicas: placement deals that out by weight. Here it is decided when that
//! node gets it: one shard after the other, so that what one hand-over disturbs is over before the next, and only to a
//! member of the commit set that has been up for a while. All nodes come to the same answer from the same metadata; the
//! one that leads the shard acts.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use crate::types::{NodeId, ShardId};

/// A shard, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedShard {
    /// Which.
    pub shard: ShardId,
    /// Who leads it.
    pub primary: Option<NodeId>,
    /// Who may.
    pub set: Vec<NodeId>,
    /// Who should.
    pub preferred: Option<NodeId>,
}

/// A node, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeadNode {
    /// Which.
    pub node: NodeId,
    /// For how long it has been up; none while it is down.
    pub up_for: Option<Duration>,
    /// It gives its work away, and must be given none.
    pub leaves: bool,
}

/// The lead of a shard goes from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Which shard.
    pub shard: ShardId,
    /// Who leads it now.
    pub from: NodeId,
    /// Who should.
    pub to: NodeId,
}

/// All hand-overs that are due once `after` has passed since a node came up, the most urgent first: from the node that leads
/// the most shards that it should not, of equal ones the lowest shard.
#[must_use]
pub fn due(shards: &[LedShard], nodes: &[LeadNode], after: Duration) -> Vec<HandOver> {
    let is_up = |node: NodeId| {
        nodes.iter().find(|known| known.node == node).is_some_and(|node| node.up_for.is_some())
    };
    let takes = |node: NodeId| {
        let fit = |node: &LeadNode| !node.leaves && node.up_for.is_some_and(|up| up >= after);
        nodes.iter().find(|known| known.node == node).is_some_and(fit)
    };
    let hand_over = |shard: &LedShard| {
        let (from, to) = (shard.primary?, shard.preferred?);
        let fit = from != to && shard.set.contains(&to) && is_up(from) && takes(to);
        fit.then_some(HandOver { shard: shard.shard, from, to })
    };
    let mut due: Vec<HandOver> = shards.iter().filter_map(hand_over).collect();
    let mut unwanted: BTreeMap<NodeId, usize> = BTreeMap::new();
    for hand_over in &due {
        *unwanted.entry(hand_over.from).or_default() += 1;
    }
    let urgency = |h: &HandOver| (Reverse(unwanted.get(&h.from).copied()), h.shard);
    due.sort_unstable_by_key(urgency);
    due
}

/// The one hand-over that is to be done now. `turn` grows while nothing comes of it: then the next has its turn.
#[must_use]
pub fn next(
    shards: &[LedShard],
    nodes: &[LeadNode],
    after: Duration,
    turn: usize,
) -> Option<HandOver> {
    let due = due(shards, nodes, after);
    due.get(turn % due.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn node(node: u64, up_for: Option<u64>) -> LeadNode {
        LeadNode { node: NodeId(node), up_for: up_for.map(Duration::from_secs), leaves: false }
    }

    fn shard(shard: u16, primary: u64, preferred: u64, set: &[u64]) -> LedShard {
        LedShard {
            shard: ShardId(shard),
            primary: Some(NodeId(primary)),
            set: set.iter().copied().map(NodeId).collect(),
            preferred: Some(NodeId(preferred)),
        }
    }

    #[test]
    fn only_to_a_member_of_the_set_that_has_been_up_for_a_while_and_stays() {
        let shards = [shard(0, 1, 2, &[1, 2])];
        let due = |node: LeadNode| next(&shards, &[self::node(1, Some(99)), node], AFTER, 0);
        let wanted = HandOver { shard: ShardId(0), from: NodeId(1), to: NodeId(2) };
        assert_eq!(due(node(2, Some(10))), Some(wanted));
        assert_eq!(due(node(2, Some(9))), None, "it has just come back");
        assert_eq!(due(node(2, None)), None, "it is down");
        assert_eq!(due(LeadNode { leaves: true, ..node(2, Some(99)) }), None, "it drains");
        let nodes = [node(1, Some(99)), node(2, Some(99))];
        assert_eq!(next(&[shard(0, 1, 2, &[1])], &nodes, AFTER, 0), None, "it has no whole copy");
        assert_eq!(next(&[shard(0, 2, 2, &[1, 2])], &nodes, AFTER, 0), None, "it leads");
    }

    #[test]
    fn whom_nothing_comes_of_does_not_hold_up_the_others() {
        let shards = [shard(0, 1, 2, &[1, 2]), shard(1, 1, 2, &[1, 2])];
        let nodes = [node(1, Some(99)), node(2, Some(99))];
        let chosen = |turn| next(&shards, &nodes, AFTER, turn).map(|h| h.shard.0);
        assert_eq!([chosen(0), chosen(1), chosen(2)], [Some(0), Some(1), Some(0)]);
    }

    fn site() -> impl Strategy<Value = (Vec<LedShard>, Vec<LeadNode>)> {
        let node = (option_secs(), any::<bool>());
        let nodes = vec(node, 1..6).prop_map(|nodes| {
            let node = |(id, (up_for, leaves)): (u64, (Option<u64>, bool))| LeadNode {
                leaves,
                ..self::node(id, up_for)
            };
            (1..).zip(nodes).map(node).collect::<Vec<_>>()
        });
        let shard = (1..6_u64, 1..6_u64, vec(1..6_u64, 1..4));
        let shards = vec(shard, 0..13).prop_map(|shards| {
            let shard = |(id, (primary, preferred, mut set)): (u16, (u64, u64, Vec<u64>))| {
                set.push(primary);
                self::shard(id, primary, preferred, &set)
            };
            (0..).zip(shards).map(shard).collect::<Vec<_>>()
        });
        (shards, nodes)
    }

    fn option_secs() -> impl Strategy<Value = Option<u64>> {
        prop_oneof![Just(None), (0..30_u64).prop_map(Some)]
    }

    proptest! {
        /// Each hand-over brings one shard where it should be, so there are as many as shards that were elsewhere, and none
        /// is ever taken back.
        #[test]
        fn it_ends_after_as_many_hand_overs_as_shards_were_elsewhere((mut shards, nodes) in site()) {
            let count = due(&shards, &nodes, AFTER).len();
            for _ in 0..count {
                let hand_over = next(&shards, &nodes, AFTER, 0).expect("one is due");
                let shard = &mut shards[usize::from(hand_over.shard.0)];
                prop_assert_eq!(shard.primary, Some(hand_over.from));
                prop_assert!(shard.set.contains(&hand_over.to));
                shard.primary = Some(hand_over.to);
                prop_assert_eq!(shard.primary, shard.preferred);
            }
            prop_assert_eq!(next(&shards, &nodes, AFTER, 0), None);
        }
    }
}
