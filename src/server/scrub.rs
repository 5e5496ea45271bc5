//! Reads all that this node holds, over and over and slowly, to find damage while another node still has what is lost.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{connection::Shared, engine::Engine};
use crate::{
    limits::{
        SCRUB_FIRST_AFTER, SCRUB_PAUSE, SCRUB_PAUSE_ASKED, SCRUB_PERIOD, SCRUB_REST,
        SCRUB_STEP_BYTES,
    },
    storage::{ReadError, Scrub, Scrubbed},
};

/// Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let engine = Arc::clone(&shared.engine);
    let mut orders = Orders::new(&engine);
    let mut next = engine.clock.uptime() + SCRUB_FIRST_AFTER;
    loop {
        let wait = Instant::now() + next.saturating_sub(engine.clock.uptime());
        let asked = tokio::select! {
            () = sleep_until(wait) => false,
            () = orders.next(&engine) => true,
        };
        let begun = engine.clock.uptime();
        pass(&engine, asked, &mut orders).await;
        next = (begun + SCRUB_PERIOD).max(engine.clock.uptime() + SCRUB_REST);
    }
}

/// What operators ask of this node, through the metadata.
struct Orders {
    applied: watch::Receiver<u64>,
    /// The last one that was carried out. Those from before the start are not.
    done: u64,
}

impl Orders {
    fn new(engine: &Engine) -> Self {
        Self { applied: engine.group.applied(), done: newest(engine) }
    }

    fn take(&mut self, engine: &Engine) -> bool {
        let newest = newest(engine);
        std::mem::replace(&mut self.done, newest) != newest
    }

    async fn next(&mut self, engine: &Engine) {
        loop {
            self.applied.mark_unchanged();
            if self.take(engine) {
                return;
            }
            // The sender lives in the group.
            if self.applied.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn newest(engine: &Engine) -> u64 {
    engine.group.read(|site| site.nodes.get(&engine.me.node).map_or(0, |node| node.scrub))
}

/// Reads all of it once.
async fn pass(engine: &Arc<Engine>, mut asked: bool, orders: &mut Orders) {
    let mut scrub = Scrub::begin(engine.store.clone());
    let (mut bytes, mut damaged) = (0, 0);
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let done = scrub.step(SCRUB_STEP_BYTES);
            (scrub, done)
        });
        let Ok((back, done)) = read.await else { return };
        scrub = back;
        let Scrubbed { read, damage, more } = match done {
            Ok(done) => done,
            Err(error) => return failed(&error),
        };
        engine.metrics.scrubbed(read);
        bytes += read;
        damaged += damage.len();
        for (shard, reason) in damage {
            engine.damaged(shard, &reason);
        }
        if !more {
            break;
        }
        asked |= orders.take(engine);
        let pause: Duration = if asked { SCRUB_PAUSE_ASKED } else { SCRUB_PAUSE };
        sleep_until(Instant::now() + pause).await;
    }
    tracing::info!(bytes, damaged, "all of the log was read to look for damage");
}

fn failed(error: &ReadError) {
    tracing::error!(%error, "the log's file is damaged where no shard can be named; replace the node's disk");
}
