//! Whether a manager hands a secret or registry credentials to a node: only if a task that the cluster wants there uses them.

use shoal_protocol::object::Sealed;
use shoal_protocol::record::{Key, SlotName};
use shoal_protocol::value::SlotTask;
use shoal_protocol::{Kind, NodeId, ObjectId, ServiceId, TaskId, TaskState};

use super::Control;
use crate::store::Store;
use crate::task::plan;

/// Why a secret or config is not handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// It may be some other time, or elsewhere: this node's document may lag behind.
    #[error("{0}")]
    NotYet(String),
    /// It never will be to this task.
    #[error("{0}")]
    Refused(String),
}

impl Control {
    /// Checks whether `node` may have the secret or config `id` for `task`: a slot gives that very task to that node, wants it
    /// to run, and its spec names the object.
    ///
    /// `node` has to be proved by the connection that asks.
    pub fn may_have(&self, node: NodeId, task: TaskId, kind: Kind, id: ObjectId) -> Result<(), Withheld> {
        may_have(&self.store, node, task, kind, id)
    }

    /// Returns what `node` may have opened for `task` to pull its image with, if its service came with credentials: those of
    /// the spec that the task was made from. `node` has to be proved by the connection that asks.
    pub fn credentials_for(&self, node: NodeId, task: TaskId) -> Result<Option<(ServiceId, Sealed)>, Withheld> {
        credentials_for(&self.store, node, task)
    }
}

fn may_have(store: &Store, node: NodeId, task: TaskId, kind: Kind, id: ObjectId) -> Result<(), Withheld> {
    let what = kind.name();
    let (_, wanted) = wanted(store, node, task, || format!("{what} {id}"))?;
    let template = plan::read(&wanted.template).map_err(Withheld::Refused)?;
    let names_it = template.container_spec.files().any(|file| file.kind == kind && file.id.parse() == Ok(id));
    if !names_it {
        return Err(Withheld::Refused(format!("task {task} does not use {what} {id}")));
    }
    let key = Key::Object(kind, id);
    match store.object(kind, id) {
        Some(_) => Ok(()),
        None if store.is_removed(&key) => Err(Withheld::Refused(format!("{what} {id} was removed"))),
        None => Err(Withheld::NotYet(format!("{what} {id} has not arrived yet"))),
    }
}

fn credentials_for(store: &Store, node: NodeId, task: TaskId) -> Result<Option<(ServiceId, Sealed)>, Withheld> {
    let (service, wanted) = wanted(store, node, task, || "registry credentials".to_owned())?;
    let object = store
        .service(service)
        .ok_or_else(|| Withheld::NotYet(format!("service {service} has not arrived yet, or is gone")))?;
    if wanted.index > object.index {
        return Err(Withheld::NotYet(format!("the spec of task {task} has not arrived yet")));
    }
    Ok(object.credentials_at(wanted.index).map(|sealed| (service, sealed.clone())))
}

/// Finds a task that is to run on a node.
fn wanted(
    store: &Store,
    node: NodeId,
    task: TaskId,
    what: impl FnOnce() -> String,
) -> Result<(ServiceId, &SlotTask), Withheld> {
    let Some((service, _, wanted)) = find(store, node, task) else {
        return Err(Withheld::NotYet(format!("no task {task} on node {node} is known to use {}", what())));
    };
    if wanted.desired > TaskState::Running {
        return Err(Withheld::NotYet(format!("task {task} is to end")));
    }
    Ok((service, wanted))
}

fn find(store: &Store, node: NodeId, task: TaskId) -> Option<(ServiceId, SlotName, &SlotTask)> {
    store.slots_on(node).find(|(_, _, wanted)| wanted.id == task)
}

#[cfg(test)]
mod tests {
    use shoal_protocol::object::{Object, ObjectHead};
    use shoal_protocol::value::{Slot, Value};
    use shoal_protocol::{Stamp, WallTime};

    use super::*;

    const NODE: NodeId = NodeId(1);
    const SECRET: ObjectId = ObjectId(5);

    fn put(store: &mut Store, seq: u64, key: Key, value: Option<&Value>) {
        store.put(key, Stamp { lineage: 0, epoch: 1, seq }, NodeId(9), value).unwrap();
    }

