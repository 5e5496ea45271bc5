//! Whether a node still answers. QUIC's own idle timeout must be long, because it ends a connection for good on both sides;
//! here another node may serve in a moment, and to leave for nothing costs one dial.
//!
//! A client whose own network is gone for a moment is no sign of a dead node: on the way from one network to another it has no
//! address, and the connection goes on where it has been given one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use quinn::{Connection, Endpoint};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::{net::endpoint, wire::CloseCode};

/// Looks again and again, and closes the connection of a node that answers nothing any more: its machine is gone, or the way to
/// it.
pub(super) async fn watch(endpoint: Endpoint, connection: Connection) {
    let mut looks = interval(SILENCE_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = Instant::now();
    let mut silence = Silence::default();
    loop {
        let now = looks.tick().await - begun;
        let stats = connection.stats();
        let look = Look {
            received: stats.udp_rx.datagrams,
            // What the node must answer, if only with an acknowledgement.
            sent: stats.frame_tx.stream + stats.frame_tx.ping,
            most: SILENCE_MAX + stats.path.rtt * SILENCE_ROUND_TRIPS,
        };
        match silence.look(now, look, || way_to(connection.remote_address())) {
            Finding::Nothing => {}
            Finding::SpeakUp => {
                debug!(address = %connection.remote_address(), "this machine has a way to the node again");
                // QUIC waits ever longer before it sends again, and would wait for as long as there was no way.
                if let Err(error) = endpoint::rebind(&endpoint) {
                    debug!(%error, "no new socket: the node hears of us later");
                }
            }
            Finding::Dead => {
                info!(address = %connection.remote_address(), "node is silent, another one is tried");
                connection.close(CloseCode::Done.code().into(), b"silent");
                return;
            }
        }
    }
}

/// What is known of a connection's silence. Times are those of one clock of the caller's.
#[derive(Debug, Default)]
struct Silence {
    received: u64,
    sent: u64,
    /// Since when something is unanswered.
    unanswered: Option<Duration>,
    /// Since when there is no way to the node.
    away: Option<Duration>,
    /// There is one again: when the node was last to hear of us.
    spoken: Option<Duration>,
}

/// What there is to see at one time.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Datagrams that have come.
    received: u64,
    /// Frames that must be answered and were sent, or would have been.
    sent: u64,
    /// How long an answer may take.
    most: Duration,
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    /// There is a way to the node again: it should hear of us at once.
    SpeakUp,
    Dead,
}

impl Silence {
    /// Looks once. Whether this machine has a way to the node is asked only while it does not answer.
    fn look(&mut self, now: Duration, look: Look, has_way: impl FnOnce() -> bool) -> Finding {
        if look.received != self.received {
            *self = Self { received: look.received, sent: look.sent, ..Self::default() };
            return Finding::Nothing;
        }
        if look.sent != self.sent {
            self.sent = look.sent;
            self.unanswered.get_or_insert(now);
        }
        let Some(since) = self.unanswered else { return Finding::Nothing };
        if now.saturating_sub(since) <= SILENCE_DOUBT {
            return Finding::Nothing;
        }
        match (has_way(), self.away) {
            (false, away) => {
                let since = *self.away.get_or_insert(away.unwrap_or(since));
                // Others may be reached from here in another way.
                if now.saturating_sub(since) > AWAY_MAX { Finding::Dead } else { Finding::Nothing }
            }
            (true, Some(_)) => {
                (self.away, self.unanswered, self.spoken) = (None, Some(now), Some(now));
                Finding::SpeakUp
            }
            (true, None) => {
                // A network needs a moment until it carries what it has an address for.
                let most = if self.spoken.is_some() { look.most + BACK_MAX } else { look.most };
                if now.saturating_sub(since) > most {
                    return Finding::Dead;
                }
                let again = self.spoken.is_some_and(|at| now.saturating_sub(at) >= SPEAK_EVERY);
                if again {
                    self.spoken = Some(now);
                    return Finding::SpeakUp;
                }
                Finding::Nothing
            }
        }
    }
}

