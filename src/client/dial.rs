//! How a client gets a connection: all addresses, staggered, until one has answered the greeting.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quinn::{Connection, ConnectionError, Endpoint};
use rand::seq::SliceRandom as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

mod refusal;
mod silence;

use self::refusal::refusal;
use super::{
    error::{ConnectError, StreamError},
    mover::Asked,
    search::{Hunt, Search},
    stream::{FrameReader, control, send_control},
    turns::Turns,
};
use crate::{
    limits::{DIAL_SILENT, DISCOVER_AFTER, DISCOVER_INSTEAD, MOVE_DIAL_MAX, NODE_ADDRESSES_MAX},
    net::{Address, authority::NODE_SERVER_NAME},
    types::SiteName,
    wire::{
        CloseCode, FrameType, GoAway, Hello, Leave, NodeInfo, PROTOCOL_VERSION,
        PROTOCOL_VERSION_MIN, Welcome,
    },
};

/// A connection whose node has answered the greeting.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) welcome: Welcome,
    pub(super) address: Address,
    /// In which order its streams send what is published.
    pub(super) turns: Turns,
    leaving: Arc<AtomicBool>,
    /// Cancelled when another connection has taken its place.
    moved: CancellationToken,
    /// Reads the control stream, and listens whether the node answers; ends with the session.
    _control: JoinSet<()>,
}

impl Session {
    /// Tells whether new streams may be opened on it.
    pub(super) fn is_usable(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed) && self.connection.close_reason().is_none()
    }

    /// Another connection has taken its place: streams that are open here go on there.
    pub(super) fn retire(&self) {
        self.leave();
        self.moved.cancel();
    }

    /// Waits until another connection has taken its place.
    pub(super) async fn moved(&self) {
        self.moved.cancelled().await;
    }

    /// Has the next stream opened on another node, where there is one.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Tells whether another node is to be tried first: this one has gone silent, or has asked to leave.
    pub(super) fn is_to_be_avoided(&self) -> bool {
        let silent = matches!(self.connection.close_reason(), Some(ConnectionError::LocallyClosed));
        let timed_out = matches!(self.connection.close_reason(), Some(ConnectionError::TimedOut));
        self.leaving.load(Ordering::Relaxed) || silent || timed_out
    }
}

/// The last who uses a connection closes it.
impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(CloseCode::Done.code().into(), b"");
    }
}

/// Knows where nodes may be.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) endpoint: Endpoint,
    pub(super) site: SiteName,
    pub(super) addresses: Vec<Address>,
    pub(super) timeout: Duration,
    /// Only the given addresses are tried, whatever a node tells.
    pub(super) fixed: bool,
    /// Nodes that were told by one of the site.
    pub(super) told: Mutex<Vec<Address>>,
    /// Where nodes announce themselves, if that may be asked.
    pub(super) search: Option<Search>,
    /// Where it goes that a node asks to be left.
    pub(super) asks: mpsc::Sender<Asked>,
}

/// What is known of the last connection when the next is dialled.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// It was good: its node is tried first.
    Good(Address),
    /// Its node is tried last.
    Bad(Address),
}

pub(super) type Candidate = (Address, SocketAddr);
/// No error means silence.
pub(super) type Greeted = Result<Session, Option<ConnectError>>;

impl Dialer {
    /// Tries all addresses, and again those that stay silent; when they are, what nodes announce.
    pub(super) async fn dial(&self, before: Option<&Before>) -> Result<Session, ConnectError> {
        let mut race = Race::new(self);
        let round = async {
            let (candidates, unresolved) = self.resolve(before).await;
            if candidates.is_empty() && self.search.is_none() {
                return Err(unresolved.unwrap_or(ConnectError::NoAddress));
            }
            race.enter(candidates);
            race.run().await
        };
        let ended = timeout(self.timeout, round).await;
        race.note_the_silent();
        let session = ended.unwrap_or_else(|_| Err(race.lost()))?;
        let told = session.welcome.nodes.iter().flat_map(|node| &node.addresses);
        let told: Vec<Address> =
            told.filter_map(|address| address.parse().ok()).take(ADDRESSES_TOLD_MAX).collect();
        if !self.fixed {
            *self.told() = told;
        }
        Ok(session)
    }

