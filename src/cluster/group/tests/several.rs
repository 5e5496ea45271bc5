//! Groups of several members in one process, on links that can be cut.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Mutex as Lock, Weak},
};

use tempfile::TempDir;
use tokio::time::{interval, timeout};

use super::*;

/// Short, but long enough for a busy machine.
const TIMING: MetaTiming = MetaTiming {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(300),
    election_max: Duration::from_millis(600),
    propose_max: Duration::from_secs(10),
};
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Net {
    groups: Lock<BTreeMap<NodeId, Weak<MetaGroup>>>,
    /// Nodes that nobody reaches, and that reach nobody.
    cut: Lock<BTreeSet<NodeId>>,
}

impl Net {
    fn way(&self, a: NodeId, b: NodeId) -> Option<Arc<MetaGroup>> {
        let cut = self.cut.lock().expect("no panic");
        let group = self.groups.lock().expect("no panic").get(&b)?.upgrade();
        group.filter(|_| !cut.contains(&a) && !cut.contains(&b))
    }
}

struct Port {
    me: NodeId,
    net: Arc<Net>,
}

impl MetaTransport for Port {
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            let Some(group) = self.net.way(self.me, to) else {
                return Err(Unreachable::NotSent("cut".into()));
            };
            let lost = || Unreachable::NoAnswer("lost".into());
            let answer = timeout(deadline, group.answer(self.me, request)).await;
            let answer = answer.map_err(|_| lost())?;
            self.net.way(self.me, to).map(|_| answer).ok_or_else(lost)
        })
    }
}

struct World {
    dir: TempDir,
    net: Arc<Net>,
    nodes: BTreeMap<NodeId, Arc<MetaGroup>>,
}

