//! The making of one plan: looks at every slot, tends it, lets the update go on, and tells what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{
    Availability, GenericResources, ModeKind, RESTART_DELAY_NANOS_DEFAULT, RestartCondition, UpdateConfig,
};
use shoal_protocol::value::{Progress, Slot, SlotTask, UpdateState};
use shoal_protocol::{NodeId, TaskId, TaskState, Time};

use super::slot::{Until, head, is_current, shut_down};
use super::{Desired, Input, Memory, Plan, global, is_gone, is_lost, replicas, reported, slot, template_of};
use crate::scheduler::{self, Cluster, Node, Placed, Placer, Refusals, Request, Share};

mod jobs;
mod moving;
mod updating;

/// How long a slot waits after a node rejected its task, doubled each time in a row up to [`REJECTED_DELAY_MAX`].
const REJECTED_DELAY: Duration = Duration::from_millis(250);
const REJECTED_DELAY_MAX: Duration = Duration::from_secs(30);

pub(super) struct Work<'a, 'w> {
    pub(super) input: Input<'a>,
    pub(super) desired: &'a Desired,
    pub(super) cluster: &'w mut Cluster,
    memory: &'w mut Memory,
    ids: &'w mut dyn FnMut() -> TaskId,
    pub(super) request: Request<'a>,
    placer: Option<Placer>,
    policy: UpdateConfig,
    mode: ModeKind,
    pub(super) slots: BTreeMap<SlotName, Slot>,
    /// Slots that get their first task with this plan.
    pub(super) fresh: BTreeSet<SlotName>,
    progress: Option<Progress>,
    /// Whether this round made room on a node or among concurrent tasks, so that what was refused before may now be placed.
    has_freed: bool,
    wake: Option<Time>,
}

/// Rounds of one plan at most: each ends tasks that no node has started yet, and the next places others in their room. What
/// is left then is planned at once, as a plan of its own.
const ROUNDS_MAX: usize = 8;

impl<'a, 'w> Work<'a, 'w> {
    pub(super) fn new(
        input: Input<'a>,
        desired: &'a Desired,
        cluster: &'w mut Cluster,
        memory: &'w mut Memory,
        ids: &'w mut dyn FnMut() -> TaskId,
    ) -> Self {
        let request = Request::new(input.service, &desired.spec.task_template, &desired.ports);
        let policy = if desired.rolled_back { desired.spec.rollback_policy() } else { desired.spec.update_policy() };
        Self {
            input,
            desired,
            cluster,
            memory,
            ids,
            request,
            placer: None,
            policy,
            mode: desired.spec.mode.kind(),
            slots: input.slots.clone(),
            fresh: BTreeSet::new(),
            progress: input.progress.cloned(),
            has_freed: false,
            wake: None,
        }
    }

    pub(super) fn run(mut self) -> Plan {
        self.observe();
        self.request.avoid = self.memory.avoid(self.input.now.time);
        for _ in 0..ROUNDS_MAX {
            self.has_freed = false;
            self.round();
            if !self.has_freed {
                return self.finish();
            }
        }
        self.wake_at(self.input.now.time);
        self.finish()
    }

    fn round(&mut self) {
        match self.mode {
            ModeKind::Replicated { replicas } => replicas::scale(self, replicas),
            ModeKind::Global => global::cover(self),
            ModeKind::ReplicatedJob { completions, concurrent } => self.run_replicated_job(completions, concurrent),
            ModeKind::GlobalJob => {
                self.memory.watch_run(self.desired.index);
                global::cover(self);
                self.settle_runs();
            }
        }
        for name in self.slots.keys().copied().collect::<Vec<_>>() {
            let is_wanted = self.fresh.contains(&name) || self.slots.get(&name).is_some_and(slot::is_live);
            if is_wanted {
                self.with_slot(name, Self::tend);
            }
        }
        if !self.mode.is_job() {
            self.update();
        }
    }

    /// Ends a task. One that its node has not spoken of yet gives its room back at once.
    pub(super) fn shut_down(&mut self, task: &mut SlotTask, last_seen: Option<TaskState>, note: &str) {
        self.free(task);
        shut_down(task, last_seen, note);
    }

