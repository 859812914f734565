//! One task on its node: what its container is like, which call is outstanding, and what to do next.
//!
//! Knows nothing of other tasks, of records or of time beyond back-off. The state moves forward only: whatever happens after
//! a task has ended can be about its container, never about the task.

use std::time::Duration;

use shoal_protocol::record::SlotName;
use shoal_protocol::value::TaskReport;
use shoal_protocol::{Now, ServiceId, TaskState, Time, WallTime};

use super::health::HealthStatus;
use super::{DriverReport, Found, FoundState, Running};

/// Failed attempts to stop a container after which it is removed by force, its output with it.
pub const STOP_ATTEMPTS_MAX: u32 = 3;

/// Wait after the first failed attempt to stop or remove; doubles up to [`RETRY_DELAY_MAX`].
pub const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// Wait between failed attempts at most. Attempts never end: a container that cannot be removed is a leak to be reported, and
/// an engine that comes back after an hour must still be asked.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// Wait before a task is prepared again that lacks something; doubles up to [`PREPARE_DELAY_MAX`]. It waits as long as it is
/// wanted.
pub const PREPARE_DELAY_MIN: Duration = Duration::from_millis(250);

/// Wait before such a task is prepared again at most.
pub const PREPARE_DELAY_MAX: Duration = Duration::from_secs(8);

/// Bytes of an error text that are kept; drivers' errors are written by others and travel to every node.
pub const ERROR_BYTES_MAX: usize = 512;

/// Why a task ended whose container was not well, in Docker's words.
const UNHEALTHY: &str = "dockerexec: unhealthy container";

/// Bytes of the last check's output that an error repeats.
const CHECK_OUTPUT_BYTES_MAX: usize = 200;

/// What is known of a task's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// There is none.
    Absent,
    /// It may have been made, but was never started.
    Created,
    /// It runs.
    Running,
    /// It ran.
    Ended,
    /// Starting it failed in a way that does not tell whether it runs.
    Unknown,
}

/// The kinds of driver call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Image and container.
    Prepare,
    /// Of a prepared container.
    Start,
    /// With its grace.
    Stop,
    /// Of everything.
    Remove,
}

/// What the node does with a task, derived from what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Leave as it is: nothing is known for certain.
    Keep,
    /// Get ready and wait.
    Ready,
    /// Run.
    Run,
    /// End, and keep what it wrote.
    Stop,
    /// End and remove everything.
    Discard,
}

/// One task on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// What the node says of it.
    pub status: TaskReport,
    /// What is known of its container.
    pub container: Container,
    /// The outstanding call.
    pub call: Option<Call>,
    /// Failed attempts to stop or remove since the last that worked.
    pub attempts: u32,
    /// No call before this.
    pub retry: Time,
    /// Why its container is to end although it runs: it is not well. That is never taken back.
    pub unhealthy: Option<String>,
}

/// Advances a task by one report, or by the passing of time, towards a goal. Returns the call to make, which is then
/// outstanding.
pub fn step(mut life: Life, goal: Goal, report: Option<DriverReport>, now: Now) -> (Life, Option<Call>) {
    if let Some(report) = report {
        life.observe(report, goal, now);
    }
    let call = life.decide(goal, now);
    (life, call)
}

impl Life {
    /// Returns the life of a task that was just assigned.
    pub fn assigned(service: ServiceId, slot: SlotName, now: Now) -> Self {
        let status = TaskReport {
            service,
            slot,
            state: TaskState::Assigned,
            since: now.wall,
            message: "assigned".to_owned(),
            error: String::new(),
            container_id: String::new(),
            pid: 0,
            exit_code: None,
            address: None,
        };
        Self { status, container: Container::Absent, call: None, attempts: 0, retry: Time(0), unhealthy: None }
    }

    /// Returns the life of a task whose container was there when the daemon started. `told_to_end` is whether the cluster
    /// wants it to have ended: then an end without a code of its own was its stop.
    pub fn adopted(found: &Found, told_to_end: bool, now: Now) -> Self {
        let mut life = Self::assigned(found.service, found.slot, now);
        match &found.state {
            FoundState::Created => life.container = Container::Created,
            FoundState::Running(running) => life.started(running.clone(), now),
            FoundState::Exited { code } => {
                life.container = Container::Running;
                let stopped = told_to_end && matches!(code, 0 | 137 | 143);
                life.ended(*code, "", stopped, now);
            }
        }
        life
    }

    /// Moves the state forward; a state that lies behind changes nothing.
    pub fn advance(&mut self, state: TaskState, message: &str, since: WallTime) {
        if state > self.status.state {
            self.status.state = state;
            self.status.message = message.to_owned();
            self.status.since = since;
        }
    }

