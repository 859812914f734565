//! Hosts that could not be connected to and were slow to fail: for a while nobody waits for them again.
//!
//! Where no registry can be reached, a name server that does not answer would hold up every service that is created and every
//! task whose image is missing, one after the other.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A failure that took less costs nothing to see again.
const SLOW: Duration = Duration::from_secs(1);

/// How long nobody asks again.
const SILENCE: Duration = Duration::from_secs(10);

/// Hosts that are remembered at most; beyond, all are forgotten.
const HOSTS_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Silences(Mutex<BTreeMap<String, Silence>>);

struct Silence {
    since: Instant,
    kind: io::ErrorKind,
    reason: String,
}

impl Silences {
    /// Fails as the last attempt did, if that was lately.
    pub(super) fn check(&self, host: &str, now: Instant) -> io::Result<()> {
        let silences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match silences.get(host) {
            Some(silence) if now.duration_since(silence.since) < SILENCE => {
                Err(io::Error::new(silence.kind, silence.reason.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Notes how an attempt that began at `began` failed.
    pub(super) fn note(&self, host: &str, error: &io::Error, began: Instant, now: Instant) {
        if now.duration_since(began) < SLOW {
            return;
        }
        let mut silences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if silences.len() >= HOSTS_MAX {
            silences.clear();
        }
        let silence = Silence { since: now, kind: error.kind(), reason: error.to_string() };
        silences.insert(host.to_owned(), silence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_slow_to_fail_is_left_alone_for_a_while() {
        let (silences, start) = (Silences::default(), Instant::now());
        let failed = io::Error::new(io::ErrorKind::TimedOut, "nobody knows that name");
        silences.note("quick.example", &failed, start, start + SLOW / 2);
        silences.note("slow.example", &failed, start, start + SLOW);
        let at = |host: &str, after: Duration| silences.check(host, start + SLOW + after).map_err(|e| e.to_string());
        assert_eq!(at("quick.example", Duration::ZERO), Ok(()));
        assert_eq!(at("slow.example", SILENCE / 2), Err("nobody knows that name".to_owned()));
        assert_eq!(at("slow.example", SILENCE), Ok(()));
        for number in 0..1000 {
            silences.note(&number.to_string(), &failed, start, start + SLOW);
        }
        assert!(silences.0.lock().unwrap().len() <= HOSTS_MAX);
    }
}
