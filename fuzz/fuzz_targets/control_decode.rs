//! Every control message from bytes that a peer chose. What is accepted can be written, and reads as the same.
#![no_main]

use std::fmt::Debug;

use bytes::BytesMut;
use dunlin::wire::{
    Answer, CaughtUp, Fault, GoAway, Hello, JoinAnswer, JoinRequest, Nack, PublishOk, PublishOpen,
    Request, SubscribeOk, SubscribeOpen, Welcome, cbor,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, body) = input;
    let check = match kind % 14 {
        0 => comes_back::<Hello>,
        1 => comes_back::<Welcome>,
        2 => comes_back::<GoAway>,
        3 => comes_back::<Request>,
        4 => comes_back::<Answer>,
        5 => comes_back::<PublishOpen>,
        6 => comes_back::<PublishOk>,
        7 => comes_back::<Nack>,
        8 => comes_back::<SubscribeOpen>,
        9 => comes_back::<SubscribeOk>,
        10 => comes_back::<CaughtUp>,
        11 => comes_back::<JoinRequest>,
        12 => comes_back::<JoinAnswer>,
        _ => comes_back::<Fault>,
    };
    check(body);
});

fn comes_back<T: Serialize + DeserializeOwned + Debug>(body: &[u8]) {
    let Ok(message) = cbor::get::<T>(body) else { return };
    let mut written = BytesMut::new();
    cbor::put(&message, &mut written);
    let again: T = cbor::get(&written).expect("what was written is read");
    assert_eq!(format!("{message:?}"), format!("{again:?}"));
}
