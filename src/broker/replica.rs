//! One shard on one node, whatever its role: it follows, leads when this boot is elected, and follows again.

use std::time::Duration;

use super::{
    damage::{Repair, may_drop, repair},
    reject::Reject,
    shard::{Effect, PublishInput, Recovery, Shard},
};
use crate::{
    replication::{
        self, Backup, Boots, CannotHandOver, Envelope, LocalLog, LogEnd, LogView, Primary,
        ShardConfig, Stored, mutant,
    },
    types::{Boot, Epoch, Lsn, NodeId, ShardId, Timestamp},
    wire::{Entry, entry::BadEntry},
};

/// This node's replica of one shard, in one boot.
///
/// Each method takes an input and appends effects, which the driver performs in order.
#[derive(Debug)]
pub struct Replica<W> {
    id: ShardId,
    me: Boot,
    fence: Duration,
    config: ShardConfig,
    boots: Boots,
    role: Role<W>,
    /// Elected for this epoch; the disk has not done all that came before.
    elected: Option<Epoch>,
    asked: Vec<replication::Effect<Entry>>,
    /// Its disk has damaged the log: another copy must take its place.
    damaged: bool,
}

#[derive(Debug)]
enum Role<W> {
    Backup(Box<Backup<Entry>>),
    Primary(Box<Shard<W>>),
    /// A later boot of this node is registered.
    Over,
}

impl<W> Replica<W> {
    /// Begins to follow with what the disk holds. This boot is registered: nothing is told before that. While it leads, no
    /// silence shorter than `fence` means that another replica is down.
    #[must_use]
    pub fn new(id: ShardId, me: Boot, stored: Stored, fence: Duration) -> Self {
        Self {
            id,
            me,
            fence,
            config: ShardConfig::default(),
            boots: Boots::new(),
            role: Role::Backup(Box::new(Backup::new(LocalLog::new(stored)))),
            elected: None,
            asked: Vec::new(),
            damaged: false,
        }
    }

    /// The boot that this is.
    #[must_use]
    pub fn me(&self) -> Boot {
        self.me
    }

    /// Applies newer metadata, in the order of its log.
    pub fn configure(
        &mut self,
        config: &ShardConfig,
        boots: &Boots,
        now: Duration,
        out: &mut Vec<Effect<W>>,
    ) {
        self.config.clone_from(config);
        self.boots.clone_from(boots);
        if boots.get(&self.me.node).is_some_and(|newest| *newest > self.me.incarnation) {
            self.resign(out);
            self.role = Role::Over;
            out.push(Effect::Replication(replication::Effect::Superseded));
            return;
        }
        if let Role::Primary(shard) = &mut self.role {
            if shard.primary().epoch() == config.epoch {
                shard.lead(out, |primary, asked| primary.configure(config, boots, now, asked));
                shard.pump(out);
                return;
            }
            if config.epoch > shard.primary().epoch() {
                self.resign(out);
            }
        }
        self.stand(out);
    }

    /// Takes a message of another replica. What is not meant for this boot, or comes from one that is over, is dropped.
    pub fn message(
        &mut self,
        envelope: Envelope<Entry>,
        now: Duration,
        view: &impl LogView,
        out: &mut Vec<Effect<W>>,
    ) {
        if !self.is_for_me(&envelope) {
            return;
        }
        let contradicted = matches!(&self.role, Role::Backup(backup) if backup.is_diverged());
        if (self.damaged || contradicted) && envelope.epoch > self.config.epoch {
            // Nothing is said in an epoch before it is known whether others rely on this copy in it, and whether its lineage
            // is over.
            return;
        }
        if let Role::Primary(shard) = &mut self.role {
            let epoch = shard.primary().epoch();
            if envelope.epoch <= epoch {
                let old = envelope.epoch < epoch;
                shard.lead(out, |primary, asked| {
                    if old {
                        primary.refuse_old(envelope.from, &envelope.body, asked);
                        return false;
                    }
                    primary.message(envelope, now, view, asked)
                });
                shard.pump(out);
                return;
            }
            self.resign(out);
        }
        if let Role::Backup(backup) = &mut self.role {
            let (primary, promised) = ((envelope.from, envelope.epoch), backup.log().promised());
            if self.damaged
                && envelope.body.is_of_primary()
                && may_drop(self.me, &self.config, promised, primary)
            {
                self.damaged = false;
                backup.drop_log(&mut self.asked);
            }
            if envelope.body.is_of_primary() && is_over(&self.config, self.me, backup, primary) {
                self.damaged = false;
                backup.forget_log(&mut self.asked);
            }
            backup.message(envelope, view, &mut self.asked);
            self.flush(out);
        }
        self.begin_if_settled(out);
    }

