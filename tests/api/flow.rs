//! Back-pressure: nobody holds more than it may.

use std::time::Duration;

use dunlin::client::{Position, Record};
use tokio::time::timeout;

use super::{Site, text};

#[tokio::test]
async fn a_reader_that_pauses_stops_nobody_and_misses_nothing() {
    let site = Site::start().await;
    let topic = site.topic("slow", 1).await;
    let from = || site.client.subscribe(&topic).from(Position::Earliest);
    let mut slow = from().open().await.unwrap();
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    let filling = "x".repeat(10_000);
    for i in 0..2_000 {
        let record = Record::new(format!("{i:06}{filling}"));
        drop(publisher.send(record).await.unwrap());
    }
    publisher.flush().await.unwrap();
    // On the same connection: another reader, and a request.
    let mut fast = from().open().await.unwrap();
    for _ in 0..2_000 {
        fast.next().await.unwrap().unwrap();
    }
    site.client.node_status().await.unwrap();
    for i in 0..2_000 {
        let received = slow.next().await.unwrap().unwrap();
        assert!(text(&received).starts_with(&format!("{i:06}")));
    }
}

#[tokio::test]
async fn a_publisher_without_a_node_holds_what_it_may_and_then_waits() {
    let mut site = Site::start().await;
    let topic = site.topic("bounded", 1).await;
    let builder = site.client.publisher(&topic).in_flight(100, 50_000);
    let publisher = builder.open().await.unwrap();
    site.broker.kill().await.unwrap();
    let record = Record::new("x".repeat(1_000));
    let mut held = 0;
    while publisher.try_send(&record).unwrap().is_some() {
        held += 1;
    }
    assert!((90..120).contains(&held), "{held}");
    let wait = timeout(Duration::from_millis(50), publisher.send(record.clone()));
    assert!(wait.await.is_err(), "there is no room");
    site.broker.restart().await.unwrap();
    publisher.publish(record).await.unwrap();
    publisher.close().await.unwrap();
    assert_eq!(site.read_all(&topic).await.len(), held + 1);
}
