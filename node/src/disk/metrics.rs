//! What is counted of the store.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How long writes took, and how many failed. Clones count together.
#[derive(Debug, Clone)]
pub struct DiskMetrics {
    seconds: Histogram,
    errors: Counter,
}

impl Default for DiskMetrics {
    fn default() -> Self {
        // From 0.5 ms to 4 s.
        Self { seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)), errors: Counter::default() }
    }
}

impl DiskMetrics {
    /// Makes the counters known to monitors.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time that it took to make a transaction durable";
        registry.register("shoal_disk_commit_seconds", help, self.seconds.clone());
        let help = "Transactions that the disk did not take";
        registry.register("shoal_disk_commit_errors", help, self.errors.clone());
    }

    pub(super) fn note(&self, took: Duration, is_done: bool) {
        if is_done {
            self.seconds.observe(took.as_secs_f64());
        } else {
            self.errors.inc();
        }
    }
}
