//! The disk: raw appends, and the database that the log lies in without anything of ours around it. All of it blocks.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use redb::{Database, TableDefinition};
use tokio::time::Instant;

use super::Floor;
use crate::{
    cli::bench::{
        payload::Payloads,
        stats::{Latencies, per_second},
    },
    limits::ROW_LEN_MAX,
};

/// Appends `chunk` bytes and flushes them, again and again, to a new file in `dir`.
pub(super) fn append(dir: &Path, chunk: usize, lasting: Duration) -> io::Result<Floor> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    // Made before the clock runs: the copying would be a good part of what a large chunk takes.
    let bytes = Payloads::new(chunk, 1).next(Duration::ZERO);
    repeat(chunk, lasting, || {
        file.write_all(&bytes)?;
        file.sync_data()
    })
}

/// Commits `bytes` bytes, again and again, to a new database in `dir`: one table, rows as long as those of the log,
/// transactions as safe as a node's.
pub(super) fn redb(dir: &Path, bytes: usize, lasting: Duration) -> Result<Floor, redb::Error> {
    let dir = tempfile::Builder::new().prefix("dunlin-redb-").tempdir_in(dir)?;
    let path = dir.path().join("data.redb");
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let payload = Payloads::new(bytes, 1).next(Duration::ZERO);
    let mut next = 0_u64;
    repeat(bytes, lasting, || {
        let mut txn = db.begin_write()?;
        txn.set_two_phase_commit(true);
        txn.set_quick_repair(true);
        {
            let mut rows = txn.open_table(ROWS)?;
            for row in payload.chunks(ROW_LEN_MAX) {
                rows.insert(next, row)?;
                next += 1;
            }
        }
        Ok(txn.commit()?)
    })
}

fn repeat<E>(
    bytes: usize,
    lasting: Duration,
    mut write: impl FnMut() -> Result<(), E>,
) -> Result<Floor, E> {
    let mut latencies = Latencies::new();
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < lasting {
        let before = Instant::now();
        write()?;
        latencies.add(before.elapsed());
        count += 1;
    }
    Ok(Floor {
        bytes_per_second: per_second(count * bytes as u64, begun.elapsed()),
        latency: latencies.percentiles().unwrap_or_default(),
    })
}

const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
/// As much as a node has unless configured otherwise.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn appends_and_commits_are_counted_and_leave_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lasting = Duration::from_millis(20);
        for floor in [
            append(dir.path(), 4_096, lasting).expect("written"),
            redb(dir.path(), 100_000, lasting).expect("written"),
        ] {
            assert!(floor.bytes_per_second > 0.0 && floor.latency.p50_us > 0.0);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }
}
