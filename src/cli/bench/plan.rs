//! What is measured: the combinations, who publishes what and when. Pure.

use std::time::Duration;

use crate::{
    limits::{COMMIT_BYTES_MAX, PUBLISH_WINDOW_BYTES, ROW_LEN_MAX},
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
    pub(super) producers: usize,
    pub(super) acks: Acks,
}

/// What is the same in all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) topics: usize,
    /// Connections that producers share; each has its own where none is given.
    pub(super) connections: Option<usize>,
    pub(super) partitions: u32,
    /// Records in a row of one producer to one topic.
    pub(super) run: usize,
    pub(super) readers: usize,
    pub(super) compression: Compression,
    /// As the client library has it where none is given.
    pub(super) batch_bytes: Option<usize>,
    pub(super) linger: Option<Duration>,
    /// Records per second of all producers together; as fast as acks come where none is given.
    pub(super) rate: Option<u64>,
    pub(super) lasting: Duration,
}

/// Everything with everything, in the order in which it was given.
pub(super) fn combinations(
    sizes: &[usize],
    in_flight: &[usize],
    producers: &[usize],
    acks: &[Acks],
) -> Vec<Combination> {
    let mut all: Vec<Combination> = Vec::new();
    for &acks in acks {
        for &size in sizes {
            for &in_flight in in_flight {
                for &producers in producers {
                    let one = Combination { size, in_flight, producers, acks };
                    if !all.contains(&one) {
                        all.push(one);
                    }
                }
            }
        }
    }
    all
}

impl Load {
    /// Connections over which the producers publish.
    pub(super) fn connections(&self, row: Combination) -> usize {
        self.connections.unwrap_or(row.producers).min(row.producers)
    }

    /// The topics that a producer publishes to, in turn: each topic has a producer, and each producer a topic.
    pub(super) fn topics_of_producer(&self, row: Combination, producer: usize) -> Vec<usize> {
        if self.topics <= row.producers {
            return vec![producer % self.topics];
        }
        (producer..self.topics).step_by(row.producers).collect()
    }

    /// Which of the producer's `topics` its record `number` goes to.
    pub(super) fn place(&self, number: u64, topics: usize) -> usize {
        let runs = usize::try_from(number).unwrap_or(usize::MAX) / self.run;
        runs % topics
    }

    /// How many of a producer's first `count` records go to that place of its `topics`.
    pub(super) fn count_at(&self, place: usize, count: u64, topics: usize) -> u64 {
        let (run, round) = (self.run as u64, (self.run * topics) as u64);
        let rest = (count % round).saturating_sub(place as u64 * run).min(run);
        count / round * run + rest
    }

    /// The topic that a reader reads.
    pub(super) fn topic_of_reader(&self, reader: usize) -> usize {
        reader % self.topics
    }

    /// When a producer means to send its record `number`, counted from the start; none if it goes as fast as it can.
    pub(super) fn due(&self, row: Combination, producer: usize, number: u64) -> Option<Duration> {
        let rate = u128::from(self.rate?);
        let place = u128::from(number) * row.producers as u128 + producer as u128;
        Some(Duration::from_nanos(u64::try_from(place * NANOS / rate).unwrap_or(u64::MAX)))
    }

    /// How long before anything counts: connections find their speed, files their first blocks.
    pub(super) fn warm_up(&self) -> Duration {
        (self.lasting / 5).clamp(WARM_UP_MIN, WARM_UP_MAX)
    }

    /// Bytes of one commit when all that is in flight is in it: what the raw floor writes between two flushes.
    pub(super) fn commit_bytes(&self, row: Combination) -> usize {
        let of_one = (row.size * row.in_flight).min(PUBLISH_WINDOW_BYTES as usize).max(row.size);
        (of_one * row.producers).min(COMMIT_BYTES_MAX)
    }

    /// Records of one frame of the bare echo: those of a run, as far as they are in flight and fit a batch.
    pub(super) fn frame_records(&self, row: Combination) -> usize {
        let fit = self.batch_bytes.unwrap_or(ROW_LEN_MAX) / row.size;
        self.run.min(row.in_flight).min(fit).max(1)
    }
}

