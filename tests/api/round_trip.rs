//! What is published is what is read.

use std::collections::{BTreeMap, BTreeSet};

use dunlin::client::{
    Acks, Change, Compression, Offset, Position, Record, RetentionChange, Timestamp, TopicRequest,
};
use futures_util::StreamExt as _;

use super::{Site, read_until_caught_up, text};

#[tokio::test]
async fn a_record_comes_back_whole() {
    let site = Site::start().await;
    let topic = site.topic("a/b", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    let mut record = Record::new(&b"\0\xff value"[..]).with_key("key").with_header("name", "x");
    record.timestamp = Timestamp(123);
    let delivery = publisher.publish(record.clone()).await.unwrap();
    assert_eq!((delivery.partition, delivery.offset), (0, Offset(0)));
    assert_eq!((delivery.level, delivery.copies), (Acks::Replicated, 1));

    let read = site.read_all(&topic).await;
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].partition, read[0].offset), (0, Offset(0)));
    assert_eq!(read[0].record, record);
    assert!(read[0].append_time > Timestamp(1_700_000_000_000));
    publisher.close().await.unwrap();
}

#[tokio::test]
async fn many_records_of_many_keys_come_back_once_each_and_in_order() {
    let site = Site::start().await;
    for (topic, compression) in
        [("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)]
    {
        let topic = site.topic(topic, 4).await;
        let builder = site.client.publisher(&topic).compression(compression);
        let publisher = builder.batch_bytes(4_000).open().await.unwrap();
        for i in 0..5_000 {
            let record = Record::new(format!("{i:08}")).with_key(format!("k{}", i % 13));
            drop(publisher.send(record).await.unwrap());
        }
        publisher.flush().await.unwrap();
        let read = site.read_all(&topic).await;
        assert_eq!(read.len(), 5_000);
        let mut last = BTreeMap::new();
        let mut partitions = BTreeSet::new();
        for received in &read {
            partitions.insert(received.partition);
            let key = received.record.key.clone().unwrap();
            let before = last.insert(key, text(received));
            assert!(before.is_none_or(|before| before < text(received)));
        }
        assert!(partitions.len() > 1, "{partitions:?}");
        publisher.close().await.unwrap();
    }
}

#[tokio::test]
async fn every_ack_level_is_reached() {
    let site = Site::start().await;
    let topic = site.topic("acks", 1).await;
    for (i, acks) in [Acks::None, Acks::Local, Acks::Replicated].into_iter().enumerate() {
        for idempotent in [true, false] {
            let builder = site.client.publisher(&topic).acks(acks).idempotent(idempotent);
            let publisher = builder.open().await.unwrap();
            let delivery = publisher.publish(Record::new("a")).await.unwrap();
            assert!(delivery.level.code() >= acks.code(), "{delivery:?}");
            assert_eq!(delivery.offset, Offset(2 * i as u64 + u64::from(!idempotent)));
        }
    }
    assert_eq!(site.read_all(&topic).await.len(), 6);
}

#[tokio::test]
async fn a_reader_starts_where_it_is_told_and_goes_on_where_it_stood() {
    let site = Site::start().await;
    let topic = site.topic("positions", 1).await;
    // One batch: positions lie inside it.
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    for i in 0..10 {
        drop(publisher.send(Record::new(i.to_string())).await.unwrap());
    }
    publisher.flush().await.unwrap();

    let from = |position| site.client.subscribe(&topic).from(position);
    let mut reader = from(Position::Offset(Offset(7))).open().await.unwrap();
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "7");
    assert_eq!(reader.positions(), [(0, Offset(8))]);

    let mut resumed = from(Position::Latest).resume(reader.positions()).open().await.unwrap();
    let rest = read_until_caught_up(&mut resumed).await;
    assert_eq!(rest.iter().map(text).collect::<Vec<_>>(), ["8", "9"]);

    let mut latest = from(Position::Latest).open().await.unwrap();
    assert!(read_until_caught_up(&mut latest).await.is_empty());
    publisher.publish(Record::new("new")).await.unwrap();
    // As a stream, too.
    assert_eq!(text(&latest.next().await.unwrap().unwrap()), "new");
    let all = from(Position::Time(Timestamp(0))).open().await.unwrap();
    let all: Vec<_> = all.take(11).collect().await;
    assert_eq!(all.len(), 11);
    let offset = site.client.topics().find_offset(&topic, 0, Position::Latest).await.unwrap();
    assert_eq!(offset, Offset(11));
}

#[tokio::test]
async fn topics_are_made_listed_changed_and_deleted() {
    let site = Site::start().await;
    let topics = site.client.topics();
    for i in 0..250 {
        site.topic(&format!("list/{i:03}"), 1).await;
    }
    let mut list = topics.list();
    let mut names = Vec::new();
    while let Some(topic) = list.next().await.unwrap() {
        names.push(topic.name.to_string());
    }
    assert_eq!(names.len(), 250);
    assert!(names.is_sorted());

    let name = "list/007".parse().unwrap();
    let bytes = Change::Set(1_000_000);
    let change = RetentionChange { bytes, ..RetentionChange::default() };
    let changed = topics.set_retention(&name, change).await.unwrap();
    assert_eq!(changed.settings.retention.bytes, Some(1_000_000));
    assert_eq!(topics.show(&name).await.unwrap(), changed);

    topics.delete(&name).await.unwrap();
    assert!(topics.show(&name).await.is_err());
    topics.create(&name, TopicRequest::default()).await.unwrap();
    let status = site.client.node_status().await.unwrap();
    assert_eq!((status.name.as_str(), status.topics), ("own", 250));
    assert_eq!(site.client.welcome().await.unwrap().site, "own");
}
