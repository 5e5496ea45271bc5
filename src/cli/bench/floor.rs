//! What the machine gives without a broker: the disk by append and flush, the database and the network by the bare libraries.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, ChildStdin, Command},
    time::{interval, timeout},
};

mod append;
mod bare;
mod disk;
mod download;
mod echo;

use self::bare::Use;
pub(super) use self::bare::serve;
use super::{
    plan::{Combination, Load},
    stats::Percentiles,
};
use crate::{
    cli::{exit::Failure, own_broker},
    client::Profile,
};

/// What one of them gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) bytes_per_second: f64,
    /// Of one write with its flush, of one commit, or of one frame until its ack.
    pub(super) latency: Percentiles,
}

/// All that stand beside one run of a combination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floors {
    /// Appends of [`CHUNK`] bytes.
    pub(super) append_chunks: Floor,
    /// Appends of all that is in flight.
    pub(super) append: Floor,
    /// Commits of all that is in flight.
    pub(super) redb: Floor,
    /// Frames up, acks down.
    pub(super) echo: Floor,
    /// The same, with all that has come appended and flushed before its acks.
    pub(super) stored_echo: Floor,
}

impl Floors {
    /// Measures all of them, one after the other.
    pub(super) async fn measure(
        dir: &Path,
        quinn: &BareQuinn,
        row: Combination,
        load: &Load,
    ) -> Result<Self, Failure> {
        let lasting = load.lasting.min(FLOOR_MAX);
        let bytes = load.commit_bytes(row);
        let append = on_disk(dir, move |dir| disk::append(dir, bytes, lasting)).await?;
        let append_chunks = match bytes {
            CHUNK => append,
            _ => on_disk(dir, move |dir| disk::append(dir, CHUNK, lasting)).await?,
        };
        let redb = on_disk(dir, move |dir| disk::redb(dir, bytes, lasting)).await?;
        let echo = quinn.echo(Use::Upload, row, load, lasting).await?;
        let stored_echo = quinn.echo(Use::StoredUpload, row, load, lasting).await?;
        Ok(Self { append_chunks, append, redb, echo, stored_echo })
    }
}

async fn on_disk<E: std::fmt::Display + Send + 'static>(
    dir: &Path,
    measure: impl FnOnce(&Path) -> Result<Floor, E> + Send + 'static,
) -> Result<Floor, Failure> {
    let dir: PathBuf = dir.into();
    let measured = tokio::task::spawn_blocking(move || {
        measure(&dir).map_err(|error| format!("cannot write to {}: {error}", dir.display()))
    });
    measured.await.map_err(Failure::runtime)?.map_err(Failure::runtime)
}

/// A process that serves by nothing but quinn, with the TLS and the limits of a node.
#[derive(Debug)]
pub(super) struct BareQuinn {
    profile: Profile,
    address: SocketAddr,
    child: Child,
    /// The child ends when this end of its pipe goes away, however we end.
    _stdin: Option<ChildStdin>,
    _dir: TempDir,
}

impl BareQuinn {
    /// Starts one that puts its files into `files`.
    pub(super) async fn start(program: &Path, files: &Path) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("dunlin-quinn-").tempdir();
        let dir = dir.map_err(|error| Failure::runtime(format!("no directory: {error}")))?;
        let profile = own_broker::make_site(dir.path(), "own")?;
        let mut command = Command::new(program);
        command
            .args(["bench", "bare"])
            .arg(dir.path())
            .arg(files)
            .stdin(std::process::Stdio::piped());
        let child = command.kill_on_drop(true).spawn();
        let mut child =
            child.map_err(|error| Failure::runtime(format!("cannot start bare quinn: {error}")))?;
        let stdin = child.stdin.take();
        let address = timeout(START_MAX, address_in(&dir.path().join(ADDRESS_FILE))).await;
        let address = address.map_err(|_| Failure::runtime("bare quinn did not start"))?;
        Ok(Self { profile, address, child, _stdin: stdin, _dir: dir })
    }

    /// The process, while it runs.
    pub(super) fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// A connection to it that does nothing yet.
    pub(super) async fn connect(&self) -> Result<(quinn::Endpoint, quinn::Connection), Failure> {
        bare::connect(&self.profile.credentials(), self.address).await
    }

    /// Sends frames as the producers of `row` do, over as many connections, as much in flight.
    async fn echo(
        &self,
        what: Use,
        row: Combination,
        load: &Load,
        lasting: Duration,
    ) -> Result<Floor, Failure> {
        let frames = echo::Frames::of(row, load);
        let mut clients = Vec::new();
        for _ in 0..load.connections(row) {
            clients.push(self.connect().await?);
        }
        echo::run(clients, what, frames, lasting).await
    }

    /// Takes so many bytes in frames of `frame_len` bytes, on one stream. Returns bytes per second.
    pub(super) async fn download(&self, bytes: u64, frame_len: usize) -> Result<f64, Failure> {
        let (_endpoint, connection) = self.connect().await?;
        download::run(&connection, bytes, frame_len)
            .await
            .map_err(|error| Failure::runtime(format!("the bare download failed: {error}")))
    }
}

async fn address_in(file: &Path) -> SocketAddr {
    let mut looks = interval(Duration::from_millis(5));
    loop {
        looks.tick().await;
        let text = fs::read_to_string(file).unwrap_or_default();
        // The line is whole when it ends.
        if let Some(address) = text.strip_suffix('\n').and_then(|line| line.parse().ok()) {
            return address;
        }
    }
}

/// Bytes of an append that stands for a batch with a flush of its own.
const CHUNK: usize = 64 * 1024;
const ADDRESS_FILE: &str = "address";
const START_MAX: Duration = Duration::from_secs(10);
/// Of each: longer fills the disk, and says no more.
const FLOOR_MAX: Duration = Duration::from_secs(1);
