//! How an update reaches the slots: what each is to the updater, and what happens to those whose turn it is.

use shoal_protocol::TaskState;
use shoal_protocol::record::SlotName;
use shoal_protocol::value::{Slot, SlotTask};

use super::Work;
use crate::orchestrator::slot::{self, head, is_current};
use crate::updater::{self, Phase};

impl Work<'_, '_> {
    /// Lets the update take its next step.
    pub(super) fn update(&mut self) {
        let phases: Vec<(SlotName, Phase)> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot::is_live(slot))
            .map(|(&name, slot)| (name, self.phase(name, slot)))
            .collect();
        let (failures, failed) = self.memory.update_failures(self.desired.index);
        let step = updater::step(&updater::Input {
            policy: &self.policy,
            rolls_back: self.desired.rolled_back,
            index: self.desired.index,
            progress: self.progress.as_ref(),
            slots: &phases,
            failures,
            failed,
            now: self.input.now,
        });
        if let Some(wake) = step.wake {
            self.wake_at(wake);
        }
        for name in step.start {
            self.with_slot(name, Self::start_update);
        }
        if let Some(progress) = step.progress {
            self.progress = progress;
        }
    }

    fn phase(&self, name: SlotName, slot: &Slot) -> Phase {
        let Some(position) = head(slot) else {
            return if self.is_finished(slot) || !self.is_stopping(slot) { Phase::Settled } else { Phase::Moving };
        };
        let task = &slot.tasks[position];
        let state = self.state(task);
        if self.is_barred(name) {
            return Phase::Settled; // its turn comes when its node takes tasks again
        }
        if !self.desired.is_run_by(task) {
            return Phase::Dirty { running: state == Some(TaskState::Running) };
        }
        let is_first = slot.tasks.iter().filter(|task| task.desired != TaskState::Remove).count() == 1;
        match state {
            Some(state) if state.is_terminal() => Phase::Settled,
            Some(TaskState::Running) => {
                let since = self.memory.running.get(&task.id).copied().unwrap_or(self.input.now.time);
                Phase::Running { since, updated: task.index == self.desired.index }
            }
            // The first task of a slot replaces nothing: others need not wait for it.
            Some(_) | None if is_first => Phase::Settled,
            Some(_) | None => Phase::Moving,
        }
    }

    fn start_update(&mut self, name: SlotName, slot: &mut Slot) {
        if self.policy.order == "start-first" {
            self.keep_one(slot);
            self.fill(name, slot);
            return;
        }
        for task in slot.tasks.iter_mut().filter(|task| is_current(task)) {
            self.shut_down(task, None, "");
        }
        if !self.is_stopping(slot) {
            self.fill(name, slot);
        }
    }

    /// Ends all tasks but one that serves, until the next runs: updates that overtake each other must not pile them up.
    fn keep_one(&mut self, slot: &mut Slot) {
        let serves = |task: &SlotTask| {
            let runs = self.state(task) == Some(TaskState::Running) && !self.is_lost(task);
            is_current(task) && runs && self.must_leave(task).is_none()
        };
        let kept = slot.tasks.iter().position(serves);
        for (position, task) in slot.tasks.iter_mut().enumerate() {
            if Some(position) != kept && is_current(task) {
                let state = self.state(task);
                self.shut_down(task, state, "");
            }
        }
    }
}
