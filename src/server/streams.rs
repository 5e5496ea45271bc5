//! What all streams have in common: their errors, and how a stream ends.

use std::sync::Arc;

use bytes::BytesMut;
use quinn::{SendStream, VarInt, WriteError};
use serde::Serialize;

use super::{
    engine::Engine,
    topics::{Partition, Topic},
};
use crate::{
    cluster::{GroupError, MetaReject},
    net::frames::FrameError,
    types::TopicName,
    wire::{BadFrame, CloseCode, Code, Detail, Fault, FrameType, put_control},
};

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The client is told this.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The bytes from the client are no frames: the stream is of no use.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The client reads no more, or is gone.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Sends one control frame.
pub(super) async fn send(
    output: &mut SendStream,
    kind: FrameType,
    message: &impl Serialize,
) -> Result<(), StreamError> {
    let mut buffer = BytesMut::new();
    put_control(kind, message, &mut buffer);
    Ok(output.write_all(&buffer).await?)
}

/// Ends the stream's output in order.
pub(super) fn finish(output: &mut SendStream) -> Result<(), StreamError> {
    // A stream that was reset or finished before needs no end.
    let _ = output.finish();
    Ok(())
}

/// Tells the client why, and ends the stream's output in order.
pub(super) async fn fail(output: &mut SendStream, fault: Fault) -> Result<(), StreamError> {
    send(output, FrameType::Fault, &fault).await?;
    finish(output)
}

/// Ends a stream that ended by `error`, telling the client as much as can be told.
pub(super) async fn end(output: &mut SendStream, error: StreamError) {
    let code = match error {
        StreamError::Fault(fault) => {
            // The client may be gone by now; there is nobody else to tell.
            let _ = fail(output, fault).await;
            return;
        }
        StreamError::Frame(FrameError::Bad(bad)) => match bad {
            BadFrame::TooLarge { .. } => CloseCode::FrameTooLarge,
            BadFrame::UnknownType(_) => CloseCode::UnknownFrame,
            BadFrame::Empty | BadFrame::Truncated => CloseCode::Protocol,
        },
        StreamError::Frame(error @ FrameError::NoRoom) => {
            let fault = Fault::new(Code::Timeout, error.to_string());
            let _ = fail(output, fault.with_hint("end the frames that were begun first")).await;
            return;
        }
        StreamError::Frame(FrameError::Read(_)) | StreamError::Write(_) => CloseCode::Unwanted,
    };
    // Refused only when the stream has ended already.
    let _ = output.reset(VarInt::from_u32(code.code()));
}

/// The topic of this name, or the fault that says that there is none.
pub(super) fn topic(engine: &Engine, name: &TopicName) -> Result<Arc<Topic>, Fault> {
    engine.topics.get(name).ok_or_else(|| unknown_topic(name))
}

pub(super) fn unknown_topic(name: &TopicName) -> Fault {
    MetaReject::UnknownTopic(name.clone()).fault()
}

/// A partition of a topic, or the fault that says that there is none.
pub(super) fn partition(topic: &Topic, index: u32) -> Result<&Arc<Partition>, Fault> {
    let found = usize::try_from(index).ok().and_then(|i| topic.partitions.get(i));
    found.ok_or_else(|| {
        let count = topic.partitions.len();
        let message = format!("topic '{}' has {count} partitions, there is no {index}", topic.name);
        Fault::new(Code::UnknownPartition, message)
            .with_detail(Detail { limit: Some(count as u64), ..Detail::default() })
    })
}

pub(super) fn malformed(error: &impl ToString) -> Fault {
    Fault::new(Code::Malformed, error.to_string())
}

pub(super) fn unexpected(kind: FrameType) -> Fault {
    Fault::new(Code::Malformed, format!("unexpected {kind:?} frame on this stream"))
}

/// A metadata error as the client is told.
pub(super) fn group_fault(error: &GroupError) -> Fault {
    match error {
        GroupError::Rejected(reject) => reject.fault(),
        GroupError::NoLeader => Fault::new(Code::Electing, error.to_string())
            .with_hint("most nodes of the site must be up: dunlin cluster status"),
        GroupError::Unknown => Fault::new(Code::Unknown, error.to_string()),
        GroupError::Membership(_) => Fault::new(Code::Invalid, error.to_string()),
        GroupError::Store(_)
        | GroupError::Unreadable(_)
        | GroupError::OtherNode { .. }
        | GroupError::Broken(_) => {
            tracing::error!(%error, "metadata could not be changed");
            Fault::new(Code::Internal, "the node cannot write its metadata")
                .with_hint("see the node's log")
        }
    }
}
