//! The client library against a broker that runs as a process of its own.

mod bad_input;
mod balance;
mod cluster;
mod command_line;
mod damage;
mod errors;
mod expired;
mod failures;
mod flow;
mod join;
mod node;
mod recover;
mod round_trip;
mod zone;

use std::path::Path;

use dunlin::{
    cli::own_broker::OwnBroker,
    client::{Client, Event, Position, ReceivedRecord, Subscriber, TopicName, TopicRequest},
};

/// A broker of its own, and a client of it.
struct Site {
    broker: OwnBroker,
    client: Client,
}

impl Site {
    async fn start() -> Self {
        Self::with_settings("").await
    }

    async fn with_settings(settings: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
        let broker = OwnBroker::start(program, None, settings).await.unwrap();
        let client = Client::connect(broker.profile()).await.unwrap();
        Self { broker, client }
    }

    async fn topic(&self, name: &str, partitions: u32) -> TopicName {
        let name: TopicName = name.parse().unwrap();
        let settings = TopicRequest { partitions: Some(partitions), ..TopicRequest::default() };
        self.client.topics().create(&name, settings).await.unwrap();
        name
    }

    /// All that is in a topic now.
    async fn read_all(&self, topic: &TopicName) -> Vec<ReceivedRecord> {
        let subscriber = self.client.subscribe(topic).from(Position::Earliest).open().await;
        read_until_caught_up(&mut subscriber.unwrap()).await
    }
}

async fn read_until_caught_up(subscriber: &mut Subscriber) -> Vec<ReceivedRecord> {
    let mut records = Vec::new();
    while let Event::Record(received) = subscriber.next_event().await.unwrap().unwrap() {
        records.push(received);
    }
    records
}

fn text(received: &ReceivedRecord) -> String {
    String::from_utf8(received.record.value.to_vec()).unwrap()
}
