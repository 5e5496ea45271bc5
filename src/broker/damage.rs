//! What a node does about a copy of a shard that its disk has damaged.
//!
//! It gives away what others rely on, one thing after the other: first the lead, then its place in the commit set, by an
//! election of the primary that there is without this node. The new epoch voids all that the damaged copy has acked. Only
//! when that primary has spoken in the new epoch, so that another whole copy is known to live, is this one dropped, and
//! installed as any other that holds nothing. Until then it goes on as it is: a damaged copy is better than none.

use crate::replication::{ShardChange, ShardConfig};
use crate::types::{Boot, Epoch, NodeId};

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Another member must lead.
    HandOver,
    /// This must be proposed: then nobody relies on this copy.
    Leave(ShardChange),
    /// The copy is dropped once the primary speaks in the present epoch.
    Await,
    /// Nothing can be done now.
    Keep(WhyKept),
}

/// Why a damaged copy stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyKept {
    /// There is no other member.
    #[error("no other node holds all of the shard")]
    Alone,
    /// Nobody would be left who has all.
    #[error("too few members would stay in the commit set")]
    TooFew,
    /// Nobody leads, or it is not heard of.
    #[error("no other node that leads the shard is heard")]
    NoPrimary,
    /// An operator must decide about the shard first.
    #[error("the shard is stalled")]
    Stalled,
}

/// What to do about a damaged copy, by the newest metadata that was applied. `promised` is the newest epoch in which this
/// replica has said anything.
pub(crate) fn repair(
    me: Boot,
    config: &ShardConfig,
    promised: Epoch,
    lives: impl Fn(NodeId) -> bool,
) -> Repair {
    if config.stalled {
        return Repair::Keep(WhyKept::Stalled);
    }
    let member = config.set.contains(&me.node);
    if member && config.set.len() == 1 {
        return Repair::Keep(WhyKept::Alone);
    }
    let primary = match config.primary {
        Some(primary) if primary == me => return Repair::HandOver,
        Some(primary) if primary.node != me.node && lives(primary.node) => primary,
        _ => return Repair::Keep(WhyKept::NoPrimary),
    };
    if member && !config.can_shrink() {
        return Repair::Keep(WhyKept::TooFew);
    }
    let required = config.required().any(|node| node == me.node);
    if !required && config.epoch > promised {
        return Repair::Await;
    }
    let (expect_version, drop) = (config.version, vec![me.node]);
    Repair::Leave(ShardChange::Elect { expect_version, primary, drop })
}

/// Whether a damaged copy is to be dropped when `from` speaks as the primary of `epoch`: nobody relies on it, and it has said
/// nothing in this epoch.
pub(crate) fn may_drop(
    me: Boot,
    config: &ShardConfig,
    promised: Epoch,
    (from, epoch): (Boot, Epoch),
) -> bool {
    let required = config.required().any(|node| node == me.node);
    let leads = config.epoch == epoch && config.primary == Some(from) && from != me;
    leads && !required && !config.stalled && epoch > promised
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{replication::Boots, types::Incarnation};

    const ME: Boot = Boot { node: NodeId(2), incarnation: Incarnation(20) };
    const OTHER: Boot = Boot { node: NodeId(1), incarnation: Incarnation(10) };

    fn config(set: &[u64], primary: Boot, copies_min: u32) -> ShardConfig {
        ShardConfig {
            version: 7,
            epoch: Epoch(4),
            primary: Some(primary),
            set: set.iter().copied().map(NodeId).collect(),
            replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
            ..ShardConfig::new(copies_min)
        }
    }

    fn next(config: &ShardConfig, promised: u64) -> Repair {
        repair(ME, config, Epoch(promised), |_| true)
    }

    #[test]
    fn it_gives_away_the_lead_then_its_place_and_drops_the_copy_last() {
        let mut shard = config(&[2, 1, 3], ME, 2);
        assert_eq!(next(&shard, 4), Repair::HandOver);
        shard.primary = Some(OTHER);
        let Repair::Leave(change) = next(&shard, 4) else { panic!("it leaves") };
        assert!(!may_drop(ME, &shard, Epoch(4), (OTHER, Epoch(4))), "it is a member");
        let boots: Boots = [ME, OTHER].map(|boot| (boot.node, boot.incarnation)).into();
        shard.apply(change, &boots).expect("as the version is");
        assert_eq!((&shard.set[..], shard.epoch), (&[NodeId(1), NodeId(3)][..], Epoch(5)));
        assert_eq!(shard.primary, Some(OTHER), "nobody else leads for that");
        assert_eq!(next(&shard, 4), Repair::Await);
        assert!(may_drop(ME, &shard, Epoch(4), (OTHER, Epoch(5))));
        assert!(
            !may_drop(ME, &shard, Epoch(4), (OTHER, Epoch(4))),
            "an epoch that it has acked in"
        );
        assert!(!may_drop(ME, &shard, Epoch(5), (OTHER, Epoch(5))), "it has said something");
    }

    #[test]
    fn a_replica_that_was_removed_in_its_own_epoch_asks_for_a_new_one() {
        let shard = config(&[1, 3], OTHER, 2);
        assert!(matches!(next(&shard, 4), Repair::Leave(_)));
        let mut pending = config(&[1, 3], OTHER, 2);
        pending.pending = vec![ME];
        assert!(matches!(next(&pending, 3), Repair::Leave(_)), "it is waited for");
        assert!(!may_drop(ME, &pending, Epoch(3), (OTHER, Epoch(4))));
    }

    #[test]
    fn the_last_copy_is_kept() {
        let kept = |shard: &ShardConfig| match next(shard, 4) {
            Repair::Keep(why) => why,
            step => panic!("{step:?}"),
        };
        assert_eq!(kept(&config(&[2], ME, 1)), WhyKept::Alone);
        assert_eq!(kept(&config(&[2, 1], OTHER, 2)), WhyKept::TooFew);
        let mut shard = config(&[2, 1, 3], OTHER, 1);
        let silent = repair(ME, &shard, Epoch(4), |_| false);
        assert_eq!(silent, Repair::Keep(WhyKept::NoPrimary));
        shard.stalled = true;
        assert_eq!(kept(&shard), WhyKept::Stalled);
    }
}
