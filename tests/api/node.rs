//! What a node does by itself, and what it shows: retention, a full disk, metrics and health.

use std::{fs, time::Duration};

use dunlin::client::{
    Change, Client, Code, Event, Offset, Position, PublishError, Record, RetentionChange,
    SubscribeError,
};
use tokio::time::{Instant, interval};

use super::{Site, text};

const DEADLINE: Duration = Duration::from_secs(30);

impl Site {
    /// Restarts the node with other lines in its configuration.
    pub(super) async fn reconfigure(&mut self, change: impl FnOnce(String) -> String) {
        self.broker.stop().await.unwrap();
        let file = self.broker.dir().join("dunlin.toml");
        fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
        self.broker.restart().await.unwrap();
        self.client = Client::connect(self.broker.profile()).await.unwrap();
    }

    /// Asks the node's HTTP listener.
    pub(super) async fn get(&self, path: &str) -> String {
        self.broker.http_get(path).await.unwrap()
    }
}

/// The value of one metric.
pub(super) fn metric(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    let value = line.and_then(|line| line.split(' ').nth(1));
    value.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

#[tokio::test]
async fn a_low_disk_refuses_publishes_and_goes_on_serving_reads() {
    let mut site = Site::start().await;
    let topic = site.topic("kept", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    publisher.publish(Record::new("before")).await.unwrap();
    publisher.close().await.unwrap();
    let mark = |config| config + "\n[storage]\nlow_space = '1TiB'\n";
    site.reconfigure(mark).await;

    let publisher =
        site.client.publisher(&topic).deadline(Duration::from_secs(1)).open().await.unwrap();
    let refused = publisher.publish(Record::new("refused")).await.unwrap_err();
    let PublishError::Expired { cause, .. } = &refused else { panic!("{refused}") };
    assert!(cause.to_string().contains("disk is low"), "{cause}");
    let records: Vec<_> = site.read_all(&topic).await.iter().map(text).collect();
    assert_eq!(records, ["before"]);

    assert!(site.get("/readyz").await.starts_with("HTTP/1.1 503"), "it cannot take publishes");
    assert!(site.get("/healthz").await.starts_with("HTTP/1.1 200"), "and need not be restarted");
    let page = site.get("/metrics").await;
    assert_eq!(metric(&page, "dunlin_disk_low"), 1.0);
    assert!(metric(&page, "dunlin_publish_refused_total{code=\"DiskFull\"}") >= 1.0);
}

#[tokio::test]
async fn what_retention_lets_go_is_gone_for_readers_and_freed_on_the_disk() {
    let site = Site::start().await;
    let topic = site.topic("short", 1).await;
    let publisher = site.client.publisher(&topic).batch_bytes(20_000).open().await.unwrap();
    let value = vec![b'x'; 1_000];
    for _ in 0..20_000 {
        drop(publisher.send(Record::new(value.clone())).await.unwrap());
    }
    publisher.close().await.unwrap();
    assert!(metric(&site.get("/metrics").await, "dunlin_log_live_bytes") > 2e7);
    let change = RetentionChange { records: Change::Set(100), ..RetentionChange::default() };
    site.client.topics().set_retention(&topic, change).await.unwrap();

    let deadline = Instant::now() + DEADLINE;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let page = site.get("/metrics").await;
        let freed = metric(&page, "dunlin_log_collected_bytes_total") > 1.5e7;
        if freed && metric(&page, "dunlin_log_live_bytes") < 1e6 {
            break;
        }
        assert!(Instant::now() < deadline, "not freed: {page}");
    }
    let first = Position::Offset(Offset(0));
    let Err(SubscribeError::Fault(fault)) = site.client.subscribe(&topic).from(first).open().await
    else {
        panic!("offset 0 is not kept any more")
    };
    assert_eq!((fault.code, fault.detail.end), (Code::OutOfRange, Some(Offset(20_000))));
    let start = fault.detail.start.unwrap();
    assert!((Offset(19_850)..=Offset(19_900)).contains(&start), "whole batches, at most: {start}");
    let kept = site.read_all(&topic).await;
    assert_eq!((kept[0].offset, kept.len() as u64), (start, 20_000 - start.0));
}

#[tokio::test]
async fn a_quiet_node_says_that_it_is_ready_and_counts_what_it_did() {
    let site = Site::start().await;
    let topic = site.topic("counted", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    publisher.publish(Record::new("one")).await.unwrap();
    let mut subscriber =
        site.client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    assert!(matches!(subscriber.next_event().await, Some(Ok(Event::Record(_)))));
    assert!(site.get("/readyz").await.ends_with("ready\n"));
    assert!(site.get("/nothing").await.starts_with("HTTP/1.1 404"));
    let page = site.get("/metrics").await;
    assert_eq!(metric(&page, "dunlin_publish_records_total"), 1.0);
    assert_eq!(metric(&page, "dunlin_deliver_records_total"), 1.0);
    assert_eq!(metric(&page, "dunlin_connections"), 1.0);
    assert_eq!(metric(&page, "dunlin_topics"), 1.0);
    assert!(metric(&page, "dunlin_log_syncs_total") >= 2.0);
}
