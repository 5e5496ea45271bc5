//! Data messages: fixed big-endian layouts, decoded without copying.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    control::{Ack, Deliver, Publish},
    frame::{FrameType, put_frame_head},
};
use crate::types::{Acks, Offset};

const ACK_LEN: usize = 22;

/// A data message of the wrong shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed data message")]
pub struct BadData;

impl Publish {
    /// Appends the whole frame.
    pub fn encode(partition: u32, batch: &[u8], out: &mut BytesMut) {
        put_batch(FrameType::Publish, partition, batch, out);
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`BadData`] when there is no partition.
    pub fn decode(body: Bytes) -> Result<Self, BadData> {
        let (partition, batch) = get_batch(body)?;
        Ok(Self { partition, batch })
    }
}

impl Deliver {
    /// Appends the head of the frame; the batch of `batch_len` bytes follows.
    pub fn encode_head(partition: u32, batch_len: usize, out: &mut BytesMut) {
        put_frame_head(FrameType::Deliver, 4 + batch_len, out);
        out.put_u32(partition);
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`BadData`] when there is no partition.
    pub fn decode(body: Bytes) -> Result<Self, BadData> {
        let (partition, batch) = get_batch(body)?;
        Ok(Self { partition, batch })
    }
}

impl Ack {
    /// Appends the whole frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put_frame_head(FrameType::Ack, ACK_LEN, out);
        out.put_u64(self.index);
        out.put_u32(self.partition);
        out.put_u64(self.base_offset.0);
        out.put_u8(self.level.code());
        out.put_u8(self.copies);
    }

    /// Reads a frame's body. Bytes behind it are of a newer version, and skipped.
    ///
    /// # Errors
    /// [`BadData`] when it is short or the level is unknown.
    pub fn decode(mut body: &[u8]) -> Result<Self, BadData> {
        if body.len() < ACK_LEN {
            return Err(BadData);
        }
        Ok(Self {
            index: body.get_u64(),
            partition: body.get_u32(),
            base_offset: Offset(body.get_u64()),
            level: Acks::from_code(body.get_u8()).ok_or(BadData)?,
            copies: body.get_u8(),
        })
    }
}

fn put_batch(kind: FrameType, partition: u32, batch: &[u8], out: &mut BytesMut) {
    put_frame_head(kind, 4 + batch.len(), out);
    out.put_u32(partition);
    out.put_slice(batch);
}

fn get_batch(mut body: Bytes) -> Result<(u32, Bytes), BadData> {
    if body.len() < 4 {
        return Err(BadData);
    }
    Ok((body.get_u32(), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameDecoder;

    #[test]
    fn golden_ack() {
        let ack = Ack {
            index: 1,
            partition: 2,
            base_offset: Offset(3),
            level: Acks::Replicated,
            copies: 1,
        };
        let mut out = BytesMut::new();
        ack.encode(&mut out);
        let found: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, "172300000000000000010000000200000000000000030201");
        assert_eq!(Ack::decode(&out[2..]), Ok(ack));
        assert_eq!(Ack::decode(&out[3..]), Err(BadData));
    }

    #[test]
    fn a_batch_survives_both_ways() {
        let mut out = BytesMut::new();
        Publish::encode(7, b"batch", &mut out);
        Deliver::encode_head(8, 5, &mut out);
        out.put_slice(b"other");
        let mut decoder = FrameDecoder::new();
        decoder.push(&out);
        let mut next = || decoder.next_frame().expect("own work").expect("whole").body;
        let publish = Publish::decode(next()).expect("own work");
        assert_eq!((publish.partition, &publish.batch[..]), (7, &b"batch"[..]));
        let deliver = Deliver::decode(next()).expect("own work");
        assert_eq!((deliver.partition, &deliver.batch[..]), (8, &b"other"[..]));
    }
}
