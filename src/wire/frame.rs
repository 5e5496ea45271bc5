//! Frames: how a stream is cut into messages.
//!
//! `frame = varint length of what follows | u8 type | body`. The type tells the limit of the length, and that is
//! checked before memory is taken.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::{
    cbor,
    varint::{get_varint, put_varint},
};
use crate::limits::{CONTROL_FRAME_LEN_MAX, DATA_FRAME_LEN_MAX, JOIN_FRAME_LEN_MAX};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Client to node, first on the control stream: [`super::Hello`].
    Hello = 0x01,
    /// Node to client, in answer: [`super::Welcome`].
    Welcome = 0x02,
    /// Node to client on the control stream: [`super::GoAway`].
    GoAway = 0x03,
    /// Client to node, alone on its stream: [`super::Request`].
    Request = 0x10,
    /// Node to client, alone in answer: [`super::Answer`].
    Answer = 0x11,
    /// Client to node, first on a publish stream: [`super::PublishOpen`].
    PublishOpen = 0x20,
    /// Node to client, in answer: [`super::PublishOk`].
    PublishOk = 0x21,
    /// Client to node, data: [`super::Publish`].
    Publish = 0x22,
    /// Node to client, data: [`super::Ack`].
    Ack = 0x23,
    /// Node to client: [`super::Nack`].
    Nack = 0x24,
    /// Client to node, first on a subscribe stream: [`super::SubscribeOpen`].
    SubscribeOpen = 0x30,
    /// Node to client, in answer: [`super::SubscribeOk`].
    SubscribeOk = 0x31,
    /// Node to client, data: [`super::Deliver`].
    Deliver = 0x32,
    /// Node to client: [`super::CaughtUp`].
    CaughtUp = 0x33,
    /// Joiner to node, alone on its stream: [`super::JoinRequest`].
    JoinRequest = 0x40,
    /// Node to joiner, alone in answer: [`super::JoinAnswer`].
    JoinAnswer = 0x41,
    /// Node to client, last on a stream that ends by an error: [`super::Fault`].
    Fault = 0x7f,
}

impl FrameType {
    const ALL: [Self; 17] = [
        Self::Hello,
        Self::Welcome,
        Self::GoAway,
        Self::Request,
        Self::Answer,
        Self::PublishOpen,
        Self::PublishOk,
        Self::Publish,
        Self::Ack,
        Self::Nack,
        Self::SubscribeOpen,
        Self::SubscribeOk,
        Self::Deliver,
        Self::CaughtUp,
        Self::JoinRequest,
        Self::JoinAnswer,
        Self::Fault,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Longest body of a frame of this type.
    #[must_use]
    pub fn body_len_max(self) -> usize {
        match self {
            Self::Publish | Self::Deliver => DATA_FRAME_LEN_MAX,
            // From somebody who has not shown yet that he may ask.
            Self::JoinRequest => JOIN_FRAME_LEN_MAX,
            _ => CONTROL_FRAME_LEN_MAX,
        }
    }
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameType,
    /// Its body, which the type's own decoder reads.
    pub body: Bytes,
}

/// Why a stream is not a sequence of frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Longer than its type allows.
    #[error("frame is {len} bytes, limit is {max}")]
    TooLarge {
        /// What the length says.
        len: u64,
        /// What the type allows.
        max: usize,
    },
    /// A length of 0: there is not even a type.
    #[error("frame has no type")]
    Empty,
    /// A type of a newer version.
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    /// The stream ended inside a frame.
    #[error("stream ended in the middle of a frame")]
    Truncated,
}

/// A varint and the type.
const FRAME_HEAD_LEN_MAX: usize = 9;

