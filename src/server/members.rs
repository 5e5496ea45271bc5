//! Who takes part in the metadata group, and where shards lie: looked after by the group's leader.

use std::sync::Arc;

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{connection::Shared, start::REMOVED_FILE};
use crate::{
    cluster::{GroupError, MetaCommand, MetaGroup, SiteState, place},
    limits::{MEMBERS_INTERVAL, META_VOTERS_MAX},
    types::NodeId,
};

/// Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let engine = Arc::clone(&shared.engine);
    let mut leader = engine.group.leader();
    let mut applied = engine.group.applied();
    let mut ticks = interval(MEMBERS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen_nodes = 0;
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = ticks.tick() => {}
            // The senders live in the group.
            _ = leader.changed() => match *leader.borrow_and_update() {
                Some(node) => tracing::info!(%node, "metadata has a leader"),
                None => tracing::warn!("metadata has no leader: it cannot change"),
            },
            _ = applied.changed() => {
                // A new node is not to wait; the rest has time.
                let nodes = engine.group.read(|site| site.nodes.len());
                if nodes == seen_nodes {
                    continue;
                }
                seen_nodes = nodes;
            }
        }
        if engine.group.is_leader() {
            look_after(&shared).await;
        }
    }
}

async fn look_after(shared: &Shared) {
    let engine = &shared.engine;
    for command in engine.group.read(place) {
        engine.ask(command);
    }
    let now = engine.clock.uptime();
    let lives = |node: NodeId| shared.liveness.of(node, now).is_some_and(|l| l.up);
    let (members, leader) = (engine.group.members(), engine.group.status().leader);
    let Some(change) = engine.group.read(|site| wanted(site, &members, leader, lives)) else {
        return;
    };
    let made = match change {
        Change::Learner(node) => engine.group.add_learner(node).await,
        Change::Voter(node) => engine.group.promote(node).await,
        Change::Gone(node) => engine.group.remove(node).await,
    };
    match (change, made) {
        (change, Ok(())) => tracing::info!(?change, "membership of the metadata group changed"),
        // Tried again at the next round.
        (change, Err(GroupError::NoLeader | GroupError::Membership(_))) => {
            tracing::debug!(?change, "membership of the metadata group not changed yet");
        }
        (change, Err(error)) => {
            tracing::warn!(?change, %error, "membership of the metadata group not changed");
        }
    }
}

/// Stops the node when the site has removed it. Runs until the node stops.
pub(super) async fn watch_removal(shared: Arc<Shared>, mut removed: watch::Receiver<bool>) {
    if removed.wait_for(|removed| *removed).await.is_ok() {
        // The next start may find nobody who would tell it.
        let file = shared.data_dir.join(REMOVED_FILE);
        if let Err(error) = tokio::fs::write(&file, "").await {
            tracing::warn!(%error, file = %file.display(), "the removal is not noted");
        }
        shared.engine.fail("the site has removed it");
    }
}

/// Takes a node out of the site: first its vote, as long as everybody may still talk to it, then its record.
pub(super) async fn let_go(group: &MetaGroup, node: NodeId) -> Result<(), GroupError> {
    let command = MetaCommand::RemoveNode { node };
    group.read(|site| site.check_unused(node))?;
    let (voters, learners) = group.members();
    if voters == [node] {
        let able =
            |other: &&NodeId| **other != node && group.read(|site| has_started(site, **other));
        if let Some(heir) = learners.iter().find(able) {
            group.promote(*heir).await?;
        }
    }
    if voters.contains(&node) || learners.contains(&node) {
        group.remove(node).await?;
    }
    group.propose(command).await.map(drop)
}

/// A change of the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Learner(NodeId),
    Voter(NodeId),
    Gone(NodeId),
}