    /// The disk has done the first `count` appends and changes of this boot.
    pub fn written(&mut self, count: u64, out: &mut Vec<Effect<W>>) {
        match &mut self.role {
            Role::Primary(shard) => {
                shard.lead(out, |primary, asked| primary.written(count, asked));
                shard.pump(out);
            }
            Role::Backup(backup) => {
                backup.log_mut().written(count, &mut self.asked);
                self.flush(out);
                self.begin_if_settled(out);
            }
            Role::Over => {}
        }
    }

    /// What the disk holds of the partitions, as [`replication::Effect::Recover`] asked: this boot leads from here on,
    /// unless it was outrun.
    ///
    /// # Errors
    /// [`BadEntry`] when the log's tail cannot be understood: a newer program wrote it, and the node must stop.
    pub fn recovered(
        &mut self,
        epoch: Epoch,
        found: Recovery,
        time: Timestamp,
        now: Duration,
        out: &mut Vec<Effect<W>>,
    ) -> Result<(), BadEntry> {
        let Role::Backup(backup) = &self.role else { return Ok(()) };
        let current = self.config.epoch == epoch && backup.log().promised() == epoch;
        if self.elected.take() != Some(epoch) || !current {
            return Ok(());
        }
        if let Role::Backup(backup) = std::mem::replace(&mut self.role, Role::Over) {
            let log = backup.into_log();
            let primary =
                Primary::begin(self.me, self.config.clone(), &self.boots, log, self.fence, now);
            let shard = Shard::begin(self.id, primary, found, time, out)?;
            self.role = Role::Primary(Box::new(shard));
        }
        Ok(())
    }

    /// Orders a batch, or refuses it.
    pub fn publish(&mut self, input: PublishInput<W>, time: Timestamp, out: &mut Vec<Effect<W>>) {
        let node = match &mut self.role {
            Role::Primary(shard) => match shard.primary().handing_over() {
                None => {
                    shard.publish(input, time, out);
                    shard.pump(out);
                    return;
                }
                Some(to) => Some(to),
            },
            Role::Backup(_) | Role::Over => self.config.primary.map(|primary| primary.node),
        };
        out.push(Effect::Refuse(input.waiter, Reject::NotPrimary { node }));
    }

    /// Does to the shard, while it is led here, what no producer asks for: begin, trim and end partitions, forget
    /// producers.
    pub fn with_shard(
        &mut self,
        out: &mut Vec<Effect<W>>,
        act: impl FnOnce(&mut Shard<W>, &mut Vec<Effect<W>>),
    ) {
        if let Role::Primary(shard) = &mut self.role {
            act(shard, out);
            shard.pump(out);
        }
    }

    /// Time has passed. To be called every [`crate::limits::HEARTBEAT`] or oftener.
    pub fn tick(&mut self, now: Duration, view: &impl LogView, out: &mut Vec<Effect<W>>) {
        if let Role::Primary(shard) = &mut self.role {
            shard.lead(out, |primary, asked| {
                primary.tick(now, view, asked);
                false
            });
        }
    }

    /// This node itself has stood still for so long, which is no silence of others. To be called before [`Self::tick`].
    pub fn stood_still(&mut self, time: Duration, now: Duration) {
        if let Role::Primary(shard) = &mut self.role {
            shard.stood_still(time, now);
        }
    }

    /// Gives the lead to another member of the set, as soon as it has all.
    ///
    /// # Errors
    /// [`CannotHandOver`]; nothing changes then.
    pub fn hand_over(&mut self, to: NodeId, now: Duration) -> Result<(), CannotHandOver> {
        match &mut self.role {
            Role::Primary(shard) => shard.primary_mut().hand_over(to, now),
            Role::Backup(_) | Role::Over => Err(CannotHandOver::NotMember(to)),
        }
    }

    /// Begins to hand over to the shard's preferred primary, if that has kept pace for `after`. To be called at ticks, by a
    /// driver that wants it.
    pub fn hand_over_to_preferred(&mut self, after: Duration, now: Duration) {
        if let Role::Primary(shard) = &mut self.role
            && let Some(node) = shard.primary().preferred(after, now)
        {
            // Who does not keep pace after all is named again later.
            let _ = shard.primary_mut().hand_over(node, now);
        }
    }

    /// Asks whether this node still leads: see [`Primary::ask_barrier`]. None if it knows that it does not.
    pub fn ask_barrier(&mut self, out: &mut Vec<Effect<W>>) -> Option<u64> {
        let Role::Primary(shard) = &mut self.role else { return None };
        let mut number = 0;
        shard.lead(out, |primary, asked| {
            number = primary.ask_barrier(asked);
            false
        });
        Some(number)
    }

    /// The snapshot that [`replication::Effect::Snapshot`] asked for is made.
    pub fn snapshot(&mut self, to: Boot, base: LogEnd, chunks: u32, out: &mut Vec<Effect<W>>) {
        if let Role::Primary(shard) = &mut self.role {
            shard.lead(out, |primary, asked| {
                primary.snapshot(to, base, chunks, asked);
                false
            });
        }
    }

