//! How many replicas there are: which slots are new and which go.

use std::collections::BTreeMap;

use shoal_protocol::record::SlotName;
use shoal_protocol::{NodeId, TaskState};

use super::work::Work;
use super::{SLOTS_CREATED_MAX, is_gone, names_in_use, reported, slot};

/// Makes the live slots as many as are wanted. Slots of another mode go.
pub(super) fn scale(work: &mut Work<'_, '_>, replicas: u64) {
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let (numbered, others): (Vec<SlotName>, Vec<SlotName>) =
        names_in_use(&work.slots).into_iter().partition(|name| matches!(name, SlotName::Replica(_)));
    for name in others {
        discard(work, name);
    }
    if numbered.len() > wanted {
        for name in surplus(work, &numbered, numbered.len() - wanted) {
            discard(work, name);
        }
        return;
    }
    let missing = wanted - numbered.len();
    let free = (1..=u32::MAX).map(SlotName::Replica).filter(|name| numbered.binary_search(name).is_err());
    for name in free.take(missing.min(SLOTS_CREATED_MAX)) {
        work.slots.entry(name).or_default();
        work.fresh.insert(name);
    }
    if missing > SLOTS_CREATED_MAX {
        work.wake_at(work.input.now.time);
    }
}

/// Tells the tasks of a slot to go.
pub(super) fn discard(work: &mut Work<'_, '_>, name: SlotName) {
    let Some(mut slot) = work.slots.remove(&name) else { return };
    slot.tasks.iter().for_each(|task| work.free(task));
    slot::discard(&mut slot, |task| is_gone(task, &work.input, work.cluster));
    work.slots.insert(name, slot);
}

/// Returns on which nodes tasks are that stay, for placement preferences. What an update is to replace does not, nor what runs
/// on nodes that are lost, drained or not wanted any more: its successors are what is spread.
pub(super) fn staying(work: &Work<'_, '_>) -> BTreeMap<NodeId, u64> {
    let mut staying = BTreeMap::new();
    if work.request.spread.is_empty() {
        return staying;
    }
    for slot in work.slots.values() {
        let Some(task) = slot::head(slot).and_then(|position| slot.tasks.get(position)) else { continue };
        let Some(node) = task.node else { continue };
        let has_ended = work.state(task).is_some_and(TaskState::is_terminal);
        if !has_ended && !work.is_lost(task) && work.must_leave(task).is_none() && work.desired.is_run_by(task) {
            *staying.entry(node).or_default() += 1;
        }
    }
    staying
}

/// Chooses `count` slots to give up: first those that do not run, then level by level from the groups with most tasks, and in
/// them from the nodes with most, so that those which stay are spread.
fn surplus(work: &Work<'_, '_>, names: &[SlotName], count: usize) -> Vec<SlotName> {
    let mut running: Vec<(SlotName, Vec<&str>, NodeId)> = Vec::new();
    let mut idle = Vec::new();
    for &name in names {
        let task = work.slots.get(&name).and_then(|slot| {
            slot.tasks.iter().find(|task| {
                slot::is_current(task) && reported(task, &work.input) == Some(TaskState::Running) && !work.is_lost(task)
            })
        });
        match task.and_then(|task| Some((task.node?, work.cluster.nodes.get(&task.node?)?))) {
            Some((id, node)) => running.push((name, work.request.groups_of(node), id)),
            None => idle.push(name),
        }
    }
    level(&mut running, |(_, groups, node)| (groups.clone(), *node));
    for depth in (1..=work.request.spread.len()).rev() {
        level(&mut running, |(_, groups, _)| groups[..depth].to_vec());
    }
    let running = running.into_iter().rev().map(|(name, _, _)| name);
    idle.into_iter().rev().chain(running).take(count).collect()
}

/// Orders tasks by their place among those of their group, in which they keep their order: the first of each, the second of
/// each, and so on. Whatever is left of them when the last ones go is spread over the groups.
fn level<'a, K: Ord>(
    tasks: &mut Vec<(SlotName, Vec<&'a str>, NodeId)>,
    group: impl Fn(&(SlotName, Vec<&'a str>, NodeId)) -> K,
) {
    let mut counts: BTreeMap<K, u64> = BTreeMap::new();
    let mut numbered: Vec<_> = tasks
        .drain(..)
        .map(|task| {
            let count = counts.entry(group(&task)).or_default();
            *count += 1;
            (*count, task)
        })
        .collect();
    numbered.sort_by_key(|(count, (name, ..))| (*count, *name));
    tasks.extend(numbered.into_iter().map(|(_, task)| task));
}
