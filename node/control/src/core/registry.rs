//! What the holder of the registry lease does with a write: check it against the document, say which records change.
//!
//! Knows nothing of leases, voters or durability. Deciding the same write twice is harmless: a change that is already there
//! is answered as done, so that a manager may forward it again when a holder was replaced half-way.

use std::collections::BTreeMap;

use shoal_protocol::object::Sealed;
use shoal_protocol::spec::{Availability, NodeSpec, PortConfig, SPEC_BYTES_MAX, ServiceSpec};
use shoal_protocol::token::Role;
use shoal_protocol::value::{ClusterObject, NodeObject, ServiceObject, Value};
use shoal_protocol::write::{CredentialsChange, Write, WriteError, Written};
use shoal_protocol::{Key, NodeId, ServiceId, WallTime};

use crate::allocator;
use crate::store::Store;

mod credentials;
mod objects;
#[cfg(test)]
mod tests;

pub use objects::{DATA_BYTES_TOTAL_MAX, OBJECTS_MAX};

/// Services of a cluster at most; more are refused.
pub const SERVICES_MAX: usize = 10_000;

/// Records to write for one request, and the answer once they are durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// New values by key; `None` removes.
    pub changes: Vec<(Key, Option<Value>)>,
    /// Records that say it already, to be made durable once more before the user is told.
    pub confirm: Vec<Key>,
    /// What the user is told.
    pub written: Written,
}

impl Decision {
    fn one(key: Key, value: Option<Value>, index: u64) -> Self {
        let written = Written { index, warnings: Vec::new() };
        Self { changes: vec![(key, value)], confirm: Vec::new(), written }
    }

    fn with(mut self, warnings: Vec<String>) -> Self {
        self.written.warnings = warnings;
        self
    }

    /// Notes before a node becomes a manager that it gets the managers' key: once it is none any more, the key has to be
    /// replaced.
    fn giving_key_to(mut self, node: NodeId, store: &Store, now: WallTime) -> Self {
        if let Some(cluster) = store.cluster().filter(|cluster| !cluster.keys.contains_key(&node)) {
            let mut cluster = ClusterObject { index: cluster.index + 1, updated: now, ..cluster.clone() };
            cluster.keys.insert(node, Vec::new());
            self.changes.push((Key::Cluster, Some(Value::Cluster(cluster))));
        }
        self
    }

    /// The change is there already.
    fn done(key: Key, index: u64) -> Self {
        let written = Written { index, warnings: Vec::new() };
        Self { changes: Vec::new(), confirm: vec![key], written }
    }
}

/// Checks a write and returns the records that carry it out. `is_down` tells which nodes are known to be gone.
pub fn decide(
    write: &Write,
    store: &Store,
    is_down: impl Fn(NodeId) -> bool,
    now: WallTime,
) -> Result<Decision, WriteError> {
    match write {
        Write::CreateService { id, spec, credentials } => create_service(*id, spec, credentials.as_ref(), store, now),
        Write::UpdateService { id, version, spec, rollback, credentials } => {
            update_service(*id, *version, (spec, credentials), *rollback, store, now)
        }
        Write::ResealCredentials { id, version, credentials, previous } => {
            credentials::reseal(*id, *version, (credentials, previous), store)
        }
        Write::RemoveService { id } => match store.service(*id) {
            Some(_) => Ok(Decision::one(Key::Service(*id), None, 0)),
            None if store.stamp(&Key::Service(*id)).is_some() => Ok(Decision::done(Key::Service(*id), 0)),
            None => Err(not_found("service", *id)),
        },
        Write::AdmitNode { id, role, availability } => admit_node(*id, (*role, *availability), store, now),
        Write::UpdateNode { id, version, spec } => update_node(*id, *version, spec, store, is_down, now),
        Write::RemoveNode { id, force } => match store.node(*id) {
            Some(_) if !force && !is_down(*id) => {
                Err(WriteError::Precondition(format!("node {id} is not down and can't be removed")))
            }
            Some(_) => {
                if store.node_spec(*id).is_some_and(|spec| spec.role == Role::Manager) {
                    check_managers_without(*id, "remove", store, is_down)?;
                }
                Ok(Decision::one(Key::Node(*id), None, 0))
            }
            None if store.is_banned(*id) => Ok(Decision::done(Key::Node(*id), 0)),
            None => Err(not_found("node", *id)),
        },
        Write::UpdateCluster { cluster } => update_cluster(cluster, store, now),
        Write::CreateObject { kind, id, spec, data, edition } => {
            objects::create((*kind, *id), spec, (data, *edition), store, now)
        }
        Write::ResealSecret { id, edition, data } => objects::reseal(*id, *edition, data, store),
        Write::UpdateObject { kind, id, version, spec } => objects::update((*kind, *id), *version, spec, store, now),
        Write::RemoveObject { kind, id } => objects::remove((*kind, *id), store),
    }
}