    /// Takes a task that is about to end off its node's account, if its node has not spoken of it yet.
    pub(super) fn free(&mut self, task: &SlotTask) {
        let Some(node) = task.node.filter(|_| is_current(task) && self.state(task).is_none()) else { return };
        let reservations = template_of(task).map(|template| template.resources.reservations).unwrap_or_default();
        let share = Share { reservations: &reservations, ports: &task.ports, generic: &task.generic };
        self.cluster.vacate(node, self.input.service, share);
        self.placer = None;
        self.has_freed = true;
    }

    pub(super) fn wake_at(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    pub(super) fn is_lost(&self, task: &SlotTask) -> bool {
        is_lost(task, self.cluster)
    }

    /// Returns whether a node of a global service may get a new task. One that joined after a job was last changed has no part
    /// in its present run.
    pub(super) fn takes_tasks(&self, id: NodeId, node: &Node) -> bool {
        let is_up = node.ready && !node.failed && node.availability == Availability::Active;
        let takes_part = self.mode != ModeKind::GlobalJob || node.joined < self.desired.updated;
        is_up && takes_part && self.request.is_wanted_on(id, node)
    }

    /// Returns whether the slot belongs to a node that takes no new tasks now.
    fn is_barred(&self, name: SlotName) -> bool {
        match name {
            SlotName::Replica(_) => false,
            SlotName::Node(id) => !self.cluster.nodes.get(&id).is_some_and(|node| self.takes_tasks(id, node)),
        }
    }

    fn with_slot(&mut self, name: SlotName, tend: impl FnOnce(&mut Self, SlotName, &mut Slot)) {
        let mut slot = self.slots.remove(&name).unwrap_or_default();
        tend(self, name, &mut slot);
        self.slots.insert(name, slot);
    }

    pub(super) fn state(&self, task: &SlotTask) -> Option<TaskState> {
        reported(task, &self.input)
    }

    /// Remembers when tasks were first seen to run or to have ended.
    fn observe(&mut self) {
        let now = self.input.now.time;
        let updating = self
            .input
            .progress
            .filter(|progress| progress.index == self.desired.index)
            .filter(|progress| matches!(progress.state, UpdateState::Updating | UpdateState::RollbackStarted))
            .map(|progress| progress.index);
        for task in self.input.slots.values().flat_map(|slot| slot.tasks.iter()).filter(|task| is_current(task)) {
            let (Some(node), Some(state)) = (task.node, reported(task, &self.input)) else { continue };
            if state == TaskState::Running {
                self.memory.running.entry(task.id).or_insert(now);
            }
            if !state.is_terminal() || self.memory.ended.contains_key(&task.id) {
                continue;
            }
            self.memory.ended.insert(task.id, now);
            match state {
                TaskState::Rejected => self.memory.note_rejection(node, now),
                TaskState::Failed => self.memory.note_failure(node, now),
                _ => {}
            }
            let monitor = Duration::from_nanos(self.policy.monitor);
            let ran_long = self.memory.running.get(&task.id).is_some_and(|since| now.since(*since) >= monitor);
            if updating == Some(task.index) && !ran_long {
                self.memory.note_update_failure(task.index, task.id);
            }
        }
    }

    fn tend(&mut self, name: SlotName, slot: &mut Slot) {
        if let Some(position) = head(slot) {
            let has_node = slot.tasks[position].node.is_some();
            self.retire(slot, position, |work, task| {
                work.must_leave(task).is_some() && !(has_node && work.goes_on(task))
            });
        }
        match head(slot) {
            None => {
                let has_turn = !matches!(self.mode, ModeKind::ReplicatedJob { .. }) || self.fresh.contains(&name);
                if has_turn && !self.is_finished(slot) && !self.is_stopping(slot) {
                    self.fill(name, slot);
                }
            }
            Some(position) if slot.tasks[position].node.is_none() => self.tend_pending(name, slot, position),
            Some(position) => self.tend_placed(name, slot, position),
        }
    }

    /// Returns whether the slot's last task ended by itself and is not to be restarted.
    fn is_finished(&self, slot: &Slot) -> bool {
        if self.mode.is_job() {
            return self.is_job_finished(slot);
        }
        slot.tasks.first().is_some_and(|task| {
            let ended = matches!(task.last_seen, Some(TaskState::Complete | TaskState::Shutdown | TaskState::Failed));
            ended && task.desired == TaskState::Shutdown && self.desired.is_run_by(task)
        })
    }

    /// Returns whether a task that was told to end still runs on a node that lives.
    fn is_stopping(&self, slot: &Slot) -> bool {
        if self.mode.is_job() {
            return self.may_run(slot);
        }
        slot.tasks.iter().any(|task| {
            let runs = self.state(task).is_some_and(|state| !state.is_terminal());
            task.desired == TaskState::Shutdown && runs && !self.is_lost(task)
        })
    }

    fn tend_pending(&mut self, name: SlotName, slot: &mut Slot, position: usize) {
        let elder = slot.tasks[position + 1..].iter().find(|task| is_current(task)).cloned();
        if let Some(elder) = elder
            && !self.is_lost(&elder)
            && self.must_leave(&elder).is_none()
            && self.desired.is_run_by(&elder)
            && !self.state(&elder).is_some_and(TaskState::is_terminal)
        {
            slot.tasks.remove(position); // the node is back before the task was placed elsewhere
            return;
        }
        // Also if only the credentials changed: it is to pull its image with the present ones.
        let is_run = self.desired.is_run_by(&slot.tasks[position]);
        let task = &mut slot.tasks[position];
        task.index = self.desired.index;
        if !is_run {
            task.template.clone_from(&self.desired.template);
            task.ports.clone_from(&self.desired.ports);
        }
        match self.place(name) {
            Ok(placed) => {
                slot.tasks[position].node = Some(placed.node);
                slot.tasks[position].generic = placed.generic;
                slot.tasks[position].note.clear();
                self.retire(slot, position, |work, task| {
                    work.is_lost(task) || work.state(task).is_some_and(TaskState::is_terminal)
                });
            }
            Err(refusals) => {
                let note = refusals.to_string();
                if slot.tasks[position].note != note {
                    slot.tasks[position].note = note;
                }
            }
        }
    }

    fn tend_placed(&mut self, name: SlotName, slot: &mut Slot, position: usize) {
        let task = &slot.tasks[position];
        match self.state(task) {
            Some(state) if state.is_terminal() => self.tend_ended(name, slot, position, state),
            state => {
                if self.is_lost(task) {
                    if matches!(name, SlotName::Replica(_)) {
                        let until = if self.must_leave(task).is_some() { Until::Now } else { Until::Placed };
                        self.replace(name, slot, "its node failed", until);
                    }
                } else if let Some(reason) = self.must_leave(task) {
                    if self.mode.is_job() {
                        self.shut_down(&mut slot.tasks[position], None, reason); // its work begins again where it has ended
                        return;
                    }
                    self.replace(name, slot, reason, Until::Now);
                } else if state == Some(TaskState::Running) {
                    self.memory.rejections.remove(&name);
                    self.retire(slot, position, |_, _| true);
                }
            }
        }
    }

    fn tend_ended(&mut self, name: SlotName, slot: &mut Slot, position: usize, state: TaskState) {
        let now = self.input.now.time;
        let ended = self.memory.ended.get(&slot.tasks[position].id).copied().unwrap_or(now);
        let is_rejected = state == TaskState::Rejected;
        let delay = if is_rejected {
            let rounds = self.memory.rejections.get(&name).copied().unwrap_or(0);
            REJECTED_DELAY.saturating_mul(1 << rounds.min(16)).min(REJECTED_DELAY_MAX)
        } else {
            Duration::from_nanos(self.restart_policy().delay.unwrap_or(RESTART_DELAY_NANOS_DEFAULT))
        };
        let has_elder = slot.tasks[position + 1..].iter().any(|task| is_current(task) && !self.is_lost(task));
        if !is_rejected && !self.may_restart(name, slot, position, state) {
            if !has_elder {
                let note = self.error_of(&slot.tasks[position]);
                self.shut_down(&mut slot.tasks[position], Some(state), &note);
                self.has_freed |= self.mode.is_job(); // another slot has its turn
            }
            return;
        }
        // A machine that dies may end its tasks a moment before: that is no fault of theirs to be slowed down for.
        let fell_with_node = !is_rejected && self.is_lost(&slot.tasks[position]);
        if now < ended + delay && !fell_with_node {
            self.wake_at(ended + delay);
            return;
        }
        if self.is_barred(name) {
            return; // ended without a successor it would look finished
        }
        if is_rejected {
            *self.memory.rejections.entry(name).or_default() += 1;
        } else {
            self.memory.note_restart(name, now);
        }
        let note = self.error_of(&slot.tasks[position]);
        self.shut_down(&mut slot.tasks[position], Some(state), &note);
        let may_stay = |task: &SlotTask| is_current(task) && !self.is_lost(task) && self.must_leave(task).is_none();
        if !slot.tasks.iter().any(may_stay) {
            self.replace(name, slot, "", Until::Now);
        }
    }

    fn error_of(&self, task: &SlotTask) -> String {
        let report = task.node.and_then(|node| (self.input.report)(node, task.id));
        report.map(|report| report.error.clone()).unwrap_or_default()
    }

    fn restart_policy(&self) -> &'a shoal_protocol::spec::RestartPolicy {
        &self.desired.spec.task_template.restart_policy
    }

