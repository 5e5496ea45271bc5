//! The floor: what the disk and a bare quinn give for the same bytes in the same chunks, in the same run.

use std::{
    collections::VecDeque,
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rand::RngExt as _;
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Settings,
    report::{Latencies, Percentiles, Throughput},
};
use crate::{
    cli::{exit::Failure, now},
    net::{
        ConnectionLimits, Credentials, SiteAuthority,
        authority::{NODE_SERVER_NAME, Validity},
        endpoint,
        frames::FrameReader,
        tls::{self, ALPN_CLIENT, ClientAuth},
    },
    types::{Acks, Offset},
    wire::{Ack, Publish},
};

/// What is to be measured, and where.
pub(super) struct FloorArgs {
    pub(super) settings: Settings,
    pub(super) dir: PathBuf,
}

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Floor {
    /// Chunks written one after the other, each followed by fdatasync.
    pub(super) disk: Throughput,
    pub(super) disk_latency: Option<Percentiles>,
    /// Frames over a bare quinn, one at a time.
    pub(super) quinn_one: Throughput,
    pub(super) quinn_one_latency: Option<Percentiles>,
    /// Frames over a bare quinn, as many under way as in the run.
    pub(super) quinn_many: Throughput,
    pub(super) quinn_many_latency: Option<Percentiles>,
    /// Frames over one stream of a bare quinn towards the client.
    pub(super) quinn_down: Throughput,
}

impl FloorArgs {
    pub(super) async fn measure(self) -> Result<Floor, Failure> {
        // What one commit or frame carries: a batch, or a lone record.
        let chunk_len = self.settings.batch.max(self.settings.size);
        let mut chunk = vec![0; chunk_len];
        rand::rng().fill(&mut chunk[..]);
        let records = (chunk_len / self.settings.size).max(1) as u64;
        let (dir, content) = (self.dir, chunk.clone());
        let disk = tokio::task::spawn_blocking(move || disk(&dir, &content));
        let (disk, disk_latency) = disk.await.map_err(Failure::runtime)??;
        let quinn = Quinn::open().await?;
        let chunk = Bytes::from(chunk);
        let (one, one_latency) = quinn.echo(&chunk, 1).await?;
        let (many, many_latency) = quinn.echo(&chunk, self.settings.in_flight).await?;
        let down = quinn.down(&chunk).await?;
        let throughput = |(chunks, passed): (u64, Duration)| {
            Throughput::new(chunks * records, chunks * chunk_len as u64, passed)
        };
        Ok(Floor {
            disk: throughput(disk),
            disk_latency,
            quinn_one: throughput(one),
            quinn_one_latency: one_latency,
            quinn_many: throughput(many),
            quinn_many_latency: many_latency,
            quinn_down: throughput(down),
        })
    }
}

/// Chunks, and the time that they took.
type Counted = (u64, Duration);

#[expect(clippy::disallowed_methods, reason = "a blocking thread that measures real time")]
fn disk(dir: &std::path::Path, chunk: &[u8]) -> Result<(Counted, Option<Percentiles>), Failure> {
    let cannot = |error| Failure::runtime(format!("cannot write in {}: {error}", dir.display()));
    let file = tempfile::tempfile_in(dir).map_err(cannot)?;
    let write = |mut file: &File| file.write_all(chunk).and_then(|()| file.sync_data());
    write(&file).map_err(cannot)?;
    let (mut latencies, mut chunks) = (Latencies::new(), 0);
    let begin = StdInstant::now();
    let mut last = begin;
    while last < begin + MEASURE {
        write(&file).map_err(cannot)?;
        let now = StdInstant::now();
        latencies.record(now - last);
        last = now;
        chunks += 1;
    }
    Ok(((chunks, last - begin), latencies.percentiles()))
}

/// Two ends of a bare connection over loopback, set up as ours are.
struct Quinn {
    client: Connection,
    server: Connection,
    _endpoints: [Endpoint; 2],
}

