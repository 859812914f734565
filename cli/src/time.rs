//! Moments in the API's notation, and how people say how long ago they were.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use shoal_protocol::time::human_duration;

use crate::units::Nanos;

/// Nanoseconds of a second.
pub(crate) const SECOND_NANOS: i128 = 1_000_000_000;

/// Returns the present in nanoseconds since 1970.
pub(crate) fn now_nanos() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX))
}

/// Reads RFC 3339 (a missing zone means UTC, a missing time midnight) as nanoseconds since 1970.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i128> {
    let (date, rest) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, offset_secs) = split_zone(rest)?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut clock = whole.splitn(3, ':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next().flatten().unwrap_or(0));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let nanos = match fraction.len() {
        0 => 0,
        1..=9 => number(fraction)? * 10_i128.pow(9 - u32::try_from(fraction.len()).ok()?),
        _ => return None,
    };
    let secs = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_secs;
    Some(secs * SECOND_NANOS + nanos)
}

fn number(text: &str) -> Option<i128> {
    if text.len() > 18 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn split_zone(text: &str) -> Option<(&str, i128)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else {
        return Some((text, 0));
    };
    let (time, zone) = text.split_at(at);
    let (hours, minutes) = zone[1..].split_once(':')?;
    let secs = number(hours)? * 3600 + number(minutes)? * 60;
    Some((time, if zone.starts_with('-') { -secs } else { secs }))
}

/// Converts a date of the Gregorian calendar to days since 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn days_from_civil(year: i128, month: i128, day: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Reads a moment, or how long ago it was, and returns it as the API takes it: seconds since 1970 with a fraction.
pub(crate) fn api_moment(text: &str) -> Result<String, String> {
    let nanos = if let Ok(back) = text.parse::<Nanos>() {
        now_nanos() - i128::from(back.0)
    } else if let Some(moment) = parse_rfc3339(text).filter(|_| text.contains('-')) {
        moment
    } else if let Ok(secs) = text.parse::<u32>() {
        i128::from(secs) * SECOND_NANOS
    } else {
        return Err("expected a moment such as 2026-11-23T01:52:00Z or a time back such as 10m".to_owned());
    };
    let nanos = nanos.max(0);
    Ok(format!("{}.{:09}", nanos / SECOND_NANOS, nanos % SECOND_NANOS))
}

/// Writes a moment, in seconds since 1970, as Docker's client writes it where the zone is UTC.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(crate) fn utc(secs: i64) -> String {
    let (days, secs) = (secs.div_euclid(86_400) + 719_468, secs.rem_euclid(86_400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// Rewrites RFC 3339 as Docker's client prints moments for people.
pub(crate) fn go_time(moment: &str) -> String {
    moment.trim_end_matches('Z').replacen('T', " ", 1) + " +0000 utc"
}

/// Says how long ago a moment in RFC 3339 was; nothing for what is no moment.
pub(crate) fn ago(moment: &str, now: i128) -> String {
    parse_rfc3339(moment)
        .map_or_else(String::new, |then| format!("{} ago", human_duration(now.saturating_sub(then)).to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-23T01:51:42.5Z", Some(1_795_398_702_500_000_000)),
            ("2026-11-23T02:51:42.5+01:00", Some(1_795_398_702_500_000_000)),
            ("2000-02-29T00:00:00.000000001Z", Some(951_782_400_000_000_001)),
            ("2000-02-29", Some(951_782_400_000_000_000)),
            ("yesterday", None),
            ("2000-13-01", None),
            ("2000-01-01T00:00:00+é", None),
            ("", None),
        ] {
            assert_eq!(parse_rfc3339(text), want, "{text}");
        }
    }

    #[test]
    fn moments_are_written_as_they_are_read() {
        for secs in [0, 951_782_400, 951_868_799, 1_795_398_702, 4_102_444_799, -1] {
            let text = utc(secs).replace(" +0000 UTC", "Z");
            assert_eq!(parse_rfc3339(&text), Some(i128::from(secs) * SECOND_NANOS), "{text}");
        }
    }

    #[test]
    fn moments_are_passed_on_as_seconds() {
        assert_eq!(api_moment("2026-11-23T01:51:42.5Z").unwrap(), "1795398702.500000000");
        assert_eq!(api_moment("1795398702").unwrap(), "1795398702.000000000");
        assert!(api_moment("10m").is_ok());
        assert!(api_moment("yesterday").is_err());
    }

    #[test]
    fn an_age_is_a_duration_in_small_letters() {
        assert_eq!(ago("1970-01-01T00:00:00Z", 0), "less than a second ago");
    }
}
