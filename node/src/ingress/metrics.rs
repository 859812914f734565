//! Counters of the ingress, read by whoever exports them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that many tasks count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts up.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts down; only for gauges, never below what was added.
    pub fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Returns the present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an ingress counts since its start.
#[derive(Debug, Default)]
pub struct IngressMetrics {
    /// Client connections accepted.
    pub accepted: Counter,
    /// Client connections open now (a gauge).
    pub open: Counter,
    /// Connections that reached a task of this node.
    pub connected_local: Counter,
    /// Connections that reached a task of another node.
    pub connected_remote: Counter,
    /// Client connections that no backend took in time; they were reset.
    pub given_up: Counter,
    /// Attempts at a backend that failed or were too slow.
    pub attempts_failed: Counter,
    /// Backends sent to rest.
    pub ejections: Counter,
    /// Times that accepting waited because the node forwards as many connections as it may.
    pub paused: Counter,
    /// Times that the kernel could not hand over a connection (out of file descriptors or memory).
    pub accept_errors: Counter,
    /// Tunnels from other nodes that were taken.
    pub tunnels_served: Counter,
    /// Tunnels from other nodes that did not reach a task.
    pub tunnels_refused: Counter,
    /// Bytes from clients to tasks.
    pub bytes_in: Counter,
    /// Bytes from tasks to clients.
    pub bytes_out: Counter,
}
