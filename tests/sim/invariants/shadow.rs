//! What a disk held after the last look, so that the next one need look only at what changed.

use super::{
    super::view::{NodeView, Record},
    rule::{
        DAMAGE_IS_NOT_BUILT_ON, EPOCH_HAS_START, EPOCHS_FOLLOW_FROM_LOG, Found,
        HALF_INSTALLED_NEVER_COUNTS, NO_CUT_BELOW_WATERMARK, NOTHING_VANISHES, PROMISE_IS_DURABLE,
        PROMISE_NEVER_FALLS, WATERMARK_IS_COMMITTED, WATERMARK_NEVER_FALLS,
    },
    truth::Truth,
};
use crate::{
    types::{Epoch, Lsn, NodeId},
    wire::{EntryKind, cbor, entry::EpochStart},
};

/// One node's disk.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    pub(super) id: Option<NodeId>,
    /// As many entries it held.
    len: usize,
    /// As many of them, from the first on, are what is committed there.
    pub(super) agreed: usize,
    /// Where epochs begin, by the entries alone.
    epochs: Vec<(Epoch, Lsn)>,
    promised: Epoch,
    watermark: Lsn,
    pub(super) installing: bool,
    /// It was replaced by an older image or an empty disk, and has not been registered since.
    pub(super) lossy: bool,
    /// It was so once, and has not had all that is committed since.
    pub(super) behind: bool,
    /// Position of an entry that is not what was written there.
    damaged: Option<usize>,
}

impl Shadow {
    /// The disk holds something else than before.
    pub(super) fn replaced(&mut self, view: &NodeView<'_>, installed: bool, truth: &mut Truth) {
        let lossy = self.lossy || !installed;
        let behind = self.behind || !installed;
        *self = Self { lossy, behind, ..Self::default() };
        if !installed {
            (self.promised, self.watermark) = (view.promised, view.high_watermark);
        }
        for record in view.log {
            self.note_epoch(record);
            let before = self.before(view, record);
            if self.damaged.is_none() && !truth.write(record, before) {
                // An install is what the primary has, damaged or not.
                match installed {
                    true => truth.adopt(record, before),
                    false => self.damaged = Some(self.len),
                }
            }
            self.len += 1;
        }
    }

    /// As many entries it holds, committed or not.
    pub(super) fn held(&self) -> u64 {
        self.len as u64
    }

    /// The disk was cut.
    pub(super) fn cut(&mut self, node: usize, end: Lsn, found: &mut Found) {
        if end < self.watermark {
            let watermark = self.watermark;
            found.fault(NO_CUT_BELOW_WATERMARK, || {
                format!("node {node} cut at lsn {end}, it knew {watermark} to be committed")
            });
        }
        let end_at = index(end);
        self.len = self.len.min(end_at);
        self.agreed = self.agreed.min(end_at);
        self.damaged = self.damaged.filter(|at| *at < end_at);
        while self.epochs.last().is_some_and(|(_, start)| *start >= end) {
            self.epochs.pop();
        }
    }

    /// An install began.
    pub(super) fn emptied(&mut self) {
        (self.len, self.agreed, self.damaged) = (0, 0, None);
        self.epochs.clear();
    }

    /// Entries were written from here on.
    pub(super) fn written(
        &mut self,
        node: usize,
        from: Lsn,
        view: &NodeView<'_>,
        truth: &mut Truth,
        found: &mut Found,
    ) {
        for record in view.log.iter().skip(index(from)) {
            if index(record.lsn) != self.len {
                let (lsn, len) = (record.lsn, self.len);
                found.fault(NOTHING_VANISHES, || format!("node {node}: lsn {lsn} behind {len}"));
                return;
            }
            let before = self.before(view, record);
            let starts = record.entry.header.kind == EntryKind::EpochStart;
            if starts != (record.epoch > before) || record.epoch < before {
                found.fault(EPOCH_HAS_START, || {
                    let Record { lsn, epoch, entry, .. } = &**record;
                    format!("node {node}, lsn {lsn}: {:?} of {epoch} behind {before}", entry.header)
                });
            }
            if starts && led_by(record, view.id) {
                // A damaged disk that is elected: its log is the truth now, and whoever has another must say so.
                if let Some(damaged) = self.damaged.take().and_then(|at| view.log.get(at)) {
                    truth.adopt(damaged, self.before(view, damaged));
                }
            }
            if let Some(at) = self.damaged {
                found.fault(DAMAGE_IS_NOT_BUILT_ON, || {
                    format!("node {node} wrote lsn {} behind a damaged lsn {at}", record.lsn)
                });
            } else if !truth.write(record, before) {
                truth.fault_same_place(node, record, found);
            }
            self.note_epoch(record);
            self.len += 1;
        }
    }

