//! Frames down one stream, as fast as they come.

use std::io;

use bytes::Bytes;
use quinn::Connection;
use tokio::time::Instant;

use super::bare::{self, CHUNKS, Use};
use crate::cli::bench::stats::per_second;

/// Reads so many bytes. Returns bytes per second.
pub(super) async fn run(connection: &Connection, bytes: u64, frame_len: usize) -> io::Result<f64> {
    let begun = Instant::now();
    let (_output, mut input) = bare::open(connection, Use::Download, frame_len).await?;
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    let mut read = 0;
    while read < bytes {
        let count = input.read_chunks(&mut chunks).await?;
        let Some(count) = count else { return Err(io::Error::other("it ended")) };
        read += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    }
    let rate = per_second(read, begun.elapsed());
    connection.close(0u32.into(), b"");
    Ok(rate)
}
