//! Durations, sizes and CPU counts in the notation of Docker's client (Go's durations, go-units' sizes).

use std::str::FromStr;

/// Nanoseconds, written in Go's notation such as `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nanos(pub(crate) u64);

/// Bytes, written as `64m`, `1.5g`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// Billionths of a core, written as a decimal number of cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NanoCpus(pub(crate) u64);

const DURATION_UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1000),
    ("µs", 1000),
    ("μs", 1000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for Nanos {
    type Err = String;

    /// Source: Go, `time.ParseDuration`; negative durations make no sense here and are refused.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || "expected a duration such as 10s, 1m30s or 500ms".to_owned();
        if text == "0" {
            return Ok(Self(0));
        }
        let (mut rest, mut total) = (text, 0u64);
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.').ok_or_else(invalid)?;
            let (value, tail) = rest.split_at(digits);
            let unit_end = tail.find(|char: char| char.is_ascii_digit() || char == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let (_, unit_nanos) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            let nanos = scale(value, unit_nanos).ok_or_else(invalid)?;
            total = total.checked_add(nanos).ok_or_else(invalid)?;
            rest = tail;
        }
        i64::try_from(total).map(|_| Self(total)).map_err(|_| invalid())
    }
}

impl FromStr for Bytes {
    type Err = String;

    /// Source: docker/go-units, `RAMInBytes`: units are powers of 1024.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || "expected a size such as 512m or 1.5g".to_owned();
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(lower.len());
        let (value, unit) = lower.split_at(digits);
        let power = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            "p" => 5,
            _ => return Err(invalid()),
        };
        let bytes = scale(value, 1024u64.pow(power)).ok_or_else(invalid)?;
        i64::try_from(bytes).map(|_| Self(bytes)).map_err(|_| invalid())
    }
}

impl FromStr for NanoCpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
        if fraction.len() > 9 {
            return Err("value is too precise: a billionth of a core is the least".to_owned());
        }
        scale(text, 1_000_000_000).map(Self).ok_or_else(|| "expected a number of cores such as 0.5 or 2".to_owned())
    }
}

/// Multiplies a decimal number without losing a unit; digits below one unit are cut off.
fn scale(value: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let mut total = if whole.is_empty() { 0 } else { u128::from(parse_digits(whole)?) * u128::from(unit) };
    let fraction = &fraction[..fraction.len().min(18)];
    if !fraction.is_empty() {
        let divisor = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        total += u128::from(parse_digits(fraction)?) * u128::from(unit) / divisor;
    }
    u64::try_from(total).ok()
}

fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Writes nanoseconds in Go's notation. Source: Go, `time.Duration.String`.
pub(crate) fn go_duration(nanos: u64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in [("ns", 1u64), ("µs", 1000), ("ms", 1_000_000)] {
        if nanos < size * 1000 {
            return format!("{}{unit}", decimal(nanos, size));
        }
    }
    let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let seconds = decimal(rest, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(value: u64, unit: u64) -> String {
    if value.is_multiple_of(unit) {
        return (value / unit).to_string();
    }
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').to_owned()
}

/// Writes billionths of a core as a number of cores.
pub(crate) fn cpus(nano_cpus: u64) -> String {
    decimal(nano_cpus, 1_000_000_000)
}

/// Writes bytes in powers of 1024. Source: docker/go-units, `BytesSize`.
pub(crate) fn bytes_size(bytes: u64) -> String {
    sized(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Writes bytes in powers of 1000. Source: docker/go-units, `HumanSizeWithPrecision` at three digits.
pub(crate) fn human_size(bytes: u64) -> String {
    let (value, unit) = reduced(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"]);
    format!("{}{unit}", significant(value, 3))
}

fn sized(bytes: u64, base: f64, units: &[&'static str]) -> String {
    let (value, unit) = reduced(bytes, base, units);
    format!("{}{unit}", significant(value, 4))
}

fn reduced(bytes: u64, base: f64, units: &[&'static str]) -> (f64, &'static str) {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    (value, units[unit])
}

/// Rounds to a number of significant digits, without zeros at the end, as C's `%g`.
fn significant(value: f64, digits: usize) -> String {
    let whole_digits = format!("{value:.0}").len();
    let text = format!("{value:.*}", digits.saturating_sub(whole_digits));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("10s", 10_000_000_000, "10s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1h", 3_600_000_000_000, "1h0m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("500ms", 500_000_000, "500ms"),
            ("1h0m0.25s", 3_600_250_000_000, "1h0m0.25s"),
            ("3us", 3000, "3µs"),
        ] {
            assert_eq!(text.parse::<Nanos>(), Ok(Nanos(nanos)), "{text}");
            assert_eq!(go_duration(nanos), written);
        }
        for text in ["", "10", "s", "-1s", "1x", "1..5s", "99999999999h", "1é"] {
            assert!(text.parse::<Nanos>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("1k", 1024),
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("64MB", 64 << 20),
            ("16MiB", 16 << 20),
            ("7", 7),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "m", "1x", "-1m", "99999999p"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(bytes_size(25_276_502_016), "23.54GiB");
        assert_eq!(bytes_size(64 << 20), "64MiB");
        assert_eq!(human_size(2_697_900), "2.7MB");
        assert_eq!(human_size(0), "0B");
    }

    #[test]
    fn cores_are_read_and_written() {
        for (text, nanos, written) in
            [("0.5", 500_000_000, "0.5"), ("2", 2_000_000_000, "2"), (".1", 100_000_000, "0.1")]
        {
            assert_eq!(text.parse::<NanoCpus>(), Ok(NanoCpus(nanos)));
            assert_eq!(cpus(nanos), written);
        }
        for text in ["", "x", "-1", "0.1234567891", "."] {
            assert!(text.parse::<NanoCpus>().is_err(), "{text}");
        }
    }
}
