//! The two ends of a QUIC stream as frames.

use std::time::Duration;

use bytes::BytesMut;
use quinn::{RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::error::StreamError;
use crate::{
    net::frames,
    wire::{CloseCode, Frame, FrameType, cbor, put_control},
};

/// Reads frames, and says what they or their absence mean.
#[derive(Debug)]
pub(super) struct FrameReader(frames::FrameReader);

impl FrameReader {
    pub(super) fn new(recv: RecvStream) -> Self {
        Self(frames::FrameReader::new(recv))
    }

    /// The next frame; none when the node has ended the stream. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        Ok(self.0.next().await?)
    }

    /// The next frame if it has arrived already.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>, StreamError> {
        Ok(self.0.buffered()?)
    }

    /// The one control message that must come now.
    pub(super) async fn expect<T: DeserializeOwned>(
        &mut self,
        kind: FrameType,
    ) -> Result<T, StreamError> {
        let Some(frame) = self.next().await? else {
            return Err(StreamError::Lost(format!("the stream ended before {kind:?}")));
        };
        if frame.kind == kind {
            return control(&frame);
        }
        Err(unexpected(&frame))
    }

    /// The error that the node has sent before it stopped to read; none if it sent none that has arrived.
    pub(super) async fn last_words(&mut self) -> Option<StreamError> {
        let read = async {
            while let Ok(Some(frame)) = self.next().await {
                if frame.kind == FrameType::Fault {
                    return Some(unexpected(&frame));
                }
            }
            None
        };
        timeout(LAST_WORDS_MAX, read).await.ok().flatten()
    }

    /// Tells the node that nobody reads any more.
    pub(super) fn stop(&mut self) {
        // An error says that the stream is over, which is what is wanted.
        let _ = self.0.stream().stop(CloseCode::Unwanted.code().into());
    }
}

/// Reads a control frame's body.
pub(super) fn control<T: DeserializeOwned>(frame: &Frame) -> Result<T, StreamError> {
    cbor::get(&frame.body).map_err(|error| StreamError::Protocol(error.to_string()))
}

/// What a frame means that has no place here: the node's error, or a broken protocol.
pub(super) fn unexpected(frame: &Frame) -> StreamError {
    if frame.kind != FrameType::Fault {
        return StreamError::Protocol(format!("{:?} frame out of place", frame.kind));
    }
    match control(frame) {
        Ok(fault) => StreamError::Fault(fault),
        Err(error) => error,
    }
}

/// Sends one control message.
pub(super) async fn send_control(
    send: &mut SendStream,
    kind: FrameType,
    message: &impl Serialize,
) -> Result<(), StreamError> {
    let mut bytes = BytesMut::new();
    put_control(kind, message, &mut bytes);
    send.write_chunk(bytes.freeze()).await?;
    Ok(())
}

/// They were sent before the sign that made us look for them.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);
