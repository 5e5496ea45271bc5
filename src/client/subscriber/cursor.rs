//! Where a reader stands in each partition: pure, so that "no gap, no duplicate" is decided in one small place.

use std::collections::BTreeMap;

use crate::{
    client::error::SubscribeError,
    types::{Offset, TopicId, TopicName},
    wire::{BatchHeader, SubscribeOk},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    /// The offset that comes next, by partition.
    next: BTreeMap<u32, Offset>,
    topic: Option<TopicId>,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Give out its records from this offset on.
    From(Offset),
    /// All of it was given out before.
    Nothing,
}

impl Cursor {
    /// Begins at given offsets in some partitions.
    pub(super) fn resume(positions: impl IntoIterator<Item = (u32, Offset)>) -> Self {
        Self { next: positions.into_iter().collect(), topic: None }
    }

    /// Takes what a node says about the start of a stream.
    pub(super) fn opened(
        &mut self,
        ok: &SubscribeOk,
        name: &TopicName,
    ) -> Result<(), SubscribeError> {
        if self.topic.is_some_and(|topic| topic != ok.topic_id) {
            return Err(SubscribeError::TopicReplaced { topic: name.clone() });
        }
        self.topic = Some(ok.topic_id);
        for start in &ok.partitions {
            let expected = *self.next.entry(start.partition).or_insert(start.from);
            if start.from > expected {
                let (partition, found) = (start.partition, start.from);
                return Err(SubscribeError::Gap { partition, expected, found });
            }
        }
        Ok(())
    }

    /// Decides about a batch by its header.
    pub(super) fn take(
        &self,
        partition: u32,
        header: &BatchHeader,
    ) -> Result<Take, SubscribeError> {
        let Some(&expected) = self.next.get(&partition) else {
            let what = format!("a batch of partition {partition}, which was not asked for");
            return Err(SubscribeError::Protocol(what));
        };
        let found = header.base_offset;
        if found > expected {
            return Err(SubscribeError::Gap { partition, expected, found });
        }
        Ok(if header.end_offset() <= expected { Take::Nothing } else { Take::From(expected) })
    }

    /// A record was given out.
    pub(super) fn passed(&mut self, partition: u32, offset: Offset) {
        self.next.insert(partition, Offset(offset.0.saturating_add(1)));
    }

    /// The offset that comes next in a partition.
    pub(super) fn next(&self, partition: u32) -> Offset {
        self.next.get(&partition).copied().unwrap_or_default()
    }

    /// The offsets that come next.
    pub(super) fn positions(&self) -> Vec<(u32, Offset)> {
        self.next.iter().map(|(&partition, &offset)| (partition, offset)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::{ProducerId, Sequence},
        wire::{BatchBuilder, Compression, ReadStart, Record, stamp},
    };

    fn header(base: u64, records: u32) -> BatchHeader {
        let mut builder = BatchBuilder::new(10_000);
        for _ in 0..records {
            builder.push(&Record::new("a")).expect("good");
        }
        let batch = builder.finish(Compression::None, ProducerId::NONE, Sequence(0));
        let mut bytes = batch.to_vec();
        stamp(&mut bytes, Offset(base), Default::default());
        BatchHeader::decode(&bytes).expect("own work")
    }

    fn ok(topic: u64, from: u64) -> SubscribeOk {
        let start = ReadStart { partition: 0, from: Offset(from), end: Offset(100) };
        SubscribeOk { topic_id: TopicId(topic), partitions: vec![start] }
    }

    fn opened(from: u64) -> Cursor {
        let mut cursor = Cursor::default();
        cursor.opened(&ok(1, from), &name()).expect("a first start");
        cursor
    }

    fn name() -> TopicName {
        "a".parse().expect("good")
    }

    #[test]
    fn a_batch_that_begins_before_the_position_is_taken_from_it() {
        let cursor = opened(5);
        assert_eq!(cursor.take(0, &header(3, 4)).expect("no gap"), Take::From(Offset(5)));
        assert_eq!(cursor.take(0, &header(3, 2)).expect("no gap"), Take::Nothing);
        assert_eq!(cursor.take(0, &header(5, 1)).expect("no gap"), Take::From(Offset(5)));
    }

    #[test]
    fn a_batch_behind_the_position_is_a_gap() {
        let cursor = opened(5);
        assert!(matches!(
            cursor.take(0, &header(6, 1)),
            Err(SubscribeError::Gap { expected: Offset(5), found: Offset(6), .. })
        ));
        assert!(matches!(cursor.take(1, &header(5, 1)), Err(SubscribeError::Protocol(_))));
    }

    #[test]
    fn the_position_moves_with_each_record_and_survives_a_new_stream() {
        let mut cursor = opened(5);
        cursor.passed(0, Offset(5));
        assert_eq!(cursor.positions(), [(0, Offset(6))]);
        cursor.opened(&ok(1, 6), &name()).expect("where we were");
        assert_eq!(cursor.take(0, &header(5, 2)).expect("no gap"), Take::From(Offset(6)));
        assert!(matches!(cursor.opened(&ok(1, 7), &name()), Err(SubscribeError::Gap { .. })));
    }

    #[test]
    fn a_topic_that_was_made_again_is_another() {
        let mut cursor = opened(5);
        assert!(matches!(
            cursor.opened(&ok(2, 5), &name()),
            Err(SubscribeError::TopicReplaced { .. })
        ));
    }
}
