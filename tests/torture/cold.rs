//! How long a client that knows no address needs from its start to the first ack.

use std::time::Duration;

use dunlin::client::{Acks, Client, Profile, Record, TopicName};
use tokio::time::{Instant, sleep, timeout};

use super::site::PATIENCE;

/// What half of all clients may need, on a network that is quiet.
pub(crate) const WANTED: Duration = Duration::from_millis(300);
/// A node answers a question that it has just answered only after a second (RFC 6762 section 6): this is not the time of a client
/// that comes alone.
const BETWEEN: Duration = Duration::from_millis(1_200);

/// So many clients, one after the other: what each needed to be connected, and to its first ack.
pub(crate) async fn trials(
    profile: &Profile,
    topic: &TopicName,
    count: usize,
) -> Vec<(Duration, Duration)> {
    let mut all = Vec::new();
    for nth in 0..count {
        // Not in step with whatever comes once a second.
        sleep(BETWEEN + Duration::from_millis(nth as u64 * 37 % 200)).await;
        let begun = Instant::now();
        let client = Client::connect(profile).await.unwrap();
        let connected = begun.elapsed();
        let publisher = client.publisher(topic).acks(Acks::Replicated).open().await.unwrap();
        timeout(PATIENCE, publisher.publish(Record::new("first"))).await.unwrap().unwrap();
        all.push((connected, begun.elapsed()));
        publisher.close().await.unwrap();
        client.close().await;
    }
    all
}

/// Prints the table. Gives the median until the first ack.
pub(crate) fn print(all: &[(Duration, Duration)]) -> Duration {
    println!(
        "{:32} {:>5} {:>7} {:>7} {:>7}",
        "ms of a client, no address known", "n", "p50", "p90", "max"
    );
    let row = |what: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        let [p50, p90, max] = [at(50), at(90), at(100)].map(|time| time.as_millis());
        println!("{what:32} {:>5} {p50:>7} {p90:>7} {max:>7}", times.len());
        at(50)
    };
    row("from the start to connected", all.iter().map(|(connected, _)| *connected).collect());
    row("from the start to the first ack", all.iter().map(|(_, acked)| *acked).collect())
}