const NANOS: u128 = 1_000_000_000;
const WARM_UP_MIN: Duration = Duration::from_millis(100);
const WARM_UP_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn load(topics: usize, run: usize, rate: Option<u64>) -> Load {
        Load {
            topics,
            connections: None,
            partitions: 1,
            run,
            readers: 0,
            compression: Compression::None,
            batch_bytes: None,
            linger: None,
            rate,
            lasting: Duration::from_secs(5),
        }
    }

    fn row(size: usize, in_flight: usize, producers: usize) -> Combination {
        Combination { size, in_flight, producers, acks: Acks::Replicated }
    }

    #[test]
    fn each_combination_is_measured_once() {
        let acks = [Acks::Local, Acks::None];
        let all = combinations(&[1, 2, 1], &[8, 9], &[1, 64], &acks);
        assert_eq!(all.len(), 16);
        assert_eq!(all[0], Combination { acks: Acks::Local, ..row(1, 8, 1) });
        assert_eq!(all[1], Combination { acks: Acks::Local, ..row(1, 8, 64) });
        assert_eq!(all[15], Combination { acks: Acks::None, ..row(2, 9, 64) });
    }

    #[test]
    fn every_topic_has_a_producer_and_every_producer_a_topic() {
        for (topics, producers) in [(1, 1), (1, 8), (3, 8), (8, 3), (100, 1)] {
            let load = load(topics, 1, None);
            let mut seen = vec![false; topics];
            for producer in 0..producers {
                let mine = load.topics_of_producer(row(1, 1, producers), producer);
                assert!(!mine.is_empty(), "{topics} {producers}");
                mine.into_iter().for_each(|topic| seen[topic] = true);
            }
            assert!(seen.into_iter().all(|seen| seen), "{topics} {producers}");
        }
    }

    #[test]
    fn records_go_to_a_topic_in_runs_and_are_counted_there() {
        let load = load(3, 4, None);
        let places: Vec<usize> = (0..14).map(|number| load.place(number, 3)).collect();
        assert_eq!(places, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]);
        for sent in 0..30 {
            for place in 0..3 {
                let counted = (0..sent).filter(|number| load.place(*number, 3) == place).count();
                assert_eq!(load.count_at(place, sent, 3), counted as u64, "{sent} {place}");
            }
        }
    }

    #[test]
    fn producers_share_a_rate_evenly() {
        let load = load(1, 1, Some(1_000));
        let two = row(1, 1, 2);
        let due =
            |producer, number| load.due(two, producer, number).expect("open loop").as_micros();
        assert_eq!([due(0, 0), due(1, 0), due(0, 1), due(1, 1)], [0, 1_000, 2_000, 3_000]);
        assert_eq!(due(0, 30_000_000), 60_000_000_000, "ten hours on it has not drifted");
        assert_eq!(super::Load { rate: None, ..load }.due(two, 0, 7), None);
    }

    #[test]
    fn the_floor_writes_what_one_commit_can_hold() {
        let load = load(1, 1, None);
        assert_eq!(load.commit_bytes(row(1_024, 1, 1)), 1_024);
        assert_eq!(load.commit_bytes(row(1_024, 64, 1)), 65_536);
        assert_eq!(load.commit_bytes(row(65_536, 1_024, 1)), PUBLISH_WINDOW_BYTES as usize);
        assert_eq!(load.commit_bytes(row(1_024, 1, 64)), 65_536);
        assert_eq!(load.commit_bytes(row(65_536, 64, 64)), COMMIT_BYTES_MAX);
    }

    #[test]
    fn a_frame_of_the_echo_holds_a_run_as_far_as_it_goes_in_a_batch() {
        assert_eq!(load(1, 1, None).frame_records(row(1_024, 4_096, 1)), 1);
        assert_eq!(load(1, 62, None).frame_records(row(1_024, 4_096, 1)), 62);
        assert_eq!(load(1, 62, None).frame_records(row(1_024, 10, 1)), 10);
        assert_eq!(load(1, 62, None).frame_records(row(1_000_000, 10, 1)), 1);
    }
}