    /// Dials one node that another has named, for as long as [`MOVE_DIAL_MAX`] each of its addresses. A client that was told
    /// where to go by its owner goes nowhere else.
    pub(super) async fn dial_node(&self, node: &NodeInfo) -> Option<Session> {
        if self.fixed {
            return None;
        }
        let manner = Manner { moved: true, asks: Some(self.asks.clone()) };
        let addresses = node.addresses.iter().take(NODE_ADDRESSES_MAX);
        for address in addresses.filter_map(|address| address.parse::<Address>().ok()) {
            let host = (address.host(), address.port());
            let found = timeout(MOVE_DIAL_MAX, tokio::net::lookup_host(host)).await;
            let Ok(Ok(found)) = found else { continue };
            // A node that listens everywhere does not know how others reach it.
            for socket in found.filter(|socket| !socket.ip().is_unspecified()) {
                let greeting = greet(&self.endpoint, address.clone(), socket, &manner);
                match timeout(MOVE_DIAL_MAX, greeting).await {
                    Ok(Ok(session)) if session.welcome.node_id == node.id => return Some(session),
                    Ok(Ok(session)) => {
                        debug!(%address, node = %session.welcome.node, "another node")
                    }
                    Ok(Err(error)) => debug!(%address, ?error, "named node did not let us in"),
                    Err(_) => debug!(%address, "named node is silent"),
                }
            }
        }
        None
    }

    fn told(&self) -> MutexGuard<'_, Vec<Address>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self, before: Option<&Before>) -> (Vec<Candidate>, Option<ConnectError>) {
        let mut addresses = self.addresses.clone();
        let told = self.told().clone();
        addresses.extend(told.into_iter().filter(|address| !self.addresses.contains(address)));
        // Many clients that lost the same node do not all go to the same next one.
        addresses.shuffle(&mut rand::rng());
        addresses.sort_by_key(|address| match before {
            Some(Before::Good(good)) => u8::from(address != good),
            Some(Before::Bad(bad)) => u8::from(address == bad),
            None => 0,
        });
        let (mut candidates, mut error) = (Vec::new(), None);
        for address in &addresses {
            if let Ok(ip) = address.host().parse::<IpAddr>() {
                candidates.push((address.clone(), SocketAddr::new(ip, address.port())));
                continue;
            }
            match tokio::net::lookup_host((address.host(), address.port())).await {
                Ok(found) => candidates.extend(found.map(|socket| (address.clone(), socket))),
                Err(source) => {
                    let source = Arc::new(source);
                    error = Some(ConnectError::Resolve { address: address.clone(), source });
                }
            }
        }
        if let Some(search) = &self.search {
            let heard = search.order().into_iter().filter_map(heard_at);
            candidates.extend(heard);
        }
        (candidates, error)
    }

    fn unreachable(&self) -> ConnectError {
        if self.addresses.is_empty() {
            return ConnectError::NotFound { site: self.site.clone(), waited: self.timeout };
        }
        let names: Vec<_> = self.addresses.iter().map(Address::to_string).collect();
        ConnectError::Unreachable { addresses: names.join(", "), waited: self.timeout }
    }
}

/// An announced address, in the form in which addresses are given.
pub(super) fn heard_at(socket: SocketAddr) -> Option<Candidate> {
    Some((Address::new(&socket.ip().to_string(), socket.port()).ok()?, socket))
}

/// One round of dials.
struct Race<'a> {
    dialer: &'a Dialer,
    candidates: Vec<Candidate>,
    /// Which of them have given a bad answer.
    out: Vec<bool>,
    /// When each was dialled first.
    dialled: Vec<Option<Instant>>,
    attempts: JoinSet<(usize, Greeted)>,
    refused: Option<ConnectError>,
}

impl<'a> Race<'a> {
    fn new(dialer: &'a Dialer) -> Self {
        Self {
            dialer,
            candidates: Vec::new(),
            out: Vec::new(),
            dialled: Vec::new(),
            attempts: JoinSet::new(),
            refused: None,
        }
    }

    /// Adds those that are not in it.
    fn enter(&mut self, candidates: Vec<Candidate>) {
        for candidate in candidates {
            let known = self.candidates.iter().any(|(_, socket)| *socket == candidate.1);
            if !known && self.candidates.len() < CANDIDATES_MAX {
                self.candidates.push(candidate);
                self.out.push(false);
                self.dialled.push(None);
            }
        }
    }