    /// Ends the task with an error; the message goes on telling how far it had come.
    pub fn fail(&mut self, state: TaskState, error: &str, now: Now) {
        if !self.status.state.is_terminal() {
            self.status.state = state;
            self.status.since = now.wall;
            self.status.error = shorten(error, ERROR_BYTES_MAX);
        }
    }

    fn observe(&mut self, report: DriverReport, goal: Goal, now: Now) {
        match report {
            DriverReport::Prepared { container_id } => {
                if self.answered(Call::Prepare) {
                    self.settled();
                    if !self.status.state.is_terminal() {
                        self.status.error.clear(); // what was lacking is there
                    }
                    self.status.container_id = container_id;
                    self.advance(TaskState::Ready, "prepared", now.wall);
                }
            }
            DriverReport::NotYet { reason } => {
                if self.answered(Call::Prepare) {
                    let doublings = self.attempts.min(16);
                    self.attempts = self.attempts.saturating_add(1);
                    self.retry = now.time + (PREPARE_DELAY_MIN * 2u32.pow(doublings)).min(PREPARE_DELAY_MAX);
                    if !self.status.state.is_terminal() {
                        self.status.error = shorten(&reason, ERROR_BYTES_MAX);
                    }
                }
            }
            DriverReport::Started(running) => {
                if self.answered(Call::Start) {
                    self.started(running, now);
                }
            }
            DriverReport::Rejected { error } => self.call_failed(TaskState::Rejected, &error, now),
            DriverReport::Failed { error } => self.call_failed(TaskState::Failed, &error, now),
            DriverReport::Exited { code, error } => {
                self.ended(code, &error, matches!(goal, Goal::Stop | Goal::Discard), now);
            }
            DriverReport::Health { status, output } => self.checked(status, &output, now),
            DriverReport::Stopped => {
                if self.answered(Call::Stop) {
                    self.gone(Container::Ended, goal, now);
                }
            }
            DriverReport::Removed => {
                if self.answered(Call::Remove) {
                    self.gone(Container::Absent, goal, now);
                }
            }
        }
    }

    fn decide(&mut self, goal: Goal, now: Now) -> Option<Call> {
        if self.call.is_some() {
            if matches!(goal, Goal::Stop | Goal::Discard) && self.call == Some(Call::Prepare) {
                self.advance_to_end(now);
            }
            return None;
        }
        let ends = matches!(goal, Goal::Stop | Goal::Discard);
        if now.time < self.retry && !(ends && self.status.state == TaskState::Preparing) {
            return None;
        }
        let call = match goal {
            Goal::Keep => self.stop_if_unfit(),
            Goal::Ready | Goal::Run => self.forward(goal, now),
            Goal::Stop => match self.container {
                Container::Running | Container::Unknown => Some(self.stop_or_force()),
                Container::Absent | Container::Created | Container::Ended => {
                    self.advance_to_end(now);
                    None
                }
            },
            Goal::Discard => match self.container {
                Container::Running | Container::Unknown => Some(self.stop_or_force()),
                Container::Created | Container::Ended => {
                    self.advance_to_end(now);
                    Some(Call::Remove)
                }
                Container::Absent => {
                    self.advance_to_end(now);
                    self.advance(TaskState::Remove, "removed", now.wall);
                    None
                }
            },
        };
        if call.is_none() {
            self.attempts = 0; // nothing is left to be tried again
            self.retry = Time(0);
        }
        self.call = call;
        call
    }

    fn forward(&mut self, goal: Goal, now: Now) -> Option<Call> {
        match self.status.state {
            TaskState::New | TaskState::Pending | TaskState::Assigned => None, // not admitted
            TaskState::Accepted => {
                self.advance(TaskState::Preparing, "preparing", now.wall);
                self.container = Container::Created;
                Some(Call::Prepare)
            }
            TaskState::Ready if goal == Goal::Run => {
                self.advance(TaskState::Starting, "starting", now.wall);
                Some(Call::Start)
            }
            TaskState::Preparing => Some(Call::Prepare), // something was lacking
            TaskState::Ready => None,
            TaskState::Starting
            | TaskState::Running
            | TaskState::Complete
            | TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Remove
            | TaskState::Orphaned => self.stop_if_unfit(),
        }
    }

    /// A start that failed may have left a container running though the task has failed: never leave that open. One that is
    /// not well ends on its node's own judgement.
    fn stop_if_unfit(&self) -> Option<Call> {
        match self.container {
            Container::Unknown => Some(self.stop_or_force()),
            Container::Running if self.unhealthy.is_some() => Some(self.stop_or_force()),
            Container::Absent | Container::Created | Container::Running | Container::Ended => None,
        }
    }