impl Quinn {
    async fn open() -> Result<Self, Failure> {
        let word = |error| Failure::runtime(format!("a plain word is no name: {error}"));
        let authority = SiteAuthority::create("bench".parse().map_err(word)?, now())?;
        let validity = Validity::as_long_as_the_authority(now());
        let node = authority.issue_node(&"node".parse().map_err(word)?, &[], validity)?;
        let client = authority.issue_client(&"client".parse().map_err(word)?, validity)?;
        let credentials = |own| Credentials {
            ca_pem: authority.certificate_pem().into(),
            own: Some(own),
        };
        let alpn = [ALPN_CLIENT];
        let server_tls =
            tls::server_config(&credentials(node), ClientAuth::Required, &alpn, now())
                .map_err(Failure::runtime)?;
        let client_tls = tls::client_config(&credentials(client), &alpn).map_err(Failure::runtime)?;
        let limits = ConnectionLimits::default();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = endpoint::server(loopback, Arc::new(server_tls), &limits)
            .map_err(Failure::runtime)?;
        let dialler =
            endpoint::client(Arc::new(client_tls), &limits).map_err(Failure::runtime)?;
        let address = listener.local_addr().map_err(Failure::runtime)?;
        let dial = dialler.connect(address, NODE_SERVER_NAME).map_err(Failure::runtime)?;
        let accept = async {
            let incoming = listener.accept().await.ok_or_else(|| Failure::runtime("closed"))?;
            incoming.await.map_err(Failure::runtime)
        };
        let (client, server) = tokio::join!(dial, accept);
        let client = client.map_err(Failure::runtime)?;
        Ok(Self { client, server: server?, _endpoints: [listener, dialler] })
    }

    /// Sends frames, each answered by an ack; `in_flight` are under way.
    async fn echo(
        &self,
        chunk: &Bytes,
        in_flight: usize,
    ) -> Result<(Counted, Option<Percentiles>), Failure> {
        let (mut send, recv) = self.client.open_bi().await.map_err(Failure::runtime)?;
        let mut answers = FrameReader::new(recv);
        let mut frame = BytesMut::new();
        Publish::encode(0, chunk, &mut frame);
        let frame = frame.freeze();
        let mut tasks = JoinSet::new();
        let server = self.server.clone();
        tasks.spawn(async move {
            if let Ok((send, recv)) = server.accept_bi().await {
                acknowledge(send, recv).await;
            }
        });
        let (mut latencies, mut chunks) = (Latencies::new(), 0);
        let mut under_way = VecDeque::new();
        let begin = Instant::now();
        while begin.elapsed() < MEASURE || !under_way.is_empty() {
            let sending = begin.elapsed() < MEASURE && under_way.len() < in_flight;
            if sending {
                under_way.push_back(Instant::now());
            }
            let hear = async {
                answers.next().await.map_err(Failure::runtime)?;
                Ok::<_, Failure>(())
            };
            if sending {
                // The window is larger than what may be under way, so that this does not wait for answers.
                send.write_chunk(frame.clone()).await.map_err(Failure::runtime)?;
                continue;
            }
            hear.await?;
            let mut heard = 1;
            while answers.buffered().map_err(Failure::runtime)?.is_some() {
                heard += 1;
            }
            for sent in under_way.drain(..heard) {
                latencies.record(sent.elapsed());
                chunks += 1;
            }
        }
        let passed = begin.elapsed();
        tasks.shutdown().await;
        Ok(((chunks, passed), latencies.percentiles()))
    }

    /// Sends frames over one stream from the server to the client.
    async fn down(&self, chunk: &Bytes) -> Result<Counted, Failure> {
        let (mut ask, recv) = self.client.open_bi().await.map_err(Failure::runtime)?;
        ask.write_all(b"?").await.map_err(Failure::runtime)?;
        let mut frames = FrameReader::new(recv);
        let mut frame = BytesMut::new();
        Publish::encode(0, chunk, &mut frame);
        let frame = frame.freeze();
        let mut tasks = JoinSet::new();
        let server = self.server.clone();
        tasks.spawn(async move {
            if let Ok((mut send, _recv)) = server.accept_bi().await {
                while send.write_chunk(frame.clone()).await.is_ok() {}
            }
        });
        let (mut chunks, begin) = (0, Instant::now());
        while begin.elapsed() < MEASURE {
            frames.next().await.map_err(Failure::runtime)?;
            chunks += 1;
        }
        let passed = begin.elapsed();
        tasks.shutdown().await;
        Ok((chunks, passed))
    }
}

/// Answers each frame as a broker would, and forgets it.
async fn acknowledge(mut send: SendStream, recv: RecvStream) {
    let mut frames = FrameReader::new(recv);
    let mut index = 0;
    while let Ok(Some(_)) = frames.next().await {
        let mut answers = BytesMut::new();
        let mut answer = || {
            let (base_offset, level) = (Offset(index), Acks::None);
            Ack { index, partition: 0, base_offset, level, copies: 1 }.encode(&mut answers);
            index += 1;
        };
        answer();
        while let Ok(Some(_)) = frames.buffered() {
            answer();
        }
        if send.write_chunk(answers.freeze()).await.is_err() {
            return;
        }
    }
}

const MEASURE: Duration = Duration::from_secs(2);
