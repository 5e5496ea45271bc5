//! A replica whose log is too old to be continued takes the primary's state whole.
//!
//! What it had is dropped first, with a durable mark that only the last chunk takes away: a half-done install is never
//! taken for a short log, whatever happens to the node.

use super::{
    backup::Backup,
    effect::Effect,
    entry::{LogEnd, LogEntry},
    history::EpochHistory,
    message::{Body, Chunk},
};
use crate::limits::INSTALL_CHUNKS_MAX;

/// An install that is under way in this boot.
#[derive(Clone, Debug)]
pub(super) struct Install {
    number: u32,
    base: LogEnd,
    history: EpochHistory,
    chunks: u32,
    next: u32,
}

impl Install {
    pub(super) fn new(number: u32, base: LogEnd, history: EpochHistory, chunks: u32) -> Self {
        Self { number, base, history, chunks: chunks.clamp(1, INSTALL_CHUNKS_MAX), next: 0 }
    }
}

impl<E: LogEntry> Backup<E> {
    pub(super) fn install_begin(&mut self, install: Install, out: &mut Vec<Effect<E>>) -> Body<E> {
        // The primary's numbers grow: what is not newer was doubled, or is late.
        if let Some(Install { number, next, .. }) = self.install
            && number >= install.number
        {
            return Body::ChunkDurable { number, next };
        }
        let Install { number, base, .. } = install;
        self.install = Some(install);
        self.aligned = None;
        self.log.install_begin(base, out);
        Body::ChunkDurable { number, next: 0 }
    }

    pub(super) fn install_chunk(
        &mut self,
        number: u32,
        index: u32,
        chunk: Chunk<E>,
        out: &mut Vec<Effect<E>>,
    ) -> Body<E> {
        let Some(install) = self.install.as_mut().filter(|install| install.number == number) else {
            // Of an install that this boot did not begin: let the primary ask anew.
            return Body::Refused(super::Refusal::NotAligned);
        };
        if index != install.next {
            return Body::ChunkDurable { number, next: install.next };
        }
        install.next += 1;
        self.log.install_chunk(chunk, out);
        if install.next < install.chunks {
            return Body::ChunkDurable { number, next: install.next };
        }
        let (base, history) = (install.base, std::mem::take(&mut install.history));
        self.install = None;
        self.log.install_end(base, history, out);
        Body::Durable(base.lsn)
    }
}
