//! What to show of a task: what its node says, or what follows from there being no node to say it.

use shoal_protocol::TaskState;
use shoal_protocol::value::{SlotTask, TaskReport};

/// A task's state for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// How far it is.
    pub state: TaskState,
    /// What happens.
    pub message: String,
    /// What went wrong or is missing; empty if nothing is.
    pub error: String,
}

/// Returns the state of a task. A task that has not ended on a failed node is orphaned, which is never stored.
pub fn effective(task: &SlotTask, report: Option<&TaskReport>, node_failed: bool) -> TaskView {
    let view =
        |state, message: &str, error: &str| TaskView { state, message: message.to_owned(), error: error.to_owned() };
    let ended = report.filter(|report| report.state.is_terminal());
    if let Some(report) = ended.or(if node_failed { None } else { report }) {
        return view(report.state, &report.message, &report.error);
    }
    if task.node.is_none() {
        return view(TaskState::Pending, "pending task scheduling", &task.note);
    }
    match task.last_seen.filter(|state| state.is_terminal()) {
        Some(state) => view(state, "ended", &task.note),
        None if node_failed => view(TaskState::Orphaned, "node is down", &task.note),
        None if task.desired > TaskState::Running => view(TaskState::Shutdown, "shutdown", &task.note),
        None => view(TaskState::Assigned, "scheduler assigned task to node", &task.note),
    }
}

/// Returns whether a task takes room on its node: it is meant to run and has not ended, or is to end and has not yet.
pub fn occupies(task: &SlotTask, report: Option<&TaskReport>) -> bool {
    task.node.is_some()
        && match report {
            Some(report) => !report.state.is_terminal(),
            None => task.desired <= TaskState::Running,
        }
}

/// Returns whether a task of a job has done the work of the run that the service's index `index` began. Its slot remembers
/// that when nobody reports it any more.
pub fn is_complete(task: &SlotTask, report: Option<&TaskReport>, index: u64) -> bool {
    let is_reported = report.is_some_and(|report| report.state == TaskState::Complete);
    task.index == index && (is_reported || task.last_seen == Some(TaskState::Complete))
}
