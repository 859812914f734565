//! Waiting for conditions, with deadlines and without guesses about how long things take.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value and returns it with the time it took; after `limit` fails with the last reason.
///
/// A condition that fails with an error is asked again, as one that gives `None`: what is being waited for may not exist
/// yet.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let reason = match condition() {
            Ok(Some(value)) => return Ok((value, start.elapsed())),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            match reason {
                None => bail!("{what}: not so after {:.1} s", limit.as_secs_f64()),
                Some(error) => bail!("{what}: not so after {:.1} s: {error:#}", limit.as_secs_f64()),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `condition` holds and returns the time it took; after `limit` fails.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    wait_for(what, limit, || Ok(condition()?.then_some(()))).map(|((), took)| took)
}

/// Reads a duration such as `120s`, `500ms` or `2m`, for command lines.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not a duration such as 120s"))?;
    match &text[digits.len()..] {
        "s" | "" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        unit => Err(format!("'{unit}' is no unit of time: use ms, s or m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_asked_again_until_it_holds() {
        let mut asked = 0;
        let ((), took) = wait_for("third time", Duration::from_secs(10), || {
            asked += 1;
            match asked {
                1 => bail!("not there"),
                2 => Ok(None),
                _ => Ok(Some(())),
            }
        })
        .unwrap();
        assert!(took >= PAUSE);
    }

    #[test]
    fn the_deadline_tells_the_last_reason() {
        let error = wait_until("never", Duration::ZERO, || bail!("because")).unwrap_err().to_string();
        assert_eq!(error, "never: not so after 0.0 s: because");
    }

    #[test]
    fn durations_are_read_or_refused() {
        assert_eq!(parse_duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("2h").is_err());
        assert!(parse_duration("soon").is_err());
    }
}
