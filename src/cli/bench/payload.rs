//! What the records hold: when they were meant to be sent, then text that does not compress well. Pure.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

/// Least size of a payload: the time fits.
pub(super) const SIZE_MIN: usize = 8;

/// Makes payloads of one size.
#[derive(Debug)]
pub(super) struct Payloads {
    size: usize,
    text: Bytes,
    at: usize,
}

impl Payloads {
    /// Payloads of `size` bytes; the same `seed` makes the same text.
    pub(super) fn new(size: usize, seed: u64) -> Self {
        let mut state = seed;
        let len = size + TEXT_LEN;
        let mut text = BytesMut::with_capacity(len + LETTERS_OF_WORD);
        while text.len() < len {
            let mut word = next_random(&mut state);
            for _ in 0..LETTERS_OF_WORD {
                text.put_u8(ALPHABET[usize::try_from(word % 64).unwrap_or_default()]);
                word /= 64;
            }
        }
        Self { size, text: text.freeze(), at: 0 }
    }

    /// The next payload, for a record that is meant to be sent at `time` by the clock of the run.
    pub(super) fn next(&mut self, time: Duration) -> Bytes {
        let mut payload = BytesMut::with_capacity(self.size);
        payload.put_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        payload.put_slice(&self.text[self.at..self.at + self.size - SIZE_MIN]);
        // A prime: the text comes round at another place each time.
        self.at = (self.at + 1_021) % TEXT_LEN;
        payload.freeze()
    }
}

/// The time that a payload carries.
pub(super) fn time_of(payload: &[u8]) -> Option<Duration> {
    let time: [u8; SIZE_MIN] = payload.get(..SIZE_MIN)?.try_into().ok()?;
    Some(Duration::from_nanos(u64::from_be_bytes(time)))
}

/// SplitMix64: good enough that no compressor finds a pattern.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Six bits a letter: entropy coding wins a quarter, matches win nothing.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
const LETTERS_OF_WORD: usize = 10;
/// More than a compressor's window for one batch.
const TEXT_LEN: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_carries_its_time_and_has_its_size() {
        for size in [SIZE_MIN, 9, 1_024, 100_000] {
            let mut payloads = Payloads::new(size, 1);
            for micros in [0, 7, 1_000_000_000] {
                let payload = payloads.next(Duration::from_micros(micros));
                assert_eq!(payload.len(), size);
                assert_eq!(time_of(&payload), Some(Duration::from_micros(micros)));
            }
        }
        assert_eq!(time_of(b"short"), None);
    }

    #[test]
    fn payloads_do_not_compress_to_nothing() {
        let mut payloads = Payloads::new(1_024, 1);
        let text: Vec<u8> = (0..60).flat_map(|_| payloads.next(Duration::ZERO)).collect();
        let packed = zstd::bulk::compress(&text, 3).expect("compressed");
        assert!(packed.len() * 100 > text.len() * 70, "{} of {}", packed.len(), text.len());
        assert_ne!(payloads.next(Duration::ZERO), payloads.next(Duration::ZERO));
    }
}
