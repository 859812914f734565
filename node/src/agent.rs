//! Performs what the agent of `shoal-control` asks of the driver: one worker per task, in order, with deadlines.
//!
//! Decides nothing. Every call is answered by one report; an end is reported when it happens, before the answer to the stop
//! that brought it about.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_control::core::Withheld;
use shoal_control::task::{ContainerPlan, DriverCall, DriverReport, Running};
use shoal_protocol::TaskId;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::driver::files::{FileError, TaskFiles};
use crate::driver::{Driver, DriverError, Exit, HealthReport};
use crate::serving::Serving;

/// How long calls may take; one that takes longer is answered as failed.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    /// Preparing may copy an image's files into volumes.
    prepare: Duration,
    /// Starting takes milliseconds; this long only on a node that thrashes.
    start: Duration,
    /// What a stop may take beyond the grace of its task.
    stop_extra: Duration,
    /// Removing is quick, too.
    remove: Duration,
}

const DEADLINES: Deadlines = Deadlines {
    prepare: Duration::from_secs(5 * 60),
    start: Duration::from_secs(60),
    stop_extra: Duration::from_secs(30),
    remove: Duration::from_secs(60),
};

/// Containers prepared at a time, and started at a time; further ones wait, so that a hundred tasks do not stall a node.
pub const AT_ONCE_MAX: usize = 4;

/// Calls that wait for the worker of one task. The agent has one outstanding, so more is a fault of its caller: the call is
/// answered as failed.
pub const CALLS_MAX: usize = 4;

/// How long the answer to a stop waits for the end of the container to be seen.
const END_SEEN_MAX: Duration = Duration::from_secs(5);

/// First and longest delay before asking for a container's end or health again after the engine dropped the question.
const WAIT_AGAIN_MIN: Duration = Duration::from_millis(100);
const WAIT_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Exit code of a container that vanished: it was killed as far as anybody can tell.
const VANISHED_CODE: i32 = 137;

/// Starts the shell around a driver.
pub struct Agent;

impl Agent {
    /// Returns a handle through which calls are made. Connections that `serving` counts are waited for. Reports go to `reports`; while it is full, workers wait. When the last
    /// handle is dropped all work ends, and containers go on as they are.
    pub fn spawn(
        driver: Arc<dyn Driver>,
        files: TaskFiles,
        serving: Arc<Serving>,
        reports: mpsc::Sender<(TaskId, DriverReport)>,
    ) -> AgentHandle {
        Self::spawn_with(driver, files, serving, reports, DEADLINES)
    }

    fn spawn_with(
        driver: Arc<dyn Driver>,
        files: TaskFiles,
        serving: Arc<Serving>,
        reports: mpsc::Sender<(TaskId, DriverReport)>,
        deadlines: Deadlines,
    ) -> AgentHandle {
        let cancelled = CancellationToken::new();
        let shared = Arc::new(Shared {
            driver,
            files,
            serving,
            deadlines,
            reports,
            prepares: Semaphore::new(AT_ONCE_MAX),
            starts: Semaphore::new(AT_ONCE_MAX),
            cancelled: cancelled.clone(),
            tasks: Mutex::default(),
        });
        AgentHandle { shared, _guard: Arc::new(cancelled.drop_guard()) }
    }
}

