//! What this node sees when its daemon is about to end.

use shoal_protocol::TaskState;
use shoal_protocol::spec::Availability;

use super::Control;
use crate::departure::{LABEL, Sight};
use crate::view::Health;

impl Control {
    /// Returns what decides whether this node gives its tasks up, and whether it has done so. Tasks and other nodes are looked
    /// at only if it leaves: this is asked for after every event.
    pub fn departure_sight(&self, leaving: bool) -> Sight {
        let spec = self.store.node_spec(self.me);
        let availability = spec.map(|spec| spec.availability);
        let is_marked = spec.is_some_and(|spec| spec.labels.contains_key(LABEL));
        if !leaving {
            return Sight { availability, is_marked, tasks: 0, others: false };
        }
        let tasks = self.store.slots_on(self.me).filter(|(_, _, task)| {
            match self.store.report(self.me, task.id) {
                Some(report) => !report.state.is_terminal(),
                // It is on its way.
                None => task.desired <= TaskState::Running,
            }
        });
        let others = self.store.nodes().any(|(node, _, spec)| {
            node != self.me && spec.availability == Availability::Active && self.health(node) == Health::Alive
        });
        Sight { availability, is_marked, tasks: tasks.count(), others }
    }
}
