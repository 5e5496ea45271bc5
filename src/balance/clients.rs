//! How many of its clients a node asks to move now, and where to.
//!
//! A node that has more than its share by weight gives up what it has too many, a few in a round, and no more than that:
//! what it has itself it knows exactly. Each client that it asks is named the node it should go to. All nodes lay out what
//! the ones have too many against what the others have too few, in the same order, and each sends its own piece to where
//! that lies: so many that give do not all choose the same one that takes, and one that takes is not given too much.
//!
//! Reports are late, and a client on its way is with nobody. So the sum of all clients is the greatest of the last
//! [`BALANCE_WINDOW`]: a share that is taken too high only makes a node wait.

use std::{cmp::Reverse, collections::VecDeque, time::Duration};

use super::shares;
use crate::{
    limits::{
        BALANCE_BAND_MIN, BALANCE_BAND_PERCENT, BALANCE_CANDIDATES_MAX, BALANCE_HOLD, BALANCE_PART,
        BALANCE_STEP, BALANCE_STEP_EMPTY, BALANCE_WINDOW,
    },
    types::NodeId,
};

/// A node that is up, as another one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientNode {
    /// Which.
    pub node: NodeId,
    /// Its share of the clients beside those of the others; 0 gives all up, as a node does that drains.
    pub weight: u32,
    /// Clients that it has reported.
    pub clients: u64,
    /// Whether it was up for long enough to be given any.
    pub settled: bool,
}

/// The clients of the node that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// All that are here.
    pub here: u64,
    /// Those of them that were asked and will go.
    pub leaving: u64,
    /// Those of them that may be asked now.
    pub askable: u64,
    /// Those that have gone because they were asked, within [`BALANCE_WINDOW`]: others may not have said yet that they came.
    pub left: u64,
}

/// Clients that should go from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// From where.
    pub from: NodeId,
    /// To where.
    pub to: NodeId,
    /// How many.
    pub clients: u64,
}

/// Nodes and how far they are off their shares: by number, as they were given.
#[derive(Clone, Debug)]
struct Table<'a> {
    nodes: &'a [ClientNode],
    /// What each has too many. None of one that has just come up: what it has may be all that it will have.
    excess: Vec<u64>,
    /// What each has too few.
    lack: Vec<u64>,
    /// Any is so far off its share that clients should move, and somebody could take them.
    uneven: bool,
}

impl<'a> Table<'a> {
    fn of(total: u64, nodes: &'a [ClientNode]) -> Self {
        let (mut excess, mut lack) = (Vec::new(), Vec::new());
        let (mut gives, mut takes, mut off) = (false, false, false);
        for (node, wanted) in nodes.iter().zip(wanted(total, nodes)) {
            let gives_up = node.settled || node.weight == 0;
            let many = if gives_up { node.clients.saturating_sub(wanted) } else { 0 };
            let few = wanted.saturating_sub(node.clients);
            let band = (wanted * BALANCE_BAND_PERCENT / 100).max(BALANCE_BAND_MIN);
            gives |= many > 0;
            takes |= few > 0;
            off |= if node.weight == 0 { many > 0 } else { many.max(few) > band };
            excess.push(many);
            lack.push(few);
        }
        Self { nodes, excess, lack, uneven: gives && takes && off }
    }

    fn takers(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let lacks = self.nodes.iter().map(|node| node.node).zip(self.lack.iter().copied());
        lacks.filter(|(_, lack)| *lack > 0)
    }
}

/// How many of `total` clients each of these nodes should have, in their order. A node that is not settled has no share yet.
#[must_use]
pub fn wanted(total: u64, nodes: &[ClientNode]) -> Vec<u64> {
    let weight = |node: &ClientNode| if node.settled { node.weight } else { 0 };
    shares(total, &nodes.iter().map(weight).collect::<Vec<_>>())
}

/// All that would move to make the nodes even, as they are: from the lowest number that has too many to the lowest that has
/// too few. Nothing within the band.
#[must_use]
pub fn flows(nodes: &[ClientNode]) -> Vec<Flow> {
    let table = Table::of(nodes.iter().map(|node| node.clients).sum(), nodes);
    let mut flows = Vec::new();
    if !table.uneven {
        return flows;
    }
    let mut takers = table.takers();
    let mut taker = takers.next();
    for (at, from) in nodes.iter().enumerate() {
        let mut left = table.excess[at];
        while left > 0 {
            let Some((to, lack)) = &mut taker else { return flows };
            let clients = left.min(*lack);
            flows.push(Flow { from: from.node, to: *to, clients });
            (left, *lack) = (left - clients, *lack - clients);
            if *lack == 0 {
                taker = takers.next();
            }
        }
    }
    flows
}

