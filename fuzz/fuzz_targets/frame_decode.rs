//! A stream as a peer may send it: cut into frames, the data frames decoded. How the bytes are cut into packets must not matter.
#![no_main]

use bytes::BytesMut;
use dunlin::wire::{
    Ack, BadFrame, Deliver, Frame, FrameDecoder, FrameType, Publish, put_frame_head,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (packet_len, stream) = input;
    let whole = frames(stream, stream.len().max(1));
    assert_eq!(whole, frames(stream, usize::from(packet_len).max(1)));
    for frame in whole.0 {
        assert!(frame.body.len() <= frame.kind.body_len_max());
        let mut again = BytesMut::new();
        put_frame_head(frame.kind, frame.body.len(), &mut again);
        again.extend_from_slice(&frame.body);
        assert_eq!(frames(&again, again.len()).0, [frame.clone()]);
        match frame.kind {
            FrameType::Publish => drop(Publish::decode(frame.body)),
            FrameType::Deliver => drop(Deliver::decode(frame.body)),
            FrameType::Ack => drop(Ack::decode(&frame.body)),
            _ => {}
        }
    }
});

fn frames(stream: &[u8], packet_len: usize) -> (Vec<Frame>, Result<(), BadFrame>) {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    for packet in stream.chunks(packet_len) {
        decoder.push(packet);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(bad) => return (frames, Err(bad)),
            }
        }
    }
    (frames, decoder.finish())
}
