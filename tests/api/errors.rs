//! What cannot work says so at once, and says why.

use std::{net::UdpSocket, time::Duration};

use dunlin::{
    cli::own_broker::OwnBroker,
    client::{
        Client, Code, ConnectError, Culprit, Offset, Position, PublishError, Record, RequestError,
        SubscribeError, TopicRequest,
    },
    limits::RECORD_LEN_MAX,
};

use super::{Site, text};

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_with_a_hint() {
    let site = Site::start().await;
    let topic = "nowhere".parse().unwrap();
    let Err(PublishError::Fault(fault)) = site.client.publisher(&topic).open().await else {
        panic!("there is no such topic")
    };
    assert_eq!((fault.code, fault.culprit), (Code::UnknownTopic, Culprit::Client));
    assert!(fault.message.contains("nowhere"), "{fault}");
    let error = PublishError::Fault(fault);
    assert!(error.hint().is_some_and(|hint| hint.contains("topic create")));
    assert!(matches!(
        site.client.subscribe(&topic).open().await,
        Err(SubscribeError::Fault(fault)) if fault.code == Code::UnknownTopic
    ));
    assert!(matches!(
        site.client.topics().delete(&topic).await,
        Err(RequestError::Fault(fault)) if fault.code == Code::UnknownTopic
    ));
}

#[tokio::test]
async fn a_topic_of_other_settings_is_not_made_again() {
    let site = Site::start().await;
    let topic = site.topic("twice", 2).await;
    site.topic("twice", 2).await;
    let settings = TopicRequest { partitions: Some(3), ..TopicRequest::default() };
    assert!(matches!(
        site.client.topics().create(&topic, settings).await,
        Err(RequestError::Fault(fault)) if fault.code == Code::TopicExists
    ));
}

#[tokio::test]
async fn a_record_over_the_limit_is_refused_and_those_around_it_are_not() {
    let site = Site::start().await;
    let topic = site.topic("large", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    drop(publisher.send(Record::new("before")).await.unwrap());
    let largest = vec![b'x'; RECORD_LEN_MAX - 100];
    let too_large = vec![b'x'; RECORD_LEN_MAX + 1];
    assert!(matches!(publisher.send(Record::new(too_large)).await, Err(PublishError::Record(_))));
    drop(publisher.send(Record::new(largest.clone())).await.unwrap());
    drop(publisher.send(Record::new("after")).await.unwrap());
    publisher.close().await.unwrap();
    let read = site.read_all(&topic).await;
    let lens: Vec<usize> = read.iter().map(|received| received.record.value.len()).collect();
    assert_eq!(lens, ["before".len(), largest.len(), "after".len()]);
}

#[tokio::test]
async fn a_topic_deleted_under_its_users_is_an_error_for_each_and_not_for_ever() {
    let site = Site::start().await;
    let topic = site.topic("gone", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    publisher.publish(Record::new("a")).await.unwrap();
    let mut reader = site.client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "a");
    site.client.topics().delete(&topic).await.unwrap();
    for _ in 0..2 {
        let error = publisher.publish(Record::new("b")).await.unwrap_err();
        assert!(
            matches!(&error, PublishError::Fault(fault) if fault.code == Code::UnknownTopic),
            "{error:?}"
        );
    }
    let error = reader.next().await.unwrap().unwrap_err();
    assert!(matches!(&error, SubscribeError::Fault(fault) if fault.code == Code::UnknownTopic));
    assert!(reader.next().await.is_none());

    site.topic("gone", 1).await;
    assert_eq!(publisher.publish(Record::new("c")).await.unwrap().offset, Offset(0));
}

#[tokio::test]
async fn a_dropped_publisher_leaves_no_one_waiting() {
    let mut site = Site::start().await;
    let topic = site.topic("dropped", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    site.broker.kill().await.unwrap();
    let ack = publisher.send(Record::new("a")).await.unwrap();
    drop(publisher);
    assert!(matches!(ack.await, Err(PublishError::Unknown { .. })));
}

#[tokio::test]
async fn a_record_without_a_node_expires() {
    let mut site = Site::start().await;
    let topic = site.topic("expires", 1).await;
    let deadline = Duration::from_millis(300);
    let publisher = site.client.publisher(&topic).deadline(deadline).open().await.unwrap();
    publisher.publish(Record::new("a")).await.unwrap();
    site.broker.kill().await.unwrap();
    let error = publisher.publish(Record::new("b")).await.unwrap_err();
    // The node is dead before the client can know: the record was sent, and nobody answered.
    assert!(
        matches!(error, PublishError::Unknown { .. } | PublishError::Expired { .. }),
        "{error:?}"
    );
    assert!(publisher.close().await.is_err());
}

#[tokio::test]
async fn another_site_is_told_from_a_silent_one() {
    let site = Site::start().await;
    let other = Site::start().await;
    let mut profile = site.broker.profile().clone();
    profile.addresses = other.broker.profile().addresses.clone();
    let error = Client::connect(&profile).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotThisSite { .. }), "{error:?}");
    assert_eq!(error.culprit(), Culprit::Client);

    // The node is believed, and does not believe the client.
    profile.ca = other.broker.profile().ca.clone();
    let error = Client::connect(&profile).await.unwrap_err();
    assert!(matches!(error, ConnectError::CertificateRefused { .. }), "{error:?}");

    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string().parse().unwrap();
    let builder = Client::builder(site.broker.profile()).server(address);
    let error = builder.connect_timeout(Duration::from_millis(400)).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("firewall")));

    let builder = Client::builder(site.broker.profile()).server("no.such.invalid".parse().unwrap());
    let error = builder.connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error:?}");
}

#[tokio::test]
async fn one_good_address_among_bad_ones_is_found() {
    let site = Site::start().await;
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut profile = site.broker.profile().clone();
    profile.addresses.insert(0, silent.local_addr().unwrap().to_string().parse().unwrap());
    profile.addresses.insert(0, "no.such.invalid".parse().unwrap());
    Client::connect(&profile).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_cannot_start_says_why() {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let error = OwnBroker::start(program, None, "[nonsense]\nx = 1").await.unwrap_err();
    assert!(format!("{error:?}").contains("nonsense"), "{error:?}");
}
