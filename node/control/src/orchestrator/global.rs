//! One slot for each node that a global service wants.

use shoal_protocol::record::SlotName;
use shoal_protocol::spec::Availability;

use super::work::Work;
use super::{names_in_use, replicas, slot};
use crate::scheduler::Node;

/// Returns whether a node gives its tasks up.
pub(super) fn is_drained(node: &Node) -> bool {
    match node.availability {
        Availability::Active | Availability::Pause => false,
        Availability::Drain => true,
    }
}

/// Adds slots for new nodes and removes those of nodes that are no members any more. Tasks on nodes that are drained or not
/// wanted end but stay as history; those on failed nodes are left as they are, to be adopted when the node is back.
pub(super) fn cover(work: &mut Work<'_, '_>) {
    for name in names_in_use(&work.slots) {
        let SlotName::Node(id) = name else {
            replicas::discard(work, name);
            continue;
        };
        match work.cluster.nodes.get(&id) {
            None => replicas::discard(work, name),
            Some(node) if is_drained(node) || (node.ready && !work.request.is_wanted_on(id, node)) => end(work, name),
            Some(_) => {}
        }
    }
    let new: Vec<SlotName> = work
        .cluster
        .nodes
        .iter()
        .filter(|(id, node)| work.takes_tasks(**id, node))
        .map(|(&id, _)| SlotName::Node(id))
        .filter(|name| !work.slots.get(name).is_some_and(slot::is_live))
        .collect();
    for name in new {
        work.slots.entry(name).or_default();
        work.fresh.insert(name);
    }
}

fn end(work: &mut Work<'_, '_>, name: SlotName) {
    let Some(mut slot) = work.slots.remove(&name) else { return };
    slot.tasks.retain(|task| task.node.is_some() || !slot::is_current(task));
    for task in slot.tasks.iter_mut().filter(|task| slot::is_current(task)) {
        work.shut_down(task, None, "");
    }
    work.slots.insert(name, slot);
}