    /// The disk keeps nothing of the log before this any more.
    pub fn log_starts_at(&mut self, start: Lsn) {
        match &mut self.role {
            Role::Primary(shard) => shard.primary_mut().log_starts_at(start),
            Role::Backup(backup) => backup.log_mut().starts_at(start),
            Role::Over => {}
        }
    }

    /// Entries of others are refused while the disk is full. Publishes are refused by the driver.
    pub fn set_disk_full(&mut self, full: bool) {
        if let Role::Backup(backup) = &mut self.role {
            backup.set_disk_full(full);
        }
    }

    /// The disk has damaged the log. The replica goes on with it until others do not rely on it any more, and another whole
    /// copy is known to live: see [`Self::repair`].
    pub fn set_damaged(&mut self) {
        self.damaged = self.log().is_some_and(|log| !log.is_installing());
    }

    /// What is to be done about a damaged log; none if it is not, or not any more: then it is installed anew.
    pub fn repair(&self, lives: impl Fn(NodeId) -> bool) -> Option<Repair> {
        let log = self.log().filter(|_| self.damaged)?;
        Some(repair(self.me, &self.config, log.promised(), lives))
    }

    /// The shard, while it is led here.
    #[must_use]
    pub fn shard(&self) -> Option<&Shard<W>> {
        match &self.role {
            Role::Primary(shard) => Some(shard),
            Role::Backup(_) | Role::Over => None,
        }
    }

    /// The log; none once a later boot of this node is registered.
    #[must_use]
    pub fn log(&self) -> Option<&LocalLog<Entry>> {
        match &self.role {
            Role::Primary(shard) => Some(shard.primary().log()),
            Role::Backup(backup) => Some(backup.log()),
            Role::Over => None,
        }
    }

    /// The newest metadata that was applied here.
    #[must_use]
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    fn is_for_me(&self, envelope: &Envelope<Entry>) -> bool {
        let Envelope { shard, epoch, from, to, ref body } = *envelope;
        if shard != self.id || to.node != self.me.node {
            return false;
        }
        let newest = self.boots.get(&from.node);
        let over = newest.is_some_and(|newest| *newest > from.incarnation);
        if (to != self.me || over) && !mutant!(CountOldIncarnation) {
            return false;
        }
        let known = epoch == self.config.epoch && body.is_of_primary();
        !known || self.config.primary == Some(from) || mutant!(ResumeEpoch)
    }

    /// Takes up the lead if this boot was elected: the promise first, and all that the disk was asked before it.
    fn stand(&mut self, out: &mut Vec<Effect<W>>) {
        let Role::Backup(backup) = &mut self.role else { return };
        let epoch = self.config.epoch;
        let mine = self.config.primary == Some(self.me);
        let resumes = mutant!(ResumeEpoch)
            && self.config.primary.is_some_and(|p| p.node == self.me.node)
            && epoch == backup.log().promised();
        if mine && epoch > backup.log().promised() && self.config.lineage_start == epoch {
            backup.begin_lineage(&mut self.asked);
        }
        let fit = !backup.log().is_installing() || mutant!(InstallingElectable);
        if resumes || (mine && epoch > backup.log().promised() && fit && !backup.is_diverged()) {
            if !resumes {
                backup.log_mut().promise(epoch, &mut self.asked);
            }
            self.elected = Some(epoch);
            self.flush(out);
            self.begin_if_settled(out);
        }
    }

    fn begin_if_settled(&mut self, out: &mut Vec<Effect<W>>) {
        let (Role::Backup(backup), Some(epoch)) = (&self.role, self.elected) else { return };
        if backup.log().promised() != epoch {
            self.elected = None;
        } else if backup.log().is_settled() {
            out.push(Effect::Replication(replication::Effect::Recover(epoch)));
        }
    }

    /// Leads no more. What becomes of batches that wait is not known here.
    fn resign(&mut self, out: &mut Vec<Effect<W>>) {
        if !matches!(self.role, Role::Primary(_)) {
            return;
        }
        if let Role::Primary(mut shard) = std::mem::replace(&mut self.role, Role::Over) {
            out.extend(shard.abandon().into_iter().map(Effect::Unknown));
            let log = shard.into_primary().into_log();
            self.role = Role::Backup(Box::new(Backup::new(log)));
        }
    }

    fn flush(&mut self, out: &mut Vec<Effect<W>>) {
        out.extend(self.asked.drain(..).map(Effect::from));
    }
}

/// Whether this log is of a lineage that an operator has ended, and the primary of a later one speaks.
fn is_over(
    config: &ShardConfig,
    me: Boot,
    backup: &Backup<Entry>,
    (from, epoch): (Boot, Epoch),
) -> bool {
    let leads = config.epoch == epoch && config.primary == Some(from) && from != me;
    let required = config.required().any(|node| node == me.node);
    leads && !required && backup.is_of_older_lineage(config.lineage_start, epoch)
}
