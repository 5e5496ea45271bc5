//! What a node does by itself now and then: retention, room on the disk, forgetting.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{clock_memory::ClockMemory, connection::Shared};
use crate::{
    limits::{DISK_CHECK_INTERVAL, EXPIRIES_PER_ROUND_MAX, RETENTION_INTERVAL},
    storage::{Ballast, free_bytes},
    types::Retention,
};

/// When the disk counts as low.
#[derive(Debug)]
pub(super) struct DiskMarks {
    pub(super) low_space: u64,
    pub(super) ballast: Ballast,
    pub(super) ballast_bytes: u64,
}

/// Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>, marks: DiskMarks) {
    let stopping = shared.stopping.clone();
    let disk = watch_disk(Arc::clone(&shared), marks);
    let retention = trim_topics(shared);
    tokio::select! {
        () = stopping.cancelled() => {}
        () = disk => {}
        () = retention => {}
    }
}

async fn watch_disk(shared: Arc<Shared>, marks: DiskMarks) {
    let marks = Arc::new(marks);
    let mut ticks = ticks(DISK_CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let (shared, marks) = (Arc::clone(&shared), Arc::clone(&marks));
        // A panic in there is in the log; the next round tries again.
        let _ = tokio::task::spawn_blocking(move || check_disk(&shared, &marks)).await;
    }
}

/// Refuses publishes below the mark, takes them again a quarter above it: a disk at the mark must not flicker.
pub(super) fn check_disk(shared: &Shared, marks: &DiskMarks) {
    let free = match free_bytes(&shared.data_dir) {
        Ok(free) => free,
        Err(error) => {
            tracing::error!(%error, "room on the disk is unknown");
            return;
        }
    };
    let engine = &shared.engine;
    let low = engine.is_disk_low();
    // The ballast goes by what the file system has; publishes also have what the log's own file has to spare.
    let room = free.saturating_add(spare(shared));
    if !low && room < marks.low_space {
        engine.set_disk_low(true);
        tracing::error!(free, mark = marks.low_space, "disk is low, publishes are refused");
    } else if low && room >= marks.low_space + marks.low_space / 4 {
        engine.set_disk_low(false);
        tracing::warn!(free, "disk has room again, publishes are taken");
    }
    if free < marks.low_space {
        engine.queue.press();
    }
    // Commits of trims need some pages before they free any.
    let critical = marks.low_space / 4;
    if marks.ballast_bytes > 0 && free < critical && marks.ballast.is_held() {
        match marks.ballast.release() {
            Ok(_) => tracing::error!(free, "disk is nearly full, the ballast is released"),
            Err(error) => tracing::error!(%error, "ballast cannot be released"),
        }
    } else if free > marks.low_space + marks.ballast_bytes && !marks.ballast.is_held() {
        match marks.ballast.hold() {
            Ok(()) => tracing::info!(bytes = marks.ballast_bytes, "ballast is held"),
            Err(error) => tracing::warn!(%error, "ballast cannot be held"),
        }
    }
}

/// Bytes of the log's file that are free for new records. Half of what the file could spare at best, because rows
/// fill their pages unevenly: better to refuse too early than to find no room in a commit.
fn spare(shared: &Shared) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(shared.data_dir.join(super::start::DATA_FILE));
    let held = file.map_or(0, |file| file.blocks().saturating_mul(512));
    let stats = shared.engine.store.stats();
    held.saturating_sub(2 * (stats.live_bytes + stats.dead_bytes)).saturating_sub(SPARE_MARGIN)
}

/// Index, state and the database's own pages, with room for a commit.
const SPARE_MARGIN: u64 = 32 * 1024 * 1024;

async fn trim_topics(shared: Arc<Shared>) {
    let mut ticks = ticks(RETENTION_INTERVAL);
    let mut memory = ClockMemory::load(&shared.data_dir, shared.engine.newest_record());
    let mut trusted = true;
    loop {
        ticks.tick().await;
        let clock = shared.engine.clock;
        let agrees = memory.guard.look(clock.wall(), clock.uptime());
        if agrees != trusted {
            trusted = agrees;
            if trusted {
                tracing::warn!("wall clock can be right again, age limits work");
            } else {
                tracing::error!(
                    "wall clock has jumped far ahead, age limits are suspended: if it is right, they work again in an hour"
                );
            }
        }
        let shared = Arc::clone(&shared);
        let mut saved = memory.clone();
        let work = tokio::task::spawn_blocking(move || {
            saved.save();
            round(&shared, trusted);
            saved
        });
        // A panic in there is in the log; the next round tries again.
        memory = work.await.unwrap_or(memory);
    }
}

fn round(shared: &Shared, clock_trusted: bool) {
    let engine = &shared.engine;
    let now = engine.clock.wall();
    for topic in engine.topics.all() {
        let mut retention = topic.settings.retention.clone();
        if !clock_trusted {
            retention.age_ms = None;
        }
        if retention == Retention::default() {
            continue;
        }
        for partition in &topic.partitions {
            let (start, end) = (partition.start(), partition.end());
            match engine.store.retention_start(partition.id, &retention, now, end) {
                Ok(wanted) if wanted > start => engine.trim(partition, wanted),
                Ok(_) => {}
                // Dropped, or begun, in this moment.
                Err(crate::storage::ReadError::NotFound(_)) => {}
                Err(error) => {
                    tracing::error!(topic = %topic.name, %error, "retention cannot be decided");
                }
            }
        }
    }
    if clock_trusted {
        engine.expire_producers(EXPIRIES_PER_ROUND_MAX);
    }
    if let Err(error) = engine.forget_dropped_topics() {
        tracing::error!(%error, "deleted topics cannot be forgotten");
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