/// Makes calls. Must be used within a Tokio runtime.
#[derive(Clone)]
pub struct AgentHandle {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

struct Shared {
    driver: Arc<dyn Driver>,
    files: TaskFiles,
    serving: Arc<Serving>,
    deadlines: Deadlines,
    reports: mpsc::Sender<(TaskId, DriverReport)>,
    prepares: Semaphore,
    starts: Semaphore,
    cancelled: CancellationToken,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    /// Calls of tasks that have a worker; the one being made is not among them.
    queues: BTreeMap<TaskId, VecDeque<DriverCall>>,
    /// Becomes true when the end of the container was reported.
    watched: BTreeMap<TaskId, Watched>,
}

struct Watched {
    ended: watch::Receiver<bool>,
    cancelled: CancellationToken,
}

impl AgentHandle {
    /// Makes a call after those that were made for the task before.
    pub fn call(&self, task: TaskId, call: DriverCall) {
        let mut tasks = self.shared.lock();
        match tasks.queues.get_mut(&task) {
            Some(queue) if queue.len() < CALLS_MAX => queue.push_back(call),
            Some(queue) => {
                tracing::error!(%task, waiting = queue.len(), "too many driver calls for one task");
                let shared = Arc::clone(&self.shared);
                let error = "too many driver calls wait".to_owned();
                tokio::spawn(async move { shared.report(task, DriverReport::Failed { error }).await });
            }
            None => {
                tasks.queues.insert(task, VecDeque::from([call]));
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    let cancelled = shared.cancelled.clone();
                    cancelled.run_until_cancelled(shared.work(task)).await;
                });
            }
        }
    }

    /// Watches a container that was found running.
    pub fn adopt(&self, task: TaskId) {
        self.shared.watch(task);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn report(&self, task: TaskId, report: DriverReport) {
        tracing::debug!(%task, ?report, "driver report");
        if self.reports.send((task, report)).await.is_err() {
            tracing::debug!(%task, "nobody takes driver reports any more");
        }
    }

    async fn work(self: &Arc<Self>, task: TaskId) {
        while let Some(call) = self.next_call(task) {
            let report = self.perform(task, call).await;
            let started = matches!(report, DriverReport::Started(_));
            self.report(task, report).await;
            if started {
                self.watch(task); // after the report, so that an end never comes before the beginning
            }
        }
    }

    fn next_call(&self, task: TaskId) -> Option<DriverCall> {
        let mut tasks = self.lock();
        let call = tasks.queues.get_mut(&task).and_then(VecDeque::pop_front);
        if call.is_none() {
            tasks.queues.remove(&task);
        }
        call
    }

    async fn perform(self: &Arc<Self>, task: TaskId, call: DriverCall) -> DriverReport {
        match call {
            DriverCall::Prepare(plan) => match self.prepare(&plan).await {
                Ok(container_id) => DriverReport::Prepared { container_id },
                Err(FileError::Withheld(Withheld::NotYet(reason))) => {
                    tracing::debug!(%task, reason, "a task waits for a file");
                    DriverReport::NotYet { reason }
                }
                Err(FileError::Withheld(Withheld::Refused(error))) => {
                    tracing::warn!(%task, error, "a task cannot have a file");
                    DriverReport::Rejected { error }
                }
                Err(FileError::Memory(error)) => {
                    self.files.remove(task);
                    failure(task, "prepare", &error)
                }
            },
            DriverCall::Start(task) => {
                let started = self.start(task).await;
                self.files.remove(task);
                match started {
                    Ok(running) => DriverReport::Started(running),
                    Err(error) => failure(task, "start", &error),
                }
            }
            DriverCall::Stop { task, grace, drain } => {
                // Held until it has ended: whoever has not heard of that yet is refused, and tries another task.
                let retired = self.serving.retire(task, drain).await;
                if retired.left > 0 && !drain.is_zero() {
                    tracing::info!(%task, connections = retired.left, ?drain, "connections are left to a task that is stopped");
                }
                let deadline = grace.saturating_add(self.deadlines.stop_extra);
                match within(deadline, "stop", self.driver.stop(task)).await {
                    Ok(()) | Err(DriverError::NoSuchTask(_)) => {
                        self.end_seen(task).await;
                        DriverReport::Stopped
                    }
                    Err(error) => failure(task, "stop", &error),
                }
            }
            DriverCall::Remove(task) => match within(self.deadlines.remove, "remove", self.driver.remove(task)).await {
                Ok(()) | Err(DriverError::NoSuchTask(_)) => {
                    self.files.remove(task);
                    if let Some(watched) = self.lock().watched.remove(&task) {
                        watched.cancelled.cancel();
                    }
                    DriverReport::Removed
                }
                Err(error) => failure(task, "remove", &error),
            },
        }
    }

    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, FileError> {
        let ContainerPlan { task, service, name, image, .. } = plan;
        tracing::debug!(%task, %service, name, image, "preparing a task");
        if !within(self.deadlines.start, "look for the image", self.driver.has_image(&plan.image)).await? {
            let auth = self.files.credentials(plan.task).await?;
            // How long that may take is the driver's affair; a slow one must not hold up tasks whose images are there.
            self.driver.pull(&plan.image, auth.as_ref()).await?;
        }
        let plan = self.files.provide(plan).await?;
        let _permit = self.prepares.acquire().await; // the semaphore is never closed
        Ok(within(self.deadlines.prepare, "prepare", self.driver.prepare(&plan)).await?)
    }

    async fn start(&self, task: TaskId) -> Result<Running, DriverError> {
        let _permit = self.starts.acquire().await;
        within(self.deadlines.start, "start", self.driver.start(task)).await
    }

    async fn end_seen(&self, task: TaskId) {
        let ended = self.lock().watched.get(&task).map(|watched| watched.ended.clone());
        if let Some(mut ended) = ended
            && tokio::time::timeout(END_SEEN_MAX, ended.wait_for(|ended| *ended)).await.is_err()
        {
            tracing::warn!(%task, "the container was stopped, but its end was not seen");
        }
    }

    fn watch(self: &Arc<Self>, task: TaskId) {
        let mut tasks = self.lock();
        if tasks.watched.get(&task).is_some_and(|watched| !*watched.ended.borrow()) {
            return;
        }
        let (sender, ended) = watch::channel(false);
        let cancelled = self.cancelled.child_token();
        tasks.watched.insert(task, Watched { ended, cancelled: cancelled.clone() });
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            cancelled
                .run_until_cancelled(async {
                    let Exit { code, error } = tokio::select! {
                        exit = shared.wait(task) => exit,
                        never = shared.follow_health(task) => match never {},
                    };
                    shared.report(task, DriverReport::Exited { code, error }).await;
                    sender.send_replace(true);
                })
                .await;
        });
    }

    /// Reports what a container's health check finds, for as long as it is polled.
    async fn follow_health(&self, task: TaskId) -> Infallible {
        let (mut known, mut delay) = (None, WAIT_AGAIN_MIN);
        loop {
            match self.driver.health(task, known).await {
                Ok(Some(HealthReport { status, output })) => {
                    (known, delay) = (Some(status), WAIT_AGAIN_MIN);
                    self.report(task, DriverReport::Health { status, output }).await;
                }
                Ok(None) => return future::pending().await,
                Err(error) => {
                    // Its end is seen by whoever waits for it.
                    tracing::debug!(%task, error = chain(&error), "lost sight of a container's health; asking again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(WAIT_AGAIN_MAX);
                }
            }
        }
    }

    /// Waits for the end of a container, however often the engine restarts meanwhile: asking again tells what became of it.
    async fn wait(&self, task: TaskId) -> Exit {
        let mut delay = WAIT_AGAIN_MIN;
        loop {
            match self.driver.wait(task).await {
                Ok(exit) => return exit,
                Err(DriverError::NoSuchTask(_)) => {
                    return Exit { code: VANISHED_CODE, error: "its container was removed".to_owned() };
                }
                Err(
                    error @ (DriverError::NoSuchImage { .. }
                    | DriverError::NotPulled { .. }
                    | DriverError::Refused(_)
                    | DriverError::Invalid(_)
                    | DriverError::Full { .. }
                    | DriverError::Failed { .. }),
                ) => {
                    tracing::debug!(%task, error = chain(&error), "lost the wait for a container; asking again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(WAIT_AGAIN_MAX);
                }
            }
        }
    }
}

async fn within<T>(
    deadline: Duration,
    what: &str,
    call: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
        let source = format!("no answer from the engine within {deadline:?}").into();
        Err(DriverError::Failed { what: what.to_owned(), source })
    })
}

fn failure(task: TaskId, what: &str, error: &DriverError) -> DriverReport {
    let text = chain(error);
    tracing::warn!(%task, call = what, error = text, "driver call failed");
    match error {
        DriverError::NoSuchImage { .. }
        | DriverError::NotPulled { .. }
        | DriverError::Refused(_)
        | DriverError::Full { .. } => DriverReport::Rejected { error: text },
        DriverError::Invalid(_) | DriverError::NoSuchTask(_) | DriverError::Failed { .. } => {
            DriverReport::Failed { error: text }
        }
    }
}

/// Returns an error with its sources, except those that its own message repeats.
fn chain(error: &DriverError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
