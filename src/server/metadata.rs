//! Takes over what the site's metadata says: who leads each shard, which topics there are.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::{
    engine::Engine,
    slot::Slot,
    topics::{Partition, Topic},
};
use crate::{
    cluster::{GroupError, MetaCommand, MetaOutcome, MetaReject, Tombstone, TopicRecord},
    storage::Reservation,
    types::{PartitionId, ShardId, TopicId, TopicName, TopicSettings},
    wire::RetentionChange,
};

impl Engine {
    /// Takes over the metadata as it is now. Called whenever it has changed.
    pub(super) fn follow(&self) {
        let _change = self.change_topics();
        let (configs, boots) = self.group.read(|site| (site.shards.clone(), site.boots()));
        let now = self.clock.uptime();
        for (slot, config) in self.slots.iter().zip(&configs) {
            let mut core = slot.lock();
            let same = core.boots == boots && core.replica.config() == config;
            core.boots.clone_from(&boots);
            drop(core);
            // Batches go to the new primary from now on: this one refuses what it does not lead.
            slot.set_primary(config.primary.map(|primary| primary.node));
            if !same {
                self.with(slot.id, Reservation::FREE, |replica, _, out| {
                    replica.configure(config, &boots, now, out);
                });
            }
        }
        if self.take_over_topics() {
            for slot in &self.slots {
                slot.lock().compared = None;
            }
        }
        for slot in &self.slots {
            self.compare_partitions(slot.id);
        }
        self.look_whether_ready();
    }

    /// Begins the partitions that the metadata has and the shard has not, and drops those of deleted topics, if this
    /// node leads the shard and has not done so since either changed.
    pub(super) fn compare_partitions(&self, id: ShardId) {
        let slot = self.slot(id);
        let epoch = {
            let mut core = slot.lock();
            let epoch = core.replica.shard().map(|shard| shard.primary().epoch());
            if epoch.is_none() || core.compared == epoch {
                return;
            }
            core.compared = epoch;
            epoch
        };
        let (wanted, unwanted): (Vec<_>, Vec<_>) = self.group.read(|site| {
            let wanted = site.partitions_of(id).map(|(name, partition)| (name.clone(), partition));
            (wanted.collect(), site.dropped_from(id).collect())
        });
        self.with(id, Reservation::FREE, |replica, _, out| {
            replica.with_shard(out, |shard, out| {
                if Some(shard.primary().epoch()) != epoch {
                    return;
                }
                for (name, partition) in wanted {
                    shard.create(partition, name.as_str().as_bytes(), out);
                }
                for partition in unwanted {
                    if shard.view(partition).is_some() {
                        shard.drop_partition(partition, out);
                    } else {
                        self.dropped().insert(partition);
                    }
                }
            });
        });
    }

    /// Makes a topic, or gives the one that there is when it is the same. Blocks.
    pub(super) fn create_topic(
        &self,
        name: &TopicName,
        settings: TopicSettings,
    ) -> Result<Arc<Topic>, GroupError> {
        let now = self.clock.wall();
        self.propose(MetaCommand::CreateTopic { name: name.clone(), settings, now })?;
        self.topic_now(name)
    }

    /// Changes how long a topic keeps its records. Blocks.
    pub(super) fn set_topic(
        &self,
        name: &TopicName,
        change: RetentionChange,
    ) -> Result<Arc<Topic>, GroupError> {
        self.propose(MetaCommand::SetTopic { name: name.clone(), change })?;
        self.topic_now(name)
    }

    /// Deletes a topic with all that is in it. Blocks.
    pub(super) fn delete_topic(&self, name: &TopicName) -> Result<(), GroupError> {
        self.propose(MetaCommand::DeleteTopic { name: name.clone() })?;
        self.follow();
        Ok(())
    }

    /// Removes the tombstones of topics whose partitions are gone from the disk. Blocks.
    pub(super) fn forget_dropped_topics(&self) -> Result<(), GroupError> {
        let gone: Vec<TopicId> = {
            let dropped = self.dropped();
            self.group.read(|site| {
                let gone = |(id, t): &(&TopicId, &Tombstone)| {
                    let mut partitions = (0..).zip(&t.shards);
                    partitions
                        .all(|(index, _)| dropped.contains(&PartitionId { topic: **id, index }))
                };
                site.tombstones.iter().filter(gone).map(|(id, _)| *id).collect()
            })
        };
        for id in gone {
            self.propose(MetaCommand::ForgetTopic { id })?;
            self.dropped().retain(|partition| partition.topic != id);
        }
        Ok(())
    }

    /// Proposes a command. A node that cannot write its metadata must stop, as one that cannot write its log.
    pub(super) fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, GroupError> {
        let outcome = self.group.propose_blocking(command);
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            self.fail(&error.to_string());
        }
        outcome
    }

    fn topic_now(&self, name: &TopicName) -> Result<Arc<Topic>, GroupError> {
        self.follow();
        // None: deleted by another client in this moment.
        self.topics.get(name).ok_or_else(|| MetaReject::UnknownTopic(name.clone()).into())
    }

    /// Brings the table of topics up to date. True if anything was new.
    fn take_over_topics(&self) -> bool {
        let changed: Vec<(TopicName, TopicRecord)> = self.group.read(|site| {
            let news = |(name, record): &(&TopicName, &TopicRecord)| !self.topics.has(name, record);
            site.topics.iter().filter(news).map(|(n, r)| (n.clone(), r.clone())).collect()
        });
        let gone: Vec<TopicName> = self.group.read(|site| {
            let known = |topic: &Arc<Topic>| site.topics.contains_key(&topic.name);
            let names = self.topics.all().into_iter().filter(|topic| !known(topic));
            names.map(|topic| topic.name.clone()).collect()
        });
        let any = !changed.is_empty() || !gone.is_empty();
        for (name, record) in changed {
            // A topic that was deleted and made anew has another id.
            let before = self.topics.get(&name).filter(|topic| topic.id != record.id);
            before.iter().for_each(|topic| set_dropped(topic));
            let topic = self.topics.put(&name, &record);
            for partition in &topic.partitions {
                self.show(self.slot(partition.shard), partition);
            }
        }
        for name in gone {
            if let Some(topic) = self.topics.remove(&name) {
                set_dropped(&topic);
            }
        }
        any
    }

    /// Lets a partition be seen, with what is known of it here.
    fn show(&self, slot: &Slot, partition: &Arc<Partition>) {
        // Under the shard's lock, so that no newer bounds are missed in between.
        let core = slot.lock();
        slot.partitions_mut().insert(partition.id, Arc::clone(partition));
        if let Some(view) = core.applied.view(partition.id) {
            partition.set_view(view);
        }
    }

    fn change_topics(&self) -> MutexGuard<'_, ()> {
        // It guards no value: a panic under it leaves nothing half done that the next call does not mend.
        self.topic_change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_dropped(topic: &Topic) {
    topic.partitions.iter().for_each(|partition| partition.set_dropped());
}

/// Stops the node when its metadata cannot be written any more.
pub(super) async fn watch_failure(engine: Arc<Engine>) {
    let mut failure = engine.group.failure();
    if let Ok(failed) = failure.wait_for(Option::is_some).await {
        engine.fail(failed.as_deref().unwrap_or_default());
    }
}

/// Follows the metadata. Runs until the node stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut applied = engine.group.applied();
    loop {
        applied.mark_unchanged();
        engine.follow();
        if applied.changed().await.is_err() {
            return;
        }
    }
}
