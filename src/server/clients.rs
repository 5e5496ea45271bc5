//! The clients that are connected: who may be asked to go to another node, and the way to tell them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;

use super::clock::Clock;
use crate::{
    balance::{
        clients::Own,
        roster::{Roster, Seat},
    },
    wire::GoAway,
};

/// All clients of this node that have been welcomed. Other nodes, which pass on what their clients send, are none.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    roster: Roster,
    ways: BTreeMap<Seat, mpsc::Sender<GoAway>>,
}

/// A client's place among them, for as long as it is here.
#[derive(Debug)]
pub(super) struct Place {
    clock: Clock,
    clients: Arc<Clients>,
    seat: Seat,
}

impl Clients {
    /// A client was welcomed. What it is to be told comes out of the receiver.
    pub(super) fn enter(
        self: &Arc<Self>,
        clock: Clock,
        moved: bool,
    ) -> (Place, mpsc::Receiver<GoAway>) {
        let (way, told) = mpsc::channel(1);
        let mut table = self.table();
        let seat = table.roster.enter(clock.uptime(), moved);
        table.ways.insert(seat, way);
        (Place { clock, clients: Arc::clone(self), seat }, told)
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.table().roster.len()).unwrap_or(u32::MAX)
    }

    /// How many there are, will go and may be asked.
    pub(super) fn own(&self, now: Duration) -> Own {
        self.table().roster.own(now)
    }

    /// Asks as many clients as there are goodbyes, if so many may be asked.
    pub(super) fn ask(&self, now: Duration, goodbyes: Vec<GoAway>) {
        let mut table = self.table();
        let seats = table.roster.ask(now, goodbyes.len());
        for (seat, goodbye) in seats.into_iter().zip(goodbyes) {
            if let Some(way) = table.ways.get(&seat) {
                // One that has not heard the last goodbye needs no other.
                let _ = way.try_send(goodbye);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.clients.table();
        table.roster.leave(self.clock.uptime(), self.seat);
        table.ways.remove(&self.seat);
    }
}
