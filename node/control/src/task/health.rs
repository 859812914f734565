//! Whether a container is well: when its check runs next, and what the results make of it.
//!
//! Runs nothing: whoever owns the container (a supervisor, a fake, a simulated host) asks when a check is due and tells how it
//! ended. Docker Engine decides the same by itself. Source: moby, `daemon/health.go`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_protocol::Time;
use shoal_protocol::spec::Healthcheck;

/// Docker's defaults. Source: moby, `daemon/health.go`.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u64 = 3;

/// What runs a check that is a line for the shell, unless the image names another. Source: moby, `getShell`.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Bytes of a check's output that are kept. Source: moby, `maxOutputLen`.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// How a container's check finds it. Moves between healthy and unhealthy, and never back to starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Never was well so far, which does not count against it yet.
    Starting,
    /// Its last check succeeded, or too few failed in a row since.
    Healthy,
    /// As many checks failed in a row as its policy has retries.
    Unhealthy,
}

/// A health check with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// From the end of one check to the begin of the next.
    pub interval: Duration,
    /// After which a check has failed and is killed.
    pub timeout: Duration,
    /// From the container's start; failures in it do not count until the first success.
    pub start_period: Duration,
    /// Takes the place of the interval in that time.
    pub start_interval: Duration,
    /// Failures in a row that make a container unhealthy; at least 1.
    pub retries: u64,
}

impl Policy {
    /// Fills in what the service's check leaves open, from the image's and with Docker's defaults. Returns nothing if there is
    /// no check: none is named, it is `NONE`, or the image has one of a kind that Docker does not know either. `shell` is
    /// the image's, empty if it names none.
    pub fn resolve(wanted: Option<&Healthcheck>, image: Option<&Healthcheck>, shell: &[String]) -> Option<Self> {
        let (empty, none) = (Healthcheck::default(), Healthcheck::default());
        let (wanted, image) = (wanted.unwrap_or(&empty), image.unwrap_or(&none));
        let test = if wanted.test.is_empty() { &image.test } else { &wanted.test };
        let command: Vec<String> = match test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
            Some(("CMD", command @ [_, ..])) => command.to_vec(),
            Some(("CMD-SHELL", line @ [_, ..])) if shell.is_empty() => {
                SHELL.map(str::to_owned).into_iter().chain(line.iter().cloned()).collect()
            }
            Some(("CMD-SHELL", line @ [_, ..])) => shell.iter().chain(line).cloned().collect(),
            Some(_) | None => return None,
        };
        let nanos = |wanted: u64, image: u64, default: Duration| match (wanted, image) {
            (0, 0) => default,
            (0, nanos) | (nanos, _) => Duration::from_nanos(nanos),
        };
        let retries = [wanted.retries, image.retries].into_iter().find(|retries| *retries > 0);
        Some(Self {
            command,
            interval: nanos(wanted.interval, image.interval, INTERVAL),
            timeout: nanos(wanted.timeout, image.timeout, TIMEOUT),
            start_period: nanos(wanted.start_period, image.start_period, Duration::ZERO),
            start_interval: nanos(wanted.start_interval, image.start_interval, START_INTERVAL),
            retries: retries.unwrap_or(RETRIES),
        })
    }
}

/// What the checks of one run of a container have shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    status: HealthStatus,
    failures: u64,
    started: Time,
    due: Time,
}

impl Checks {
    /// Returns the state of a container that was just started.
    pub fn new(policy: &Policy, started: Time) -> Self {
        let mut checks = Self { status: HealthStatus::Starting, failures: 0, started, due: started };
        checks.due = started + checks.pause(policy, started);
        checks
    }

    /// Returns how the container is found.
    pub fn status(&self) -> HealthStatus {
        self.status
    }

    /// Returns how many checks have failed since the last one that did not, those that were forgiven apart.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Returns when the next check is to begin.
    pub fn due(&self) -> Time {
        self.due
    }

