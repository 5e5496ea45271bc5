//! Links between nodes: each direction by itself can be cut, and messages are lost, doubled, delayed and overtaken.

use super::{plan::Links, rng::Rng};

/// All links of a site.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// How many cuts lie on the link, by sender and receiver.
    cuts: Vec<Vec<u32>>,
    pub(crate) links: Links,
    rng: Rng,
}

impl Network {
    pub(crate) fn new(nodes: usize, links: Links, rng: Rng) -> Self {
        Self { cuts: vec![vec![0; nodes]; nodes], links, rng }
    }

    /// When the copies of a message arrive, in microseconds from now; none if it is lost.
    pub(crate) fn send(&mut self, from: usize, to: usize) -> [Option<u64>; 2] {
        if !self.passes(from, to) || self.rng.permille(self.links.lost) {
            return [None, None];
        }
        let again = self.rng.permille(self.links.doubled);
        let first = self.delay();
        [Some(first), again.then(|| self.delay() * 3)]
    }

    /// Whether anything passes in this direction.
    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        from == to || self.cuts[from][to] == 0
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from][to] += 1;
    }

    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.cuts[from][to] = self.cuts[from][to].saturating_sub(1);
    }

    /// Everything works from now on.
    pub(crate) fn heal(&mut self) {
        self.cuts.iter_mut().flatten().for_each(|cuts| *cuts = 0);
        (self.links.lost, self.links.doubled, self.links.late) = (0, 0, 0);
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let Links { delay_min, delay_max, late, .. } = self.links;
        if self.rng.permille(late) {
            return self.rng.between(delay_max, 1_000_000);
        }
        self.rng.between(delay_min, delay_max.max(delay_min))
    }
}
