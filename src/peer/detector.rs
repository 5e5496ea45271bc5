//! When a silent node is down: pure, learns how irregular each node's heartbeats are.
//!
//! A guess and nothing more. No safety rule leans on it: a node that is wrongly taken to be down loses its place in commit
//! sets by changes that the metadata checks, and one that is wrongly taken to be alive delays a failover.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    limits::{FENCE_AFTER_MAX, FENCE_AFTER_MIN, SILENCE_MAX},
    types::NodeId,
};

/// What is known of the heartbeats of all nodes. `now` is the time since any fixed moment, by a clock that never goes back.
#[derive(Clone, Debug)]
pub struct Detector {
    floor: Duration,
    started: Duration,
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    last: Duration,
    /// The longest gap, slowly forgotten.
    gap: Duration,
}

impl Detector {
    /// Begins at `now`. No silence shorter than `floor` means down; it is brought into the bounds that may be configured.
    #[must_use]
    pub fn new(floor: Duration, now: Duration) -> Self {
        let floor = floor.clamp(FENCE_AFTER_MIN, FENCE_AFTER_MAX);
        Self { floor, started: now, heard: BTreeMap::new() }
    }

    /// A heartbeat of this node has come.
    pub fn heard(&mut self, node: NodeId, now: Duration) {
        let Some(heard) = self.heard.get_mut(&node) else {
            self.heard.insert(node, Heard { last: now, gap: Duration::ZERO });
            return;
        };
        let gap = now.saturating_sub(heard.last);
        heard.last = now.max(heard.last);
        let forgotten = heard.gap.mul_f64((gap.as_secs_f64() / FORGET.as_secs_f64()).min(1.0));
        heard.gap -= forgotten;
        // A longer one is an absence. It says nothing of how regularly the node speaks.
        if gap <= SILENCE_MAX.max(self.floor) {
            heard.gap = heard.gap.max(gap);
        }
    }

    /// Forgets what was learned of a node: for one that has started anew. Its silence counts from now on.
    pub fn forget(&mut self, node: NodeId, now: Duration) {
        self.heard.insert(node, Heard { last: now, gap: Duration::ZERO });
    }

    /// How long this node may be silent before it is down.
    #[must_use]
    pub fn silence_allowed(&self, node: NodeId) -> Duration {
        let gap = self.heard.get(&node).map_or(Duration::ZERO, |heard| heard.gap);
        (gap * GAPS_ALLOWED).clamp(self.floor, SILENCE_MAX.max(self.floor))
    }

    /// Whether the node is down. One that was never heard has the floor's time from the start.
    #[must_use]
    pub fn is_down(&self, node: NodeId, now: Duration) -> bool {
        let last = self.heard.get(&node).map_or(self.started, |heard| heard.last);
        now.saturating_sub(last) > self.silence_allowed(node)
    }
}

/// A silence of so many times the longest gap of late is none that chance makes: with 5 % loss gaps of two heartbeats are
/// seen each minute, of eight once in a century.
const GAPS_ALLOWED: u32 = 4;
/// After this time without another like it, a third of a gap is left.
const FORGET: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{FENCE_AFTER, HEARTBEAT};

    const NODE: NodeId = NodeId(1);
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

    /// How often the node was taken to be down before an arrival.
    fn false_alarms(times: &[Duration]) -> usize {
        let mut detector = Detector::new(FENCE_AFTER, Duration::ZERO);
        let alarms = times.iter().filter(|at| {
            let down = detector.is_down(NODE, **at);
            detector.heard(NODE, **at);
            down
        });
        alarms.count()
    }

    #[test]
    fn a_lossy_slow_link_is_not_taken_for_a_dead_node_in_a_day() {
        for seed in 0..8 {
            let mut chance = Chance(seed);
            let times = arrivals(DAY, |_| {
                let jitter = Duration::from_millis(chance.below(120));
                (chance.below(100) >= 5).then_some(Duration::from_millis(150) + jitter)
            });
            assert_eq!(false_alarms(&times), 0, "seed {seed}");
        }
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
            assert_eq!(false_alarms(&times), 0, "seed {seed}");
        }
    }

    #[test]
    fn a_node_that_vanishes_from_a_quiet_network_is_down_at_once() {
        for seed in 0..100 {
            let mut chance = Chance(seed);
            let end = Duration::from_millis(60_000 + chance.below(60_000));
            let times = arrivals(end, |_| Some(Duration::from_millis(1 + chance.below(5))));
            let mut detector = Detector::new(FENCE_AFTER, Duration::ZERO);
            times.iter().for_each(|at| detector.heard(NODE, *at));
            assert!(!detector.is_down(NODE, end));
            assert!(detector.is_down(NODE, end + FENCE_AFTER + HEARTBEAT), "seed {seed}");
        }
    }

    #[test]
    fn what_was_learned_is_forgotten_slowly() {
        let mut detector = Detector::new(FENCE_AFTER, Duration::ZERO);
        let mut now = Duration::ZERO;
        detector.heard(NODE, now);
        now += Duration::from_millis(600);
        detector.heard(NODE, now);
        assert_eq!(detector.silence_allowed(NODE), Duration::from_millis(2_400));
        let beats = |detector: &mut Detector, now: &mut Duration, secs: u64| {
            let end = *now + Duration::from_secs(secs);
            while *now < end {
                *now += HEARTBEAT;
                detector.heard(NODE, *now);
            }
        };
        beats(&mut detector, &mut now, 60);
        assert!(detector.silence_allowed(NODE) > Duration::from_millis(1_900));
        beats(&mut detector, &mut now, 600);
        assert_eq!(detector.silence_allowed(NODE), FENCE_AFTER);
    }

    #[test]
    fn an_absence_is_not_learned_and_a_new_start_forgets() {
        let mut detector = Detector::new(FENCE_AFTER, Duration::ZERO);
        detector.heard(NODE, Duration::ZERO);
        detector.heard(NODE, Duration::from_secs(3_600));
        assert_eq!(detector.silence_allowed(NODE), FENCE_AFTER);
        detector.heard(NODE, Duration::from_secs(3_602));
        assert_eq!(detector.silence_allowed(NODE), SILENCE_MAX);
        detector.forget(NODE, Duration::from_secs(3_603));
        assert_eq!(detector.silence_allowed(NODE), FENCE_AFTER);
    }

    #[test]
    fn the_floor_stays_in_its_bounds_and_may_be_above_the_ceiling() {
        let floor = |floor| Detector::new(floor, Duration::ZERO).silence_allowed(NODE);
        assert_eq!(floor(Duration::ZERO), FENCE_AFTER_MIN);
        assert_eq!(floor(DAY), FENCE_AFTER_MAX);
        assert_eq!(floor(Duration::from_secs(8)), Duration::from_secs(8));
    }

    #[test]
    fn one_that_was_never_heard_has_the_time_of_the_floor() {
        let start = Duration::from_secs(9);
        let detector = Detector::new(FENCE_AFTER, start);
        assert!(!detector.is_down(NODE, start + FENCE_AFTER));
        assert!(detector.is_down(NODE, start + FENCE_AFTER + HEARTBEAT));
    }

    proptest! {
        #[test]
        fn any_times_are_taken(times in proptest::collection::vec(any::<u64>(), 0..50)) {
            let mut detector = Detector::new(FENCE_AFTER, Duration::ZERO);
            for at in times {
                detector.heard(NODE, Duration::from_millis(at));
                let allowed = detector.silence_allowed(NODE);
                prop_assert!((FENCE_AFTER..=SILENCE_MAX).contains(&allowed));
            }
        }
    }
}
