use super::*;
use crate::types::TopicSettings;

fn create(n: u64) -> MetaCommand {
    MetaCommand::CreateTopic {
        name: format!("t{n}").parse().expect("allowed"),
        settings: TopicSettings::default(),
        now: crate::types::Timestamp(n),
    }
}

async fn open(path: &std::path::Path, me: NodeId) -> Result<MetaGroup, GroupError> {
    let store = MetaStore::open(path).expect("opens");
    MetaGroup::open(store, me, Arc::new(NoLinks), MetaTiming::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_survives_restarts_across_snapshots() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    let mut want = SiteState::default();
    for round in 0..3 {
        let group = open(&path, NodeId(1)).await.expect("reads");
        assert_eq!(group.read(|site| site.topics.clone()), want.topics);
        let site: SiteName = "home".parse().expect("allowed");
        group.found(site, 2).await.expect("new or the same");
        for n in 0..META_LOG_LEN_MAX * 2 / 3 {
            group.propose(create(round * 1_000 + n)).await.expect("new");
        }
        let other = "away".parse().expect("allowed");
        let rejected = group.propose(MetaCommand::Found { site: other, shards: 2 }).await;
        assert!(matches!(rejected, Err(GroupError::Rejected(_))));
        want = group.read(SiteState::clone);
        // One is stopped in order, one is not.
        if round == 0 {
            group.shutdown().await;
        }
    }
    assert_eq!(want.topics.len() as u64, 3 * (META_LOG_LEN_MAX * 2 / 3));
    let store = MetaStore::open(&path).expect("free");
    assert!(store.snapshot().expect("readable").is_some());
    let log = store.entries(0..).expect("readable").len() as u64;
    assert!(log <= META_LOG_LEN_MAX + META_LOG_KEPT, "{log} entries");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_raft_has_ended_nobody_leads_and_that_is_said_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let group = open(&dir.path().join("meta.redb"), NodeId(1)).await.expect("new");
    group.found("home".parse().expect("allowed"), 1).await.expect("new");
    let mut leader = group.leader();
    leader.wait_for(Option::is_some).await.expect("a group of one elects itself");
    group.shutdown().await;
    leader.wait_for(Option::is_none).await.expect("nobody leads now");
    // Whoever tells it may end a moment after it has told.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(leader.has_changed().ok(), Some(false), "no news, and not the end of all news");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_of_another_node_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    drop(open(&path, NodeId(1)).await.expect("new"));
    let error = open(&path, NodeId(2)).await.expect_err("of another node");
    assert!(matches!(error, GroupError::OtherNode { .. }), "{error}");
    drop(open(&path, NodeId(1)).await.expect("free again"));
}

mod several;
