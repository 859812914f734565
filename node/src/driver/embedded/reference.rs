//! Names of images, and times as images write them.

use shoal_protocol::WallTime;

/// Characters of a reference; a longer one is none.
const REFERENCE_CHARS_MAX: usize = 512;

/// `name`, `name:tag` or `name@digest`, in Docker's familiar form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a reference. `docker.io/library/busybox` and `busybox` mean the same. Source: Docker, distribution reference.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > REFERENCE_CHARS_MAX {
            return None;
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon before the last slash belongs to a registry's port.
        let name_start = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[name_start..].split_once(':') {
            Some((last, tag)) => (format!("{}{last}", &rest[..name_start]), Some(tag.to_owned())),
            None => (rest.to_owned(), None),
        };
        let name = name.strip_prefix("docker.io/").unwrap_or(&name);
        let name = name.strip_prefix("library/").unwrap_or(name).to_owned();
        let plain = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let good =
            name.split('/').all(|part| plain(part, "._-:") && part.starts_with(|c: char| c.is_ascii_alphanumeric()))
                && tag.as_deref().is_none_or(|tag| plain(tag, "._-"));
        let good_digest = digest.as_deref().is_none_or(|digest| {
            digest
                .strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        (good && good_digest).then_some(Self { name, tag, digest })
    }

    /// Returns `name:tag`, with `latest` for no tag; `None` if it names a digest alone.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (None, Some(_)) => None,
            (tag, _) => Some(format!("{}:{}", self.name, tag.as_deref().unwrap_or("latest"))),
        }
    }
}

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
    fn references_have_one_normal_form() {
        for (text, want) in [
            ("busybox", Some("busybox:latest")),
            ("docker.io/library/busybox:1", Some("busybox:1")),
            ("docker.io/shoal/whoami", Some("shoal/whoami:latest")),
            ("registry:5000/a/b", Some("registry:5000/a/b:latest")),
            ("registry:5000/a/b:2", Some("registry:5000/a/b:2")),
            ("../etc/passwd", None),
            ("", None),
            ("a b", None),
            ("a:", None),
            ("a//b", None),
            ("a@sha256:12", None),
        ] {
            assert_eq!(Reference::parse(text).and_then(|reference| reference.tagged()).as_deref(), want, "{text:?}");
        }
        let digest = format!("sha256:{}", "ab".repeat(32));
        let reference = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!((reference.tagged(), reference.digest), (None, Some(digest)));
    }

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
