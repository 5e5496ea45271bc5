//! A primary that proves it still leads: whoever asks after the answer sees all that was acked before the question.
//!
//! A later primary has promised a later epoch, and who has promised one does not answer questions of this epoch. It is a
//! member of the set or, if this primary has not heard of its confirmation yet, pending. So once all of them have
//! answered a question, nobody had acked anything in a later epoch when it was asked. No clock is involved.

use super::{effect::Effect, entry::LogEntry, message::Body, mutant, primary::Primary};
use crate::types::{Boot, NodeId};

impl<E: LogEntry> Primary<E> {
    /// Asks all that may be elected whether this epoch is still theirs. Gives the number of the question: it is answered when
    /// [`Self::barrier`] has reached it.
    pub fn ask_barrier(&mut self, out: &mut Vec<Effect<E>>) -> u64 {
        self.barrier += 1;
        self.ask_barriers(out);
        self.barrier
    }

    /// All questions up to this number are answered: everything that was acked before they were asked, by whichever primary,
    /// lies below the high watermark.
    #[must_use]
    pub fn barrier(&self) -> u64 {
        if mutant!(BarrierUnasked) {
            return self.barrier;
        }
        if !self.is_recovered() {
            return 0;
        }
        let set = self.config.set.len();
        let asked = if mutant!(BarrierSkipsPending) { set } else { usize::MAX };
        let others = self.config.required().take(asked).filter(|node| *node != self.me.node);
        let answered = |node: NodeId| self.followers.get(&node).map_or(0, |f| f.barrier);
        others.map(answered).min().unwrap_or(self.barrier)
    }

    /// Asks those again that have not answered.
    pub(super) fn ask_barriers(&mut self, out: &mut Vec<Effect<E>>) {
        if !self.has_started() {
            return;
        }
        let (epoch, number) = (self.epoch(), self.barrier);
        for node in self.config.required() {
            let Some(follower) = self.followers.get(&node) else { continue };
            let Some(incarnation) = follower.incarnation.filter(|_| follower.barrier < number)
            else {
                continue;
            };
            let to = Boot { node, incarnation };
            out.push(Effect::Send { to, epoch, body: Body::Barrier(number) });
        }
    }

    /// One of them says that it has promised no later epoch.
    pub(super) fn barrier_held(&mut self, from: Boot, number: u64) {
        if number <= self.barrier
            && let Some(follower) = self.followers.get_mut(&from.node)
        {
            follower.barrier = follower.barrier.max(number);
        }
    }
}
