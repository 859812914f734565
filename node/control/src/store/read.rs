//! Reading the document: values by what they are about, opened and in the order of their keys.
//!
//! A record that could not be opened is absent here, as a removed one is; [`Store::quarantined`] lists those.

use shoal_protocol::codec;
use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::object::network::NetworkState;
use shoal_protocol::object::{Kind, Object, ObjectHead};
use shoal_protocol::record::{Key, Record, SlotName, Stamp};
use shoal_protocol::spec::{NodeSpec, ServiceSpec};
use shoal_protocol::value::{
    Claim, ClusterObject, NodeObject, NodeStatus, Progress, ServiceObject, Slot, SlotTask, TaskReport, Value,
    ValueError,
};
use shoal_protocol::{NodeId, ObjectId, ServiceId, TaskId};

use super::entry::{Content, Opened, Removed};
use super::{Entry, Store};

impl Content {
    pub(super) fn slot(&self) -> Option<&Slot> {
        if let Self::Slot(slot) = self { Some(slot) } else { None }
    }
}

fn content(entry: &Entry) -> Option<&Content> {
    if let Opened::Content(content) = &entry.opened { Some(content) } else { None }
}

/// Takes the value out of the entry's content; the pattern fails for no readable entry, as the key decides on the kind.
macro_rules! plain {
    ($entry:expr, $kind:ident) => {
        match content($entry) {
            Some(Content::Plain(value)) => match &**value {
                Value::$kind(value) => Some(value),
                _ => None,
            },
            _ => None,
        }
    };
}

impl Store {
    /// Returns the number that stands for the whole document: equal documents, equal digest.
    pub fn digest(&self) -> u128 {
        self.root
    }

    /// Returns how many keys are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the stamp of a key's base, tombstones included.
    pub fn stamp(&self, key: &Key) -> Option<Stamp> {
        self.entries.get(key)?.registers.stamp()
    }

    /// Returns the base of a key as its author sent it, tombstones included.
    pub fn record(&self, key: &Key) -> Option<Record> {
        self.entries.get(key)?.registers.base(*key)
    }

    /// Returns base and overlay of a key.
    pub fn records(&self, key: &Key) -> Vec<Record> {
        let Some(Entry { registers, .. }) = self.entries.get(key) else {
            return Vec::new();
        };
        let overlay = registers.overlay().into_iter().map(|record| Record::clone(&record));
        registers.base(*key).into_iter().chain(overlay).collect()
    }

    /// Returns every key that is held, tombstones included.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    /// Returns the records that this version cannot read, with the reason. They are kept, digested and passed on.
    pub fn quarantined(&self) -> impl ExactSizeIterator<Item = (Key, Option<&ValueError>)> {
        self.quarantined.iter().map(|key| match self.opened(key) {
            Some(Opened::Sealed(error)) => (*key, Some(error)),
            Some(Opened::Absent | Opened::Content(_)) | None => (*key, None),
        })
    }

    /// Returns the cluster's own settings.
    pub fn cluster(&self) -> Option<&ClusterObject> {
        plain!(self.entries.get(&Key::Cluster)?, Cluster)
    }

    /// Returns the newest voters that were announced.
    pub fn voters(&self) -> Option<&VoterSet> {
        plain!(self.entries.get(&Key::Voters)?, Voters)
    }

    /// Returns who announced to hold a lease; the epoch is in the stamp.
    pub fn claim(&self, lease: LeaseId) -> Option<(Stamp, &Claim)> {
        let entry = self.entries.get(&Key::Claim(lease))?;
        Some((entry.registers.stamp()?, plain!(entry, Claim)?))
    }

    /// Returns a listed node.
    pub fn node(&self, node: NodeId) -> Option<&NodeObject> {
        self.node_and_spec(node).map(|(object, _)| object)
    }

    /// Returns how a node's operators want it.
    pub fn node_spec(&self, node: NodeId) -> Option<&NodeSpec> {
        self.node_and_spec(node).map(|(_, spec)| spec)
    }

    fn node_and_spec(&self, node: NodeId) -> Option<(&NodeObject, &NodeSpec)> {
        node_of(self.entries.get(&Key::Node(node))?)
    }