/// The next change that is wanted: every node gets the log; an odd number of them votes, as two that must agree are worth
/// less than one.
fn wanted(
    site: &SiteState,
    members: &(Vec<NodeId>, Vec<NodeId>),
    leader: Option<NodeId>,
    lives: impl Fn(NodeId) -> bool,
) -> Option<Change> {
    let (voters, learners) = members;
    let is_member = |node: &NodeId| voters.contains(node) || learners.contains(node);
    if let Some(gone) = voters.iter().chain(learners).find(|n| !site.nodes.contains_key(n)) {
        return Some(Change::Gone(*gone));
    }
    if let Some(new) = site.nodes.keys().find(|node| !is_member(node)) {
        return Some(Change::Learner(*new));
    }
    // A node that has never started has nothing to vote with. One that is down, or leaves, is not given a vote: the others
    // would need it.
    let may_vote =
        |node: &&NodeId| has_started(site, **node) && !is_leaving(site, **node) && lives(**node);
    let able = voters.len() + learners.iter().filter(may_vote).count();
    let want = (able - usize::from(able.is_multiple_of(2) && able > 0)).min(META_VOTERS_MAX);
    if voters.len() > want {
        // It comes back as a learner.
        let leaving = |node: &&NodeId| (is_leaving(site, **node), Some(**node) != leader, **node);
        return voters.iter().max_by_key(leaving).map(|node| Change::Gone(*node));
    }
    if voters.len() == want {
        return None;
    }
    learners.iter().filter(may_vote).min().map(|node| Change::Voter(*node))
}

fn has_started(site: &SiteState, node: NodeId) -> bool {
    site.nodes.get(&node).is_some_and(|node| node.has_booted())
}

fn is_leaving(site: &SiteState, node: NodeId) -> bool {
    site.nodes.get(&node).is_some_and(|node| node.draining)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{BootClaim, NodeInfo},
        types::{NodeRole, Timestamp},
    };

    /// So many nodes, all started, the first of which founded the site.
    fn site(count: u64) -> (SiteState, Vec<NodeId>) {
        let mut site = SiteState::default();
        let mut apply = |command| site.apply(site.applied + 1, command).map(drop).expect("allowed");
        apply(MetaCommand::Found { site: "home".parse().expect("a name"), shards: 1 });
        for number in 0..count {
            let name: crate::types::NodeName = format!("n{number}").parse().expect("a name");
            let (disk_id, role, now) = (number.into(), NodeRole::Data, Timestamp(0));
            if number > 0 {
                let name = name.clone();
                apply(MetaCommand::AddNode { name, disk_id, role, invite: None, now });
            }
            let claim = BootClaim { boot: 1, nonce: number, ..BootClaim::default() };
            apply(MetaCommand::Register { name, disk_id, claim, info: NodeInfo::default() });
        }
        let nodes = site.nodes.keys().copied().collect();
        (site, nodes)
    }

    #[test]
    fn two_learners_get_their_votes_one_after_the_other() {
        let (site, nodes) = site(3);
        let [one, two, three] = nodes[..] else { panic!("{nodes:?}") };
        let asked = |voters: &[NodeId], learners: &[NodeId]| {
            wanted(&site, &(voters.to_vec(), learners.to_vec()), Some(one), |_| true)
        };
        assert_eq!(asked(&[one], &[two]), Some(Change::Learner(three)));
        assert_eq!(asked(&[one], &[two, three]), Some(Change::Voter(two)));
        assert_eq!(asked(&[one, two], &[three]), Some(Change::Voter(three)));
        assert_eq!(asked(&[one, two, three], &[]), None);
    }

    /// With its vote two of three would be needed, and only one of them be there.
    #[test]
    fn who_is_down_or_leaves_is_given_no_vote() {
        let (mut site, nodes) = site(3);
        let [one, two, three] = nodes[..] else { panic!("{nodes:?}") };
        let members = (vec![one], vec![two, three]);
        let asked =
            |site: &SiteState, down: NodeId| wanted(site, &members, Some(one), |node| node != down);
        assert_eq!(asked(&site, two), None);
        assert_eq!(asked(&site, three), None);
        let drain = MetaCommand::SetNode { node: two, weight: None, draining: Some(true) };
        site.apply(site.applied + 1, drain).expect("allowed");
        assert_eq!(asked(&site, NodeId(99)), None);
        // Who has a vote and is down keeps it: it may come back.
        let all = (vec![one, two, three], vec![]);
        assert_eq!(wanted(&site, &all, Some(one), |node| node == one), None);
    }
}
