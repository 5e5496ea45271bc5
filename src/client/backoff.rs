//! How long to wait before trying again.

use std::time::Duration;

/// Doubles from a first delay to a last one; each delay is drawn from the upper half of its range, so that many clients
/// that lost the same node do not come back in step.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next delay. `random` lies in 0..1.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.tries.min(16)).min(LAST);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// It worked: the next delay is the first again.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

const FIRST: Duration = Duration::from_millis(50);
/// A node restarts in about a second: waiting much longer than that helps nobody.
const LAST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_last_and_start_again() {
        let mut backoff = Backoff::default();
        let whole: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(whole, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST / 2);
    }
}
