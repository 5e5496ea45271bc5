//! A node that has too many clients asks some of them to go elsewhere, and names nodes. The new connection is made before
//! the old one is broken: publishers and subscribers go over to it by themselves, each when it has a stream there, and the
//! last one closes the old connection. Nothing comes of it if no named node answers.

use std::sync::{Arc, Weak};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use super::{
    dial::{Dialer, Session},
    link::Link,
};
use crate::{
    limits::{BALANCE_CANDIDATES_MAX, MOVE_LINGER},
    wire::{CloseCode, GoAway},
};

/// A node asks to be left.
#[derive(Debug)]
pub(super) struct Asked {
    /// Over which connection: [`quinn::Connection::stable_id`].
    pub(super) connection: usize,
    pub(super) go_away: GoAway,
}

/// Follows what nodes ask, for as long as the link lives.
pub(super) async fn run(link: Weak<Link>, mut asked: mpsc::Receiver<Asked>) {
    // At most one for each connection that was moved from within that time.
    let mut lingering = JoinSet::new();
    while let Some(Asked { connection, go_away }) = asked.recv().await {
        while lingering.try_join_next().is_some() {}
        let Some(link) = link.upgrade() else { return };
        let Some(old) = move_over(&link, connection, &go_away).await else { continue };
        let old = Arc::downgrade(&old);
        lingering.spawn(async move {
            sleep_until(Instant::now() + MOVE_LINGER).await;
            if let Some(old) = old.upgrade() {
                debug!(address = %old.address, "streams that have not moved lose their old connection");
                old.connection.close(CloseCode::Done.code().into(), b"");
            }
        });
    }
}

/// Gives the connection that was left, if another has taken its place.
async fn move_over(link: &Link, connection: usize, go_away: &GoAway) -> Option<Arc<Session>> {
    let old = link.current(connection).await?;
    let Some(new) = dial_named(link.dialer(), go_away).await else {
        debug!(reason = %go_away.reason, "no node that was named answers: we stay");
        return None;
    };
    info!(from = %old.address, to = %new.address, reason = %go_away.reason, "moving to another node");
    link.replace(&old, new).await.then_some(old)
}

/// The first of the named nodes that lets us in.
async fn dial_named(dialer: &Dialer, go_away: &GoAway) -> Option<Session> {
    for node in go_away.nodes.iter().take(BALANCE_CANDIDATES_MAX) {
        if let Some(session) = dialer.dial_node(node).await {
            return Some(session);
        }
    }
    None
}
