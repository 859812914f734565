//! Tasks that have to leave their node, or have lost it, and what goes on until others do their work.

use std::time::Duration;

use shoal_protocol::TaskState;
use shoal_protocol::record::SlotName;
use shoal_protocol::value::{Slot, SlotTask};

use super::Work;
use crate::orchestrator::slot::{Until, is_current};
use crate::orchestrator::{global, template_of};
use crate::scheduler::Request;

/// How long a task that has to leave its node goes on without a replacement that runs: an operator waits for it.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(60);

impl Work<'_, '_> {
    /// Returns whether a task does its work: another may be waited for before it ends.
    pub(super) fn serves(&self, task: &SlotTask) -> bool {
        !self.mode.is_job() && self.state(task) == Some(TaskState::Running) && !self.is_lost(task)
    }

    /// Returns whether a task that is to be replaced does its work until its replacement does: not for ever if it has to leave
    /// its node.
    pub(super) fn goes_on(&mut self, task: &SlotTask) -> bool {
        if !self.serves(task) {
            return false;
        }
        if self.must_leave(task).is_none() {
            self.memory.leaving.remove(&task.id);
            return true;
        }
        let until = *self.memory.leaving.entry(task.id).or_insert(self.input.now.time) + REPLACEMENT_WAIT;
        let goes_on = self.input.now.time < until;
        if goes_on {
            self.wake_at(until);
        }
        goes_on
    }

    /// Returns why a task may not stay where it is. What a task was placed for is in its own template: an update replaces
    /// tasks of an older one at its own pace.
    pub(in crate::orchestrator) fn must_leave(&self, task: &SlotTask) -> Option<&'static str> {
        let id = task.node?;
        let node = self.cluster.nodes.get(&id)?;
        if global::is_drained(node) {
            return Some("its node is drained");
        }
        let fits = if self.desired.is_run_by(task) {
            self.request.is_wanted_on(id, node)
        } else {
            template_of(task)
                .is_none_or(|template| Request::new(self.input.service, &template, &[]).is_wanted_on(id, node))
        };
        (node.ready && !fits).then_some("its node does not satisfy the constraints any more")
    }

    /// Ends all tasks after the one at `position` that are meant to run and that `which` picks.
    pub(super) fn retire(
        &mut self,
        slot: &mut Slot,
        position: usize,
        mut which: impl FnMut(&mut Self, &SlotTask) -> bool,
    ) {
        for task in slot.tasks[position + 1..].iter_mut().filter(|task| is_current(task)) {
            if which(self, task) {
                let state = self.state(task);
                let reason = if self.is_lost(task) { Some("its node failed") } else { self.must_leave(task) };
                self.shut_down(task, state, reason.unwrap_or_default());
            }
        }
    }

    /// Puts a new task before those that are meant to run. What serves goes on while the new one is on its way.
    pub(super) fn replace(&mut self, name: SlotName, slot: &mut Slot, reason: &str, until: Until) {
        self.fill(name, slot);
        let has_node = slot.tasks.first().is_some_and(|task| task.node.is_some());
        for task in slot.tasks[1..].iter_mut().filter(|task| is_current(task)) {
            let leaves = self.must_leave(task);
            let stays = if has_node { self.goes_on(task) } else { until == Until::Placed && leaves.is_none() };
            if !stays {
                let state = self.state(task);
                self.shut_down(task, state, leaves.unwrap_or(reason));
            }
        }
    }
}
