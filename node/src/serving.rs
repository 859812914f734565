//! Connections to tasks of this node, counted where all of them pass: those that this node forwards itself, and those that
//! others tunnel here.
//!
//! A task that is about to be stopped gets no more of them from that moment, whatever a node believes that has not heard of it
//! yet: it is refused here, and tries another task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_protocol::TaskId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// The connections of a node's tasks.
#[derive(Debug, Default)]
pub struct Serving {
    tasks: Mutex<BTreeMap<TaskId, Served>>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Served {
    open: usize,
    retiring: usize,
}

/// A connection to a task, counted for as long as this lives.
#[derive(Debug)]
pub struct Connection {
    serving: Arc<Serving>,
    task: TaskId,
}

/// A task that gets no connections for as long as this lives.
#[derive(Debug)]
pub struct Retired {
    serving: Arc<Serving>,
    task: TaskId,
    /// Connections that were left when the wait for their end was over.
    pub left: usize,
}

impl Serving {
    /// Counts a connection to a task, unless it is about to be stopped.
    pub fn connect(self: &Arc<Self>, task: TaskId) -> Option<Connection> {
        let mut tasks = self.tasks();
        let served = tasks.entry(task).or_default();
        if served.retiring > 0 {
            return None;
        }
        served.open += 1;
        Some(Connection { serving: self.clone(), task })
    }

    /// Returns whether a task is about to be stopped.
    pub fn is_retired(&self, task: TaskId) -> bool {
        self.tasks().get(&task).is_some_and(|served| served.retiring > 0)
    }

    /// Lets a task get no more connections, and waits until those that it has are over, but not for longer than `limit`.
    pub async fn retire(self: &Arc<Self>, task: TaskId, limit: Duration) -> Retired {
        self.tasks().entry(task).or_default().retiring += 1;
        let mut retired = Retired { serving: self.clone(), task, left: 0 };
        let deadline = Instant::now() + limit;
        loop {
            // Before looking, so that an end in between is not missed.
            let ended = self.ended.notified();
            retired.left = self.open(task);
            if retired.left == 0 || timeout_at(deadline, ended).await.is_err() {
                return retired;
            }
        }
    }

    fn open(&self, task: TaskId) -> usize {
        self.tasks().get(&task).map_or(0, |served| served.open)
    }

    fn change(&self, task: TaskId, change: impl FnOnce(&mut Served)) {
        let mut tasks = self.tasks();
        let Some(served) = tasks.get_mut(&task) else { return };
        change(served);
        if served.open == 0 && served.retiring == 0 {
            tasks.remove(&task);
        }
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskId, Served>> {
        // Nothing under this lock leaves the counts half-changed, so a panic elsewhere does not make them unusable.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.serving.change(self.task, |served| served.open -= 1);
        self.serving.ended.notify_waiters();
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        self.serving.change(self.task, |served| served.retiring -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskId = TaskId(1);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_task_that_retires_gets_no_connections_and_ends_those_it_has() {
        let serving = Arc::new(Serving::default());
        let (first, second) = (serving.connect(TASK).unwrap(), serving.connect(TASK).unwrap());
        let other = serving.connect(TaskId(2)).unwrap();
        let retiring = tokio::spawn({
            let serving = serving.clone();
            async move { serving.retire(TASK, LONG).await }
        });
        tokio::task::yield_now().await;
        assert!(serving.is_retired(TASK) && serving.connect(TASK).is_none());
        assert!(serving.connect(TaskId(2)).is_some(), "others are not concerned");
        drop(first);
        tokio::task::yield_now().await;
        assert!(!retiring.is_finished(), "one connection is left");
        drop(second);
        let retired = retiring.await.unwrap();
        assert_eq!(retired.left, 0);
        assert!(serving.connect(TASK).is_none(), "it is not stopped yet");
        drop((retired, other));
        assert!(serving.connect(TASK).is_some(), "it was not stopped after all");
        assert!(serving.tasks().is_empty(), "nothing is kept of tasks without connections");
    }

    #[tokio::test]
    async fn a_connection_that_stays_is_waited_for_no_longer_than_the_limit() {
        let serving = Arc::new(Serving::default());
        let _kept = serving.connect(TASK).unwrap();
        let start = Instant::now();
        let retired = serving.retire(TASK, Duration::from_millis(20)).await;
        assert!(retired.left == 1 && start.elapsed() >= Duration::from_millis(20));
        assert_eq!(serving.retire(TASK, Duration::ZERO).await.left, 1);
    }
}