    /// Returns the listed nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeObject, &NodeSpec)> {
        let all = Key::Node(NodeId(0))..=Key::Node(NodeId(u128::MAX));
        self.entries.range(all).filter_map(|(key, entry)| {
            let Key::Node(id) = key else { return None };
            node_of(entry).map(|(object, spec)| (*id, object, spec))
        })
    }

    /// Returns whether the cluster lists the node, readable or not.
    pub fn is_listed(&self, node: NodeId) -> bool {
        let removed = |entry: &Entry| entry.registers.stamp().is_none() || entry.registers.removed().is_some();
        self.entries.get(&Key::Node(node)).is_some_and(|entry| !removed(entry))
    }

    /// Returns whether the node was removed from the cluster.
    pub fn is_banned(&self, node: NodeId) -> bool {
        self.entries.get(&Key::Node(node)).is_some_and(|entry| entry.registers.removed() == Some(Removed::Tombstone))
    }

    /// Returns the removed nodes.
    pub fn banned(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.entries.range(Key::Node(NodeId(0))..=Key::Node(NodeId(u128::MAX))).filter_map(|(key, _)| match *key {
            Key::Node(node) if self.is_banned(node) => Some(node),
            _ => None,
        })
    }

    /// Returns a service.
    pub fn service(&self, service: ServiceId) -> Option<&ServiceObject> {
        self.service_and_spec(service).map(|(object, _)| object)
    }

    /// Returns how a service's user wants it.
    pub fn service_spec(&self, service: ServiceId) -> Option<&ServiceSpec> {
        self.service_and_spec(service).map(|(_, spec)| spec)
    }

    fn service_and_spec(&self, service: ServiceId) -> Option<(&ServiceObject, &ServiceSpec)> {
        service_of(self.entries.get(&Key::Service(service))?)
    }

    /// Returns the services.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, &ServiceObject, &ServiceSpec)> {
        let all = Key::Service(ServiceId(0))..=Key::Service(ServiceId(u128::MAX));
        self.entries.range(all).filter_map(|(key, entry)| {
            let Key::Service(id) = key else { return None };
            service_of(entry).map(|(object, spec)| (*id, object, spec))
        })
    }

    /// Returns a secret, config or network without its data.
    pub fn object(&self, kind: Kind, id: ObjectId) -> Option<&ObjectHead> {
        object_of(self.entries.get(&Key::Object(kind, id))?).map(|(head, _)| head)
    }

    /// Returns the objects of a kind, without their data but with how many bytes those are.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = (ObjectId, &ObjectHead, usize)> {
        let all = Key::Object(kind, ObjectId(0))..=Key::Object(kind, ObjectId(u128::MAX));
        self.entries.range(all).filter_map(|(key, entry)| {
            let Key::Object(_, id) = key else { return None };
            object_of(entry).map(|(head, bytes)| (*id, head, bytes))
        })
    }

    /// Reads a secret, config or network with its data.
    pub fn object_with_data(&self, kind: Kind, id: ObjectId) -> Option<Object> {
        let record = self.record(&Key::Object(kind, id))?;
        if let Ok(Some(Value::Object(object))) = Value::open(&record) { Some(object) } else { None }
    }

    /// Reads the addresses of a network.
    pub fn network(&self, id: ObjectId) -> Option<NetworkState> {
        codec::decode(&self.object_with_data(Kind::Network, id)?.data).ok()
    }

    /// Returns whether an object was there once and was removed.
    pub fn is_removed(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.registers.removed().is_some())
    }

    /// Returns how far the update of a service is.
    pub fn progress(&self, service: ServiceId) -> Option<&Progress> {
        plain!(self.entries.get(&Key::Progress(service))?, Progress)
    }

    /// Returns a slot.
    pub fn slot(&self, service: ServiceId, name: SlotName) -> Option<&Slot> {
        content(self.entries.get(&Key::Slot(service, name))?)?.slot()
    }

    /// Returns the slots of a service.
    pub fn slots(&self, service: ServiceId) -> impl Iterator<Item = (SlotName, &Slot)> {
        let last = SlotName::Node(NodeId(u128::MAX));
        let all = Key::Slot(service, SlotName::Replica(0))..=Key::Slot(service, last);
        self.entries.range(all).filter_map(|(key, entry)| {
            let Key::Slot(_, name) = key else { return None };
            Some((*name, content(entry)?.slot()?))
        })
    }

    /// Returns the slots of all services, also of such as are unknown or removed.
    pub fn all_slots(&self) -> impl Iterator<Item = (ServiceId, SlotName, &Slot)> {
        let first = Key::Slot(ServiceId(0), SlotName::Replica(0));
        let last = Key::Slot(ServiceId(u128::MAX), SlotName::Node(NodeId(u128::MAX)));
        self.entries.range(first..=last).filter_map(|(key, entry)| {
            let Key::Slot(service, name) = key else { return None };
            Some((*service, *name, content(entry)?.slot()?))
        })
    }

    /// Returns every task, present and past, that a slot gives to `node`, in the order of task IDs.
    pub fn slots_on(&self, node: NodeId) -> impl Iterator<Item = (ServiceId, SlotName, &SlotTask)> {
        let first = (node, TaskId(0), ServiceId(0), SlotName::Replica(0));
        let assigned = self.assigned.range(first..).take_while(move |(owner, ..)| *owner == node);
        assigned.filter_map(|(_, id, service, name)| {
            let task = self.slot(*service, *name)?.tasks.iter().find(|task| task.id == *id)?;
            Some((*service, *name, task))
        })
    }

    /// Returns what a node says of itself.
    pub fn node_status(&self, node: NodeId) -> Option<&NodeStatus> {
        plain!(self.entries.get(&Key::NodeStatus(node))?, NodeStatus)
    }

    /// Returns what a node says of a task.
    pub fn report(&self, node: NodeId, task: TaskId) -> Option<&TaskReport> {
        plain!(self.entries.get(&Key::TaskStatus(node, task))?, TaskReport)
    }

    /// Returns everything a node says of tasks.
    pub fn reports_of(&self, node: NodeId) -> impl Iterator<Item = (TaskId, &TaskReport)> {
        let all = Key::TaskStatus(node, TaskId(0))..=Key::TaskStatus(node, TaskId(u128::MAX));
        self.entries.range(all).filter_map(|(key, entry)| {
            let Key::TaskStatus(_, task) = key else { return None };
            Some((*task, plain!(entry, TaskReport)?))
        })
    }
}

fn node_of(entry: &Entry) -> Option<(&NodeObject, &NodeSpec)> {
    if let Content::Node(node) = content(entry)? { Some((&node.0, &node.1)) } else { None }
}

fn object_of(entry: &Entry) -> Option<(&ObjectHead, usize)> {
    if let Content::Object(head, bytes) = content(entry)? { Some((head, *bytes)) } else { None }
}

fn service_of(entry: &Entry) -> Option<(&ServiceObject, &ServiceSpec)> {
    if let Content::Service(service) = content(entry)? { Some((&service.0, &service.1)) } else { None }
}