    /// More is committed, or written here.
    pub(super) fn compare(&mut self, view: &NodeView<'_>, truth: &Truth) {
        while let Some(record) = view.log.get(self.agreed)
            && truth.agrees(record)
        {
            self.agreed += 1;
        }
        if self.agreed as u64 >= truth.end().0 && !self.lossy {
            self.behind = false;
        }
    }

    /// What must hold of a disk and its process at any time.
    pub(super) fn look(
        &mut self,
        node: usize,
        view: &NodeView<'_>,
        truth: &Truth,
        found: &mut Found,
    ) {
        self.id = view.id;
        self.installing = view.installing;
        if view.log.len() != self.len {
            let len = self.len;
            found.fault(NOTHING_VANISHES, || {
                format!("node {node} held {len} entries, now {}", view.log.len())
            });
        }
        if view.start > view.high_watermark {
            found.fault(NOTHING_VANISHES, || {
                format!("node {node} begins at {}, committed {}", view.start, view.high_watermark)
            });
        }
        if view.promised < self.promised {
            let before = self.promised;
            found.fault(PROMISE_NEVER_FALLS, || {
                format!("node {node} had promised {before}, now {}", view.promised)
            });
        }
        if view.high_watermark < self.watermark {
            let before = self.watermark;
            found.fault(WATERMARK_NEVER_FALLS, || {
                format!("node {node}: {before}, now {}", view.high_watermark)
            });
        }
        (self.promised, self.watermark) = (view.promised, view.high_watermark);
        let known = index(view.high_watermark).min(self.len);
        if self.agreed < known && self.damaged.is_none() {
            let agreed = self.agreed;
            found.fault(WATERMARK_IS_COMMITTED, || {
                let end = truth.end();
                format!("node {node} holds {known} as committed, {agreed} of {end} are right")
            });
        }
        self.look_at_process(node, view, found);
    }

    fn look_at_process(&self, node: usize, view: &NodeView<'_>, found: &mut Found) {
        let Some(process) = &view.process else { return };
        if view.installing && process.leads.is_some() {
            found.fault(HALF_INSTALLED_NEVER_COUNTS, || format!("node {node} leads"));
        }
        if !process.settled || view.installing {
            return;
        }
        let durable = view.promised.max(view.log.last().map(|r| r.epoch).unwrap_or_default());
        if process.promised > durable {
            found.fault(PROMISE_IS_DURABLE, || {
                format!("node {node} has promised {}, its disk says {durable}", process.promised)
            });
        }
        if process.history != self.epochs {
            found.fault(EPOCHS_FOLLOW_FROM_LOG, || {
                format!("node {node}: {:?}, the log has {:?}", process.history, self.epochs)
            });
        }
    }

    fn before(&self, view: &NodeView<'_>, record: &Record) -> Epoch {
        let before = index(record.lsn).checked_sub(1).and_then(|at| view.log.get(at));
        before.map(|record| record.epoch).unwrap_or_default()
    }

    fn note_epoch(&mut self, record: &Record) {
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch != record.epoch) {
            self.epochs.push((record.epoch, record.lsn));
        }
    }
}

/// Whether an epoch's start names this node as its primary.
fn led_by(record: &Record, node: Option<NodeId>) -> bool {
    let start: Option<EpochStart> = cbor::get(&record.entry.body).ok();
    start.is_some_and(|start| Some(start.primary) == node)
}

fn index(lsn: Lsn) -> usize {
    usize::try_from(lsn.0).expect("a run is short")
}