const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        Self { dir, net: Arc::default(), nodes: BTreeMap::new() }
    }

    async fn start_with(&mut self, me: NodeId, timing: MetaTiming) -> Arc<MetaGroup> {
        let path = self.dir.path().join(format!("{me}.redb"));
        let port = Arc::new(Port { me, net: Arc::clone(&self.net) });
        let store = MetaStore::open(&path).expect("opens");
        let group = MetaGroup::open(store, me, port, timing).await.expect("opens");
        let group = Arc::new(group);
        self.net.groups.lock().expect("no panic").insert(me, Arc::downgrade(&group));
        self.nodes.insert(me, Arc::clone(&group));
        group
    }

    async fn start(&mut self, me: NodeId) -> Arc<MetaGroup> {
        self.start_with(me, TIMING).await
    }

    /// Ends a node; nothing is told to the others.
    async fn stop(&mut self, node: NodeId) {
        self.net.groups.lock().expect("no panic").remove(&node);
        self.nodes.remove(&node).expect("runs").shutdown().await;
    }

    fn cut(&self, nodes: &[NodeId]) {
        *self.net.cut.lock().expect("no panic") = nodes.iter().copied().collect();
    }

    /// Three voters.
    async fn three(timing: MetaTiming) -> Self {
        let mut world = Self::new();
        let first = world.start_with(ALL[0], timing).await;
        first.found("home".parse().expect("allowed"), 2).await.expect("new");
        for node in &ALL[1..] {
            world.start_with(*node, timing).await;
            first.add_learner(*node).await.expect("reachable");
            first.promote(*node).await.expect("catches up");
        }
        assert_eq!(first.members(), (ALL.to_vec(), vec![]));
        world
    }

    /// Waits until these nodes follow one of them.
    async fn leader(&self, of: &[NodeId]) -> NodeId {
        let agreed = async || {
            let leaders: BTreeSet<_> =
                of.iter().map(|n| *self.nodes[n].leader().borrow()).collect();
            let leader = leaders.first().copied().flatten()?;
            let leads = of.contains(&leader) && self.nodes[&leader].is_leader();
            (leaders.len() == 1 && leads).then_some(leader)
        };
        eventually("a leader", agreed).await
    }

    /// Waits until all these nodes have this topic.
    async fn all_have(&self, of: &[NodeId], n: u64) {
        let name = format!("t{n}").parse().expect("allowed");
        let have = async || {
            let has = |node| self.nodes[node].read(|site| site.topics.contains_key(&name));
            of.iter().all(has).then_some(())
        };
        eventually("the topic", have).await;
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let looking = async {
        let mut looks = interval(Duration::from_millis(10));
        loop {
            looks.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} never came"))
}

fn others(node: NodeId) -> Vec<NodeId> {
    ALL.into_iter().filter(|other| *other != node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_proposes_and_another_leads_when_the_leader_is_gone() {
    let mut world = World::three(TIMING).await;
    let leader = world.leader(&ALL).await;
    let rest = others(leader);
    let follower = Arc::clone(&world.nodes[&rest[0]]);
    follower.propose(create(1)).await.expect("forwarded");
    let name = "t1".parse().expect("allowed");
    assert!(follower.read(|site| site.topics.contains_key(&name)), "its own write");
    let again = follower.propose(MetaCommand::DeleteTopic { name }).await.expect("there");
    assert!(matches!(again, MetaOutcome::Topic(_)));
    follower.propose(create(2)).await.expect("forwarded");
    let other = "away".parse().expect("allowed");
    let rejected = follower.propose(MetaCommand::Found { site: other, shards: 2 }).await;
    assert!(matches!(rejected, Err(GroupError::Rejected(MetaReject::OtherSite(_)))));

    let term = follower.status().term;
    world.stop(leader).await;
    let begun = Instant::now();
    // It waits for the new leader by itself.
    follower.propose(create(3)).await.expect("two of three");
    let took = begun.elapsed();
    println!("another leads and has written after {took:?}");
    // The lease and the drawn time, and room for a second election on a busy machine.
    assert!(took < TIMING.election_max * 6, "{took:?}");
    let next = world.leader(&rest).await;
    assert_ne!(next, leader);
    assert!(follower.status().term > term);
    let came_back = world.start(leader).await;
    world.all_have(&ALL, 3).await;
    came_back.propose(create(4)).await.expect("forwarded");
    came_back.ensure_current(PATIENCE).await.expect("a majority");
    world.all_have(&ALL, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_gets_the_snapshot() {
    let mut world = World::three(TIMING).await;
    let leader = world.leader(&ALL).await;
    let away = others(leader)[0];
    world.stop(away).await;
    let group = Arc::clone(&world.nodes[&leader]);
    for n in 0..META_LOG_KEPT + 20 {
        group.propose(create(n)).await.expect("two of three");
    }
    group.raft.trigger().snapshot().await.expect("runs");
    let metrics =
        async || group.raft.metrics().borrow().snapshot.filter(|id| id.index > META_LOG_KEPT);
    let last = eventually("the snapshot", metrics).await;
    group.raft.trigger().purge_log(last.index).await.expect("runs");
    let purged = async || group.raft.metrics().borrow().purged.filter(|id| *id == last);
    eventually("the purge", purged).await;

    world.start(away).await;
    world.all_have(&ALL, META_LOG_KEPT + 19).await;
    let has = world.nodes[&away].raft.metrics().borrow().snapshot;
    assert_eq!(has, Some(last), "not by the log");
    // What it was sent is what it finds at its next start.
    world.stop(away).await;
    let group = world.start(away).await;
    group.ensure_current(PATIENCE).await.expect("a majority");
    let state = |node| world.nodes[&node].read(|site| site.topics.clone());
    assert_eq!(state(away), state(leader));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_proposed_and_afterwards_it_is() {
    let timing = MetaTiming { propose_max: Duration::from_secs(2), ..TIMING };
    let world = World::three(timing).await;
    let leader = world.leader(&ALL).await;
    let rest = others(leader);
    world.cut(&ALL);
    for node in ALL {
        let failed = world.nodes[&node].propose(create(node.0)).await;
        assert!(matches!(failed, Err(GroupError::NoLeader)), "{node}: {failed:?}");
        let stale = world.nodes[&node].ensure_current(Duration::from_millis(300)).await;
        assert!(matches!(stale, Err(GroupError::NoLeader)), "{stale:?}");
    }
    // The old leader alone is cut: the others go on, and it learns what it missed.
    world.cut(&[leader]);
    let next = world.leader(&rest).await;
    world.nodes[&next].propose(create(10)).await.expect("two of three");
    world.cut(&[]);
    world.all_have(&ALL, 10).await;
    let made = world.nodes[&leader].read(|site| site.topics.len());
    assert_eq!(made, 1, "what failed was not done");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let mut world = World::three(TIMING).await;
    let leader = world.leader(&ALL).await;
    let rest = others(leader);
    let (group, follower) = (Arc::clone(&world.nodes[&leader]), Arc::clone(&world.nodes[&rest[0]]));
    // Asked for through a follower, and twice.
    for _ in 0..2 {
        follower.remove(rest[1]).await.expect("a majority stays");
    }
    eventually("the change", async || {
        let voters: BTreeSet<_> = follower.members().0.into_iter().collect();
        (voters == [leader, rest[0]].into()).then_some(())
    })
    .await;
    world.stop(rest[1]).await;
    let stranger = follower.promote(NodeId(9)).await;
    assert!(matches!(stranger, Err(GroupError::Membership(_))), "{stranger:?}");

    let fourth = NodeId(4);
    world.start(fourth).await;
    group.add_learner(fourth).await.expect("reachable");
    assert_eq!(group.members().1, [fourth]);
    group.promote(fourth).await.expect("catches up");
    group.propose(create(1)).await.expect("a majority");
    world.all_have(&[leader, rest[0], fourth], 1).await;
    let voters = world.nodes[&fourth].read(|site| site.voters.clone());
    assert_eq!(voters, [leader, rest[0], fourth].into());

    // The leader itself leaves, and then all but one.
    group.remove(leader).await.expect("a majority stays");
    let next = world.leader(&[rest[0], fourth]).await;
    let last = Arc::clone(&world.nodes[&next]);
    let other = if next == fourth { rest[0] } else { fourth };
    last.propose(create(2)).await.expect("a majority");
    last.remove(other).await.expect("one stays");
    let alone = last.remove(next).await;
    assert!(matches!(alone, Err(GroupError::Membership(_))), "{alone:?}");
    world.stop(other).await;
    last.propose(create(3)).await.expect("alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_and_nobody_who_was_removed() {
    let world = World::three(TIMING).await;
    let group = &world.nodes[&ALL[0]];
    let vote = openraft::Vote::new(100, ALL[1]);
    let request = openraft::raft::VoteRequest::new(vote, None);
    let bytes = encode(&GroupRequest::Vote(request));
    let answer = decode(&group.answer(ALL[2], bytes).await).expect("ours");
    assert!(matches!(answer, GroupAnswer::Refused(_)), "{answer:?}");
    let answer = decode(&group.answer(ALL[2], Bytes::from_static(b"?")).await).expect("ours");
    assert!(matches!(answer, GroupAnswer::Refused(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_knows_the_others_before_it_hears_any_of_them() {
    let mut world = World::three(TIMING).await;
    let leader = world.leader(&ALL).await;
    for n in 0..4 {
        world.nodes[&leader].propose(create(n)).await.expect("a majority");
    }
    world.all_have(&ALL, 3).await;
    for node in ALL {
        world.stop(node).await;
    }
    world.cut(&ALL);
    for node in ALL {
        let group = world.start(node).await;
        let known = group.read(|site| (site.site.is_some(), site.topics.len()));
        // How far the last change is committed may not be on the disk yet.
        assert!(known.0 && known.1 >= 3, "{node} knows {known:?}");
    }
}