/// What one node remembers between rounds.
#[derive(Clone, Debug)]
pub struct ClientBalance {
    me: NodeId,
    /// Sums over the site, the oldest first.
    totals: VecDeque<(Duration, u64)>,
    /// Nodes with their weights, and whether they count, in the last round.
    known: Vec<(NodeId, u32, bool)>,
    /// Since when clients are spread unevenly.
    uneven_since: Option<Duration>,
    /// This node gives up what it has too many, down to its share.
    gives: bool,
}

impl ClientBalance {
    /// A node that has not looked yet.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        let (totals, known) = (VecDeque::new(), Vec::new());
        Self { me, totals, known, uneven_since: None, gives: false }
    }

    /// One round: for each client to be asked now, the nodes that it should try, the best first. `nodes` are all that are up,
    /// this one among them, by number; `own` are its clients. With `at_once` nothing waits for [`BALANCE_HOLD`].
    pub fn round(
        &mut self,
        now: Duration,
        nodes: &[ClientNode],
        own: Own,
        at_once: bool,
    ) -> Vec<Vec<NodeId>> {
        let staying = own.here.saturating_sub(own.leaving);
        let mut nodes = nodes.to_vec();
        for node in nodes.iter_mut().filter(|node| node.node == self.me) {
            node.clients = staying;
        }
        let total = nodes.iter().map(|node| node.clients).sum::<u64>() + own.leaving;
        let table = Table::of(self.most(now, total, &nodes), &nodes);
        if !table.uneven {
            self.uneven_since = None;
        } else if *self.uneven_since.get_or_insert(now) + BALANCE_HOLD <= now || at_once {
            self.gives = true;
        }
        let Some(me) = nodes.iter().position(|node| node.node == self.me) else {
            return Vec::new();
        };
        // Those that were asked may stay: it is not over before they are gone.
        self.gives &= table.excess[me] + own.leaving > table.lack[me];
        if !self.gives {
            return Vec::new();
        }
        // Those that have left may not have been reported yet. If they were, they count twice, and some wait for nothing.
        let excess = match own.left {
            0 => table.excess[me],
            left => table.excess[me].min(Table::of(total + left, &nodes).excess[me]),
        };
        let least = if nodes[me].weight == 0 { BALANCE_STEP_EMPTY } else { BALANCE_STEP };
        let at_most = least.max(excess.div_ceil(BALANCE_PART));
        let asks = excess.min(own.askable).min(at_most.saturating_sub(own.leaving));
        candidates(&table, me, asks)
    }

    /// Notes a sum, and gives the greatest of late.
    fn most(&mut self, now: Duration, total: u64, nodes: &[ClientNode]) -> u64 {
        let known = nodes.iter().map(|node| (node.node, node.weight, node.settled));
        if !known.clone().eq(self.known.iter().copied()) {
            // Who was lost takes no clients along, and other weights are another question.
            self.known = known.collect();
            self.totals.clear();
            (self.uneven_since, self.gives) = (None, false);
        }
        self.totals.push_back((now, total));
        while self.totals.front().is_some_and(|(at, _)| *at + BALANCE_WINDOW < now) {
            self.totals.pop_front();
        }
        self.totals.iter().map(|(_, total)| *total).max().unwrap_or(total)
    }
}

/// Lays what nodes have too many against what others have too few, and spreads `asks` evenly over the piece of one node. The
/// middles of all parts lie at least one client apart, so that no node is sent more than it lacks.
fn candidates(table: &Table<'_>, me: usize, asks: u64) -> Vec<Vec<NodeId>> {
    if asks == 0 {
        return Vec::new();
    }
    let before: u64 = table.excess[..me].iter().sum();
    let excess: u64 = table.excess.iter().sum();
    let mine = table.excess[me];
    let takers: Vec<(NodeId, u64)> = table.takers().collect();
    let lack: u64 = takers.iter().map(|(_, lack)| lack).sum();
    if lack == 0 || excess == 0 {
        return Vec::new();
    }
    let mut others = takers.clone();
    others.sort_unstable_by_key(|(node, lack)| (Reverse(*lack), *node));
    others.truncate(BALANCE_CANDIDATES_MAX);
    let target = |nth: u64| {
        // The middle of the nth of `asks` equal parts of this node's piece, on the line of what is lacking.
        let wide = |n: u64| u128::from(n);
        let middle = 2 * wide(asks) * wide(before) + (2 * wide(nth) + 1) * wide(mine);
        let mut at = middle * wide(lack) / (2 * wide(asks) * wide(excess));
        for (node, lack) in &takers {
            match at.checked_sub(wide(*lack)) {
                Some(rest) => at = rest,
                None => return *node,
            }
        }
        // Only if the middle were behind the end.
        takers[takers.len() - 1].0
    };
    let named = |first: NodeId| {
        let rest = others.iter().map(|(node, _)| *node).filter(|node| *node != first);
        std::iter::once(first).chain(rest).take(BALANCE_CANDIDATES_MAX).collect()
    };
    (0..asks).map(|nth| named(target(nth))).collect()
}

#[cfg(test)]
mod tests;
