//! What is measured: the combinations, who publishes what and when. Pure.

use std::time::Duration;

use crate::{
    limits::{COMMIT_BYTES_MAX, PUBLISH_WINDOW_BYTES},
    types::Acks,
    wire::Compression,
};

/// One row of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Combination {
    /// Bytes of a record's value.
    pub(super) size: usize,
    /// Records of one producer that wait for their ack.
    pub(super) in_flight: usize,
    pub(super) acks: Acks,
}

/// What is the same in all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) topics: usize,
    pub(super) partitions: u32,
    pub(super) producers: usize,
    pub(super) readers: usize,
    pub(super) compression: Compression,
    /// As the client library has it where none is given.
    pub(super) batch_bytes: Option<usize>,
    pub(super) linger: Option<Duration>,
    /// Records per second of all producers together; as fast as acks come where none is given.
    pub(super) rate: Option<u64>,
    pub(super) lasting: Duration,
}

/// Every size with every number in flight with every ack level, in the order in which they were given.
pub(super) fn combinations(
    sizes: &[usize],
    in_flight: &[usize],
    acks: &[Acks],
) -> Vec<Combination> {
    let mut all: Vec<Combination> = Vec::new();
    for &acks in acks {
        for &size in sizes {
            for &in_flight in in_flight {
                let one = Combination { size, in_flight, acks };
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
    }
    all
}

impl Load {
    /// The topics that a producer publishes to, in turn: each topic has a producer, and each producer a topic.
    pub(super) fn topics_of_producer(&self, producer: usize) -> Vec<usize> {
        if self.topics <= self.producers {
            return vec![producer % self.topics];
        }
        (producer..self.topics).step_by(self.producers).collect()
    }

    /// The topic that a reader reads.
    pub(super) fn topic_of_reader(&self, reader: usize) -> usize {
        reader % self.topics
    }

    /// When a producer means to send its record `number`, counted from the start; none if it goes as fast as it can.
    pub(super) fn due(&self, producer: usize, number: u64) -> Option<Duration> {
        let rate = u128::from(self.rate?);
        let place = u128::from(number) * self.producers as u128 + producer as u128;
        Some(Duration::from_nanos(u64::try_from(place * NANOS / rate).unwrap_or(u64::MAX)))
    }

    /// How long before anything counts: connections find their speed, files their first blocks.
    pub(super) fn warm_up(&self) -> Duration {
        (self.lasting / 5).clamp(WARM_UP_MIN, WARM_UP_MAX)
    }

    /// Bytes of one commit when all that is in flight is in it: what the raw floor writes between two flushes.
    pub(super) fn commit_bytes(&self, row: Combination) -> usize {
        let of_one = (row.size * row.in_flight).min(PUBLISH_WINDOW_BYTES as usize).max(row.size);
        (of_one * self.producers).min(COMMIT_BYTES_MAX)
    }
}

const NANOS: u128 = 1_000_000_000;
const WARM_UP_MIN: Duration = Duration::from_millis(100);
const WARM_UP_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn load(topics: usize, producers: usize, rate: Option<u64>) -> Load {
        Load {
            topics,
            partitions: 1,
            producers,
            readers: 0,
            compression: Compression::None,
            batch_bytes: None,
            linger: None,
            rate,
            lasting: Duration::from_secs(5),
        }
    }

    fn row(size: usize, in_flight: usize) -> Combination {
        Combination { size, in_flight, acks: Acks::Replicated }
    }

    #[test]
    fn each_combination_is_measured_once() {
        let acks = [Acks::Local, Acks::None];
        let all = combinations(&[1, 2, 1], &[8, 9], &acks);
        assert_eq!(all.len(), 8);
        assert_eq!(all[0], Combination { size: 1, in_flight: 8, acks: Acks::Local });
        assert_eq!(all[1], Combination { size: 1, in_flight: 9, acks: Acks::Local });
        assert_eq!(all[7], Combination { size: 2, in_flight: 9, acks: Acks::None });
    }

    #[test]
    fn every_topic_has_a_producer_and_every_producer_a_topic() {
        for (topics, producers) in [(1, 1), (1, 8), (3, 8), (8, 3), (100, 1)] {
            let load = load(topics, producers, None);
            let mut seen = vec![false; topics];
            for producer in 0..producers {
                let mine = load.topics_of_producer(producer);
                assert!(!mine.is_empty(), "{topics} {producers}");
                mine.into_iter().for_each(|topic| seen[topic] = true);
            }
            assert!(seen.into_iter().all(|seen| seen), "{topics} {producers}");
        }
    }

    #[test]
    fn producers_share_a_rate_evenly() {
        let load = load(1, 2, Some(1_000));
        let due = |producer, number| load.due(producer, number).expect("open loop").as_micros();
        assert_eq!([due(0, 0), due(1, 0), due(0, 1), due(1, 1)], [0, 1_000, 2_000, 3_000]);
        assert_eq!(due(0, 30_000_000), 60_000_000_000, "ten hours on it has not drifted");
        assert_eq!(super::Load { rate: None, ..load }.due(0, 7), None);
    }

    #[test]
    fn the_floor_writes_what_one_commit_can_hold() {
        let one = load(1, 1, None);
        assert_eq!(one.commit_bytes(row(1_024, 1)), 1_024);
        assert_eq!(one.commit_bytes(row(1_024, 64)), 65_536);
        assert_eq!(one.commit_bytes(row(65_536, 1_024)), PUBLISH_WINDOW_BYTES as usize);
        assert_eq!(load(1, 64, None).commit_bytes(row(1_024, 1)), 65_536);
        assert_eq!(load(1, 64, None).commit_bytes(row(65_536, 64)), COMMIT_BYTES_MAX);
    }
}
