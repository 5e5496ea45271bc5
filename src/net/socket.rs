//! The socket of an endpoint, which asks the kernel for no more than it has.
//!
//! quinn's own asks after each packet whether there is another, and is woken for each packet that it has sent, when the kernel
//! has done with it. With one record under way these are half of all system calls. Here a receive that left buffers empty has
//! emptied the kernel's queue (the next packet is a new event: epoll(7), edge-triggered), and room for sending is watched only
//! while there is none.

use std::{
    fmt,
    io::{self, ErrorKind, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Makes a socket ready for an endpoint, from within a runtime.
pub(super) fn wrap(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Socket::new(socket)?))
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe; a UdpSocket owns its descriptor, as that asks"
)]
fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

#[derive(Debug)]
struct Socket {
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The kernel had no room for the last packet.
    full: AtomicBool,
    /// The same socket, watched for room, while somebody waits for some.
    room: Mutex<Weak<AsyncFd<UdpSocket>>>,
}

impl Socket {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let io = watch(socket, Interest::READABLE)?;
        Ok(Self { io, state, full: AtomicBool::new(false), room: Mutex::default() })
    }

    fn room(&self) -> io::Result<Arc<AsyncFd<UdpSocket>>> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = room.upgrade() {
            return Ok(room);
        }
        let new = Arc::new(watch(self.io.get_ref().try_clone()?, Interest::WRITABLE)?);
        *room = Arc::downgrade(&new);
        Ok(new)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.io.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.io.poll_read_ready(cx))?;
            match self.state.recv(self.io.get_ref().into(), bufs, meta) {
                Ok(received) => {
                    if received < bufs.len().min(BATCH_SIZE) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                // Another error is of a packet that was sent before, and is told once: it is not of the endpoint.
                Err(_) => ready.clear_ready(),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits until the kernel has room for a packet, for one connection.
struct Room {
    socket: Arc<Socket>,
    wait: Option<Wait>,
}

type Wait = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, wait } = &mut *self;
        if !socket.full.load(Ordering::Acquire) {
            *wait = None;
            return Poll::Ready(Ok(()));
        }
        let wait_now = match wait {
            Some(wait) => wait,
            None => {
                let room = socket.room()?;
                wait.insert(Box::pin(async move {
                    // Taken for all who wait: each of them is woken, and the next that finds none waits for a new event.
                    room.writable().await.map(|mut ready| ready.clear_ready())
                }))
            }
        };
        let waited = ready!(wait_now.as_mut().poll(cx));
        *wait = None;
        socket.full.store(false, Ordering::Release);
        Poll::Ready(waited)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("waits", &self.wait.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
