//! What one look at the cluster showed, and what happened between two looks.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::{Node, Service, Task};
use crate::status::Status;
use crate::top::traffic::Traffic;

/// What one look at the cluster showed.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// When, in nanoseconds since 1970.
    pub(crate) at: i128,
    /// Whether it is well, and who holds the leases.
    pub(crate) status: Status,
    /// Nodes, by host name.
    pub(crate) nodes: Vec<Node>,
    /// Services, by name.
    pub(crate) services: Vec<Service>,
    /// Tasks, by service and slot, newest first.
    pub(crate) tasks: Vec<Task>,
    /// What went through the asked node's published ports since its daemon started.
    pub(crate) traffic: Traffic,
}

impl Look {
    /// Brings what the daemon answered into the order of the screen.
    pub(crate) fn sorted(mut self) -> Self {
        self.nodes.sort_by(|a, b| (&a.description.hostname, &a.id).cmp(&(&b.description.hostname, &b.id)));
        self.services.sort_by(|a, b| (&a.spec.name, &a.id).cmp(&(&b.spec.name, &b.id)));
        let mut tasks = std::mem::take(&mut self.tasks);
        {
            let names: BTreeMap<&str, &str> =
                self.services.iter().map(|service| (service.id.as_str(), service.spec.name.as_str())).collect();
            let name = |task: &Task| names.get(task.service_id.as_str()).copied().unwrap_or_default();
            tasks.sort_by(|a, b| {
                let place =
                    |task: &Task| (task.slot, if task.slot.is_none() { task.node_id.clone() } else { String::new() });
                name(a).cmp(name(b)).then_with(|| place(a).cmp(&place(b))).then_with(|| b.created_at.cmp(&a.created_at))
            });
        }
        self.tasks = tasks;
        self
    }

    /// Returns what people call a node.
    pub(crate) fn hostname<'a>(&'a self, id: &'a str) -> &'a str {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.map(|node| node.description.hostname.as_str()).filter(|name| !name.is_empty()).unwrap_or(id)
    }

    /// Returns what people call a service.
    pub(crate) fn service_name<'a>(&'a self, id: &'a str) -> &'a str {
        self.services.iter().find(|service| service.id == id).map_or(id, |service| &service.spec.name)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    /// Counts them, so that two that look alike are two.
    pub(crate) number: u64,
    /// When, in nanoseconds since 1970.
    pub(crate) nanos: u64,
    /// What it happened to, such as `service`.
    pub(crate) kind: String,
    /// What happened, such as `update`.
    pub(crate) action: String,
    /// Identifier of what it happened to.
    pub(crate) id: String,
    /// Its name, and what is to be known of the change.
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Happened {
    /// Reads a line of the daemon's answer; nothing where that is no event.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let attributes = event["Actor"]["Attributes"].as_object().into_iter().flatten();
        Some(Self {
            number: 0,
            nanos: event["timeNano"].as_u64()?,
            kind: text(&event["Type"]),
            action: text(&event["Action"]),
            id: text(&event["Actor"]["ID"]),
            attributes: attributes.map(|(key, value)| (key.clone(), text(value))).collect(),
        })
    }

    /// Returns whether it is the daemon's word that this reader was too slow and hears no more.
    pub(crate) fn is_overflow(&self) -> bool {
        self.kind == "daemon" && self.action == "overflow"
    }

    /// Returns the name of what it happened to, or its identifier.
    pub(crate) fn name(&self) -> &str {
        self.attributes.get("name").filter(|name| !name.is_empty()).unwrap_or(&self.id)
    }

    /// Returns what changed, in few words.
    pub(crate) fn change(&self) -> String {
        let new = self.attributes.iter().filter_map(|(key, new)| {
            let key = key.strip_suffix(".new")?;
            let old = self.attributes.get(&format!("{key}.old"));
            Some(old.map_or_else(|| format!("{key} {new}"), |old| format!("{key} {old} → {new}")))
        });
        let ended = self.attributes.get("exitCode").map(|code| format!("exit code {code}"));
        new.chain(ended).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_said_in_few_words() {
        let line = br#"{"Type":"node","Action":"update","Actor":{"ID":"abc","Attributes":{"name":"n1","state.new":"down","state.old":"ready","x.new":"1"}},"scope":"swarm","timeNano":7}"#;
        let event = Happened::parse(line).unwrap();
        assert_eq!((event.nanos, event.name(), event.change().as_str()), (7, "n1", "state ready → down, x 1"));
        assert!(!event.is_overflow());
        assert_eq!(Happened::parse(b"{}"), None);
        assert_eq!(Happened::parse(b"nonsense"), None);
        let last = Happened::parse(br#"{"Type":"daemon","Action":"overflow","timeNano":0}"#).unwrap();
        assert!(last.is_overflow());
    }
}
