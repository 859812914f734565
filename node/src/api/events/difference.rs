//! From what was known of a thing and what is known of it now to what happened to it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_protocol::WallTime;

use super::event::{Event, Scope};

/// Kinds of objects of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A node.
    Node,
    /// A service.
    Service,
    /// A secret, config or network.
    Object(shoal_protocol::Kind),
}

impl Kind {
    /// Returns Docker's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Object(kind) => kind.name(),
        }
    }
}

/// What is known of an object, as far as users are told of its changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Counts its writes.
    pub index: u64,
    /// When it was made.
    pub created: WallTime,
    /// When it was last written.
    pub updated: WallTime,
    /// Values whose changes are told one by one, by the name that Docker gives them.
    pub tracked: BTreeMap<&'static str, String>,
}

/// Returns what happened to an object, if anything did.
///
/// What was written before `started`, when this node began to look, is not told: it did not happen now, but came here now.
pub fn difference(
    (kind, id): (Kind, &str),
    before: Option<&Facts>,
    after: Option<&Facts>,
    started: WallTime,
    now: WallTime,
) -> Option<Event> {
    let event = |action, facts: &Facts, changes: BTreeMap<String, String>, time| {
        let mut attributes = changes;
        attributes.insert("name".to_owned(), facts.name.clone());
        Some(Event { kind: kind.name(), action, id: id.to_owned(), attributes, scope: Scope::Swarm, time })
    };
    match (before, after) {
        (None, None) => None,
        (None, Some(after)) if after.created < started => None,
        (None, Some(after)) => event("create", after, BTreeMap::new(), after.created),
        (Some(before), None) => event("remove", before, BTreeMap::new(), now),
        (Some(before), Some(after)) => {
            let changes = changes(before, after);
            let is_written = before.index != after.index && after.updated >= started;
            match (is_written, changes.is_empty()) {
                (true, _) => event("update", after, changes, after.updated),
                (false, false) => event("update", after, changes, now),
                (false, true) => None,
            }
        }
    }
}

/// Returns `<name>.new` and `<name>.old` of values that changed. One that is gone is no news: nothing took its place.
fn changes(before: &Facts, after: &Facts) -> BTreeMap<String, String> {
    let mut changes = BTreeMap::new();
    for (name, new) in &after.tracked {
        let old = before.tracked.get(name);
        if old == Some(new) {
            continue;
        }
        changes.insert(format!("{name}.new"), new.clone());
        if let Some(old) = old {
            changes.insert(format!("{name}.old"), old.clone());
        }
    }
    changes
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It was made.
    Created,
    /// It runs.
    Running,
    /// It has ended, with this exit code if its program ever ran.
    Ended(Option<i32>),
}

/// A container of one of this node's tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its identifier.
    pub id: String,
    /// Its labels, its image and its name.
    pub attributes: Arc<BTreeMap<String, String>>,
    /// How far it is.
    pub phase: Phase,
    /// Since when.
    pub since: WallTime,
}

