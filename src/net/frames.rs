//! Streams as sequences of frames.

use std::sync::Arc;

use quinn::{ReadError, RecvStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limits::{REQUEST_TIMEOUT, UNFINISHED_BYTES_MAX},
    wire::{BadFrame, Frame, FrameDecoder},
};

/// Reads frames from one stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    /// Bytes that the unfinished frames of all streams of the connection may hold together.
    budget: Option<Arc<Semaphore>>,
    held: Option<OwnedSemaphorePermit>,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer sent something that is no frame.
    #[error(transparent)]
    Bad(#[from] BadFrame),
    /// Frames that have begun and not ended take all the room that the connection has for them.
    #[error("unfinished frames of the connection take {UNFINISHED_BYTES_MAX} bytes")]
    NoRoom,
    /// The stream or its connection ended.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A frame up to this long is read without asking the budget: an open or a request, of which there is one a stream.
const FREE_LEN: usize = 4 * 1024;

/// Most bytes that are taken from the stream at once.
const READ_LEN: usize = 64 * 1024;

impl FrameReader {
    /// Reads `stream` from where it is.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::new(), budget: None, held: None }
    }

    /// Reads `stream`; a frame that is not here whole takes its length from `budget` until it is. A client that begins
    /// many large frames and ends none waits for itself.
    #[must_use]
    pub fn within(stream: RecvStream, budget: Arc<Semaphore>) -> Self {
        Self { budget: Some(budget), ..Self::new(stream) }
    }

    /// The next frame; none when the peer ended the stream between frames. Cancel-safe.
    ///
    /// # Errors
    /// [`FrameError`].
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                self.held = None;
                return Ok(Some(frame));
            }
            if let (Some(budget), None, Some(len)) =
                (&self.budget, &self.held, self.decoder.expected().filter(|len| *len > FREE_LEN))
            {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                let room = Arc::clone(budget).acquire_many_owned(len);
                match tokio::time::timeout(REQUEST_TIMEOUT, room).await {
                    Ok(Ok(room)) => self.held = Some(room),
                    Ok(Err(_)) | Err(_) => return Err(FrameError::NoRoom),
                }
            }
            // A large frame is read to its end and no further: its body then has a buffer of its own, which who stores
            // it need not copy.
            let large = self.decoder.expected().is_some_and(|len| len > FREE_LEN);
            let most = self.decoder.missing().filter(|_| large).unwrap_or(READ_LEN);
            match self.stream.read_chunk(most.min(READ_LEN), true).await? {
                Some(chunk) => self.decoder.push(&chunk.bytes),
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// A frame that is here already, without waiting.
    ///
    /// # Errors
    /// [`BadFrame`].
    pub fn buffered(&mut self) -> Result<Option<Frame>, BadFrame> {
        self.decoder.next_frame()
    }

    /// Gives the stream back. What was read and is no whole frame is lost.
    #[must_use]
    pub fn into_stream(self) -> RecvStream {
        self.stream
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}
