//! Times as images write them.

use shoal_protocol::WallTime;

/// Reads a time of RFC 3339, such as `2026-11-23T01:51:42.5Z`; `None` also for times before 1970.
pub fn parse_time(text: &str) -> Option<WallTime> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let offset = match zone {
        "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    let total = u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(u64::try_from(nanos).ok()?)?;
    Some(WallTime(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_images_are_read() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some("1970-01-01T00:00:00.000000000Z")),
            ("2000-02-29T12:30:01.5Z", Some("2000-02-29T12:30:01.500000000Z")),
            ("2026-11-23T01:51:42.123456789+02:00", Some("2026-11-22T23:51:42.123456789Z")),
            ("2026-13-23T01:51:42Z", None),
            ("1960-01-01T00:00:00Z", None),
            ("yesterday", None),
        ] {
            assert_eq!(parse_time(text).map(|time| time.to_string()).as_deref(), want, "{text}");
        }
    }
}