/// Returns what happened to a container, in order. One that runs when it is first seen was found, nothing happened to it.
pub fn container_events(before: Option<&Container>, after: Option<&Container>, now: WallTime) -> Vec<Event> {
    let event = |action, container: &Container, time, code: Option<i32>| {
        let mut attributes = BTreeMap::clone(&container.attributes);
        attributes.extend(code.map(|code| ("exitCode".to_owned(), code.to_string())));
        Event { kind: "container", action, id: container.id.clone(), attributes, scope: Scope::Local, time }
    };
    match (before, after) {
        (None, None) => Vec::new(),
        (None, Some(after)) if after.phase > Phase::Created => Vec::new(),
        (None, Some(after)) => vec![event("create", after, after.since, None)],
        // Its node speaks no more of it. When it was removed is not known here: that was before, so nothing is said of it.
        (Some(before), None) if before.phase == Phase::Running => vec![event("die", before, now, None)],
        (Some(_), None) => Vec::new(),
        (Some(before), Some(after)) => match (before.phase, after.phase) {
            (Phase::Created, Phase::Running) => vec![event("start", after, after.since, None)],
            (Phase::Created, Phase::Ended(Some(code))) => {
                vec![event("start", after, after.since, None), event("die", after, after.since, Some(code))]
            }
            (Phase::Running, Phase::Ended(code)) => vec![event("die", after, after.since, code)],
            (Phase::Created, Phase::Created | Phase::Ended(None))
            | (Phase::Running | Phase::Ended(_), Phase::Created | Phase::Running)
            | (Phase::Ended(_), Phase::Ended(_)) => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(index: u64, tracked: &[(&'static str, &str)]) -> Facts {
        Facts {
            name: "web".to_owned(),
            index,
            created: WallTime(100),
            updated: WallTime(100 + index),
            tracked: tracked.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        }
    }

    fn shown(event: &Event) -> String {
        let attributes: Vec<_> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} {} {} ({})", event.time.0, event.kind, event.action, attributes.join(", "))
    }

    #[test]
    fn what_happened_follows_from_what_was_and_is() {
        let one = facts(1, &[("replicas", "1")]);
        let scaled = facts(2, &[("replicas", "3")]);
        let updating = facts(2, &[("replicas", "3"), ("updatestate", "updating")]);
        let completed = facts(2, &[("replicas", "3"), ("updatestate", "completed")]);
        let relabelled = facts(3, &[("replicas", "3")]);
        for (name, before, after, started, want) in [
            ("nothing", None, None, 0, None),
            ("made", None, Some(&one), 0, Some("100 service create (name=web)")),
            ("made before this node looked", None, Some(&one), 101, None),
            ("nothing new", Some(&one), Some(&one), 0, None),
            (
                "scaled",
                Some(&one),
                Some(&scaled),
                0,
                Some("102 service update (name=web, replicas.new=3, replicas.old=1)"),
            ),
            (
                "scaled before this node looked",
                Some(&one),
                Some(&scaled),
                900,
                Some("999 service update (name=web, replicas.new=3, replicas.old=1)"),
            ),
            ("written", Some(&scaled), Some(&relabelled), 0, Some("103 service update (name=web)")),
            ("written before this node looked", Some(&scaled), Some(&relabelled), 900, None),
            (
                "an update begins",
                Some(&scaled),
                Some(&updating),
                0,
                Some("999 service update (name=web, updatestate.new=updating)"),
            ),
            (
                "an update ends",
                Some(&updating),
                Some(&completed),
                0,
                Some("999 service update (name=web, updatestate.new=completed, updatestate.old=updating)"),
            ),
            ("the state of an update is gone", Some(&completed), Some(&scaled), 0, None),
            ("removed", Some(&one), None, 900, Some("999 service remove (name=web)")),
        ] {
            let event = difference((Kind::Service, "id"), before, after, WallTime(started), WallTime(999));
            assert_eq!(event.as_ref().map(shown).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn containers_are_made_start_and_die() {
        let container = |phase| Container {
            id: "c1".to_owned(),
            attributes: Arc::new([("name".to_owned(), "web.1.x".to_owned())].into()),
            phase,
            since: WallTime(5),
        };
        let [created, running] = [Phase::Created, Phase::Running].map(container);
        let [failed, ended] = [Phase::Ended(None), Phase::Ended(Some(3))].map(container);
        let (create, start) = ("5 container create (name=web.1.x)", "5 container start (name=web.1.x)");
        let die = "5 container die (exitCode=3, name=web.1.x)";
        for (name, before, after, want) in [
            ("made", None, Some(&created), &[create][..]),
            ("found", None, Some(&running), &[]),
            ("found ended", None, Some(&ended), &[]),
            ("started", Some(&created), Some(&running), &[start]),
            ("ended at once", Some(&created), Some(&ended), &[start, die]),
            ("never started", Some(&created), Some(&failed), &[]),
            ("ended", Some(&running), Some(&ended), &[die]),
            ("still there", Some(&ended), Some(&ended), &[]),
            ("gone", Some(&ended), None, &[]),
            ("gone while it ran", Some(&running), None, &["9 container die (name=web.1.x)"]),
        ] {
            let events = container_events(before, after, WallTime(9));
            assert_eq!(events.iter().map(shown).collect::<Vec<_>>(), want, "{name}");
        }
    }
}
