use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};

use super::{type_config::StorageError, *};
use crate::{
    cluster::{BootClaim, MetaCommand, NodeInfo},
    replication::ShardReport,
    storage::MetaStore,
    types::{NodeId, ShardId},
};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = MetaStore::open(&dir.path().join("meta.redb")).expect("new");
        let disk = Disk::new(store);
        let machine = StateMachine::open(NodeId(1), disk.clone()).expect("new");
        Ok((dir, LogStore::new(NodeId(1), disk), machine))
    }
}

#[test]
fn our_storage_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).expect("passes");
}

/// The deepest of our messages is read back: nesting has a limit there.
#[test]
fn every_message_survives_its_bytes() {
    let claim =
        BootClaim { shards: vec![(ShardId(1), ShardReport::default())], ..BootClaim::default() };
    let command = MetaCommand::Register {
        name: "n1".parse().expect("allowed"),
        disk_id: u128::MAX,
        claim,
        info: NodeInfo { addresses: vec!["a:1".into()], ..NodeInfo::default() },
    };
    let request = GroupRequest::Propose(command.clone());
    let read: GroupRequest = decode(&encode(&request)).expect("ours");
    assert!(matches!(read, GroupRequest::Propose(read) if read == command));
    let blob = message::Blob((0..=255).collect());
    let bytes = encode(&blob);
    assert!(bytes.len() < 260, "bytes, not numbers");
    assert!(decode::<message::Blob>(&bytes).expect("ours") == blob);
}

#[test]
fn a_disk_that_failed_takes_nothing_more_and_a_closed_one_is_free() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    let disk = Disk::new(MetaStore::open(&path).expect("new"));
    let failing = disk.clone();
    let failed = failing.run_here(|_| decode::<u64>(b"?").map_err(Into::into));
    failed.expect_err("no number");
    assert!(disk.failure().borrow().is_some());
    let put = disk.run_here(|store| Ok(store.put("vote", b"1")?));
    assert!(put.expect_err("failed before").to_string().starts_with("it failed before"));
    let kept = Arc::new(disk.clone());
    disk.close();
    drop(MetaStore::open(&path).expect("free"));
    drop(kept);
}
