//! Reads the engine's timestamps.

use shoal_protocol::WallTime;

/// Parses RFC 3339 in UTC with up to nine digits of fraction. The engine's zero time and everything before 1970 is `None`.
pub(super) fn parse(text: &str) -> Option<WallTime> {
    let text = text.strip_suffix('Z')?;
    let (date, clock) = text.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let nanos: u64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    let secs = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    secs.checked_mul(1_000_000_000)?.checked_add(nanos).map(WallTime)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(str::parse);
    let numbers = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    parts.next().is_none().then_some(numbers)
}

/// Converts a date of the Gregorian calendar, not before 1970, to days since 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_the_engine_are_read() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00.000000001Z", Some(951_782_400_000_000_001)),
            ("2026-11-23T01:51:42.5Z", Some(1_795_398_702_500_000_000)),
            ("0001-01-01T00:00:00Z", None),
            ("2026-11-23 01:51:42Z", None),
            ("2026-13-23T01:51:42Z", None),
            ("2026-11-23T01:51:42.x5Z", None),
            ("9999-12-31T23:59:59Z", None),
            ("", None),
        ] {
            assert_eq!(parse(text).map(|time| time.0), want, "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for nanos in [0, 1, 951_782_400_000_000_001, 1_795_398_702_500_000_000, 4_102_444_799_999_999_999] {
            assert_eq!(parse(&WallTime(nanos).to_string()), Some(WallTime(nanos)));
        }
    }
}
