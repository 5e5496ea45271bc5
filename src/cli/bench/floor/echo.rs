//! Frames up, 24-byte acks down: what quinn gives with our TLS and our limits, and nothing of our own on top.
//!
//! The first 8 bytes of a stream say how long its frames are. Acks are sent together, as many as there are after a read;
//! frames are written together, as many as there is room for.

use std::{collections::VecDeque, fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint};
use tokio::{
    io::AsyncReadExt as _,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::ADDRESS_FILE;
use crate::{
    cli::{
        bench::{
            floor::Floor,
            payload::Payloads,
            plan::Combination,
            stats::{Latencies, per_second},
        },
        exit::Failure,
        now,
    },
    net::{
        ConnectionLimits, Credentials,
        authority::NODE_SERVER_NAME,
        endpoint::{self, ResetSecret},
        tls::{self, ALPN_CLIENT, ClientAuth},
    },
    wire::{Publish, batch::BATCH_HEADER_LEN},
};

/// Serves until standard input ends: its owner is gone.
pub(in crate::cli::bench) async fn serve(dir: &Path) -> Result<(), Failure> {
    let credentials = Credentials::of_node(&dir.join("data/pki")).map_err(Failure::config)?;
    let tls = tls::server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], now())
        .map_err(Failure::config)?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let limits = ConnectionLimits::default();
    // It is not started again: nobody is to be told of a former self.
    let secret = ResetSecret::derive(&rand::random::<[u8; 32]>());
    let endpoint = endpoint::server(address, Arc::new(tls), &limits, &secret);
    let endpoint = endpoint.map_err(Failure::runtime)?;
    let address = endpoint.local_addr().map_err(Failure::runtime)?;
    fs::write(dir.join(ADDRESS_FILE), format!("{address}\n")).map_err(Failure::runtime)?;
    let mut connections = JoinSet::new();
    let owner = async {
        let mut byte = [0];
        while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
    };
    tokio::pin!(owner);
    loop {
        tokio::select! {
            Some(incoming) = endpoint.accept() => drop(connections.spawn(async move {
                // A connection that ends is the end of its run.
                let _ = async { answer(incoming.await?).await }.await;
            })),
            () = &mut owner => return Ok(()),
        }
    }
}

async fn answer(connection: Connection) -> io::Result<()> {
    let (mut output, mut input) = connection.accept_bi().await?;
    let mut head = [0; 8];
    input.read_exact(&mut head).await.map_err(io::Error::other)?;
    let frame_len = u64::from_be_bytes(head).max(1);
    let acks = Bytes::from(vec![0; ACK_LEN * ACKS_AT_ONCE]);
    let mut bytes = 0;
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = input.read_chunks(&mut chunks).await? else { return Ok(()) };
        bytes += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let mut due = usize::try_from(bytes / frame_len).unwrap_or(usize::MAX);
        bytes %= frame_len;
        while due > 0 {
            let now = due.min(ACKS_AT_ONCE);
            output.write_chunk(acks.slice(..now * ACK_LEN)).await?;
            due -= now;
        }
    }
}

/// Runs all producers at once, each over a connection of its own.
pub(super) async fn run(
    credentials: &Arc<Credentials>,
    address: SocketAddr,
    row: Combination,
    producers: usize,
    lasting: Duration,
) -> Result<Floor, Failure> {
    let mut clients = Vec::new();
    for _ in 0..producers {
        clients.push(connect(credentials, address).await?);
    }
    let mut running = JoinSet::new();
    for (endpoint, connection) in clients {
        running.spawn(async move {
            let result = publish(&connection, row, lasting).await;
            connection.close(0u32.into(), b"");
            // Without it the other side would wait for its idle timeout.
            let _ = timeout(CLOSE_MAX, endpoint.wait_idle()).await;
            result
        });
    }
    let mut latencies = Latencies::new();
    let mut frames_per_second = 0.0;
    while let Some(ended) = running.join_next().await {
        let ended = ended.map_err(Failure::runtime)?;
        let (rate, mine) = ended.map_err(|e| Failure::runtime(format!("the echo failed: {e}")))?;
        frames_per_second += rate;
        latencies.merge(&mine);
    }
    Ok(Floor {
        bytes_per_second: frames_per_second * row.size as f64,
        latency: latencies.percentiles().unwrap_or_default(),
    })
}

async fn connect(
    credentials: &Credentials,
    address: SocketAddr,
) -> Result<(Endpoint, Connection), Failure> {
    let tls = tls::client_config(credentials, &[ALPN_CLIENT]).map_err(Failure::runtime)?;
    let limits = ConnectionLimits {
        streams_max: 0,
        receive_window: u32::MAX,
        ..ConnectionLimits::default()
    };
    let endpoint = endpoint::client(Arc::new(tls), &limits).map_err(Failure::runtime)?;
    let connecting = endpoint.connect(address, NODE_SERVER_NAME).map_err(Failure::runtime)?;
    let connection = connecting.await.map_err(Failure::runtime)?;
    Ok((endpoint, connection))
}

