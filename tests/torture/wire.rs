//! Cables that lose, delay and reorder: each node is reached at an address of which every datagram passes through here.
//!
//! Needs no rights and no kernel module. What it cannot show is a cut that names both ends: for that there is the switch.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    net::UdpSocket,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// What a cable does to a datagram, each way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    /// Of a thousand so many are lost.
    pub(crate) lost: u32,
    pub(crate) delay: Duration,
    /// At most so much more, by chance: what comes later may arrive earlier.
    pub(crate) jitter: Duration,
}

/// The cables of some nodes. They are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Wires {
    shared: Arc<Shared>,
    worker: Option<thread::JoinHandle<()>>,
    end: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    quality: Mutex<Quality>,
    chance: Mutex<StdRng>,
    carried: AtomicU64,
    lost: AtomicU64,
}

impl Wires {
    /// Carries what comes to the first address of each pair to the second. Good cables until [`Self::set`] says otherwise.
    pub(crate) fn new(pairs: Vec<(SocketAddr, SocketAddr)>, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            quality: Mutex::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            carried: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut ends = Vec::new();
        for (near, far) in pairs {
            ends.push((Arc::new(runtime.block_on(UdpSocket::bind(near))?), far));
        }
        let wires = Arc::clone(&shared);
        // A thread of its own: the load of the clients must not delay datagrams.
        let worker = thread::spawn(move || {
            runtime.block_on(async {
                let mut cables = JoinSet::new();
                for (near, far) in ends {
                    cables.spawn(carry(Arc::clone(&wires), near, far));
                }
                let _ = ended.await;
            });
        });
        Ok(Self { shared, worker: Some(worker), end: Some(end) })
    }

    pub(crate) fn set(&self, quality: Quality) {
        *self.shared.quality.lock().unwrap_or_else(PoisonError::into_inner) = quality;
    }

    /// Datagrams that arrived, and those that were lost.
    pub(crate) fn count(&self) -> (u64, u64) {
        (self.shared.carried.load(Relaxed), self.shared.lost.load(Relaxed))
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Carries what comes to `near` to `far`, and the answers back: each sender has a socket of its own towards `far`.
async fn carry(shared: Arc<Shared>, near: Arc<UdpSocket>, far: SocketAddr) {
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut under_way = JoinSet::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    loop {
        // An error of an earlier datagram: nobody was there.
        let Ok((len, from)) = near.recv_from(&mut buffer).await else { continue };
        let way = match ways.get(&from) {
            Some(way) => Arc::clone(way),
            None => {
                let way = UdpSocket::bind((near_ip(&near), 0)).await.unwrap();
                way.connect(far).await.unwrap();
                let way = Arc::new(way);
                ways.insert(from, Arc::clone(&way));
                answers.spawn(bring_back(
                    Arc::clone(&shared),
                    Arc::clone(&way),
                    Arc::clone(&near),
                    from,
                ));
                way
            }
        };
        let datagram = buffer[..len].to_vec();
        if let Some(due) = shared.fate() {
            under_way.spawn(async move {
                sleep_until(due).await;
                let _ = way.send(&datagram).await;
            });
        }
        while under_way.try_join_next().is_some() {}
    }
}

async fn bring_back(
    shared: Arc<Shared>,
    way: Arc<UdpSocket>,
    near: Arc<UdpSocket>,
    to: SocketAddr,
) {
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let Ok(len) = way.recv(&mut buffer).await else { continue };
        let datagram = buffer[..len].to_vec();
        if let Some(due) = shared.fate() {
            let near = Arc::clone(&near);
            under_way.spawn(async move {
                sleep_until(due).await;
                let _ = near.send_to(&datagram, to).await;
            });
        }
        while under_way.try_join_next().is_some() {}
    }
}

impl Shared {
    /// When a datagram arrives that leaves now, if it does.
    fn fate(&self) -> Option<Instant> {
        let quality = *self.quality.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        if chance.random_range(0..1_000) < quality.lost {
            self.lost.fetch_add(1, Relaxed);
            return None;
        }
        self.carried.fetch_add(1, Relaxed);
        let most = u64::try_from(quality.jitter.as_micros()).unwrap();
        let more = Duration::from_micros(chance.random_range(0..=most));
        Some(Instant::now() + quality.delay + more)
    }
}

fn near_ip(near: &UdpSocket) -> Ipv4Addr {
    match near.local_addr().unwrap() {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(address) => panic!("{address} is none of ours"),
    }
}

const DATAGRAM_LEN_MAX: usize = 65_536;
