//! A site that is upgraded a node at a time, to programs that speak one version more.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    PATIENT, THREE, TOPICS, block_on, connect,
    history::{
        checker::{History, Outcome, check},
        load::Run,
    },
    network::Network,
    read_everywhere,
    site::{PATIENCE, Site},
};

#[test]
fn a_site_is_upgraded_a_node_at_a_time_and_never_back_behind_what_all_write() {
    block_on(Network::Loopback, async |network| {
        let mut site = Site::start(THREE, network).await;
        let run = Arc::new(Run::new(TOPICS, PATIENT, PATIENCE));
        run.create_topics(&connect(&site).await.unwrap()).await;
        let (mut producers, mut readers) = (JoinSet::new(), JoinSet::new());
        for number in 0..TOPICS.len() {
            readers.spawn(Arc::clone(&run).read_live(connect(&site).await.unwrap(), number));
        }
        for number in 0..PATIENT.len() {
            let client = connect(&site).await.unwrap();
            producers.spawn(run.producer(number, &client).await.work());
        }

        for number in site.nodes() {
            run.progress(Duration::from_millis(300)).await.unwrap();
            assert_eq!(site.status().await.unwrap().level, 1, "{number} nodes speak more");
            site.stop(number).await.unwrap();
            site.serve_with(number, &["--speaks", "1..2"]);
            site.restart(number).await.unwrap();
            site.in_sync(PATIENCE).await.unwrap();
        }
        run.progress(Duration::from_millis(300)).await.unwrap();
        assert_eq!(site.status().await.unwrap().level, 2);

        site.stop(0).await.unwrap();
        site.serve_with(0, &["--speaks", "1..1"]);
        site.begin(0);
        let deadline = Instant::now() + PATIENCE;
        while !site.has_ended(0) {
            assert!(Instant::now() < deadline, "it serves what it does not understand");
            sleep(Duration::from_millis(20)).await;
        }
        let logs = site.logs();
        assert!(logs.contains("speaks versions 1 to 1, and the site is at 2"), "{logs}");
        site.serve_with(0, &["--speaks", "1..3"]);
        site.restart(0).await.unwrap();
        site.in_sync(PATIENCE).await.unwrap();
        assert_eq!(site.status().await.unwrap().level, 2);
        run.progress(Duration::from_millis(300)).await.unwrap();

        run.stop.store(true, SeqCst);
        let operations = timeout(PATIENCE, producers.join_all()).await.unwrap().concat();
        let last = read_everywhere(&site, &run, &operations).await.unwrap();
        let live = run.live(&last).await.unwrap();
        drop(readers);
        let not_acked = operations.iter().filter(|o| !matches!(o.outcome, Outcome::Ok(_))).count();
        assert_eq!(not_acked, 0, "applications saw errors");
        let count = operations.len();
        let found = check(&History { operations, live, last });
        println!("{count} operations, {found}");
        assert!(found.is_clean(), "{found}\n{}", found.examples());
    });
}
