use std::{future::poll_fn, net::Ipv4Addr, time::Duration};

use tokio::time::timeout;

use super::*;

const LEN: usize = 16;
const DEADLINE: Duration = Duration::from_secs(10);

struct Pair {
    from: UdpSocket,
    to: Arc<Socket>,
}

impl Pair {
    fn new() -> Self {
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        from.connect(to.local_addr().expect("bound")).expect("connected");
        Self { from, to: Arc::new(Socket::new(to).expect("watched")) }
    }

    fn send(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.from.send(&number.to_be_bytes()).expect("sent");
        }
    }

    /// What one receive gives, by as many buffers as an endpoint has.
    async fn receive(&self) -> Vec<u64> {
        let mut memory = [[0; LEN]; BATCH_SIZE];
        let mut bufs = memory.each_mut().map(|buf| IoSliceMut::new(buf));
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let receive = poll_fn(|cx| self.to.poll_recv(cx, &mut bufs, &mut meta));
        let got = timeout(DEADLINE, receive).await.expect("it comes").expect("received");
        let number = |(buf, meta): (&[u8; LEN], &RecvMeta)| {
            u64::from_be_bytes(buf[..meta.len].try_into().expect("a number"))
        };
        memory.iter().zip(&meta).take(got).map(number).collect()
    }
}

fn room(socket: &Arc<Socket>) -> Room {
    Room { socket: Arc::clone(socket), wait: None }
}

async fn wait_for(room: &mut Room) {
    let wait = poll_fn(|cx| Pin::new(&mut *room).poll_writable(cx));
    timeout(DEADLINE, wait).await.expect("there is room").expect("watched");
}

#[tokio::test]
async fn a_receive_that_emptied_the_queue_does_not_hide_what_comes_then() {
    let pair = Pair::new();
    for number in 0..1_000 {
        // While nobody waits, or while somebody does: an event that is lost would be missed for ever.
        if number % 2 == 0 {
            pair.send(number..number + 1);
            assert_eq!(pair.receive().await, [number]);
        } else {
            let (got, ()) = tokio::join!(pair.receive(), async { pair.send(number..number + 1) });
            assert_eq!(got, [number]);
        }
    }
}

#[tokio::test]
async fn more_than_fits_one_receive_is_received_by_the_next() {
    let pair = Pair::new();
    for most in [BATCH_SIZE as u64, 3 * BATCH_SIZE as u64, 100] {
        pair.send(0..most);
        let mut got = Vec::new();
        while (got.len() as u64) < most {
            got.extend(pair.receive().await);
        }
        assert_eq!(got, Vec::from_iter(0..most));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_meanwhile_is_received() {
    let pair = Arc::new(Pair::new());
    let sender = Arc::clone(&pair);
    let most = 20_000;
    // No more under way than the kernel holds: what it drops is not the socket's fault.
    let (window, mut seen) = tokio::sync::watch::channel(0);
    let sending = tokio::task::spawn(async move {
        for number in 0..most {
            seen.wait_for(|seen| number < seen + 64).await.expect("receives");
            sender.send(number..number + 1);
        }
    });
    let mut next = 0;
    while next < most {
        for number in pair.receive().await {
            assert_eq!(number, next);
            next += 1;
        }
        window.send_replace(next);
    }
    sending.await.expect("sent");
}

#[tokio::test]
async fn room_is_watched_only_while_there_is_none() {
    let pair = Pair::new();
    let (mut one, mut other) = (room(&pair.to), room(&pair.to));
    wait_for(&mut one).await;
    assert!(pair.to.room.lock().expect("whole").upgrade().is_none(), "nobody had to wait");

    pair.to.full.store(true, Ordering::Release);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(Pin::new(&mut one).poll_writable(&mut cx).is_pending(), "the event is not here yet");
    assert!(pair.to.room.lock().expect("whole").upgrade().is_some());
    wait_for(&mut other).await;
    wait_for(&mut one).await;
    assert!(pair.to.room.lock().expect("whole").upgrade().is_none(), "nobody waits any more");
    assert!(!pair.to.full.load(Ordering::Acquire));
}