    /// Takes in how a check ended that had begun at `began`; one that took longer than its timeout has failed.
    pub fn take_result(&mut self, policy: &Policy, began: Time, succeeded: bool, now: Time) {
        let forgiven = self.status == HealthStatus::Starting && began.since(self.started) < policy.start_period;
        if succeeded {
            self.failures = 0;
            self.status = HealthStatus::Healthy;
        } else if !forgiven {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= policy.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.due = now + self.pause(policy, now);
    }

    fn pause(&self, policy: &Policy, now: Time) -> Duration {
        let starts = self.status == HealthStatus::Starting && now.since(self.started) < policy.start_period;
        if starts { policy.start_interval } else { policy.interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthStatus::{Healthy, Starting, Unhealthy};

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn check(test: &[&str], interval_secs: u64, retries: u64) -> Healthcheck {
        Healthcheck { test: texts(test), interval: interval_secs * 1_000_000_000, retries, ..Healthcheck::default() }
    }

    #[test]
    fn what_the_service_leaves_open_is_the_images_or_dockers() {
        let of = |wanted: &[&str], image: &[&str]| {
            Policy::resolve(Some(&check(wanted, 0, 0)), Some(&check(image, 0, 0)), &[]).map(|policy| policy.command)
        };
        assert_eq!(of(&["CMD", "a", "b c"], &["CMD", "x"]), Some(texts(&["a", "b c"])));
        assert_eq!(of(&[], &["CMD-SHELL", "x y"]), Some(texts(&["/bin/sh", "-c", "x y"])));
        for (wanted, image) in
            [(&["NONE"][..], &["CMD", "x"][..]), (&[], &["NONE"]), (&[], &[]), (&[], &["CMD"]), (&[], &["WHAT", "x"])]
        {
            assert_eq!(of(wanted, image), None, "{wanted:?} over {image:?}");
        }
        let image = check(&["CMD-SHELL", "x"], 7, 2);
        let got = Policy::resolve(Some(&check(&[], 5, 0)), Some(&image), &texts(&["/bin/ash", "-ec"])).unwrap();
        let want = Policy {
            command: texts(&["/bin/ash", "-ec", "x"]),
            interval: Duration::from_secs(5),
            timeout: TIMEOUT,
            start_period: Duration::ZERO,
            start_interval: START_INTERVAL,
            retries: 2,
        };
        assert_eq!(got, want);
        let defaults = Policy::resolve(None, Some(&check(&["CMD", "x"], 0, 0)), &[]).unwrap();
        assert_eq!((defaults.interval, defaults.retries), (INTERVAL, RETRIES));
        assert_eq!(Policy::resolve(None, None, &[]), None);
    }

    /// Each step: when a check begins, how long it takes, whether it succeeds; then the status and when the next is due.
    #[test]
    fn results_make_the_status_and_the_next_check() {
        let secs = |secs: u64| Time(secs * 1000);
        let policy = |start_period: u64| Policy {
            command: texts(&["x"]),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            start_period: Duration::from_secs(start_period),
            start_interval: Duration::from_secs(2),
            retries: 2,
        };
        for (name, start_period, first, steps) in [
            ("without a start period", 0, 110, vec![(110, true, Healthy, 121), (121, false, Healthy, 132)]),
            (
                "failures in a row count",
                0,
                110,
                vec![(110, false, Starting, 121), (121, false, Unhealthy, 132), (132, true, Healthy, 143)],
            ),
            (
                "a success forgets failures",
                0,
                110,
                vec![(110, false, Starting, 121), (121, true, Healthy, 132), (132, false, Healthy, 143)],
            ),
            (
                "the start period forgives",
                5,
                102,
                vec![(102, false, Starting, 105), (105, false, Starting, 116), (116, false, Unhealthy, 127)],
            ),
            (
                "until the first success",
                30,
                102,
                vec![(102, true, Healthy, 113), (113, false, Healthy, 124), (124, false, Unhealthy, 135)],
            ),
        ] {
            let policy = policy(start_period);
            let mut checks = Checks::new(&policy, secs(100));
            assert_eq!(checks.due(), secs(first), "{name}");
            for (began, succeeded, status, due) in steps {
                checks.take_result(&policy, secs(began), succeeded, secs(began + 1));
                assert_eq!((checks.status(), checks.due()), (status, secs(due)), "{name}: at {began}");
            }
        }
    }
}