    fn may_restart(&self, name: SlotName, slot: &Slot, position: usize, state: TaskState) -> bool {
        let policy = self.restart_policy();
        let by_condition = match policy.condition {
            RestartCondition::None => false,
            RestartCondition::OnFailure => state != TaskState::Complete,
            RestartCondition::Any => !self.mode.is_job() || state != TaskState::Complete,
        };
        let max = match policy.max_attempts {
            None | Some(0) => return by_condition,
            Some(max) => usize::try_from(max).unwrap_or(usize::MAX),
        };
        let seen = self.memory.restarts.get(&name).map_or(&[] as &[Time], Vec::as_slice);
        let attempts = match policy.window {
            // Without a window the slot's history tells even a new holder of restarts it has not seen.
            None | Some(0) => {
                let index = slot.tasks[position].index;
                let ended = |task: &&SlotTask| {
                    task.index == index && matches!(task.last_seen, Some(TaskState::Complete | TaskState::Failed))
                };
                seen.len().max(slot.tasks[position + 1..].iter().filter(ended).count())
            }
            Some(window) => {
                let window = Duration::from_nanos(window);
                seen.iter().filter(|time| self.input.now.time.since(**time) < window).count()
            }
        };
        by_condition && attempts < max
    }

    /// Gives a slot a new task, on a node or waiting for one.
    fn fill(&mut self, name: SlotName, slot: &mut Slot) {
        if self.is_barred(name) {
            return;
        }
        let (node, generic, note) = match self.place(name) {
            Ok(placed) => (Some(placed.node), placed.generic, String::new()),
            Err(refusals) => (None, GenericResources::default(), refusals.to_string()),
        };
        let task = SlotTask {
            id: (self.ids)(),
            node,
            desired: TaskState::Running,
            created: self.input.now.wall,
            index: self.desired.index,
            template: self.desired.template.clone(),
            ports: self.desired.ports.clone(),
            note,
            last_seen: None,
            generic,
        };
        slot.tasks.insert(0, task);
    }

