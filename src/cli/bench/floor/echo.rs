//! Frames up, 24-byte acks down: publishing without a broker, or with one that does nothing but store. Frames are written
//! together, as many as there is room for.

use std::{collections::VecDeque, io, time::Duration};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Floor,
    bare::{self, ACK_LEN, CHUNKS, Use},
};
use crate::{
    cli::{
        bench::{
            payload::Payloads,
            plan::{Combination, Load},
            stats::{Latencies, per_second},
        },
        exit::Failure,
    },
    wire::{Publish, batch::BATCH_HEADER_LEN},
};

/// What each connection sends.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    frame: Bytes,
    /// Bytes of the records' values in one.
    payload: usize,
    in_flight: usize,
}

impl Frames {
    /// Frames as long as those that hold a batch of the row's records, with as many records in flight.
    pub(super) fn of(row: Combination, load: &Load) -> Self {
        let records = load.frame_records(row);
        let batch_len = records * (row.size + RECORD_OVERHEAD) + BATCH_HEADER_LEN;
        let batch = Payloads::new(batch_len, 1).next(Duration::ZERO);
        let mut frame = BytesMut::new();
        Publish::encode(0, &batch, &mut frame);
        let in_flight = (row.in_flight / records).max(1) * row.producers / load.connections(row);
        Self { frame: frame.freeze(), payload: records * row.size, in_flight }
    }
}

/// Sends over all connections at once.
pub(super) async fn run(
    clients: Vec<(Endpoint, Connection)>,
    what: Use,
    frames: Frames,
    lasting: Duration,
) -> Result<Floor, Failure> {
    let mut running = JoinSet::new();
    for (endpoint, connection) in clients {
        let frames = frames.clone();
        running.spawn(async move {
            let result = publish(&connection, what, &frames, lasting).await;
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
        bytes_per_second: frames_per_second * frames.payload as f64,
        latency: latencies.percentiles().unwrap_or_default(),
    })
}

async fn publish(
    connection: &Connection,
    what: Use,
    Frames { frame, in_flight, .. }: &Frames,
    lasting: Duration,
) -> io::Result<(f64, Latencies)> {
    let at_once = (WRITE_LEN / frame.len()).clamp(1, *in_flight);
    let frames: Bytes = frame.repeat(at_once).into();
    let (mut output, mut input) = bare::open(connection, what, frame.len()).await?;
    let mut flight = Flight::default();
    let begun = Instant::now();
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    while begun.elapsed() < lasting {
        let room = in_flight - flight.frames;
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
