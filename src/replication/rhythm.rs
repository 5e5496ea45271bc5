//! How regularly one node is heard, and how long a silence of it may last before it counts as down: pure.
//!
//! A guess and nothing more. No safety rule leans on it: a node that is wrongly taken to be down loses its place in commit
//! sets by changes that the metadata checks, and one that is wrongly taken to be alive delays a failover.

use std::time::Duration;

use crate::limits::SILENCE_MAX;

/// What is known of when a node was heard. Times are those since any fixed moment, by a clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// No silence shorter than this means down.
    fence: Duration,
    last: Duration,
    /// The longest silence that ended by itself, slowly forgotten.
    gap: Duration,
}

impl Rhythm {
    /// Of a node that is heard the first time now.
    #[must_use]
    pub fn new(fence: Duration, now: Duration) -> Self {
        Self { fence, last: now, gap: Duration::ZERO }
    }

    /// The node was heard again.
    pub fn heard(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last);
        self.last = now.max(self.last);
        let forgotten = self.gap.mul_f64((gap.as_secs_f64() / FORGET.as_secs_f64()).min(1.0));
        self.gap -= forgotten;
        // A longer one is an absence. It says nothing of how regularly the node speaks.
        if gap <= self.silence_allowed() {
            self.gap = self.gap.max(gap);
        }
    }

    /// So much of the silence is that of the one who listens.
    pub fn excuse(&mut self, time: Duration, now: Duration) {
        self.last = (self.last + time).min(now).max(self.last);
    }

    /// When it was heard last.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.last
    }

    /// How long the node may be silent before it is down.
    #[must_use]
    pub fn silence_allowed(&self) -> Duration {
        (self.gap * GAPS_ALLOWED).clamp(self.fence, SILENCE_MAX.max(self.fence))
    }

    /// Whether it has been silent for so long that it counts as down.
    #[must_use]
    pub fn is_silent(&self, now: Duration) -> bool {
        now > self.last + self.silence_allowed()
    }

    /// Whether it was heard so lately that whoever disputes it must have a reason: before that ends, nobody counts it as
    /// down, so that a primary that is cut off is replaced before it can remove all others.
    #[must_use]
    pub fn is_fresh(&self, now: Duration) -> bool {
        self.would_be_fresh(self.last, now)
    }

    /// The same of a node that was heard at `at` last.
    #[must_use]
    pub fn would_be_fresh(&self, at: Duration, now: Duration) -> bool {
        now <= at + self.silence_allowed() * 5 / 7
    }
}