/// Whether this machine would know where to send what is for this address. Nothing is sent.
fn way_to(node: SocketAddr) -> bool {
    let node = SocketAddr::new(node.ip().to_canonical(), node.port());
    let any: IpAddr = match node {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let Ok(socket) = UdpSocket::bind((any, 0)) else {
        // That says nothing about the way.
        return true;
    };
    socket.connect(node).is_ok()
}

/// How often it is looked whether the node answers.
const SILENCE_LOOK: Duration = Duration::from_millis(100);
/// How long a node may leave unanswered what it must acknowledge at once, and so many round trips more: a machine that is
/// busy for half a second is not gone.
const SILENCE_MAX: Duration = Duration::from_millis(600);
const SILENCE_ROUND_TRIPS: u32 = 6;
/// After so long without an answer it is looked whether this machine has lost its own network.
const SILENCE_DOUBT: Duration = Duration::from_millis(200);
/// How long a connection is kept without any way to its node: as long as a machine takes to be given an address. Less than the
/// idle timeout of either side.
const AWAY_MAX: Duration = Duration::from_secs(6);
/// How much longer than else a node may take to answer once there is a way to it again, and how often it hears of us meanwhile.
const BACK_MAX: Duration = Duration::from_secs(2);
const SPEAK_EVERY: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    /// One look each so many milliseconds after the one before: what has come, what was sent, whether there is a way.
    fn findings(steps: &[(u64, u64, u64, bool)]) -> Vec<Finding> {
        let (mut silence, mut now) = (Silence::default(), Duration::ZERO);
        let looks = steps.iter().map(|(after, received, sent, has_way)| {
            now += Duration::from_millis(*after);
            let look = Look { received: *received, sent: *sent, most: SILENCE_MAX };
            silence.look(now, look, || *has_way)
        });
        looks.collect()
    }

    use Finding::{Dead, Nothing, SpeakUp};

    #[test]
    fn a_node_that_leaves_something_unanswered_is_dead() {
        let found = findings(&[(0, 1, 1, true), (100, 1, 2, true), (500, 1, 3, true)]);
        assert_eq!(found, [Nothing; 3]);
        let found = findings(&[(0, 1, 1, true), (100, 1, 2, true), (601, 1, 2, true)]);
        assert_eq!(found, [Nothing, Nothing, Dead]);
    }

    #[test]
    fn one_that_answers_or_has_nothing_to_answer_is_not() {
        let found = findings(&[(0, 1, 1, true), (500, 1, 2, true), (500, 2, 2, true)]);
        assert_eq!(found, [Nothing; 3]);
        assert_eq!(findings(&[(0, 1, 1, true), (60_000, 1, 1, true)]), [Nothing; 2]);
    }

    #[test]
    fn who_has_no_way_waits_for_one_and_gives_the_node_all_the_time_then() {
        let found = findings(&[
            (0, 1, 1, true),
            (100, 1, 2, false),
            (300, 1, 2, false),
            (4_000, 1, 9, false),
            (100, 1, 9, true),
            (200, 1, 9, true),
            (100, 1, 9, true),
            (2_400, 1, 9, true),
        ]);
        let all = [Nothing, Nothing, Nothing, Nothing, SpeakUp, Nothing, SpeakUp, Dead];
        assert_eq!(found, all);
    }

    #[test]
    fn a_way_that_does_not_come_back_is_no_reason_to_wait_for_ever() {
        let found = findings(&[(0, 1, 1, true), (100, 1, 2, false), (6_001, 1, 2, false)]);
        assert_eq!(found, [Nothing, Nothing, Dead]);
    }

    #[test]
    fn what_is_here_can_be_reached_and_what_nobody_has_cannot() {
        assert!(way_to("127.0.0.1:9".parse().expect("an address")));
        assert!(way_to("[::ffff:127.0.0.1]:9".parse().expect("an address")));
        // Nobody may send to port 0 there, nor anywhere without a broadcast's leave.
        assert!(!way_to("255.255.255.255:9".parse().expect("an address")));
    }
}