/// Returns a record of an older epoch that a write relies on, if any. It has to be written again first: a removal that an
/// earlier holder wrote to a minority of the voters would win over it when it turns up.
pub fn relies_on_older(write: &Write, epoch: u64, store: &Store) -> Option<Key> {
    let is_older = |key: &Key| !store.is_removed(key) && store.stamp(key).is_some_and(|stamp| stamp.epoch < epoch);
    objects::relies_on(write, store).into_iter().find(is_older)
}

fn not_found(kind: &str, id: impl std::fmt::Display) -> WriteError {
    WriteError::NotFound(format!("{kind} {id} not found"))
}

fn read_service_spec(json: &str) -> Result<ServiceSpec, WriteError> {
    let invalid = |error: String| WriteError::Invalid(error);
    if json.len() > SPEC_BYTES_MAX {
        return Err(invalid(format!("spec of {} bytes is larger than the limit of {SPEC_BYTES_MAX}", json.len())));
    }
    ServiceSpec::parse(json).map_err(|error| invalid(error.to_string()))
}

fn create_service(
    id: ServiceId,
    json: &str,
    credentials: Option<&Sealed>,
    store: &Store,
    now: WallTime,
) -> Result<Decision, WriteError> {
    credentials::check(credentials)?;
    let spec = read_service_spec(json)?;
    if let Some(existing) = store.service(id) {
        return if existing.spec == json {
            Ok(Decision::done(Key::Service(id), existing.index))
        } else {
            Err(WriteError::Conflict(format!("service {id} already exists")))
        };
    }
    if store.services().any(|(_, _, other)| other.name == spec.name) {
        return Err(WriteError::Conflict(format!(
            "name conflicts with an existing object: service {} already exists",
            spec.name
        )));
    }
    if store.services().count() >= SERVICES_MAX {
        return Err(WriteError::Precondition(format!("the cluster has {SERVICES_MAX} services, which is the limit")));
    }
    let warnings = objects::check_used(&spec, store)?;
    let ports = allocate_ports(id, &spec, &[], store)?;
    let service = ServiceObject {
        index: 1,
        created: now,
        updated: now,
        spec: json.to_owned(),
        previous_spec: None,
        rolled_back: false,
        ports,
        credentials: credentials.cloned(),
        previous_credentials: None,
    };
    Ok(Decision::one(Key::Service(id), Some(Value::Service(service)), 1).with(warnings))
}

