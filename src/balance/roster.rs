//! The clients of one node, as far as it matters for asking them to move.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::clients::Own;
use crate::limits::{
    BALANCE_ASK_AGAIN, BALANCE_NEW, BALANCE_PATIENCE, BALANCE_STAY, BALANCE_WINDOW,
};

/// A client's place on the roster: never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(u64);

#[derive(Clone, Copy, Debug)]
struct Client {
    /// From when on it may be asked.
    free_from: Duration,
    /// Until when it is taken to be on its way.
    leaving_until: Duration,
}

/// Who is here. Bounded by the connections of a node.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    next: u64,
    clients: BTreeMap<Seat, Client>,
    /// When those left lately who were asked to.
    left: VecDeque<Duration>,
}

impl Roster {
    /// A client has come; `moved` if another node asked it to.
    pub fn enter(&mut self, now: Duration, moved: bool) -> Seat {
        let seat = Seat(self.next);
        self.next += 1;
        let rest = if moved { BALANCE_STAY } else { BALANCE_NEW };
        self.clients.insert(seat, Client { free_from: now + rest, leaving_until: Duration::ZERO });
        seat
    }

    /// A client has gone.
    pub fn leave(&mut self, now: Duration, seat: Seat) {
        let client = self.clients.remove(&seat);
        if client.is_some_and(|client| now < client.leaving_until) {
            self.left.push_back(now);
        }
        while self.left.front().is_some_and(|at| *at + BALANCE_WINDOW < now) {
            self.left.pop_front();
        }
    }

    /// How many are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// How many are here, will go and may be asked.
    #[must_use]
    pub fn own(&self, now: Duration) -> Own {
        let left = self.left.iter().filter(|at| **at + BALANCE_WINDOW >= now).count() as u64;
        let mut own = Own { here: self.clients.len() as u64, leaving: 0, askable: 0, left };
        for client in self.clients.values() {
            own.leaving += u64::from(now < client.leaving_until);
            own.askable += u64::from(now >= client.free_from);
        }
        own
    }

    /// Chooses clients that may be asked, and notes that they are: those first that came last. Who has been here for long has
    /// more to lose, or does not listen.
    pub fn ask(&mut self, now: Duration, count: usize) -> Vec<Seat> {
        let askable = self.clients.iter_mut().rev().filter(|(_, client)| now >= client.free_from);
        let asked = askable.take(count).map(|(seat, client)| {
            client.free_from = now + BALANCE_ASK_AGAIN;
            client.leaving_until = now + BALANCE_PATIENCE;
            *seat
        });
        asked.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_has_just_come_or_came_because_it_was_asked_is_left_alone() {
        let mut roster = Roster::default();
        let first = roster.enter(Duration::ZERO, false);
        let moved = roster.enter(Duration::ZERO, true);
        let own = |here, leaving, askable| Own { here, leaving, askable, left: 0 };
        assert_eq!(roster.own(SECOND), own(2, 0, 0));
        assert_eq!(roster.own(BALANCE_NEW), own(2, 0, 1));
        assert_eq!(roster.ask(BALANCE_NEW, 9), [first]);
        assert_eq!(roster.own(BALANCE_STAY), own(2, 0, 1));
        assert_eq!(roster.ask(BALANCE_STAY, 9), [moved]);
    }

    #[test]
    fn who_was_asked_and_stays_counts_again_and_is_asked_again_much_later() {
        let mut roster = Roster::default();
        let seat = roster.enter(Duration::ZERO, false);
        let asked = 10 * SECOND;
        assert_eq!(roster.ask(asked, 1), [seat]);
        assert_eq!(roster.own(asked).leaving, 1);
        assert_eq!(roster.own(asked + BALANCE_PATIENCE).leaving, 0);
        assert_eq!(roster.ask(asked + BALANCE_ASK_AGAIN - SECOND, 1), []);
        assert_eq!(roster.ask(asked + BALANCE_ASK_AGAIN, 1), [seat]);
        roster.leave(asked + BALANCE_ASK_AGAIN, seat);
        assert!(roster.is_empty());
        assert_eq!(roster.own(asked + BALANCE_ASK_AGAIN + BALANCE_WINDOW).left, 1, "on its way");
        assert_eq!(roster.own(asked + BALANCE_ASK_AGAIN + BALANCE_WINDOW + SECOND).left, 0);
    }

    #[test]
    fn those_that_came_last_are_asked_first() {
        let mut roster = Roster::default();
        let seats: Vec<Seat> = (0..4).map(|n| roster.enter(n * SECOND, false)).collect();
        assert_eq!(roster.ask(60 * SECOND, 2), [seats[3], seats[2]]);
        assert_eq!(roster.ask(61 * SECOND, 1), [seats[1]]);
    }
}
