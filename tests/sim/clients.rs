//! Producers that send again under the same sequence until they know, and readers that follow. What they did and were
//! told is the history that is judged at the end.

use bytes::BytesMut;

use super::{rng::Rng, view::ClientEvent};
use crate::{
    types::{Offset, ProducerId, Sequence},
    wire::{BatchBuilder, BatchHeader, Compression, Record},
};

/// A producer of one partition.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) id: ProducerId,
    pub(crate) partition: u32,
    /// Sends each batch once, and is not deduplicated.
    pub(crate) careless: bool,
    pub(crate) sequence: u64,
    pub(crate) target: usize,
    pub(crate) open: Option<Open>,
    pub(crate) attempts: u64,
    next_value: u64,
}

/// A batch whose outcome is not known yet.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) values: Vec<u64>,
    pub(crate) batch: BytesMut,
    /// Number of its first attempt.
    first: u64,
    /// When the first attempt was made.
    since: u64,
    /// Number of the newest attempt.
    pub(crate) attempt: u64,
    pub(crate) until: u64,
    /// Some attempt had no definite answer.
    pub(crate) tainted: bool,
    pub(crate) tries: u32,
}

/// A reader of one partition.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) partition: u32,
    pub(crate) next: Offset,
    pub(crate) target: usize,
}

/// What a node answers to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored {
        base: Offset,
        copies: u8,
    },
    /// Not stored by this attempt. With the node that may know better.
    Refused(Option<usize>),
    /// Not stored by this attempt, and this producer's sequence is of no use any more.
    Forgotten,
    Unknown,
}

/// An attempt times out after this, in microseconds.
pub(crate) const ATTEMPT_MAX: u64 = 1_000_000;
/// After so many attempts a producer gives up.
const TRIES_MAX: u32 = 40;
/// And after so long, in microseconds: the site forgets a producer that is silent for twice as long.
const PATIENCE: u64 = 12_000_000;

impl Producer {
    pub(crate) fn new(client: usize, partition: u32, careless: bool) -> Self {
        let mut producer = Self {
            id: ProducerId::NONE,
            partition,
            careless,
            sequence: 0,
            target: client,
            open: None,
            attempts: 0,
            next_value: (client as u64 + 1) << 32,
        };
        producer.renew();
        producer
    }

    /// Draws the next batch.
    pub(crate) fn invoke(&mut self, client: usize, rng: &mut Rng, history: &mut Vec<ClientEvent>) {
        let count = rng.between(1, 3);
        let values: Vec<u64> = (0..count).map(|n| self.next_value + n).collect();
        self.next_value += count;
        let mut builder = BatchBuilder::new(4_096);
        for value in &values {
            let record = Record::new(value.to_be_bytes().to_vec());
            builder.push(&record).expect("small");
        }
        let id = if self.careless { ProducerId::NONE } else { self.id };
        let batch = builder.finish(Compression::None, id, Sequence(self.sequence));
        history.push(ClientEvent::Invoke {
            client,
            partition: self.partition,
            values: values.clone(),
        });
        let batch = BytesMut::from(&batch[..]);
        self.open = Some(Open {
            values,
            batch,
            first: self.attempts + 1,
            since: 0,
            attempt: 0,
            until: 0,
            tainted: false,
            tries: 0,
        });
    }

    /// The next attempt: its number and its bytes. None when the producer gives up, or has nothing.
    pub(crate) fn attempt(
        &mut self,
        client: usize,
        now: u64,
        history: &mut Vec<ClientEvent>,
    ) -> Option<(u64, BatchHeader, BytesMut)> {
        let open = self.open.as_mut()?;
        if open.tries == 0 {
            open.since = now;
        }
        let impatient = open.tries >= TRIES_MAX || now > open.since + PATIENCE;
        if impatient || (self.careless && open.tries > 0) {
            self.give_up(client, history);
            return None;
        }
        open.tries += 1;
        self.attempts += 1;
        open.attempt = self.attempts;
        open.until = now + ATTEMPT_MAX;
        let header = BatchHeader::decode(&open.batch).expect("own batch");
        Some((open.attempt, header, open.batch.clone()))
    }

    /// Nobody answered in time.
    pub(crate) fn timed_out(&mut self) {
        if let Some(open) = &mut self.open {
            open.tainted = true;
            open.attempt = 0;
        }
    }

    /// Takes an answer. True if the producer has nothing open any more.
    pub(crate) fn answered(
        &mut self,
        client: usize,
        attempt: u64,
        answer: Answer,
        history: &mut Vec<ClientEvent>,
    ) -> bool {
        let Some(open) = self.open.as_mut() else { return true };
        if attempt < open.first {
            return false; // Of the batch before.
        }
        let newest = open.attempt == attempt;
        match answer {
            // Whichever attempt it answers, under one sequence it is one batch; a careless one makes one attempt.
            Answer::Stored { base, copies } if newest || !self.careless => {
                let values = std::mem::take(&mut open.values);
                let partition = self.partition;
                history.push(ClientEvent::Ok { client, partition, values, base, copies });
                self.sequence += 1;
                self.open = None;
                true
            }
            _ if !newest => false,
            Answer::Stored { .. } => false,
            Answer::Refused(_) => {
                open.attempt = 0;
                open.until = 0;
                false
            }
            Answer::Unknown => {
                open.tainted = true;
                open.attempt = 0;
                open.until = 0;
                false
            }
            Answer::Forgotten => {
                open.attempt = 0;
                self.give_up(client, history);
                true
            }
        }
    }

    /// Ends the open batch without an ack, as what it is.
    pub(crate) fn give_up(&mut self, client: usize, history: &mut Vec<ClientEvent>) {
        let Some(open) = self.open.take() else { return };
        if open.tainted || open.attempt != 0 {
            history.push(ClientEvent::Info { client, values: open.values });
        } else {
            history.push(ClientEvent::Fail { client, values: open.values });
        }
        // What was sent under the old sequences may still arrive.
        self.renew();
    }

    pub(crate) fn renew(&mut self) {
        self.next_value += 1;
        self.id = ProducerId(u128::from(self.next_value) << 8 | 1);
        self.sequence = 0;
    }
}
