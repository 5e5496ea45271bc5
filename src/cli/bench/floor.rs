//! What the machine gives without a broker: the disk by append and flush, the network by a bare QUIC echo.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, ChildStdin, Command},
    time::{Instant, interval, timeout},
};

mod echo;

pub(super) use self::echo::serve;
use super::{
    payload::Payloads,
    plan::{Combination, Load},
    stats::{Latencies, Percentiles, per_second},
};
use crate::{
    cli::{exit::Failure, own_broker},
    client::Profile,
};

/// What one of the two gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) bytes_per_second: f64,
    /// Of one write with its flush, or of one frame until its ack.
    pub(super) latency: Percentiles,
}

/// Appends `chunk` bytes and flushes them, again and again, to a new file in `dir`. Blocks.
pub(super) fn append(dir: &Path, chunk: usize, lasting: Duration) -> io::Result<Floor> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    // Made before the clock runs: the copying would be a good part of what a large chunk takes.
    let bytes = Payloads::new(chunk, 1).next(Duration::ZERO);
    let mut latencies = Latencies::new();
    let begun = Instant::now();
    let mut writes = 0;
    while begun.elapsed() < lasting {
        let before = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        latencies.add(before.elapsed());
        writes += 1;
    }
    Ok(Floor {
        bytes_per_second: per_second(writes * chunk as u64, begun.elapsed()),
        latency: latencies.percentiles().unwrap_or_default(),
    })
}

/// A process that answers each frame with 24 bytes, by nothing but quinn.
#[derive(Debug)]
pub(super) struct Echo {
    profile: Profile,
    address: SocketAddr,
    _child: Child,
    /// The child ends when this end of its pipe goes away, however we end.
    _stdin: Option<ChildStdin>,
    _dir: TempDir,
}

impl Echo {
    pub(super) async fn start(program: &Path) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("dunlin-echo-").tempdir();
        let dir = dir.map_err(|error| Failure::runtime(format!("no directory: {error}")))?;
        let profile = own_broker::make_site(dir.path())?;
        let mut command = Command::new(program);
        command.args(["bench", "--echo"]).arg(dir.path()).stdin(std::process::Stdio::piped());
        let child = command.kill_on_drop(true).spawn();
        let mut child =
            child.map_err(|error| Failure::runtime(format!("cannot start the echo: {error}")))?;
        let stdin = child.stdin.take();
        let address = timeout(START_MAX, address_in(&dir.path().join(ADDRESS_FILE))).await;
        let address = address.map_err(|_| Failure::runtime("the echo process did not start"))?;
        Ok(Self { profile, address, _child: child, _stdin: stdin, _dir: dir })
    }

    /// Sends frames of the size of `row`, each of one record, as many in flight as the producers have together.
    pub(super) async fn run(
        &self,
        row: Combination,
        load: &Load,
        lasting: Duration,
    ) -> Result<Floor, Failure> {
        let credentials = Arc::new(self.profile.credentials());
        echo::run(&credentials, self.address, row, load.producers, lasting).await
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

const ADDRESS_FILE: &str = "address";
const START_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_are_counted_and_leave_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let floor = append(dir.path(), 4_096, Duration::from_millis(20)).expect("written");
        assert!(floor.bytes_per_second > 0.0 && floor.latency.p50_us > 0.0);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }
}
