//! A reader that believes nothing: each record must be one that was published, unchanged, once, in order.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::sensors::{Line, Sensors, mix};
use crate::{
    cli::exit::Failure,
    client::{Client, Event, Position, ReceivedRecord, Subscriber},
};

/// Reads one line's topic from its first offset.
#[derive(Debug)]
pub(super) struct Reader {
    line: Line,
    subscriber: Subscriber,
    expected: u64,
    seen: HashSet<(u64, u64)>,
    newest: HashMap<Vec<u8>, u64>,
    findings: Findings,
}

/// What a reader, or several, found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Different records.
    pub(super) distinct: u64,
    /// Records that came a second time.
    pub(super) duplicated: u64,
    /// Records that came after a later one of the same sensor.
    pub(super) disordered: u64,
    /// Records that nobody published like this.
    pub(super) damaged: u64,
    /// Sum over all of a hash of place and contents: two readers of the same log have the same.
    pub(super) digest: u64,
}

impl Findings {
    pub(super) fn add(&mut self, other: Self) {
        self.distinct += other.distinct;
        self.duplicated += other.duplicated;
        self.disordered += other.disordered;
        self.damaged += other.damaged;
        self.digest = self.digest.wrapping_add(other.digest);
    }

    pub(super) fn is_clean(&self) -> bool {
        self.duplicated == 0 && self.disordered == 0 && self.damaged == 0
    }
}

impl Reader {
    pub(super) async fn open(client: &Client, line: Line, expected: u64) -> Result<Self, Failure> {
        let subscriber = client.subscribe(&line.topic()).from(Position::Earliest).open().await?;
        Ok(Self {
            line,
            subscriber,
            expected,
            seen: HashSet::new(),
            newest: HashMap::new(),
            findings: Findings::default(),
        })
    }

    /// Reads until all that is expected has come; `read` is counted up.
    pub(super) async fn read_all(&mut self, read: &AtomicU64) -> Result<(), Failure> {
        while self.findings.distinct < self.expected {
            let Some(received) = self.subscriber.next().await else { break };
            self.check(&received?);
            read.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Reads all that there is now.
    pub(super) async fn read_to_the_end(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.subscriber.next_event().await {
            match event? {
                Event::Record(received) => self.check(&received),
                Event::CaughtUp => break,
            }
        }
        Ok(())
    }

    pub(super) fn findings(&self) -> Findings {
        self.findings
    }

    fn check(&mut self, received: &ReceivedRecord) {
        let findings = &mut self.findings;
        let record = &received.record;
        let Some((producer, n)) = Sensors::number_of(&record.value) else {
            findings.damaged += 1;
            return;
        };
        if *record != Sensors::new(producer, self.line).record(n) {
            findings.damaged += 1;
            return;
        }
        if !self.seen.insert((producer, n)) {
            findings.duplicated += 1;
            return;
        }
        findings.distinct += 1;
        let key = record.key.as_deref().unwrap_or_default().to_vec();
        let before = self.newest.insert(key, n);
        findings.disordered += u64::from(before.is_some_and(|before| before > n));
        let place = [self.line.0, u64::from(received.partition), received.offset.0, producer, n];
        // SplitMix64 over the parts: two readers of the same log have the same, whatever order partitions come in.
        let hash = place.iter().fold(0, |hash, part| mix(hash ^ part));
        findings.digest = findings.digest.wrapping_add(hash);
    }
}