    /// A silent address is dialled again, because a node that restarts has not heard what was sent before; one that
    /// answers badly is out. The first good answer wins, the others are dropped.
    async fn run(&mut self) -> Result<Session, ConnectError> {
        let mut stagger = STAGGER_FIRST;
        let mut next = 0;
        let now = Instant::now();
        let (mut start_at, mut search_at) = (now, now + DISCOVER_AFTER);
        let search = self.dialer.search.as_ref();
        let mut hunt: Option<Hunt<'_>> = None;
        let mut all_out_since: Option<Instant> = None;
        loop {
            let all_out = self.out.iter().all(|out| *out);
            if all_out {
                search_at = now;
            }
            // A node that is about to start again refuses: the next round finds it, if nobody else is heard meanwhile.
            let refused = all_out && !self.out.is_empty();
            all_out_since = refused.then(|| all_out_since.unwrap_or_else(Instant::now));
            let give_up_at = all_out_since.map(|since| since + DISCOVER_INSTEAD);
            tokio::select! {
                biased;
                Some(Ok((at, greeted))) = self.attempts.join_next() => {
                    if let Some(session) = self.answered(at, greeted)? {
                        return Ok(session);
                    }
                    if self.out.iter().all(|out| *out) && search.is_none() {
                        return Err(self.lost());
                    }
                    if next < self.candidates.len() {
                        start_at = Instant::now();
                    }
                }
                () = sleep_until(start_at), if !all_out && self.attempts.len() < self.attempts_max() => {
                    // Once each was dialled, in turn.
                    while self.out[next % self.out.len()] {
                        next += 1;
                    }
                    self.begin(next % self.out.len());
                    next += 1;
                    let crowd = self.is_crowded().then_some(STAGGER_CROWD);
                    start_at = Instant::now() + crowd.unwrap_or(stagger);
                    stagger = (stagger * 3 / 2).min(STAGGER_LAST);
                }
                () = sleep_until(search_at), if search.is_some() && hunt.is_none() => {
                    debug!(site = %self.dialer.site, "looking for nodes that announce themselves");
                    hunt = search.map(Search::begin);
                }
                () = sleep_until(give_up_at.unwrap_or(now)), if give_up_at.is_some() => {
                    return Err(self.lost());
                }
                found = more(&mut hunt) => {
                    let first_new = self.candidates.len();
                    self.enter(found.into_iter().filter_map(heard_at).collect());
                    if self.candidates.len() > first_new {
                        (next, start_at, stagger) = (first_new, Instant::now(), STAGGER_FIRST);
                    }
                }
            }
        }
    }

    fn begin(&mut self, at: usize) {
        let (address, socket) = self.candidates[at].clone();
        let endpoint = self.dialer.endpoint.clone();
        self.dialled[at].get_or_insert_with(Instant::now);
        let most = if self.is_crowded() { DIAL_SILENT } else { self.dialer.timeout };
        let manner = Manner { moved: false, asks: Some(self.dialer.asks.clone()) };
        self.attempts.spawn(async move {
            let greeted = timeout(most, greet(&endpoint, address, socket, &manner)).await;
            (at, greeted.unwrap_or(Err(None)))
        });
    }

    /// No site has so many addresses: somebody announces what is not there, and each is dialled for a moment only.
    fn is_crowded(&self) -> bool {
        self.dialer.search.is_some() && self.candidates.len() > 2 * ATTEMPTS_MAX
    }

    fn attempts_max(&self) -> usize {
        if self.is_crowded() { ATTEMPTS_CROWD_MAX } else { ATTEMPTS_MAX }
    }

    /// An error ends the round: a node of the site has said what no other will say differently.
    fn answered(&mut self, at: usize, greeted: Greeted) -> Result<Option<Session>, ConnectError> {
        let (_, socket) = &self.candidates[at];
        let search = self.dialer.search.as_ref();
        let error = match greeted {
            Ok(session) => {
                // Nobody dials it again, nor calls it silent.
                self.out[at] = true;
                if let Some(search) = search {
                    search.reached(*socket, session.welcome.node_id);
                }
                return Ok(Some(session));
            }
            Err(None) => return Ok(None),
            Err(Some(error)) => error,
        };
        debug!(%error, "node did not let us in");
        self.out[at] = true;
        if let Some(search) = search {
            search.failed(*socket);
            if matches!(
                error,
                ConnectError::CertificateRefused { .. } | ConnectError::Version { .. }
            ) && self.out.iter().all(|out| *out)
            {
                return Err(error);
            }
        }
        // The first definite answer says most.
        if self.refused.as_ref().is_none_or(|refused| !refused.is_definite()) {
            self.refused = Some(error);
        }
        Ok(None)
    }

    /// Why the round was lost.
    fn lost(&mut self) -> ConnectError {
        self.refused.take().unwrap_or_else(|| self.dialer.unreachable())
    }

    /// Has the next round try others before those that gave no answer in this one.
    fn note_the_silent(&self) {
        let Some(search) = &self.dialer.search else { return };
        for (nth, (_, socket)) in self.candidates.iter().enumerate() {
            let silent = self.dialled[nth].is_some_and(|since| since.elapsed() > DIAL_SILENT);
            if silent && !self.out[nth] {
                search.failed(*socket);
            }
        }
    }
}

