//! Requests at a steady rate through published ports, each on a connection of its own, and what became of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::evidence::Seen;
use crate::http;
use crate::lab::Lab;
use crate::wait::wait_until;

/// Threads that send; a request that waits for a dead backend holds one of them back.
const SENDERS: u32 = 16;

/// How long a request may take until it counts as failed.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// How long it may take until there was enough load.
const LEAST_WAIT: Duration = Duration::from_secs(60);

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// When its connection was begun.
    pub begun: Instant,
    /// When it was answered or failed.
    pub ended: Instant,
    /// Who answered, or what went wrong.
    pub result: Result<Seen, String>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Result<Vec<Request>>>>,
}

impl Load {
    /// Starts sending `per_second` requests to `port`, in turn through `nodes`.
    pub fn start(lab: &Lab, nodes: &[usize], port: u16, per_second: u32) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let addresses: Vec<_> = nodes.iter().map(|node| SocketAddr::new(lab.node(*node).address(), port)).collect();
        let (start, period) = (Instant::now(), Duration::from_secs(1) / per_second);
        let sender = |number: u32| {
            let (stop, sent) = (stop.clone(), sent.clone());
            let (addresses, namespace) = (addresses.clone(), lab.client_namespace());
            std::thread::spawn(move || {
                http::enter(namespace.as_deref())?;
                let mut requests = Vec::new();
                let mut turn = number;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep((start + period * turn).saturating_duration_since(Instant::now()));
                    let begun = Instant::now();
                    let address = addresses[turn as usize % addresses.len()];
                    let result = http::get(address, "/", REQUEST_WAIT).and_then(|answer| Seen::read(&answer));
                    let result = result.map_err(|error| format!("{error:#}"));
                    requests.push(Request { begun, ended: Instant::now(), result });
                    sent.fetch_add(1, Ordering::Relaxed);
                    turn += SENDERS;
                }
                Ok(requests)
            })
        };
        Self { senders: (0..SENDERS).map(sender).collect(), sent, stop }
    }

    /// Stops sending and returns all requests in the order in which they were begun.
    pub fn stop(mut self) -> Result<Vec<Request>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for sender in std::mem::take(&mut self.senders) {
            all.extend(sender.join().unwrap_or_else(|_| anyhow::bail!("a sender panicked"))?);
        }
        all.sort_by_key(|request| request.begun);
        Ok(all)
    }
}

impl Load {
    /// Stops sending once there were `least` requests, and returns all of them; an error if one failed.
    pub fn stop_without_loss(self, least: usize) -> Result<Vec<Request>> {
        wait_until("there was some load", LEAST_WAIT, || Ok(self.sent.load(Ordering::Relaxed) >= least))?;
        let requests = self.stop()?;
        let failed: Vec<&String> = requests.iter().filter_map(|request| request.result.as_ref().err()).collect();
        println!("{} requests, {} failed", requests.len(), failed.len());
        ensure!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), requests.len(), failed.first());
        Ok(requests)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How a load fared around a moment at which something was killed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests in all.
    pub all: usize,
    /// Requests that failed though they were over before the moment.
    pub failed_before: Vec<String>,
    /// Requests that were open at the moment.
    pub open: usize,
    /// Those of them that failed.
    pub failed_open: usize,
    /// Requests that failed though they were begun after the moment: none should.
    pub failed_after: Vec<String>,
}

impl Tally {
    /// Sorts requests by where they lie around `moment`.
    pub fn of(requests: &[Request], moment: Instant) -> Self {
        let mut tally = Self { all: requests.len(), ..Self::default() };
        for request in requests {
            let failure = request.result.as_ref().err();
            if request.begun > moment {
                tally.failed_after.extend(failure.cloned());
            } else if request.ended >= moment {
                tally.open += 1;
                tally.failed_open += usize::from(failure.is_some());
            } else {
                tally.failed_before.extend(failure.cloned());
            }
        }
        tally
    }

    /// Returns what was promised and not kept.
    pub fn faults(&self) -> Vec<String> {
        let before = self.failed_before.iter().map(|error| format!("a request before the fault failed: {error}"));
        let after = self.failed_after.iter().map(|error| format!("a request begun after the fault failed: {error}"));
        before.chain(after).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sorted_around_the_moment() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let request = |begun, ended, ok: bool| Request {
            begun: at(begun),
            ended: at(ended),
            result: if ok {
                Ok(Seen { task: "t".into(), slot: "1".into(), node: "n".into() })
            } else {
                Err(format!("failed {begun}"))
            },
        };
        let requests = [
            request(0, 5, true),
            request(1, 5, false),
            request(8, 12, false),
            request(9, 12, true),
            request(11, 13, false),
        ];
        let tally = Tally::of(&requests, at(10));
        assert_eq!((tally.all, tally.open, tally.failed_open), (5, 2, 1));
        assert_eq!(tally.failed_before, ["failed 1"]);
        assert_eq!(tally.failed_after, ["failed 11"]);
        assert_eq!(tally.faults().len(), 2);
    }
}
