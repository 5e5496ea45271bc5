//! The one connection of a client that its publishers, subscribers and requests share. Whoever finds it gone dials; the
//! others wait for that dial.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    backoff::Backoff,
    dial::{Before, Dialer, Session},
    error::{ConnectError, RequestError, StreamError},
    mover::{self, Asked},
    stream::{FrameReader, send_control},
};
use crate::{
    net::Group,
    wire::{Answer, CloseCode, Code, Fault, FrameType, Request, Retry},
};

#[derive(Debug)]
pub(super) struct Link {
    dialer: Dialer,
    request_timeout: Duration,
    state: Mutex<State>,
    /// What the link's publishers do.
    pub(super) publishing: Group,
    /// Moves to other nodes when it is asked to; ends with the link.
    _mover: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Arc<Session>>,
    backoff: Backoff,
    not_before: Option<Instant>,
    failed: Option<(Instant, ConnectError)>,
}

impl Link {
    /// A link without a connection yet. It goes to other nodes when it is `asked` to.
    pub(super) fn start(
        dialer: Dialer,
        request_timeout: Duration,
        asked: mpsc::Receiver<Asked>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|link| {
            let mut mover = JoinSet::new();
            mover.spawn(mover::run(link.clone(), asked));
            Self {
                dialer,
                request_timeout,
                state: Mutex::default(),
                publishing: Group::default(),
                _mover: mover,
            }
        })
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The connection, if it is still this one.
    pub(super) async fn current(&self, connection: usize) -> Option<Arc<Session>> {
        let state = self.state.lock().await;
        let current = state.current.as_ref().filter(|session| session.is_usable());
        current.filter(|session| session.connection.stable_id() == connection).cloned()
    }

    /// Takes another connection in place of this one, unless that is gone. Streams find out, and follow.
    pub(super) async fn replace(&self, old: &Arc<Session>, new: Session) -> bool {
        let mut state = self.state.lock().await;
        let is_current = state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, old));
        if is_current {
            state.current = Some(Arc::new(new));
            old.retire();
        }
        is_current
    }

    /// The connection, dialled first if there is none. Fails after one round of all addresses; a caller that tries
    /// again is held back as long as the backoff says.
    pub(super) async fn session(&self) -> Result<Arc<Session>, ConnectError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(session) = state.current.as_ref().filter(|session| session.is_usable()) {
            return Ok(Arc::clone(session));
        }
        // Those who waited for a dial that failed share its outcome.
        if let Some((_, error)) = state.failed.as_ref().filter(|(at, _)| *at > asked) {
            return Err(error.clone());
        }
        if let Some(at) = state.not_before {
            sleep_until(at).await;
        }
        let before = state.current.take().map(|session| {
            let address = session.address.clone();
            if session.is_to_be_avoided() { Before::Bad(address) } else { Before::Good(address) }
        });
        let delay = state.backoff.next(rand::random());
        // Set before the dial: a node that greets and hangs up at once is not dialled in a tight loop.
        state.not_before = Some(Instant::now() + delay);
        match self.dialer.dial(before.as_ref()).await {
            Ok(session) => {
                let session = Arc::new(session);
                state.backoff.reset();
                state.failed = None;
                state.current = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(error) => {
                let now = Instant::now();
                state.not_before = Some(now + delay);
                state.failed = Some((now, error.clone()));
                Err(error)
            }
        }
    }

    /// Asks, and asks again while the node says "later" or goes away: every request may be done twice.
    pub(super) async fn request(&self, request: &Request) -> Result<Answer, RequestError> {
        let mut last = None;
        match timeout(self.request_timeout, self.ask_until_answered(request, &mut last)).await {
            Ok(answer) => answer,
            Err(_) => Err(last.unwrap_or(RequestError::Timeout(self.request_timeout))),
        }
    }

    /// Says goodbye, and waits a moment for that to be heard.
    pub(super) async fn close(&self) {
        if let Some(session) = self.state.lock().await.current.take() {
            session.connection.close(CloseCode::Done.code().into(), b"");
        }
        let _ = timeout(GOODBYE_MAX, self.dialer.endpoint.wait_idle()).await;
    }

    async fn ask_until_answered(
        &self,
        request: &Request,
        last: &mut Option<RequestError>,
    ) -> Result<Answer, RequestError> {
        let mut answer_lost = false;
        loop {
            let delay = match self.ask(request).await {
                Err(RequestError::Fault(fault)) => {
                    let delete = matches!(request, Request::DeleteTopic { .. });
                    if fault.code == Code::UnknownTopic && delete && answer_lost {
                        // The try before did it, and nobody heard.
                        return Ok(Answer::Done);
                    }
                    let Some(delay) = delay_of(&fault) else {
                        return Err(RequestError::Fault(fault));
                    };
                    *last = Some(RequestError::Fault(fault));
                    delay
                }
                Err(RequestError::Lost(why)) => {
                    answer_lost = true;
                    *last = Some(RequestError::Lost(why));
                    Duration::ZERO
                }
                other => return other,
            };
            sleep_until(Instant::now() + delay.max(DELAY_MIN)).await;
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, RequestError> {
        let session = self.session().await?;
        match ask_on(&session, request).await {
            Ok(Answer::Fault(fault)) => Err(RequestError::Fault(Box::new(fault))),
            Err(StreamError::Fault(fault)) => Err(RequestError::Fault(fault)),
            Ok(answer) => Ok(answer),
            Err(StreamError::Lost(why)) => Err(RequestError::Lost(why)),
            Err(StreamError::Protocol(why)) => Err(RequestError::Protocol(why)),
        }
    }
}

async fn ask_on(session: &Session, request: &Request) -> Result<Answer, StreamError> {
    let (mut send, recv) = session.connection.open_bi().await?;
    send_control(&mut send, FrameType::Request, request).await?;
    // An error says that the stream is over already; reading says why.
    let _ = send.finish();
    FrameReader::new(recv).expect(FrameType::Answer).await
}

/// How long to wait before trying again; none if the fault ends the matter.
pub(super) fn delay_of(fault: &Fault) -> Option<Duration> {
    match fault.retry {
        Retry::Never => None,
        Retry::After(ms) => Some(Duration::from_millis(ms.into())),
        Retry::SameSequence => Some(Duration::ZERO),
    }
}

/// Least time between two tries, whatever the node says.
pub(super) const DELAY_MIN: Duration = Duration::from_millis(20);
/// One round trip over a slow link; a node that misses the goodbye finds out by its idle timeout.
const GOODBYE_MAX: Duration = Duration::from_millis(500);