fn update_service(
    id: ServiceId,
    version: u64,
    (json, credentials): (&str, &CredentialsChange),
    rollback: bool,
    store: &Store,
    now: WallTime,
) -> Result<Decision, WriteError> {
    let current = store.service(id).ok_or_else(|| not_found("service", id))?;
    let json = match (rollback, &current.previous_spec) {
        (false, _) => json,
        (true, Some(previous)) => previous,
        (true, None) => {
            return Err(WriteError::Precondition(format!("service {id} does not have a previous spec")));
        }
    };
    if current.index != version {
        // Forwarded twice: the first copy was carried out.
        let is_same = match credentials {
            CredentialsChange::Set(credentials) => current.credentials == *credentials,
            CredentialsChange::Keep | CredentialsChange::Previous => true,
        };
        return if current.index == version + 1 && current.spec == json && is_same && !rollback {
            Ok(Decision::done(Key::Service(id), current.index))
        } else {
            Err(WriteError::OutOfSequence)
        };
    }
    let spec = read_service_spec(json)?;
    if let Some(before) = store.service_spec(id) {
        if before.name != spec.name {
            return Err(WriteError::Invalid("renaming services is not supported".to_owned()));
        }
        if before.mode.kind().name() != spec.mode.kind().name() {
            return Err(WriteError::Invalid("service mode change is not allowed".to_owned()));
        }
    }
    let credentials = if rollback { &CredentialsChange::Previous } else { credentials };
    let credentials = credentials::changed(id, current, credentials)?;
    let warnings = objects::check_used(&spec, store)?;
    let ports = allocate_ports(id, &spec, &current.ports, store)?;
    let index = current.index + 1;
    let service = ServiceObject {
        index,
        created: current.created,
        updated: now,
        spec: json.to_owned(),
        previous_spec: Some(current.spec.clone()),
        rolled_back: rollback,
        ports,
        credentials,
        previous_credentials: current.credentials.clone(),
    };
    Ok(Decision::one(Key::Service(id), Some(Value::Service(service)), index).with(warnings))
}

/// Returns whether an object that turned up late cannot stay beside what was written meanwhile.
pub fn clashes(key: &Key, store: &Store) -> bool {
    match *key {
        Key::Service(id) => service_clashes(id, store) || objects::lacks(id, store),
        Key::Object(kind, id) => objects::clashes(kind, id, store),
        Key::Cluster
        | Key::Voters
        | Key::Claim(_)
        | Key::Node(_)
        | Key::Progress(_)
        | Key::Slot(..)
        | Key::NodeStatus(_)
        | Key::TaskStatus(..) => false,
    }
}

/// Returns whether a service has the name or a published port of another one.
fn service_clashes(id: ServiceId, store: &Store) -> bool {
    let (Some(spec), Some(object)) = (store.service_spec(id), store.service(id)) else { return false };
    let same_name = store.services().any(|(other, _, theirs)| other != id && theirs.name == spec.name);
    same_name || allocate_ports(id, spec, &object.ports, store).is_err()
}

fn allocate_ports(
    id: ServiceId,
    spec: &ServiceSpec,
    before: &[PortConfig],
    store: &Store,
) -> Result<Vec<PortConfig>, WriteError> {
    let others: BTreeMap<ServiceId, (&str, &[PortConfig])> = store
        .services()
        .filter(|(other, _, _)| *other != id)
        .map(|(other, object, spec)| (other, (spec.name.as_str(), object.ports.as_slice())))
        .collect();
    allocator::allocate(&spec.endpoint_spec.ports, before, &others)
        .map_err(|error| WriteError::Invalid(error.to_string()))
}

fn admit_node(
    id: NodeId,
    (role, availability): (Role, Availability),
    store: &Store,
    now: WallTime,
) -> Result<Decision, WriteError> {
    if store.is_banned(id) {
        return Err(WriteError::Conflict(format!("node {id} was removed from this cluster and cannot come back")));
    }
    if let Some(existing) = store.node(id) {
        let same = store.node_spec(id).is_some_and(|spec| spec.role == role);
        return if same {
            Ok(Decision::done(Key::Node(id), existing.index))
        } else {
            Err(WriteError::Conflict(format!("node {id} is a member with another role")))
        };
    }
    let spec = NodeSpec { role, availability, ..NodeSpec::default() };
    let spec = serde_json::to_string(&spec).map_err(|error| WriteError::Invalid(error.to_string()))?;
    let node = NodeObject { index: 1, created: now, updated: now, spec };
    let decision = Decision::one(Key::Node(id), Some(Value::Node(node)), 1);
    Ok(if role == Role::Manager { decision.giving_key_to(id, store, now) } else { decision })
}