/// A silence of so many times the longest of late is none that chance makes: what is seen once in five minutes on a line
/// that loses every fifth datagram is seen three times in a row once in centuries.
const GAPS_ALLOWED: u32 = 3;
/// After this time without another like it, a third of a gap is left.
const FORGET: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{FENCE_AFTER, HEARTBEAT};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// Chance that is the same on every run (SplitMix64).
    struct Chance(u64);

    impl Chance {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }
    }

    /// Arrivals of heartbeats until `end`. `delay` says how long each is under way, if it comes at all.
    fn arrivals(
        end: Duration,
        mut delay: impl FnMut(Duration) -> Option<Duration>,
    ) -> Vec<Duration> {
        let sent = (0u32..).map(|n| HEARTBEAT * n).take_while(|at| *at < end);
        let mut times: Vec<_> = sent.filter_map(|at| Some(at + delay(at)?)).collect();
        times.sort_unstable();
        times
    }

    fn listen(times: &[Duration]) -> (Rhythm, usize) {
        let mut rhythm = Rhythm::new(FENCE_AFTER, Duration::ZERO);
        let alarms = times.iter().filter(|at| {
            let down = rhythm.is_silent(**at);
            rhythm.heard(**at);
            down
        });
        let alarms = alarms.count();
        (rhythm, alarms)
    }

    /// How often in a day a node was taken to be down before it was heard, on a line that loses so many of a hundred.
    fn false_alarms(seed: u64, lost: u64) -> usize {
        let mut chance = Chance(seed);
        let times = arrivals(DAY, |_| {
            let jitter = Duration::from_millis(chance.below(120));
            (chance.below(100) >= lost).then_some(Duration::from_millis(150) + jitter)
        });
        listen(&times).1
    }

    #[test]
    fn a_lossy_slow_line_is_not_taken_for_a_dead_node_in_a_day() {
        for seed in 0..8 {
            assert_eq!(false_alarms(seed, 5), 0, "seed {seed}");
        }
    }

    #[test]
    fn a_line_that_loses_every_fifth_is_learned() {
        // Without learning each of these days has several: 0.2 to the seventh of 864,000.
        let alarms: usize = (0..8).map(|seed| false_alarms(seed, 20)).sum();
        assert!(alarms <= 2, "{alarms} in eight days");
    }

    #[test]
    fn a_node_that_stalls_now_and_then_is_not_down() {
        for seed in 0..8 {
            let mut chance = Chance(seed);
            let mut stalled_until = Duration::ZERO;
            let times = arrivals(DAY, |at| {
                if chance.below(400) == 0 {
                    stalled_until = at + Duration::from_millis(500);
                }
                let jitter = Duration::from_millis(chance.below(20));
                Some(stalled_until.saturating_sub(at) + jitter)
            });
            assert_eq!(listen(&times).1, 0, "seed {seed}");
        }
    }

    #[test]
    fn a_node_that_vanishes_from_a_quiet_network_is_down_at_once() {
        for seed in 0..100 {
            let mut chance = Chance(seed);
            let end = Duration::from_millis(60_000 + chance.below(60_000));
            let times = arrivals(end, |_| Some(Duration::from_millis(1 + chance.below(5))));
            let (rhythm, _) = listen(&times);
            assert!(!rhythm.is_silent(end));
            assert!(rhythm.is_silent(end + FENCE_AFTER + HEARTBEAT), "seed {seed}");
        }
    }

    #[test]
    fn what_was_learned_is_forgotten_slowly() {
        let mut rhythm = Rhythm::new(FENCE_AFTER, Duration::ZERO);
        let mut now = Duration::from_millis(600);
        rhythm.heard(now);
        assert_eq!(rhythm.silence_allowed(), Duration::from_millis(1_800));
        let beats = |rhythm: &mut Rhythm, now: &mut Duration, secs: u64| {
            let end = *now + Duration::from_secs(secs);
            while *now < end {
                *now += HEARTBEAT;
                rhythm.heard(*now);
            }
        };
        beats(&mut rhythm, &mut now, 60);
        assert!(rhythm.silence_allowed() > Duration::from_millis(1_400));
        beats(&mut rhythm, &mut now, 600);
        assert_eq!(rhythm.silence_allowed(), FENCE_AFTER);
    }

    #[test]
    fn an_absence_is_not_learned_and_neither_is_what_the_listener_slept_through() {
        let mut rhythm = Rhythm::new(FENCE_AFTER, Duration::ZERO);
        rhythm.heard(FENCE_AFTER + HEARTBEAT);
        assert_eq!(rhythm.silence_allowed(), FENCE_AFTER);
        let (slept, now) = (FENCE_AFTER * 4, FENCE_AFTER * 5 + HEARTBEAT);
        rhythm.excuse(slept, now);
        assert!(!rhythm.is_silent(now));
        rhythm.heard(now);
        assert!(rhythm.silence_allowed() <= FENCE_AFTER * 3);
    }

    proptest! {
        #[test]
        fn whoever_is_fresh_is_not_silent_and_silence_is_bounded(
            gaps in prop::collection::vec(0u64..20_000, 0..50),
            fence in 600u64..10_000,
            later in 0u64..30_000,
        ) {
            let fence = Duration::from_millis(fence);
            let mut rhythm = Rhythm::new(fence, Duration::ZERO);
            let mut now = Duration::ZERO;
            for gap in gaps {
                now += Duration::from_millis(gap);
                rhythm.heard(now);
            }
            let then = now + Duration::from_millis(later);
            prop_assert!(!rhythm.is_fresh(then) || !rhythm.is_silent(then));
            prop_assert!(rhythm.silence_allowed() >= fence);
            prop_assert!(rhythm.is_silent(now + fence.max(SILENCE_MAX) + Duration::from_millis(1)));
        }
    }
}
