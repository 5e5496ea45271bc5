//! Streams as sequences of frames.

use quinn::{ReadError, RecvStream};

use crate::wire::{BadFrame, Frame, FrameDecoder};

/// Reads frames from one stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer sent something that is no frame.
    #[error(transparent)]
    Bad(#[from] BadFrame),
    /// The stream or its connection ended.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Most bytes that are taken from the stream at once.
const READ_LEN: usize = 64 * 1024;

impl FrameReader {
    /// Reads `stream` from where it is.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::new() }
    }

    /// The next frame; none when the peer ended the stream between frames. Cancel-safe.
    ///
    /// # Errors
    /// [`FrameError`].
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_LEN, true).await? {
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

    /// The stream itself.
    pub fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}