    /// Task 10 on node 1 uses secret 5 and config 6, task 11 was to use them, task 12 does not, task 20 is on node 2.
    fn store() -> Store {
        let file = |kind: &str, id: u128| {
            let id = ObjectId(id);
            format!(r#"{{"File":{{"Name":"f{kind}"}},"{kind}ID":"{id}","{kind}Name":"x"}}"#)
        };
        let (secret, config) = (file("Secret", 5), file("Config", 6));
        let uses = format!(r#"{{"ContainerSpec":{{"Image":"x","Secrets":[{secret}],"Configs":[{config}]}}}}"#);
        let task = |id, node, desired, template: &str| SlotTask {
            id: TaskId(id),
            node: Some(NodeId(node)),
            desired,
            template: template.to_owned(),
            ..SlotTask::default()
        };
        let tasks = vec![
            task(10, 1, TaskState::Running, &uses),
            task(11, 1, TaskState::Shutdown, &uses),
            task(12, 1, TaskState::Running, r#"{"ContainerSpec":{"Image":"x"}}"#),
            task(20, 2, TaskState::Running, &uses),
        ];
        let mut store = Store::new();
        put(&mut store, 1, Key::Slot(ServiceId(1), SlotName::Replica(1)), Some(&Value::Slot(Slot { tasks })));
        let (created, updated) = (WallTime(1), WallTime(1));
        let head = ObjectHead { index: 1, created, updated, edition: 1, name: "x".to_owned(), spec: "{}".to_owned() };
        let object = Value::Object(Object { head, data: vec![1] });
        for (seq, kind, id) in
            [(2, Kind::Secret, SECRET), (3, Kind::Config, ObjectId(6)), (4, Kind::Secret, ObjectId(7))]
        {
            put(&mut store, seq, Key::Object(kind, id), Some(&object));
        }
        store
    }

    #[test]
    fn only_a_wanted_task_that_names_it_gets_a_secret() {
        let store = store();
        for (name, node, task, kind, id, want) in [
            ("its task uses it", 1, 10, Kind::Secret, 5, "given"),
            ("its task uses the config", 1, 10, Kind::Config, 6, "given"),
            ("the same task on its own node", 2, 20, Kind::Secret, 5, "given"),
            ("another node's task", 1, 20, Kind::Secret, 5, "not yet"),
            ("a task of this node asked for by another", 2, 10, Kind::Secret, 5, "not yet"),
            ("a node without tasks", 3, 10, Kind::Secret, 5, "not yet"),
            ("no such task", 1, 99, Kind::Secret, 5, "not yet"),
            ("a task that is to end", 1, 11, Kind::Secret, 5, "not yet"),
            ("a task that does not name it", 1, 12, Kind::Secret, 5, "refused"),
            ("a secret that the task does not name", 1, 10, Kind::Secret, 7, "refused"),
            ("of the wrong kind", 1, 10, Kind::Config, 5, "refused"),
        ] {
            let got = match may_have(&store, NodeId(node), TaskId(task), kind, ObjectId(id)) {
                Ok(()) => "given",
                Err(Withheld::NotYet(_)) => "not yet",
                Err(Withheld::Refused(_)) => "refused",
            };
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn what_was_removed_is_refused_and_what_is_unknown_may_come() {
        let mut store = store();
        let key = Key::Object(Kind::Secret, SECRET);
        put(&mut store, 9, key, None);
        let got = may_have(&store, NODE, TaskId(10), Kind::Secret, SECRET);
        assert_eq!(got, Err(Withheld::Refused(format!("secret {SECRET} was removed"))));
        store.put_collected(key, Stamp { lineage: 0, epoch: 1, seq: 10 }, NodeId(9)).unwrap();
        store.collect();
        store.collect();
        let got = may_have(&store, NODE, TaskId(10), Kind::Secret, SECRET);
        assert_eq!(got, Err(Withheld::NotYet(format!("secret {SECRET} has not arrived yet"))));
    }

    #[test]
    fn only_a_wanted_task_gets_the_credentials_of_its_service() {
        let mut store = store();
        let sealed = Sealed { edition: 1, data: vec![7] };
        let spec = r#"{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#.to_owned();
        let service = shoal_protocol::value::ServiceObject {
            index: 0, // as that of the tasks
            created: WallTime(1),
            updated: WallTime(1),
            spec,
            previous_spec: None,
            rolled_back: false,
            ports: Vec::new(),
            credentials: Some(sealed.clone()),
            previous_credentials: None,
        };
        let ask = |store: &Store, node, task| credentials_for(store, NodeId(node), TaskId(task));
        assert!(matches!(ask(&store, 1, 10), Err(Withheld::NotYet(_))), "its service has not arrived");
        put(&mut store, 5, Key::Service(ServiceId(1)), Some(&Value::Service(service.clone())));
        for (node, task) in [(1, 10), (1, 12), (2, 20)] {
            assert_eq!(ask(&store, node, task), Ok(Some((ServiceId(1), sealed.clone()))), "{node} {task}");
        }
        for (name, node, task) in [("another's", 2, 10), ("one that is to end", 1, 11), ("none", 1, 99)] {
            assert!(matches!(ask(&store, node, task), Err(Withheld::NotYet(_))), "{name}");
        }
        let later = shoal_protocol::value::ServiceObject { index: 1, ..service };
        put(&mut store, 6, Key::Service(ServiceId(1)), Some(&Value::Service(later)));
        assert_eq!(ask(&store, 1, 10), Ok(None), "the spec before came without");
    }
}