    fn place(&mut self, name: SlotName) -> Result<Placed, Refusals> {
        match name {
            SlotName::Replica(_) => {
                if self.placer.is_none() {
                    self.request.staying = replicas::staying(self);
                }
                let (request, cluster) = (&self.request, &mut *self.cluster);
                self.placer.get_or_insert_with(|| Placer::new(request, cluster)).place(request, cluster)
            }
            SlotName::Node(id) => {
                if let Some(filter) = self.request.refusal(id, self.cluster) {
                    return Err(Refusals::from(filter));
                }
                Ok(scheduler::assign(&self.request, id, self.cluster))
            }
        }
    }

    fn finish(mut self) -> Plan {
        let mut slots = Vec::new();
        let mut kept = BTreeMap::new();
        for (name, mut slot) in std::mem::take(&mut self.slots) {
            slot::trim(&mut slot, self.input.history, |task| is_gone(task, &self.input, self.cluster));
            let before = self.input.slots.get(&name);
            if slot.tasks.is_empty() {
                if before.is_some() {
                    slots.push((name, None));
                }
                continue;
            }
            if before != Some(&slot) {
                slots.push((name, Some(slot.clone())));
            }
            kept.insert(name, slot);
        }
        let cluster = &self.cluster;
        self.memory.prune(&kept, |node| cluster.nodes.contains_key(&node));
        let is_same = self.progress.as_ref() == self.input.progress;
        Plan { slots, progress: (!is_same).then_some(self.progress), wake: self.wake }
    }
}
