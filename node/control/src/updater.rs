//! How a changed spec reaches the tasks: which slots are replaced next, and where the update stands.
//!
//! A decision from a snapshot of the service's slots: what was done so far is read off the slots themselves, so another
//! holder goes on where the last one stopped; only the times at which tasks were seen to run are its own observation. Policy
//! and texts are Swarm's. Source: SwarmKit, `orchestrator/update`.

use std::time::Duration;

use shoal_protocol::record::SlotName;
use shoal_protocol::spec::UpdateConfig;
use shoal_protocol::value::{Progress, UpdateState};
use shoal_protocol::{Now, TaskId, Time};

/// How a slot stands towards the service's current spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Runs or ran an older spec.
    Dirty {
        /// Whether its task runs; slots that serve nobody are replaced first.
        running: bool,
    },
    /// Between two tasks: the old one stops or the new one starts.
    Moving,
    /// Runs the current spec.
    Running {
        /// When this holder first saw it run.
        since: Time,
        /// Whether its task was made for the current index, so that its end counts.
        updated: bool,
    },
    /// Needs nothing from the update: it waits for a restart or for room, or has done its work.
    Settled,
}

/// What the next step is decided from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The policy in force, gaps filled in: the service's for roll-backs when it rolls back, else for updates.
    pub policy: &'a UpdateConfig,
    /// Whether the service's spec is its previous one, taken back.
    pub rolls_back: bool,
    /// The service's index.
    pub index: u64,
    /// Where the last update stands.
    pub progress: Option<&'a Progress>,
    /// All slots that are meant to be filled.
    pub slots: &'a [(SlotName, Phase)],
    /// How many tasks of this update ended before their monitor period was over.
    pub failures: usize,
    /// The last of them.
    pub failed: Option<TaskId>,
    /// The present moment.
    pub now: Now,
}

/// What to do next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Slots whose task is to be replaced now.
    pub start: Vec<SlotName>,
    /// What to store: `Some(None)` forgets an update that the present spec has overtaken.
    pub progress: Option<Option<Progress>>,
    /// When to look again though nothing happens.
    pub wake: Option<Time>,
}

/// Decides the next step of an update. Without dirty slots and without an update under way it does nothing.
pub fn step(input: &Input<'_>) -> Step {
    let mut dirty: Vec<(bool, SlotName)> = Vec::new();
    for &(name, phase) in input.slots {
        if let Phase::Dirty { running } = phase {
            dirty.push((running, name));
        }
    }
    dirty.sort_unstable();
    let Some(progress) = input.progress.filter(|progress| progress.index == input.index) else {
        return match (dirty.is_empty(), input.progress) {
            (false, _) => begin(input, &dirty),
            // Whoever asked for it is told how it ended, though there may be no task to change.
            (true, _) if input.rolls_back => begin(input, &dirty),
            (true, Some(_)) => Step { progress: Some(None), ..Step::default() },
            (true, None) => Step::default(),
        };
    };
    match progress.state {
        UpdateState::Paused | UpdateState::RollbackPaused => Step::default(),
        UpdateState::Completed | UpdateState::RollbackCompleted if dirty.is_empty() => Step::default(),
        UpdateState::Completed | UpdateState::RollbackCompleted => begin(input, &dirty),
        // The previous spec is not in force yet.
        UpdateState::RollbackStarted if !input.rolls_back => Step::default(),
        UpdateState::Updating | UpdateState::RollbackStarted => go_on(input, progress, &dirty),
    }
}

/// Returns whether an update of the present spec has failed so that the previous one is to be taken back.
pub fn wants_rollback(progress: &Progress, index: u64, rolls_back: bool) -> bool {
    progress.state == UpdateState::RollbackStarted && progress.index == index && !rolls_back
}

fn begin(input: &Input<'_>, dirty: &[(bool, SlotName)]) -> Step {
    let (state, message) = match input.progress {
        _ if !input.rolls_back => (UpdateState::Updating, "update in progress"),
        Some(failed) if wants_rollback(failed, input.index.saturating_sub(1), false) => {
            (UpdateState::RollbackStarted, failed.message.as_str())
        }
        Some(_) | None => (UpdateState::RollbackStarted, "manually requested rollback"),
    };
    let message = message.to_owned();
    let progress = Progress { index: input.index, state, started: input.now.wall, completed: None, message };
    Step { progress: Some(Some(progress)), ..batch(input, dirty) }
}

fn go_on(input: &Input<'_>, progress: &Progress, dirty: &[(bool, SlotName)]) -> Step {
    let store = |progress| Step { progress: Some(Some(progress)), ..Step::default() };
    if let Some(task) = input.failed
        && input.policy.failure_action != "continue"
        && input.failures as f64 > input.policy.max_failure_ratio * input.slots.len() as f64
    {
        let (state, what) = match (input.rolls_back, input.policy.failure_action.as_str()) {
            (true, _) => (UpdateState::RollbackPaused, "rollback paused"),
            (false, "rollback") => (UpdateState::RollbackStarted, "update rolled back"),
            (false, _) => (UpdateState::Paused, "update paused"),
        };
        let message = format!("{what} due to failure or early termination of task {task}");
        return store(Progress { state, message, ..progress.clone() });
    }
    if !dirty.is_empty() {
        return batch(input, dirty);
    }
    if input.slots.iter().any(|(_, phase)| *phase == Phase::Moving) {
        return Step::default();
    }
    match pending_ends(input, Duration::from_nanos(input.policy.monitor)).max() {
        Some(watched_until) => Step { wake: Some(watched_until), ..Step::default() },
        None => {
            let (state, message) = if input.rolls_back {
                (UpdateState::RollbackCompleted, "rollback completed")
            } else {
                (UpdateState::Completed, "update completed")
            };
            let completed = Some(input.now.wall);
            store(Progress { state, completed, message: message.to_owned(), ..progress.clone() })
        }
    }
}

/// Returns the moments that lie ahead at which updated tasks will have run for `period`.
fn pending_ends(input: &Input<'_>, period: Duration) -> impl Iterator<Item = Time> {
    let now = input.now.time;
    input.slots.iter().filter_map(move |(_, phase)| match *phase {
        Phase::Running { since, updated: true } => Some(since + period).filter(|end| *end > now),
        Phase::Running { updated: false, .. } | Phase::Dirty { .. } | Phase::Moving | Phase::Settled => None,
    })
}

/// Takes as many dirty slots as the policy lets be under way: those between two tasks, and those whose delay is not over,
/// count against it.
fn batch(input: &Input<'_>, dirty: &[(bool, SlotName)]) -> Step {
    let delay = Duration::from_nanos(input.policy.delay);
    let moving = input.slots.iter().filter(|(_, phase)| *phase == Phase::Moving).count();
    let resting = pending_ends(input, delay).count();
    let allowed = match usize::try_from(input.policy.parallelism) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(parallelism) => parallelism,
    };
    let free = allowed.saturating_sub(moving + resting);
    let start: Vec<SlotName> = dirty.iter().take(free).map(|&(_, name)| name).collect();
    let wake = if start.len() < dirty.len() { pending_ends(input, delay).min() } else { None };
    Step { start, progress: None, wake }
}

#[cfg(test)]
mod tests;