    fn stop_or_force(&self) -> Call {
        if self.attempts < STOP_ATTEMPTS_MAX { Call::Stop } else { Call::Remove }
    }

    fn answered(&mut self, call: Call) -> bool {
        let answered = self.call == Some(call);
        if answered {
            self.call = None;
        }
        answered
    }

    fn call_failed(&mut self, state: TaskState, error: &str, now: Now) {
        match self.call.take() {
            None => {}
            Some(Call::Prepare) => self.fail(state, error, now),
            Some(Call::Start) => {
                self.container = Container::Unknown;
                self.fail(state, error, now);
            }
            Some(Call::Stop) => self.retry_later("stop", error, now),
            Some(Call::Remove) => self.retry_later("remove", error, now),
        }
    }

    fn retry_later(&mut self, what: &str, error: &str, now: Now) {
        let doublings = self.attempts.min(16);
        self.attempts = self.attempts.saturating_add(1);
        self.retry = now.time + (RETRY_DELAY_MIN * 2u32.pow(doublings)).min(RETRY_DELAY_MAX);
        if !self.status.state.is_terminal() {
            self.status.error = shorten(&format!("failed to {what} its container: {error}"), ERROR_BYTES_MAX);
        }
    }

    fn settled(&mut self) {
        if self.attempts > 0 && !self.status.state.is_terminal() {
            self.status.error.clear();
        }
        self.attempts = 0;
        self.retry = Time(0);
    }

    fn started(&mut self, running: Running, now: Now) {
        self.container = Container::Running;
        self.status.container_id = running.container_id;
        self.status.pid = running.pid;
        self.status.address = running.address;
        match running.health {
            None | Some(HealthStatus::Healthy) => self.advance(TaskState::Running, "started", running.started),
            Some(HealthStatus::Starting) => self.advance(TaskState::Starting, "starting", running.started),
            Some(HealthStatus::Unhealthy) => {
                self.advance(TaskState::Starting, "starting", running.started);
                self.checked(HealthStatus::Unhealthy, "", now);
            }
        }
    }

    /// Takes in how the container's check finds it. Until it is well for the first time, the task is still starting.
    fn checked(&mut self, status: HealthStatus, output: &str, now: Now) {
        if self.container != Container::Running || self.unhealthy.is_some() {
            return;
        }
        match status {
            HealthStatus::Starting => {}
            HealthStatus::Healthy => self.advance(TaskState::Running, "started", now.wall),
            HealthStatus::Unhealthy => {
                let words: Vec<&str> = output.split_whitespace().collect();
                let output = shorten(&words.join(" "), CHECK_OUTPUT_BYTES_MAX);
                let colon = if output.is_empty() { "" } else { ": " };
                self.unhealthy = Some(format!("{UNHEALTHY}{colon}{output}"));
                self.status.address = None; // nobody is sent there any more
            }
        }
    }

    /// Nothing of the container runs any more, and the call that saw to it is done.
    fn gone(&mut self, container: Container, goal: Goal, now: Now) {
        self.settled();
        self.container = container;
        self.status.pid = 0;
        self.status.address = None;
        match self.unhealthy.clone() {
            Some(why) if !matches!(goal, Goal::Stop | Goal::Discard) => {
                self.fail(TaskState::Failed, &format!("task: {why}"), now);
            }
            Some(_) | None => self.advance_to_end(now),
        }
    }

    fn ended(&mut self, code: i32, error: &str, stopped: bool, now: Now) {
        match self.container {
            Container::Absent | Container::Created | Container::Ended => return,
            Container::Running | Container::Unknown => self.container = Container::Ended,
        }
        self.status.pid = 0;
        self.status.address = None;
        self.status.exit_code = Some(code);
        if stopped {
            self.advance_to_end(now);
        } else if let Some(why) = self.unhealthy.clone() {
            // One that ends well when asked to has failed all the same.
            let code = if code == 0 { String::new() } else { format!("non-zero exit ({code}): ") };
            self.fail(TaskState::Failed, &format!("task: {code}{why}"), now);
        } else if code == 0 && error.is_empty() {
            self.advance(TaskState::Complete, "finished", now.wall);
        } else {
            let colon = if error.is_empty() { "" } else { ": " };
            self.fail(TaskState::Failed, &format!("task: non-zero exit ({code}){colon}{error}"), now);
        }
    }

    /// Shuts a task down that has not ended otherwise; one that has keeps how it did.
    fn advance_to_end(&mut self, now: Now) {
        if !self.status.state.is_terminal() {
            self.status.error.clear();
            self.advance(TaskState::Shutdown, "shutdown", now.wall);
        }
    }
}

fn shorten(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
