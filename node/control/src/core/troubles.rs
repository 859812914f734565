//! What this node could not write: kept until it could, for people to read.

use std::collections::BTreeMap;

use shoal_protocol::Key;

use super::event::Action;
use super::{Control, Store};

/// Records that could not be written, as remembered; of further ones only the log tells.
const REFUSED_MAX: usize = 64;

/// What is wrong at present.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// Why the disk refused the last write.
    disk: Option<String>,
    /// Values that no record can hold, with the reason: what is in the document is an older one.
    refused: BTreeMap<Key, String>,
}

impl Control {
    /// Returns what this node could not do and has not managed since, for people.
    pub fn troubles(&self) -> Vec<String> {
        let disk = self.storage.as_ref().or(self.troubles.disk.as_ref());
        let disk = disk.into_iter().map(|error| format!("this node's disk refuses writes: {error}"));
        let late = self.leases.is_catching_up();
        let late = late.then(|| "this node is to vote and has not caught up with the other voters yet".to_owned());
        let refused = self.troubles.refused.iter().map(|(key, reason)| refusal(key, reason, &self.store));
        late.into_iter().chain(disk).chain(refused).collect()
    }

    pub(super) fn disk_failed(&mut self, error: &str) {
        if self.troubles.disk.as_deref() != Some(error) {
            self.troubles.disk = Some(error.to_owned());
            self.outbox.push(Action::Trouble { what: format!("the disk refuses writes: {error}") });
        }
    }

    pub(super) fn disk_works(&mut self) {
        // Small things fit on a disk that is too full for records.
        if self.storage.is_none() {
            self.troubles.disk = None;
        }
    }

    /// Notes that a value could not be made a record, which leaves the older one in force.
    pub(super) fn refused(&mut self, key: Key, reason: String) {
        if self.troubles.refused.get(&key) == Some(&reason) {
            return;
        }
        self.outbox.push(Action::Trouble { what: refusal(&key, &reason, &self.store) });
        if self.troubles.refused.len() < REFUSED_MAX || self.troubles.refused.contains_key(&key) {
            self.troubles.refused.insert(key, reason);
        }
    }

    /// Notes that a value became a record.
    pub(super) fn accepted(&mut self, key: &Key) {
        self.troubles.refused.remove(key);
    }
}

fn refusal(key: &Key, reason: &str, store: &Store) -> String {
    let name = |service| match store.service_spec(service) {
        Some(spec) => spec.name.clone(),
        None => service.to_string(),
    };
    let what = match *key {
        Key::Slot(service, slot) => format!("the tasks of service {}, slot {slot}", name(service)),
        Key::Progress(service) => format!("the update of service {}", name(service)),
        Key::NodeStatus(_) => "the status of this node".to_owned(),
        Key::TaskStatus(_, task) => format!("the status of task {task}"),
        Key::Service(service) => format!("service {}", name(service)),
        Key::Node(node) => format!("node {node}"),
        Key::Claim(lease) => format!("the claim of lease {lease}"),
        Key::Cluster => "the cluster".to_owned(),
        Key::Voters => "the voters".to_owned(),
        Key::Object(kind, id) => format!("{} {id}", kind.name()),
    };
    format!("{what} cannot be written down: {reason}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_protocol::value::NodeStatus;
    use shoal_protocol::{Now, Time};

    use super::*;
    use crate::core::Event;
    use crate::core::testing::{ME, alone};

    fn status(label_bytes: usize) -> NodeStatus {
        NodeStatus {
            hostname: "n1".to_owned(),
            engine_labels: [("big".to_owned(), "x".repeat(label_bytes))].into(),
            ..NodeStatus::default()
        }
    }

    fn told(control: &mut Control) -> Vec<String> {
        let actions = std::iter::from_fn(|| control.poll_action());
        actions.filter_map(|action| if let Action::Trouble { what } = action { Some(what) } else { None }).collect()
    }

    #[test]
    fn a_value_that_is_too_large_is_told_until_it_fits() {
        let mut control = alone(status(600 * 1024));
        let troubles = control.troubles();
        assert_eq!(troubles.len(), 1);
        assert!(troubles[0].starts_with("the status of this node cannot be written down: "), "{troubles:?}");
        assert_eq!(told(&mut control), troubles, "the log has it as well");
        control.handle_event(Event::Status(status(601 * 1024)), Now::default());
        assert_eq!(control.troubles().len(), 1);
        control.handle_event(Event::Status(status(10)), Now::default());
        assert!(control.troubles().is_empty());
        assert_eq!(control.store().node_status(ME).unwrap().engine_labels["big"].len(), 10);
    }

    #[test]
    fn a_disk_that_refuses_is_told_until_it_works() {
        let mut control = alone(status(1));
        let mut now = Now::default();
        let (mut tokens, mut told) = (Vec::new(), Vec::new());
        for round in 0..40u64 {
            now.time = Time(0) + Duration::from_millis(250) * u32::try_from(round).unwrap();
            control.handle_event(Event::Tick, now);
            while let Some(action) = control.poll_action() {
                match action {
                    Action::Persist { token, .. } => tokens.push(token),
                    Action::Trouble { what } => told.push(what),
                    _ => {}
                }
            }
            for token in tokens.drain(..) {
                let error = "no space left on device: /data/store.redb".to_owned();
                control.handle_event(Event::PersistFailed { token, error }, now);
            }
        }
        assert_eq!(control.troubles(), ["this node's disk refuses writes: no space left on device: /data/store.redb"]);
        assert_eq!(told.len(), 1, "once: {told:?}");
        now.time = now.time + Duration::from_secs(10);
        control.handle_event(Event::Tick, now);
        let token = std::iter::from_fn(|| control.poll_action())
            .find_map(|action| if let Action::Persist { token, .. } = action { Some(token) } else { None });
        control.handle_event(Event::Persisted { token: token.unwrap() }, now);
        assert!(control.troubles().is_empty());
    }
}
