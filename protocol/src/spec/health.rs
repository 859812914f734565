//! How it is found out whether a container is well.

use serde::{Deserialize, Serialize};

use super::null_as_default;
use super::validate::{SpecError, invalid};

/// Nanoseconds that an interval or timeout has at least. Source: SwarmKit, `minimumDuration`.
const NANOS_MIN: u64 = 1_000_000;

/// A container's health check. Empty and zero mean the image's own setting, else Docker's default.
///
/// Source: Docker Engine API v1.50, `HealthConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`, `CMD` with a program and its arguments, or `CMD-SHELL` with a line for the shell.
    #[serde(deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Nanoseconds from the end of one check to the begin of the next.
    pub interval: u64,
    /// Nanoseconds after which a check has failed and is killed.
    pub timeout: u64,
    /// Failures in a row that make a container unhealthy.
    pub retries: u64,
    /// Nanoseconds from the container's start in which failures do not count, until the first success.
    pub start_period: u64,
    /// Nanoseconds between checks in that time.
    pub start_interval: u64,
}

/// Checks a health check of a spec. Texts are SwarmKit's, where it has them.
pub(super) fn validate(check: &Healthcheck) -> Result<(), SpecError> {
    for (name, nanos) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if nanos != 0 && nanos < NANOS_MIN {
            return invalid(format!("ContainerSpec: {name} in HealthConfig cannot be less than 1ms"));
        }
    }
    match check.test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
        None | Some(("NONE", _)) => Ok(()),
        Some(("CMD" | "CMD-SHELL", [])) => invalid("ContainerSpec: Test in HealthConfig has no command"),
        Some(("CMD" | "CMD-SHELL", _)) => Ok(()),
        Some((kind, _)) => invalid(format!("ContainerSpec: Unknown healthcheck type '{kind}' (expected 'CMD')")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_docker_cli_sends_is_read_and_nonsense_refused() {
        let read = |json: &str| serde_json::from_str::<Healthcheck>(json).unwrap();
        let check = read(r#"{"Test":["CMD-SHELL","true"],"Interval":1000000000,"Retries":2}"#);
        assert_eq!((check.test.len(), check.interval, check.retries, check.timeout), (2, 1_000_000_000, 2, 0));
        for (json, good) in [
            (r#"{}"#, true),
            (r#"{"Test":null}"#, true),
            (r#"{"Test":["NONE"]}"#, true),
            (r#"{"Test":["CMD","a","b"],"Timeout":1000000}"#, true),
            (r#"{"Test":["CMD"]}"#, false),
            (r#"{"Test":["CMD-SHELL"]}"#, false),
            (r#"{"Test":["curl"]}"#, false),
            (r#"{"Interval":999999}"#, false),
            (r#"{"StartInterval":1}"#, false),
        ] {
            assert_eq!(validate(&read(json)).is_ok(), good, "{json}");
        }
    }
}
