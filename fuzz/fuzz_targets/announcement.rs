//! What a network or a zone says of a node, and a key file. What is accepted can be written, and reads as the same.
#![no_main]

use std::collections::BTreeSet;

use dunlin::{
    discovery::{
        Announcement, TsigKey,
        registration::{self, Instance, Wanted},
        zone,
    },
    limits::NODE_WEIGHT_MAX,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str, Vec<(&str, &str)>)| {
    let (kind, text, keys) = input;
    if kind % 4 == 0 {
        return key_file(text);
    }
    let Ok(said) = Announcement::from_txt(text, keys.iter().copied()) else { return };
    assert!(said.load <= 100 && said.weight <= NODE_WEIGHT_MAX);
    let written = said.to_txt();
    let pairs = written.iter().map(|(key, value)| (*key, value.as_str()));
    assert_eq!(Announcement::from_txt(said.node.as_str(), pairs).as_ref(), Ok(&said));
    settles(said);
});

/// What a node that was heard would have a zone say is what an empty zone says afterwards.
fn settles(said: Announcement) {
    let addresses = vec!["10.0.0.7".parse().expect("an address")];
    let wanted = Wanted { said, addresses, serves: true, removed: BTreeSet::new() };
    let (instance, records) = (Instance::of(&wanted.said), wanted.records());
    let removed = &wanted.removed;
    let plan = |held| registration::change(&instance, "plant.example", &records, held, removed);
    let empty = BTreeSet::new();
    let first = plan(&empty).expect("nobody's").expect("nothing is there");
    assert!(first.out.is_empty() && first.put.len() == records.len());
    assert_eq!(plan(&first.put), Ok(None));
    drop(zone::to_zone_file("plant.example", records.into_iter().collect()));
}

fn key_file(text: &str) {
    let Ok(key) = TsigKey::parse(text) else { return };
    let again = TsigKey::new(key.name(), key.algorithm(), key.secret().to_vec());
    assert_eq!(again.as_ref(), Ok(&key));
}