fn update_node(
    id: NodeId,
    version: u64,
    json: &str,
    store: &Store,
    is_down: impl Fn(NodeId) -> bool,
    now: WallTime,
) -> Result<Decision, WriteError> {
    let current = store.node(id).ok_or_else(|| not_found("node", id))?;
    if current.index != version {
        return if current.index == version + 1 && current.spec == json {
            Ok(Decision::done(Key::Node(id), current.index))
        } else {
            Err(WriteError::OutOfSequence)
        };
    }
    if json.len() > SPEC_BYTES_MAX {
        return Err(WriteError::Invalid(format!("spec is larger than the limit of {SPEC_BYTES_MAX} bytes")));
    }
    let spec: NodeSpec =
        serde_json::from_str(json).map_err(|error| WriteError::Invalid(format!("invalid node spec: {error}")))?;
    let is_demoted =
        store.node_spec(id).is_some_and(|before| (before.role, spec.role) == (Role::Manager, Role::Worker));
    if is_demoted {
        check_managers_without(id, "demote", store, is_down)?;
    }
    let index = current.index + 1;
    let node = NodeObject { index, created: current.created, updated: now, spec: json.to_owned() };
    let decision = Decision::one(Key::Node(id), Some(Value::Node(node)), index);
    Ok(if spec.role == Role::Manager { decision.giving_key_to(id, store, now) } else { decision })
}

/// Refuses to do without a manager unless another one is there that has the keys.
fn check_managers_without(
    id: NodeId,
    what: &str,
    store: &Store,
    is_down: impl Fn(NodeId) -> bool,
) -> Result<(), WriteError> {
    let others = || store.nodes().filter(|(other, _, spec)| *other != id && spec.role == Role::Manager);
    let text = if others().next().is_none() {
        format!("attempting to {what} the last manager of the swarm")
    } else if !others().any(|(other, ..)| !is_down(other)) {
        format!("node {id} is the last manager that is not down: promote another node, or bring a manager back")
    } else if !others().any(|(other, ..)| !is_down(other) && has_key(other, store)) {
        format!("node {id} is the only manager with the keys of the cluster: try again in a moment")
    } else {
        return Ok(());
    };
    Err(WriteError::Precondition(text))
}

fn has_key(node: NodeId, store: &Store) -> bool {
    store.cluster().is_none_or(|cluster| cluster.is_key_known_to(node, store.node_status(node)))
}

fn update_cluster(cluster: &ClusterObject, store: &Store, now: WallTime) -> Result<Decision, WriteError> {
    let Some(current) = store.cluster() else {
        return Err(WriteError::NotFound("the cluster has no settings yet".to_owned()));
    };
    if current.id != cluster.id {
        return Err(WriteError::Invalid("a cluster's identity cannot be changed".to_owned()));
    }
    if current.index != cluster.index {
        return Err(WriteError::OutOfSequence);
    }
    let is_same_root = current.root_pem == cluster.root_pem;
    if is_same_root != (current.edition == cluster.edition) || !is_same_root && cluster.edition != current.edition + 1 {
        return Err(WriteError::Invalid("a new root needs the next edition".to_owned()));
    }
    cluster.settings.check().map_err(WriteError::Invalid)?;
    if !(current.lock..=current.lock + 1).contains(&cluster.lock) || cluster.settings.auto_lock && cluster.lock == 0 {
        return Err(WriteError::Invalid("a new unlock key needs the next number".to_owned()));
    }
    let index = current.index + 1;
    let cluster = ClusterObject { index, created: current.created, updated: now, ..cluster.clone() };
    Ok(Decision::one(Key::Cluster, Some(Value::Cluster(cluster)), index))
}