/// What a search finds; nothing while there is none.
async fn more(hunt: &mut Option<Hunt<'_>>) -> Vec<SocketAddr> {
    match hunt {
        Some(hunt) => hunt.next().await,
        None => std::future::pending().await,
    }
}

/// How a node is greeted.
#[derive(Clone, Debug, Default)]
pub(super) struct Manner {
    /// Another node has asked us to come here.
    pub(super) moved: bool,
    /// Where it goes that the node asks to be left; nowhere if nobody would follow.
    pub(super) asks: Option<mpsc::Sender<Asked>>,
}

pub(super) async fn greet(
    endpoint: &Endpoint,
    address: Address,
    socket: SocketAddr,
    manner: &Manner,
) -> Greeted {
    let protocol = |why: String| Some(ConnectError::Protocol { address: address.clone(), why });
    let connecting =
        endpoint.connect(socket, NODE_SERVER_NAME).map_err(|error| protocol(error.to_string()))?;
    let connection = connecting.await.map_err(|error| refusal(&address, &error))?;
    let greeted = exchange_hello(&connection, manner.moved).await;
    let (welcome, reader, send) =
        greeted.map_err(|error| match (error, connection.close_reason()) {
            (StreamError::Fault(fault), _) => {
                Some(ConnectError::Fault { address: address.clone(), fault })
            }
            (_, Some(reason)) => refusal(&address, &reason),
            (StreamError::Lost(why) | StreamError::Protocol(why), None) => protocol(why),
        })?;
    if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&welcome.version) {
        return Err(Some(ConnectError::Version { address }));
    }
    debug!(%address, node = %welcome.node, site = %welcome.site, "connected");
    let leaving = Arc::new(AtomicBool::new(false));
    let mut control = JoinSet::new();
    let asks = manner.asks.clone().map(|asks| (asks, connection.stable_id()));
    control.spawn(watch_control(reader, send, Arc::clone(&leaving), asks));
    control.spawn(silence::watch(endpoint.clone(), connection.clone()));
    let moved = CancellationToken::new();
    Ok(Session {
        connection,
        welcome,
        address,
        turns: Turns::default(),
        leaving,
        moved,
        _control: control,
    })
}

async fn exchange_hello(
    connection: &Connection,
    moved: bool,
) -> Result<(Welcome, FrameReader, quinn::SendStream), StreamError> {
    let (mut send, recv) = connection.open_bi().await?;
    let hello = Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION,
        software: crate::SOFTWARE.into(),
        features: Vec::new(),
        moved,
    };
    send_control(&mut send, FrameType::Hello, &hello).await?;
    let mut reader = FrameReader::new(recv);
    let welcome = reader.expect(FrameType::Welcome).await?;
    Ok((welcome, reader, send))
}

/// Listens on the control stream for the rest of the session, and keeps its sending half open meanwhile.
async fn watch_control(
    mut reader: FrameReader,
    _send: quinn::SendStream,
    leaving: Arc<AtomicBool>,
    asks: Option<(mpsc::Sender<Asked>, usize)>,
) {
    while let Ok(Some(frame)) = reader.next().await {
        if frame.kind != FrameType::GoAway {
            continue;
        }
        let Ok(go_away) = control::<GoAway>(&frame) else { continue };
        info!(reason = %go_away.reason, within_ms = go_away.within_ms, "node asks us to leave");
        match (go_away.leave, &asks) {
            (Leave::Now, _) => leaving.store(true, Ordering::Relaxed),
            (Leave::Soon | Leave::Please, Some((asks, connection))) => {
                // While another request is followed this one is not: the node asks again, or insists.
                let _ = asks.try_send(Asked { connection: *connection, go_away });
            }
            (Leave::Soon | Leave::Please, None) => {}
        }
    }
}

/// Addresses that are remembered of those that a node tells.
const ADDRESSES_TOLD_MAX: usize = 64;
/// Addresses of one round. More are not tried.
const CANDIDATES_MAX: usize = 128;
/// As RFC 8305 recommends for the second address.
const STAGGER_FIRST: Duration = Duration::from_millis(250);
const STAGGER_LAST: Duration = Duration::from_secs(2);
/// Dials under way at once.
const ATTEMPTS_MAX: usize = 8;
/// The same among many addresses, most of which must be false: all that a table holds are tried within one round.
const ATTEMPTS_CROWD_MAX: usize = 32;
const STAGGER_CROWD: Duration = Duration::from_millis(25);
