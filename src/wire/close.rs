//! Codes that end a connection or a stream (QUIC application error codes).

use std::fmt;

/// Why a connection or stream was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// All is done.
    Done = 0,
    /// The node stops: connect to another, or again later.
    Stopping = 1,
    /// A message broke the protocol.
    Protocol = 2,
    /// A frame was over its limit.
    FrameTooLarge = 3,
    /// An unknown frame type: the peer speaks a newer version on this stream.
    UnknownFrame = 4,
    /// No common version.
    Version = 5,
    /// No `Hello` in time.
    HelloTimeout = 6,
    /// Too many connections or handshakes.
    Busy = 7,
    /// The certificate is not of this site, or gives no access.
    Forbidden = 8,
    /// The node failed.
    Internal = 9,
    /// Nobody reads this stream any more.
    Unwanted = 10,
    /// The site has removed this node.
    Removed = 11,
}

impl CloseCode {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// What a number on the wire stands for.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        [
            Self::Done,
            Self::Stopping,
            Self::Protocol,
            Self::FrameTooLarge,
            Self::UnknownFrame,
            Self::Version,
            Self::HelloTimeout,
            Self::Busy,
            Self::Forbidden,
            Self::Internal,
            Self::Unwanted,
            Self::Removed,
        ]
        .into_iter()
        .find(|close| u64::from(close.code()) == code)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Done => "done",
            Self::Stopping => "the node is stopping",
            Self::Protocol => "a message broke the protocol",
            Self::FrameTooLarge => "a frame was over its limit",
            Self::UnknownFrame => "unknown frame type",
            Self::Version => "no common protocol version",
            Self::HelloTimeout => "no hello in time",
            Self::Busy => "the node has as many connections as it may have",
            Self::Forbidden => "the certificate gives no access",
            Self::Internal => "the node failed",
            Self::Unwanted => "nobody reads this stream any more",
            Self::Removed => "the site has removed this node",
        })
    }
}
