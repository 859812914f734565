//! The threads that forward connections.
//!
//! Each lane is one thread with a runtime of its own, and a connection to a task of this node stays on the lane that it was given:
//! on a busy node neither a wake-up nor a lock crosses threads for a byte that is forwarded, and what is forwarded does not stand
//! in the way of the cluster's own work, since the kernel divides the processors between them. Who accepts a connection gives it
//! to the lane that has fewest: were all lanes to accept, each new connection would wake them all, and a few long ones could
//! all be one lane's while the others are idle.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

/// Lanes at most, however many processors there are.
const LANES_MAX: usize = 16;

/// The threads on which TCP connections are accepted, and forwarded if not through a tunnel. They end when the last clone is
/// dropped; ports and connections that are open have one.
#[derive(Debug, Clone)]
pub struct Lanes {
    lanes: Arc<[Lane]>,
    _running: Option<Arc<DropGuard>>,
}

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

/// A connection's place on a lane, for as long as this lives.
pub(super) struct Place(Arc<AtomicUsize>);

impl Lanes {
    /// Starts a thread for each processor.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(LANES_MAX);
        let ended = CancellationToken::new();
        let running = Arc::new(ended.clone().drop_guard());
        let mut lanes = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            lanes.push(Lane::new(runtime.handle().clone()));
            let ended = ended.clone();
            thread::Builder::new().name(format!("ingress-{number}")).spawn(move || {
                run_in_batches();
                runtime.block_on(ended.cancelled());
            })?;
        }
        Ok(Self { lanes: lanes.into(), _running: Some(running) })
    }

    /// Forwards on the runtime of the caller, without threads.
    #[cfg(test)]
    pub fn here() -> Self {
        Self { lanes: [Lane::new(Handle::current())].into(), _running: None }
    }

    /// Returns where the connections of a port are accepted.
    pub(super) fn acceptor(&self, port: u16) -> &Handle {
        &self.own(port).runtime
    }

    /// Forwards a connection of a port by what `forward` makes of its place.
    ///
    /// That is on the lane of the port's acceptor, which needs to wake nobody for it, unless another one has clearly fewer: then
    /// on the one that has fewest.
    pub(super) fn spawn<F>(&self, port: u16, forward: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let own = self.own(port);
        let least = self.lanes.iter().min_by_key(|lane| lane.count()).unwrap_or(own);
        let lane = if own.count() * 4 <= least.count() * 5 { own } else { least };
        lane.connections.fetch_add(1, Ordering::Relaxed);
        lane.runtime.spawn(forward(Place(lane.connections.clone())));
    }

    /// Returns a port's own lane: ports are spread over the lanes by their numbers.
    fn own(&self, port: u16) -> &Lane {
        &self.lanes[usize::from(port) % self.lanes.len()]
    }
}

impl Lane {
    fn new(runtime: Handle) -> Self {
        Self { runtime, connections: Arc::default() }
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Lets whoever runs finish what it does when bytes arrive for this thread, instead of stopping it at once (`SCHED_BATCH`,
/// sched(7)): where processors are busy, a task then writes more before it is read from, and a wake-up moves more bytes.
fn run_in_batches() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call, which concerns the calling thread alone.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter) } != 0 {
        debug!(error = %io::Error::last_os_error(), "threads that forward connections run as any other");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a connection to a lane and returns its place there, and the name of the thread that it is forwarded on.
    async fn placed(lanes: &Lanes, port: u16) -> (Place, Option<String>) {
        let (told, telling) = tokio::sync::oneshot::channel();
        lanes.spawn(port, |place| async move {
            let _ = told.send((place, thread::current().name().map(str::to_owned)));
        });
        telling.await.unwrap()
    }

    #[tokio::test]
    async fn connections_are_shared_out_evenly() {
        let lanes = Lanes { lanes: (0..3).map(|_| Lane::new(Handle::current())).collect(), _running: None };
        let counts = || -> Vec<usize> { lanes.lanes.iter().map(Lane::count).collect() };
        let first = placed(&lanes, 8081).await;
        assert_eq!(counts(), [0, 0, 1], "the acceptor's own lane, where all are alike");
        let _second = (placed(&lanes, 8081).await, placed(&lanes, 8081).await);
        assert_eq!(counts(), [1, 1, 1]);
        drop(first);
        let mut many = Vec::new();
        for _ in 0..30 {
            many.push(placed(&lanes, 8080).await);
        }
        let of_many = counts();
        assert_eq!(of_many.iter().sum::<usize>(), 32);
        assert!(of_many.iter().all(|count| (9..=13).contains(count)), "{of_many:?}");
        drop(many);
        assert_eq!(counts(), [1, 1, 0]);
        let _other = placed(&lanes, 8080).await;
        assert_eq!(counts(), [1, 1, 1], "the lane that has none, though others have but one");
    }

    #[tokio::test]
    async fn connections_are_forwarded_on_the_lane_they_were_given_to() {
        let lanes = Lanes::start().unwrap();
        let mut held = Vec::new();
        for number in 0..lanes.lanes.len() {
            let port = u16::try_from(number).unwrap();
            let (place, thread) = placed(&lanes, port).await;
            assert_eq!(thread, Some(format!("ingress-{number}")));
            held.push(place);
        }
        drop(held.pop());
        let last = lanes.lanes.len() - 1;
        let (_place, thread) = placed(&lanes, 0).await;
        assert_eq!(thread, Some(format!("ingress-{last}")), "the lane that has none, not the acceptor's");
    }

    #[tokio::test]
    async fn each_lane_is_a_thread_that_preempts_nobody() {
        let lanes = Lanes::start().unwrap();
        for (number, lane) in lanes.lanes.iter().enumerate() {
            let asked = lane.runtime.spawn(async {
                // SAFETY: the call takes no pointer and concerns the calling thread alone.
                let policy = unsafe { libc::sched_getscheduler(0) };
                (thread::current().name().map(str::to_owned), policy)
            });
            assert_eq!(asked.await.unwrap(), (Some(format!("ingress-{number}")), libc::SCHED_BATCH));
        }
    }
}
