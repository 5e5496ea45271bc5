//! The records of the demonstration: readings of sensors, made so that whatever happens to one of them is seen.

use std::collections::HashMap;

use crate::wire::Record;

/// The sensors of one line of one plant, all read by one producer.
#[derive(Debug)]
pub(super) struct Line {
    plant: &'static str,
    producer: u32,
    next: u32,
    values: [f64; SENSORS.len()],
}

/// Who made a record, and the how-manieth of that producer it is, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) producer: u32,
    pub(super) number: u32,
}

impl Line {
    pub(super) fn new(plant: &'static str, producer: u32) -> Self {
        Self { plant, producer, next: 0, values: SENSORS.map(|(_, _, usual)| usual) }
    }

    /// The next reading. `random` lies in -1..1.
    pub(super) fn read(&mut self, random: f64) -> Record {
        let (number, producer) = (self.next, self.producer);
        self.next += 1;
        let at = number as usize % SENSORS.len();
        let (sensor, unit, usual) = SENSORS[at];
        // A walk that is drawn back to where it began.
        self.values[at] += random * usual * 0.01 - (self.values[at] - usual) * 0.05;
        let mut text = format!(
            r#"{{"plant":"{}","line":{producer},"sensor":"{sensor}","unit":"{unit}","value":{:.3},"producer":{producer},"n":{number}"#,
            self.plant, self.values[at]
        );
        let sum = checksum(text.as_bytes());
        text.push_str(&format!(r#","sum":"{sum:016x}"}}"#));
        Record::new(text).with_key(format!("{}/line{producer}/{sensor}", self.plant))
    }
}

/// What one reader has seen, and what was wrong with it.
#[derive(Debug, Default)]
pub(super) struct Inspector {
    last_of_key: HashMap<Vec<u8>, u32>,
    pub(super) damaged: u64,
    pub(super) out_of_order: u64,
}

impl Inspector {
    /// Checks a record's content and its order among those of its key. None if the content is not what was sent.
    pub(super) fn inspect(&mut self, record: &Record) -> Option<Reading> {
        let reading = parse(&record.value);
        let (Some(reading), Some(key)) = (reading, &record.key) else {
            self.damaged += 1;
            return None;
        };
        match self.last_of_key.get_mut(&key[..]) {
            // A duplicate is counted as such elsewhere.
            Some(last) if reading.number < *last => self.out_of_order += 1,
            Some(last) => *last = reading.number,
            None => drop(self.last_of_key.insert(key.to_vec(), reading.number)),
        }
        Some(reading)
    }
}

fn parse(value: &[u8]) -> Option<Reading> {
    #[derive(serde::Deserialize)]
    struct Json {
        producer: u32,
        n: u32,
        sum: String,
    }
    let json: Json = serde_json::from_slice(value).ok()?;
    let summed = value.len().checked_sub(SUM_LEN)?;
    let sum = u64::from_str_radix(&json.sum, 16).ok()?;
    (checksum(&value[..summed]) == sum).then_some(Reading { producer: json.producer, number: json.n })
}

/// FNV-1a, 64 bits: short, and independent of what the broker itself uses.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Name, unit, usual value.
const SENSORS: [(&str, &str, f64); 5] = [
    ("temp", "C", 64.0),
    ("pressure", "bar", 4.2),
    ("vibration", "mm/s", 1.8),
    ("speed", "1/min", 1480.0),
    ("power", "kW", 37.5),
];
/// Length of `,"sum":"0123456789abcdef"}`.
const SUM_LEN: usize = 26;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_found_whole_and_a_changed_one_is_not() {
        let mut line = Line::new("north", 3);
        let mut inspector = Inspector::default();
        for number in 0..20 {
            let record = line.read(0.5);
            assert_eq!(inspector.inspect(&record), Some(Reading { producer: 3, number }));
        }
        let mut record = line.read(-0.5);
        let mut value = record.value.to_vec();
        value[12] ^= 1;
        record.value = value.into();
        assert_eq!(inspector.inspect(&record), None);
        assert_eq!((inspector.damaged, inspector.out_of_order), (1, 0));
    }

    #[test]
    fn a_reading_before_its_elder_is_out_of_order() {
        let mut line = Line::new("north", 3);
        let records: Vec<_> = (0..10).map(|_| line.read(0.0)).collect();
        let mut inspector = Inspector::default();
        // The first and the sixth are of one sensor.
        inspector.inspect(&records[5]);
        inspector.inspect(&records[1]);
        assert_eq!(inspector.out_of_order, 0);
        inspector.inspect(&records[0]);
        assert_eq!(inspector.out_of_order, 1);
    }
}