async fn publish(
    connection: &Connection,
    row: Combination,
    lasting: Duration,
) -> io::Result<(f64, Latencies)> {
    let frame = frame(row.size);
    let at_once = (WRITE_LEN / frame.len()).clamp(1, row.in_flight);
    let frames: Bytes = frame.repeat(at_once).into();
    let (mut output, mut input) = connection.open_bi().await?;
    output.write_all(&(frame.len() as u64).to_be_bytes()).await?;
    let mut flight = Flight::default();
    let begun = Instant::now();
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    while begun.elapsed() < lasting {
        let room = row.in_flight - flight.frames;
        if room > 0 {
            let now = room.min(at_once);
            flight.sent(now, begun.elapsed());
            let mut bytes = frames.slice(..now * frame.len());
            while !bytes.is_empty() {
                // Acks are taken while the window is closed, or both sides would wait.
                tokio::select! {
                    written = output.write(&bytes) => drop(bytes.split_to(written?)),
                    count = input.read_chunks(&mut chunks) => {
                        flight.acked(&chunks[..count?.unwrap_or_default()], begun.elapsed());
                    }
                }
            }
            if now < room {
                continue;
            }
        }
        let count = input.read_chunks(&mut chunks).await?;
        let Some(count) = count else { return Err(io::Error::other("it ended")) };
        flight.acked(&chunks[..count], begun.elapsed());
    }
    Ok((per_second(flight.all, begun.elapsed()), flight.latencies))
}

/// The frames without ack.
struct Flight {
    frames: usize,
    all: u64,
    /// Bytes of an ack that has not come whole.
    part: usize,
    sent: VecDeque<(usize, Duration)>,
    latencies: Latencies,
}

impl Default for Flight {
    fn default() -> Self {
        let (sent, latencies) = (VecDeque::new(), Latencies::new());
        Self { frames: 0, all: 0, part: 0, sent, latencies }
    }
}

impl Flight {
    fn sent(&mut self, count: usize, now: Duration) {
        self.frames += count;
        self.sent.push_back((count, now));
    }

    fn acked(&mut self, chunks: &[Bytes], now: Duration) {
        self.part += chunks.iter().map(Bytes::len).sum::<usize>();
        let mut count = self.part / ACK_LEN;
        self.part %= ACK_LEN;
        self.frames -= count;
        self.all += count as u64;
        while count > 0 {
            let Some((left, at)) = self.sent.front_mut() else { return };
            let of_these = count.min(*left);
            for _ in 0..of_these {
                self.latencies.add(now.saturating_sub(*at));
            }
            *left -= of_these;
            count -= of_these;
            if *left == 0 {
                self.sent.pop_front();
            }
        }
    }
}

/// A publish frame as long as one that holds a batch of one record of this size.
fn frame(size: usize) -> Bytes {
    let batch = Payloads::new(size + BATCH_HEADER_LEN + RECORD_OVERHEAD, 1).next(Duration::ZERO);
    let mut frame = BytesMut::new();
    Publish::encode(0, &batch, &mut frame);
    frame.freeze()
}

/// Bytes of an ack with its head.
const ACK_LEN: usize = 24;
const ACKS_AT_ONCE: usize = 1_024;
/// Packets taken from a stream at once, as the client does.
const CHUNKS: usize = 64;
/// Bytes given to quinn at once: about a batch of the client.
const WRITE_LEN: usize = 64 * 1024;
/// Timestamp, no key, length of the value, no headers.
const RECORD_OVERHEAD: usize = 6;
const CLOSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_that_come_in_pieces_are_counted_whole() {
        let mut flight = Flight::default();
        let ms = Duration::from_millis;
        flight.sent(2, ms(0));
        flight.sent(2, ms(10));
        flight.acked(&[Bytes::from_static(&[0; 40])], ms(20));
        assert_eq!((flight.frames, flight.all), (3, 1));
        flight.acked(&[Bytes::from_static(&[0; 8]), Bytes::from_static(&[0; 24])], ms(30));
        assert_eq!((flight.frames, flight.all), (1, 3));
        assert_eq!(flight.sent, [(1, ms(10))]);
    }

    #[test]
    fn an_ack_is_as_long_as_the_protocols() {
        let ack = crate::wire::Ack {
            index: 1,
            partition: 0,
            base_offset: crate::types::Offset(1),
            level: crate::types::Acks::Replicated,
            copies: 1,
        };
        let mut bytes = BytesMut::new();
        ack.encode(&mut bytes);
        assert_eq!(bytes.len(), ACK_LEN);
    }
}
