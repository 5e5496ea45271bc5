//! What people type: names and positions. Whatever is accepted must print as something that is accepted again, equal.
#![no_main]

use std::{fmt::Display, str::FromStr};

use dunlin::types::{NodeName, Position, TopicName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    comes_back::<NodeName>(text);
    comes_back::<TopicName>(text);
    comes_back::<Position>(text);
});

fn comes_back<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        let printed = parsed.to_string();
        assert!(
            printed.parse::<T>().is_ok_and(|again| again == parsed),
            "{text:?} printed {printed:?}"
        );
    }
}
