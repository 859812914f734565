//! The states of a task, in Swarm's order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a task is in its life. A task only moves forward; the order of the variants is that order.
///
/// Source: Docker Engine API v1.50, `TaskState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Exists.
    #[default]
    New,
    /// Waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node checked it and takes it.
    Accepted,
    /// The node gets image and container ready.
    Preparing,
    /// Could start at once.
    Ready,
    /// The container is being started.
    Starting,
    /// The container runs.
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Ended because it was told to.
    Shutdown,
    /// Ended with an error.
    Failed,
    /// The node refused or could not prepare it.
    Rejected,
    /// Is to be removed with everything it left.
    Remove,
    /// Its node is gone; derived from the view, never stored.
    Orphaned,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [TaskState; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Returns whether no container of the task runs or will run.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Returns the name that Docker's API uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TaskState {
    type Err = UnknownTaskState;
    fn from_str(text: &str) -> Result<Self, UnknownTaskState> {
        Self::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| UnknownTaskState(text.to_owned()))
    }
}

/// A text that names no task state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a task state")]
pub struct UnknownTaskState(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_are_in_order() {
        for pair in TaskState::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for state in TaskState::ALL {
            assert_eq!(state.name().parse(), Ok(state));
        }
        assert!("nosuch".parse::<TaskState>().is_err());
    }
}
