//! Jobs: tasks that run to their end, each piece of work in a slot of its own.
//!
//! A slot is done once any of its tasks of the present run ended well, so work that is done twice, because a node was cut off
//! with it, counts once. A change of the service begins another run: what an earlier one left running ends first. Source of the
//! model: SwarmKit, `orchestrator/jobs`. Where it differs: tasks that still end take part in the limit of concurrent ones, and
//! work on a drained node ends there before it is begun elsewhere.

use shoal_protocol::TaskState;
use shoal_protocol::record::SlotName;
use shoal_protocol::value::{Slot, SlotTask};

use super::Work;
use crate::orchestrator::slot::{self, is_current};
use crate::orchestrator::{SLOTS_CREATED_MAX, is_complete, names_in_use, replicas};

impl Work<'_, '_> {
    /// Chooses the slots of a replicated job that get a task now: the lowest that are not done, as many as may run at once.
    pub(super) fn run_replicated_job(&mut self, completions: u64, concurrent: u64) {
        self.memory.watch_run(self.desired.index);
        let completions = u32::try_from(completions).unwrap_or(u32::MAX);
        let is_one = |name: &SlotName| matches!(name, SlotName::Replica(number) if *number < completions);
        for name in names_in_use(&self.slots).into_iter().filter(|name| !is_one(name)) {
            replicas::discard(self, name);
        }
        self.settle_runs();
        let concurrent = usize::try_from(concurrent).unwrap_or(usize::MAX);
        let under_way = self.slots.values().filter(|slot| self.is_under_way(slot)).count();
        let free = concurrent.saturating_sub(under_way);
        let mut next = (0..completions).map(SlotName::Replica).filter(|name| match self.slots.get(name) {
            Some(slot) => !self.is_under_way(slot) && !self.is_finished(slot),
            None => true,
        });
        let chosen: Vec<SlotName> = next.by_ref().take(free.min(SLOTS_CREATED_MAX)).collect();
        if chosen.len() < free && next.next().is_some() {
            self.wake_at(self.input.now.time);
        }
        for name in chosen {
            self.slots.entry(name).or_default();
            self.fresh.insert(name);
        }
    }

    /// Ends what does not belong to the present run of a job, and what is still at work that was done elsewhere.
    pub(super) fn settle_runs(&mut self) {
        for name in names_in_use(&self.slots) {
            self.with_slot(name, |work, _, slot| {
                let index = work.desired.index;
                let done = slot.tasks.iter().position(|task| work.is_done(task));
                for position in 0..slot.tasks.len() {
                    let task = &slot.tasks[position];
                    if Some(position) == done {
                        if is_current(task) || task.last_seen != Some(TaskState::Complete) {
                            work.shut_down(&mut slot.tasks[position], Some(TaskState::Complete), "");
                        }
                    } else if is_current(task) && (done.is_some() || task.index != index) {
                        let state = work.state(task);
                        work.shut_down(&mut slot.tasks[position], state, "");
                    }
                }
                // What was never given to a node is no history.
                slot.tasks.retain(|task| is_current(task) || task.node.is_some());
            });
        }
    }

    /// Returns whether a slot of a job needs no further task: it is done, or it failed and is not to be tried again.
    pub(super) fn is_job_finished(&self, slot: &Slot) -> bool {
        let has_failed = slot.tasks.first().is_some_and(|task| {
            let ended = matches!(task.last_seen, Some(TaskState::Failed | TaskState::Shutdown));
            ended && task.desired == TaskState::Shutdown && self.desired.is_run_by(task)
        });
        has_failed || slot.tasks.iter().any(|task| self.is_done(task))
    }

    fn is_done(&self, task: &SlotTask) -> bool {
        let report = task.node.and_then(|node| (self.input.report)(node, task.id));
        is_complete(task, report, self.desired.index)
    }

    /// Returns whether a slot takes part in the limit of concurrent tasks.
    fn is_under_way(&self, slot: &Slot) -> bool {
        slot::head(slot).is_some() || self.may_run(slot)
    }

    /// Returns whether a task that was told to end may still run. One of which its node has said nothing may have been started
    /// a moment ago.
    pub(super) fn may_run(&self, slot: &Slot) -> bool {
        slot.tasks.iter().filter(|task| !is_current(task) && task.node.is_some() && !self.is_lost(task)).any(|task| {
            let ended = |state: Option<TaskState>| state.is_some_and(TaskState::is_terminal);
            !ended(self.state(task)) && !ended(task.last_seen)
        })
    }
}
