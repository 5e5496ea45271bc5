//! How sizes, durations, rates and positions are written on the command line and in tables.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use crate::types::{Position, Timestamp};

/// Reads a size such as `1GiB`, `500kB` or `1024`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "a size is a number with a unit, such as 64KiB, 500MB or 1GiB".to_owned())
}

/// Reads a duration such as `7d`, `90s` or `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "a duration is a number with a unit, such as 500ms, 90s, 12h or 7d".to_owned())
}

/// Reads records per second: `100` or `100/s`.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a rate is a number of records per second, such as 100 or 0.5/s".to_owned()),
    }
}

/// Reads where to start: `earliest`, `latest`, an offset, a time, or how long ago.
pub(super) fn position(text: &str, now: SystemTime) -> Result<Position, String> {
    if let Ok(position) = text.parse() {
        return Ok(position);
    }
    if let Some(ago) = text.strip_prefix('-').and_then(|ago| humantime::parse_duration(ago).ok()) {
        return Ok(Position::Time(timestamp(now).minus(ago)));
    }
    match humantime::parse_rfc3339_weak(text) {
        Ok(time) => Ok(Position::Time(timestamp(time))),
        Err(_) => Err("a position is earliest, latest, an offset, a UTC time such as \
                       2026-01-31T12:00:00Z, or how long ago, such as -15m"
            .to_owned()),
    }
}

/// A time as the log stores it.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time for people and programs, in UTC.
pub(super) fn rfc3339(time: Timestamp) -> String {
    // Past the year 9999 the format has no words; such a time is a number that somebody made up.
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(time.0.min(YEAR_9999_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// A size for people.
pub(super) fn print_size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// So many bytes in so many seconds, for people.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a figure for people"
)]
pub(super) fn print_rate(bytes: u64, seconds: f64) -> String {
    print_size((bytes as f64 / seconds.max(1e-9)) as u64)
}

/// A duration of so many milliseconds for people.
pub(super) fn print_ms(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

const YEAR_9999_MS: u64 = 253_402_300_799_999;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Offset;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn a_position_is_read_in_every_spelling() {
        let read = |text| position(text, at(3_600_000));
        assert_eq!(read("earliest"), Ok(Position::Earliest));
        assert_eq!(read("17"), Ok(Position::Offset(Offset(17))));
        assert_eq!(read("-15m"), Ok(Position::Time(Timestamp(2_700_000))));
        assert_eq!(read("1970-01-01T00:00:01Z"), Ok(Position::Time(Timestamp(1_000))));
        assert_eq!(read("1970-01-01 00:00:01"), Ok(Position::Time(Timestamp(1_000))));
        for bad in ["", "newest", "-", "-15", "15m"] {
            assert!(read(bad).is_err_and(|error| error.contains("earliest")), "{bad}");
        }
    }

    #[test]
    fn rates_and_sizes_say_what_they_want() {
        assert_eq!(rate("100/s"), Ok(100.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        assert!(rate("0").is_err() && rate("fast").is_err());
        assert_eq!(size("64KiB"), Ok(65_536));
        assert!(size("many").is_err());
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
    }

    #[test]
    fn a_time_far_away_is_still_printed() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert!(rfc3339(Timestamp(u64::MAX)).starts_with("9999"));
    }
}
