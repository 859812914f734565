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

/// Chooses `count` slots to give up: first those that do not run, then level by level from the nodes with most tasks.
fn surplus(work: &Work<'_, '_>, names: &[SlotName], count: usize) -> Vec<SlotName> {
    let mut on_node: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut ranked: Vec<(bool, u64, SlotName)> = Vec::new();
    for &name in names {
        let running = work.slots.get(&name).and_then(|slot| {
            slot.tasks.iter().find(|task| {
                slot::is_current(task) && reported(task, &work.input) == Some(TaskState::Running) && !work.is_lost(task)
            })
        });
        let level = running.and_then(|task| task.node).map_or(0, |node| {
            let level = on_node.entry(node).or_default();
            *level += 1;
            *level
        });
        ranked.push((running.is_none(), level, name));
    }
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().take(count).map(|(_, _, name)| name).collect()
}
