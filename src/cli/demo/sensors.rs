//! Readings of a plant's sensors: made from the producer and a number alone, so that a reader knows what to expect.

use crate::client::{Record, Timestamp, TopicName};

/// A production line: one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line(pub(super) u64);

impl Line {
    pub(super) fn all(count: u64) -> impl Iterator<Item = Self> {
        (1..=count).map(Self)
    }

    pub(super) fn topic(self) -> TopicName {
        match format!("plant/line{}", self.0).parse() {
            Ok(name) => name,
            Err(error) => unreachable!("plain words and a number are a name: {error}"),
        }
    }
}

/// The sensors that one producer speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sensors {
    producer: u64,
    line: Line,
}

const KINDS: [(&str, &str, f64, f64); 5] = [
    ("temperature", "C", 21.0, 4.0),
    ("pressure", "bar", 6.2, 0.5),
    ("vibration", "mm/s", 1.4, 0.9),
    ("current", "A", 11.8, 2.5),
    ("speed", "rpm", 1480.0, 20.0),
];
const MACHINES: u64 = 8;
const EPOCH_MS: u64 = 1_760_000_000_000;

impl Sensors {
    pub(super) fn new(producer: u64, line: Line) -> Self {
        Self { producer, line }
    }

    /// The `n`-th record of this producer.
    pub(super) fn record(&self, n: u64) -> Record {
        let (kind, unit, middle, swing) = KINDS[usize::try_from(n % 5).unwrap_or(0)];
        let machine = (n / 5) % MACHINES;
        let key = format!("line{}/press{}-{machine}/{kind}", self.line.0, self.producer);
        let noise = mix(self.producer << 40 | n);
        #[expect(clippy::cast_precision_loss, reason = "16 bits fit a float")]
        let value = middle + swing * ((noise & 0xffff) as f64 / 32_768.0 - 1.0);
        let text = format!(
            "{{\"producer\":{},\"n\":{n},\"sensor\":\"{key}\",\"value\":{value:.3},\"unit\":\"{unit}\",\"quality\":\"{}\"}}",
            self.producer,
            if noise >> 60 == 0 { "uncertain" } else { "good" },
        );
        let mut record = Record::new(text).with_key(key);
        record.timestamp = Timestamp(EPOCH_MS + n * 10);
        record
    }

    /// Producer and number of a record that this made.
    pub(super) fn number_of(value: &[u8]) -> Option<(u64, u64)> {
        #[derive(serde::Deserialize)]
        struct Head {
            producer: u64,
            n: u64,
        }
        let head: Head = serde_json::from_slice(value).ok()?;
        Some((head.producer, head.n))
    }
}

/// Spreads a number's bits (the finalizer of SplitMix64).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
