//! The threads that forward connections.
//!
//! Each lane is one thread with a runtime of its own, and a connection to a task of this node stays on the lane that accepted it:
//! on a busy node neither a wake-up nor a lock crosses threads for a byte that is forwarded, and what is forwarded does not stand
//! in the way of the cluster's own work, since the kernel divides the processors between them.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Lanes at most, however many processors there are.
const LANES_MAX: usize = 16;

/// Where connections are accepted, and forwarded if not through a tunnel. The threads end, and their connections with them, when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Lanes {
    handles: Arc<[Handle]>,
    _running: Option<Arc<DropGuard>>,
}

impl Lanes {
    /// Starts a thread for each processor.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(LANES_MAX);
        let ended = CancellationToken::new();
        let running = Arc::new(ended.clone().drop_guard());
        let mut handles = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let ended = ended.clone();
            thread::Builder::new()
                .name(format!("ingress-{number}"))
                .spawn(move || runtime.block_on(ended.cancelled()))?;
        }
        Ok(Self { handles: handles.into(), _running: Some(running) })
    }

    /// Forwards on the runtime of the caller, without threads.
    #[cfg(test)]
    pub fn here() -> Self {
        Self { handles: [Handle::current()].into(), _running: None }
    }

    /// Returns the runtimes, of which there is at least one.
    pub(super) fn handles(&self) -> &[Handle] {
        &self.handles
    }
}