/// Cuts the bytes of a stream into frames. Holds at most one frame and what came behind it in the same packet.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
    /// Length of the body of a frame whose head is here.
    expected: Option<usize>,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Length of the body that is not here whole, if its head is. Room for it is taken when more of it comes.
    #[must_use]
    pub fn expected(&self) -> Option<usize> {
        self.expected
    }

    /// Bytes that are missing of a frame whose head is here: who takes no more than these from the stream gets the body of
    /// a large frame in a buffer of its own.
    #[must_use]
    pub fn missing(&self) -> Option<usize> {
        let expected = self.expected?;
        let mut peek = &self.buffer[..];
        get_varint(&mut peek).ok()?;
        Some((expected + 1).saturating_sub(peek.len())).filter(|missing| *missing > 0)
    }

    /// Takes bytes as they came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(len) = self.expected {
            self.buffer.reserve((len + FRAME_HEAD_LEN_MAX).saturating_sub(self.buffer.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or none until more bytes come.
    ///
    /// # Errors
    /// [`BadFrame`]: the stream is of no use from here on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, BadFrame> {
        let mut peek = &self.buffer[..];
        let Ok(len) = get_varint(&mut peek) else { return Ok(None) };
        if len == 0 {
            return Err(BadFrame::Empty);
        }
        let Some(&code) = peek.first() else { return Ok(None) };
        let kind = FrameType::from_code(code).ok_or(BadFrame::UnknownType(code))?;
        let max = kind.body_len_max();
        let body_len = match usize::try_from(len - 1) {
            Ok(len) if len <= max => len,
            _ => return Err(BadFrame::TooLarge { len, max }),
        };
        if peek.len() <= body_len {
            self.expected = Some(body_len);
            return Ok(None);
        }
        self.expected = None;
        let head_len = self.buffer.len() - peek.len() + 1;
        self.buffer.advance(head_len);
        let body = match self.buffer.len() == body_len {
            // Nothing else is in the buffer: the body need not share it.
            true => std::mem::take(&mut self.buffer),
            false => self.buffer.split_to(body_len),
        };
        Ok(Some(Frame { kind, body: body.freeze() }))
    }

    /// Checks that the stream ended between frames.
    ///
    /// # Errors
    /// [`BadFrame::Truncated`] when bytes are left.
    pub fn finish(&self) -> Result<(), BadFrame> {
        if self.buffer.is_empty() { Ok(()) } else { Err(BadFrame::Truncated) }
    }
}

/// Appends the head of a frame whose body of `body_len` bytes follows.
///
/// # Panics
/// If the body is longer than its type allows: nobody would read it.
pub fn put_frame_head(kind: FrameType, body_len: usize, out: &mut BytesMut) {
    assert!(
        body_len <= kind.body_len_max(),
        "{kind:?} frame of {body_len} bytes is over its limit"
    );
    put_varint(out, body_len as u64 + 1);
    out.put_u8(kind as u8);
}

/// Appends a whole control frame.
///
/// # Panics
/// If the message is longer than a control frame may be: lists in messages are bounded so that it is not.
pub fn put_control(kind: FrameType, message: &impl Serialize, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    cbor::put(message, &mut body);
    put_frame_head(kind, body.len(), out);
    out.put_slice(&body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: FrameType, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put_frame_head(kind, body.len(), &mut out);
        out.put_slice(body);
        out
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(&frame(FrameType::Ack, b"abc")[..], [4, 0x23, b'a', b'b', b'c']);
        assert_eq!(&frame(FrameType::Deliver, &[0; 63])[..3], [0x40, 64, 0x32]);
    }

    #[test]
    fn a_frame_over_its_limit_is_refused_by_its_head_alone() {
        let mut bytes = BytesMut::new();
        put_varint(&mut bytes, CONTROL_FRAME_LEN_MAX as u64 + 2);
        bytes.put_u8(FrameType::Request as u8);
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert!(matches!(decoder.next_frame(), Err(BadFrame::TooLarge { .. })));
    }

    #[test]
    fn an_unknown_type_and_an_empty_frame_are_refused() {
        for (bytes, want) in
            [(&[2, 0x55, 0][..], BadFrame::UnknownType(0x55)), (&[0], BadFrame::Empty)]
        {
            let mut decoder = FrameDecoder::new();
            decoder.push(bytes);
            assert_eq!(decoder.next_frame(), Err(want));
        }
    }

    #[test]
    fn a_frame_that_is_read_to_its_end_and_no_further_has_its_buffer_to_itself() {
        let two = [frame(FrameType::Publish, &[7; 5_000]), frame(FrameType::Publish, &[8; 90])];
        let mut stream = &two.concat()[..];
        let mut decoder = FrameDecoder::new();
        let first = loop {
            let most = decoder.missing().unwrap_or(1_000).min(1_000);
            let (piece, rest) = stream.split_at(most);
            decoder.push(piece);
            stream = rest;
            if let Some(frame) = decoder.next_frame().expect("own work") {
                break frame;
            }
        };
        assert_eq!((first.body.len(), stream.len()), (5_000, two[1].len()));
        assert_eq!(decoder.missing(), None);
        assert!(first.body.try_into_mut().is_ok(), "the body is shared");
    }

    #[test]
    fn every_type_has_its_code() {
        for kind in FrameType::ALL {
            assert_eq!(FrameType::from_code(kind as u8), Some(kind));
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6),
            cut in 1usize..50,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|b| frame(FrameType::Publish, b)).collect();
            let mut decoder = FrameDecoder::new();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().expect("own work") {
                    read.push(frame.body.to_vec());
                }
            }
            prop_assert_eq!(read, bodies);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = FrameDecoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
