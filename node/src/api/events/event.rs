//! One thing that happened, in the shape of Docker's API. Source: Docker Engine API v1.50, `EventMessage`.

use std::collections::BTreeMap;

use serde_json::json;
use shoal_protocol::WallTime;

use crate::api::filters::Filters;

/// How far what happened reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster; every node tells of it.
    Swarm,
    /// This node; no other one tells of it.
    Local,
}

impl Scope {
    /// Returns Docker's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Local => "local",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it happened to, such as `service`.
    pub kind: &'static str,
    /// What happened, such as `update`.
    pub action: &'static str,
    /// Identifier of what it happened to.
    pub id: String,
    /// Its name, and what is to be known of the change.
    pub attributes: BTreeMap<String, String>,
    /// How far it reaches.
    pub scope: Scope,
    /// When it happened.
    pub time: WallTime,
}

impl Event {
    /// Writes the event as one line of JSON.
    pub fn line(&self) -> String {
        let mut event = json!({
            "Type": self.kind,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": self.attributes},
            "scope": self.scope.name(),
            "time": self.time.0 / 1_000_000_000,
            "timeNano": self.time.0,
        });
        if self.kind == "container" {
            // What old clients read.
            event["status"] = json!(self.action);
            event["id"] = json!(self.id);
            event["from"] = json!(self.attributes.get("image"));
        }
        format!("{event}\n")
    }

    /// Returns the bytes that it takes in memory, roughly.
    pub fn bytes(&self) -> usize {
        let attributes = self.attributes.iter().map(|(key, value)| key.len() + value.len());
        size_of::<Self>() + self.id.len() + attributes.sum::<usize>()
    }

    /// Returns whether a filter lets the event through. Source: Docker Engine, `daemon/events/filter.go`.
    pub fn fits(&self, filters: &Filters) -> bool {
        let name = self.attributes.get("name").map_or("", String::as_str);
        filters.any("type", |kind| kind == self.kind)
            && filters.any("event", |action| action == self.action)
            && filters.any("scope", |scope| scope == self.scope.name())
            && OBJECTS.iter().all(|kind| {
                filters
                    .any(kind, |wanted| *kind == self.kind && (self.id.starts_with(wanted) || name.starts_with(wanted)))
            })
            && filters.labels("label", &self.attributes)
    }
}

/// Kinds of objects that a filter can name one of.
const OBJECTS: [&str; 10] =
    ["config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume"];

/// Keys of filters.
pub const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers() {
        let event = Event {
            kind: "service",
            action: "update",
            id: "abc".to_owned(),
            attributes: [("name".to_owned(), "web".to_owned()), ("replicas.new".to_owned(), "3".to_owned())].into(),
            scope: Scope::Swarm,
            time: WallTime(1_500_000_000),
        };
        for (text, want) in [
            ("{}", true),
            (r#"{"type":["service","node"]}"#, true),
            (r#"{"type":["node"]}"#, false),
            (r#"{"event":["update"],"scope":["swarm"]}"#, true),
            (r#"{"scope":["local"]}"#, false),
            (r#"{"service":["we"]}"#, true),
            (r#"{"service":["ab"]}"#, true),
            (r#"{"service":["other"]}"#, false),
            (r#"{"container":["web"]}"#, false),
            (r#"{"service":["web"],"node":["n1"]}"#, false),
            (r#"{"label":["replicas.new=3"]}"#, true),
            (r#"{"label":["replicas.new=4"]}"#, false),
        ] {
            assert_eq!(event.fits(&Filters::parse(Some(text), &FILTERS).unwrap()), want, "{text}");
        }
        let want = r#"{"Action":"update","Actor":{"Attributes":{"name":"web","replicas.new":"3"},"ID":"abc"},"Type":"service","scope":"swarm","time":1,"timeNano":1500000000}"#;
        assert_eq!(event.line(), format!("{want}\n"));
    }
}
