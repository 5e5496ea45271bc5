//! A metadata group of one on the same disks: vote, log and snapshot as Raft uses them.

use std::{io::ErrorKind, sync::Arc};

use dunlin::{
    cluster::{FOUNDER, GroupError, MetaCommand, MetaGroup, MetaTiming, NoLinks},
    storage::MetaStore,
    types::{Timestamp, TopicName, TopicSettings},
};

use super::disk::{Disk, Fault, Honesty, Image, Platter, Survival};

const TOPICS: u64 = 6;

async fn open(disk: &Disk) -> Result<MetaGroup, GroupError> {
    let store = MetaStore::open_backend(disk.clone())?;
    MetaGroup::open(store, FOUNDER, Arc::new(NoLinks), MetaTiming::default()).await
}

fn name(n: u64) -> TopicName {
    format!("t{n}").parse().expect("allowed")
}

/// Founds a site and makes topics; says after each what was acknowledged, until something fails.
async fn work(disk: &Disk, mut acked: impl FnMut(u64)) -> Result<(), GroupError> {
    let group = open(disk).await?;
    let done = async {
        group.found("home".parse().expect("allowed"), 2).await?;
        for n in 0..TOPICS {
            let (settings, now) = (TopicSettings::default(), Timestamp(n));
            group.propose(MetaCommand::CreateTopic { name: name(n), settings, now }).await?;
            acked(n + 1);
        }
        Ok(())
    };
    let done = done.await;
    if done.is_err() {
        assert!(group.failure().borrow().is_some(), "the node must know that it must stop");
        let again = group.propose(MetaCommand::DeleteTopic { name: name(0) }).await;
        assert!(again.is_err_and(|error| error.is_fatal()), "nothing more is taken");
    }
    group.shutdown().await;
    done
}

/// How many topics are there; they are the first ones, without a gap.
async fn topics(image: Image) -> u64 {
    let group = open(&Disk::holding(image)).await.expect("survives");
    let count = group.read(|site| {
        (0..).zip(site.topics.keys()).for_each(|(n, topic)| assert_eq!(*topic, name(n)));
        site.topics.len() as u64
    });
    group.shutdown().await;
    count
}

fn fresh() -> Image {
    let disk = Disk::default();
    drop(MetaStore::open_backend(disk.clone()).expect("a good disk"));
    disk.image()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_power_cut_takes_back_a_command_that_was_acknowledged() {
    let base = fresh();
    let disk = Disk::holding(base.clone());
    let mut acks = vec![(0, 0)];
    work(&disk, |n| acks.push((disk.ios(), n))).await.expect("a good disk");
    let trace = disk.trace();
    let mut platter = Platter::new(base, Honesty::Honest);
    let mut crashes = 0;
    for at in 0..=trace.len() {
        let done = acks[acks.partition_point(|(ios, _)| *ios <= at).max(1) - 1].1;
        for survival in [Survival::None, Survival::Sectors(at as u64)] {
            crashes += 1;
            let found = topics(platter.cut(trace.get(at), survival)).await;
            assert!((done..=done + 1).contains(&found), "cut at I/O {at}: {found}, not {done}");
        }
        trace.get(at).into_iter().for_each(|io| platter.step(io));
    }
    println!("metadata group: {crashes} crashes, 0 violations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_a_write_stops_the_group_and_loses_nothing() {
    let base = fresh();
    let disk = Disk::holding(base.clone());
    work(&disk, |_| {}).await.expect("a good disk");
    let (syncs, writes) = disk.counts();
    let writes = (0..writes).step_by(3).map(|at| Fault::Write(at, ErrorKind::Other));
    let (mut faults, mut failures) = (0, 0);
    for fault in (0..syncs).map(Fault::Sync).chain(writes) {
        let (disk, mut acked) = (Disk::failing(base.clone(), fault), 0);
        let worked = work(&disk, |n| acked = n).await;
        faults += 1;
        failures += usize::from(worked.is_err());
        let found = topics(disk.image()).await;
        assert!((acked..=acked + 1).contains(&found), "{fault:?}: {found}, not {acked}");
    }
    assert!(failures > faults / 2, "{failures} of {faults}");
    println!("metadata group: {faults} faults, {failures} stopped it, 0 violations");
}
