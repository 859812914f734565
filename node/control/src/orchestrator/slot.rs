//! Small things about one slot that need no cluster.

use shoal_protocol::TaskState;
use shoal_protocol::record::BODY_BYTES_MAX;
use shoal_protocol::settings::TASK_HISTORY_MAX;
use shoal_protocol::value::{Slot, SlotTask};

/// Bytes of a slot beyond which history is forgotten: a record has to hold the slot, with room for what [`weight`] leaves out.
const SLOT_BYTES_MAX: usize = BODY_BYTES_MAX - 32 * 1024;

/// What becomes of the tasks that a new one replaces if it has no node yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// They end whatever happens.
    Now,
    /// They stay wanted, and are adopted if their node is back first.
    Placed,
}

/// Returns whether a task is meant to run.
pub(super) fn is_current(task: &SlotTask) -> bool {
    task.desired <= TaskState::Running
}

/// Returns the position of the newest task that is meant to run.
pub(super) fn head(slot: &Slot) -> Option<usize> {
    slot.tasks.iter().position(is_current)
}

/// Returns whether the slot is one of the service's, rather than on its way out.
pub(super) fn is_live(slot: &Slot) -> bool {
    slot.tasks.iter().any(|task| task.desired != TaskState::Remove)
}

/// Ends a task: it becomes history.
pub(super) fn shut_down(task: &mut SlotTask, last_seen: Option<TaskState>, note: &str) {
    task.desired = TaskState::Shutdown;
    task.last_seen = last_seen;
    if !note.is_empty() {
        note.clone_into(&mut task.note);
    }
}

/// Tells all tasks to go and forgets those that have.
pub(super) fn discard(slot: &mut Slot, is_gone: impl Fn(&SlotTask) -> bool) {
    slot.tasks.retain(|task| !is_gone(task));
    for task in &mut slot.tasks {
        task.desired = TaskState::Remove;
    }
}

/// Tasks of a slot that were told to end and have not, at most. What a node still runs beyond, the node ends by itself.
const ENDING_MAX: u64 = TASK_HISTORY_MAX;

/// Forgets tasks that have gone, and the oldest of a history that is longer than `limit` or large. What still takes room on its node is
/// remembered longer.
pub(super) fn trim(slot: &mut Slot, limit: u64, is_gone: impl Fn(&SlotTask) -> bool) {
    slot.tasks.retain(|task| task.desired != TaskState::Remove || !is_gone(task));
    let mut bytes: usize = slot.current().map(weight).sum();
    let mut history = 0;
    slot.tasks.retain(|task| {
        if is_current(task) {
            return true;
        }
        history += 1;
        bytes = bytes.saturating_add(weight(task));
        let limit = if is_gone(task) { limit.min(TASK_HISTORY_MAX) } else { ENDING_MAX };
        // An update is judged by what it replaced, so that stays in any case; a record has room for two of the largest tasks.
        history <= 1 || (history <= limit && bytes <= SLOT_BYTES_MAX)
    });
}

/// Returns about how many bytes of a record a task takes.
fn weight(task: &SlotTask) -> usize {
    const PORT_BYTES: usize = 64;
    const OTHER_BYTES: usize = 128;
    let names = task.generic.variables().iter().map(String::len).sum::<usize>();
    task.template.len() + task.note.len() + task.ports.len() * PORT_BYTES + names + OTHER_BYTES
}
