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
    base: LogEnd,
    history: EpochHistory,
    chunks: u32,
    next: u32,
}

impl<E: LogEntry> Backup<E> {
    pub(super) fn install_begin(
        &mut self,
        base: LogEnd,
        history: EpochHistory,
        chunks: u32,
        out: &mut Vec<Effect<E>>,
    ) -> Body<E> {
        if let Some(install) = self.install.as_ref().filter(|install| install.base == base) {
            return Body::ChunkDurable { base, next: install.next };
        }
        let chunks = chunks.clamp(1, INSTALL_CHUNKS_MAX);
        self.install = Some(Install { base, history, chunks, next: 0 });
        self.log.install_begin(base, out);
        Body::ChunkDurable { base, next: 0 }
    }

    pub(super) fn install_chunk(
        &mut self,
        base: LogEnd,
        index: u32,
        chunk: Chunk<E>,
        out: &mut Vec<Effect<E>>,
    ) -> Body<E> {
        let Some(install) = self.install.as_mut().filter(|install| install.base == base) else {
            // Of an install that this boot did not begin: let the primary ask anew.
            return Body::Refused(super::Refusal::NotAligned);
        };
        if index != install.next {
            return Body::ChunkDurable { base, next: install.next };
        }
        install.next += 1;
        self.log.install_chunk(chunk, out);
        if install.next < install.chunks {
            return Body::ChunkDurable { base, next: install.next };
        }
        let history = std::mem::take(&mut install.history);
        self.install = None;
        self.log.install_end(base, history, out);
        Body::Durable(base.lsn)
    }
}
