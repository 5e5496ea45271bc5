//! Streams between nodes as sequences of frames: a length of 4 bytes, big-endian, and as many bytes. What they are, the
//! stream says: hello, call, or messages of replicas.

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// Longer than may come here.
    #[error("frame is {len} bytes, limit is {max}")]
    TooLarge {
        /// What it says.
        len: usize,
        /// What it may be.
        max: usize,
    },
    /// The stream ended inside a frame.
    #[error("stream ended in the middle of a frame")]
    Truncated,
    /// The stream or its connection ended.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Memory is taken as bytes arrive, not as a length claims.
const FIRST_LEN: usize = 64 * 1024;

/// Reads one frame; none when the stream has ended before it. The length is checked before memory is taken.
pub(super) async fn read(stream: &mut RecvStream, max: usize) -> Result<Option<Bytes>, FrameError> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(ReadExactError::FinishedEarly(_)) => return Err(FrameError::Truncated),
        Err(ReadExactError::ReadError(error)) => return Err(error.into()),
    }
    let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(FrameError::TooLarge { len, max });
    }
    let mut body = BytesMut::with_capacity(len.min(FIRST_LEN));
    while body.len() < len {
        match stream.read_chunk(len - body.len(), true).await? {
            Some(chunk) if body.is_empty() && chunk.bytes.len() == len => {
                return Ok(Some(chunk.bytes));
            }
            Some(chunk) => body.extend_from_slice(&chunk.bytes),
            None => return Err(FrameError::Truncated),
        }
    }
    Ok(Some(body.freeze()))
}

/// Writes one frame.
///
/// # Panics
/// If the body is longer than its length can say: bounds of what is sent are far below.
pub(super) async fn write(stream: &mut SendStream, body: Bytes) -> Result<(), WriteError> {
    let len = u32::try_from(body.len()).expect("frames are bounded far below 4 GiB");
    let mut head = BytesMut::with_capacity(4);
    head.put_u32(len);
    stream.write_all_chunks(&mut [head.freeze(), body]).await
}
