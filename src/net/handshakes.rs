//! How many handshakes one address may begin: a pure, bounded table.
//!
//! A handshake costs a node a signature, so one address must not be able to ask for all of them.
//! Source addresses of first packets can be forged: count an address only once it is validated, or answer
//! those over the limit with a QUIC Retry, else anybody could use up another's share.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::limits::HANDSHAKE_ADDRESSES_MAX;

/// Counts handshakes by address.
#[derive(Debug)]
pub struct Handshakes {
    /// Time that one handshake uses up of the second that an address may use at once.
    cost: Duration,
    by_address: HashMap<IpAddr, Entry>,
    /// Addresses from the one seen longest ago; holds exactly those of `by_address`.
    by_age: BTreeMap<u64, IpAddr>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When all handshakes so far are paid off, at the rate of the limit (GCRA's theoretical arrival time).
    paid_at: Instant,
    seen: u64,
}

impl Handshakes {
    /// A table that lets each address begin `per_second` handshakes a second, at most that many at once.
    ///
    /// # Panics
    /// If `per_second` is 0: nobody could ever connect.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        assert!(per_second > 0, "the limit of handshakes must allow one");
        Self {
            cost: WINDOW / per_second,
            by_address: HashMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Counts a handshake of this address, and tells whether it may go on.
    pub fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        let address = countable(address);
        let before = self.by_address.get(&address).copied();
        let paid_at = before.map_or(now, |entry| entry.paid_at.max(now));
        let allowed = paid_at - now + self.cost <= WINDOW;
        let paid_at = if allowed { paid_at + self.cost } else { paid_at };
        match before {
            Some(entry) => {
                self.by_age.remove(&entry.seen);
            }
            None if self.by_address.len() == HANDSHAKE_ADDRESSES_MAX => {
                if let Some((_, oldest)) = self.by_age.pop_first() {
                    self.by_address.remove(&oldest);
                }
            }
            None => {}
        }
        self.clock += 1;
        self.by_address.insert(address, Entry { paid_at, seen: self.clock });
        self.by_age.insert(self.clock, address);
        allowed
    }
}

/// An IPv6 host usually has a /64 to itself: counting single addresses of it would count nothing.
fn countable(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

const WINDOW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";

    struct Bench {
        table: Handshakes,
        start: Instant,
    }

    impl Bench {
        fn new(per_second: u32) -> Self {
            Self { table: Handshakes::new(per_second), start: Instant::now() }
        }

        /// How many of `tries` handshakes at one moment are allowed.
        fn allowed(&mut self, address: &str, at_ms: u64, tries: u32) -> u32 {
            let address = address.parse().expect("an address");
            let now = self.start + Duration::from_millis(at_ms);
            (0..tries).map(|_| u32::from(self.table.allow(address, now))).sum()
        }
    }

    #[test]
    fn an_address_gets_its_share_and_no_more() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.allowed(A, 0, 50), 10);
        assert_eq!(bench.allowed(A, 99, 50), 0);
        assert_eq!(bench.allowed(A, 100, 50), 1);
        assert_eq!(bench.allowed(A, 1_100, 50), 10);
    }

    #[test]
    fn a_noisy_address_takes_nothing_from_another() {
        let mut bench = Bench::new(10);
        bench.allowed(A, 0, 50);
        assert_eq!(bench.allowed(B, 0, 50), 10);
    }

    #[test]
    fn one_network_counts_as_one_address() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.allowed("2001:db8::1", 0, 50), 10);
        assert_eq!(bench.allowed("2001:db8::2", 0, 50), 0);
        assert_eq!(bench.allowed("2001:db8:0:1::2", 0, 50), 10);
        assert_eq!(bench.allowed(A, 0, 50), 10);
        assert_eq!(bench.allowed("::ffff:192.0.2.1", 0, 50), 0);
    }

    #[test]
    fn the_table_stays_bounded_and_forgets_the_oldest() {
        let mut bench = Bench::new(1);
        assert_eq!(bench.allowed(A, 0, 2), 1);
        let now = bench.start;
        for i in (0..).take(HANDSHAKE_ADDRESSES_MAX - 1) {
            bench.table.allow(IpAddr::V4((0x0a00_0000_u32 + i).into()), now);
        }
        assert_eq!(bench.allowed(A, 0, 1), 0, "full, and still remembered");
        for i in (0..).take(HANDSHAKE_ADDRESSES_MAX) {
            bench.table.allow(IpAddr::V4((0x0b00_0000_u32 + i).into()), now);
        }
        assert_eq!(bench.table.by_address.len(), HANDSHAKE_ADDRESSES_MAX);
        assert_eq!(bench.table.by_age.len(), HANDSHAKE_ADDRESSES_MAX);
        assert_eq!(bench.allowed(A, 0, 1), 1, "forgotten");
    }
}
