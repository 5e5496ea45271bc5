//! How a record that was read is written.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    cli::{pub_::NO_NEWLINE, units::rfc3339},
    client::ReceivedRecord,
    types::TopicName,
};

/// What is shown beside the value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Format {
    pub(super) json: bool,
    pub(super) key: bool,
    pub(super) offset: bool,
    pub(super) time: bool,
    pub(super) headers: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    topic: &'a TopicName,
    partition: u32,
    offset: u64,
    /// When the site took it.
    time: String,
    /// When the producer made it.
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Text<'a>>,
    value: Text<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(&'a str, Text<'a>)>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Utf8(&'a str),
    Other { base64: String },
}

impl<'a> Text<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Utf8(text),
            Err(_) => Self::Other { base64: base64(bytes) },
        }
    }
}

impl Format {
    pub(super) fn write(
        &self,
        topic: &TopicName,
        received: &ReceivedRecord,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let record = &received.record;
        if self.json {
            let json = Json {
                topic,
                partition: received.partition,
                offset: received.offset.0,
                time: rfc3339(received.append_time),
                timestamp: rfc3339(record.timestamp),
                key: record.key.as_deref().map(Text::of),
                value: Text::of(&record.value),
                headers: record.headers.iter().map(|(n, v)| (n.as_str(), Text::of(v))).collect(),
            };
            serde_json::to_writer(&mut *out, &json)?;
            return out.write_all(b"\n");
        }
        if self.time {
            write!(out, "{}\t", rfc3339(received.append_time))?;
        }
        if self.offset {
            write!(out, "{}:{}\t", received.partition, received.offset)?;
        }
        if self.key {
            out.write_all(record.key.as_deref().unwrap_or_default())?;
            out.write_all(b"\t")?;
        }
        if self.headers {
            for (i, (name, value)) in record.headers.iter().enumerate() {
                write!(out, "{}{name}=", if i == 0 { "" } else { "," })?;
                out.write_all(value)?;
            }
            out.write_all(b"\t")?;
        }
        out.write_all(&record.value)?;
        if record.headers.iter().any(|(name, _)| name == NO_NEWLINE) {
            return Ok(());
        }
        out.write_all(b"\n")
    }
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::{Offset, Timestamp},
        wire::Record,
    };

    fn written(format: Format, record: Record) -> String {
        let received = ReceivedRecord {
            partition: 2,
            offset: Offset(7),
            append_time: Timestamp(1_000),
            record,
        };
        let mut out = Vec::new();
        format.write(&"a/b".parse().expect("good"), &received, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_value_stands_alone_unless_more_is_asked_for() {
        let record = Record::new("v").with_key("k").with_header("h", "x").with_header("i", "y");
        assert_eq!(written(Format::default(), record.clone()), "v\n");
        let all = Format { json: false, key: true, offset: true, time: true, headers: true };
        assert_eq!(written(all, record), "1970-01-01T00:00:01.000Z\t2:7\tk\th=x,i=y\tv\n");
    }

    #[test]
    fn a_last_line_without_newline_gets_none() {
        assert_eq!(written(Format::default(), Record::new("v").with_header(NO_NEWLINE, "")), "v");
    }

    #[test]
    fn json_holds_what_is_no_text_in_base64() {
        let json = Format { json: true, ..Format::default() };
        let text = written(json, Record::new(&b"\xff"[..]).with_key("k"));
        assert!(text.contains(r#""key":"k","value":{"base64":"/w=="}"#), "{text}");
        assert!(text.starts_with(r#"{"topic":"a/b","partition":2,"offset":7,"time":"1970-"#));
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (len, want) in cases.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..len]), *want);
        }
    }
}
