//! Secrets, configs and networks: unique names, bounded numbers, and no removal of what a service uses.
//!
//! Texts follow SwarmKit's `controlapi/secret.go`, `config.go` and `network.go`.

use shoal_protocol::codec;
use shoal_protocol::object::network::{self, NetworkSpec, NetworkState};
use shoal_protocol::object::{self, FileSpec, Kind, Object, ObjectHead, SEAL_BYTES};
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::{ServiceSpec, SpecError};
use shoal_protocol::subnet::Subnet;
use shoal_protocol::value::Value;
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Key, ObjectId, ServiceId, WallTime};

use super::{Decision, not_found};
use crate::allocator;
use crate::store::Store;

/// Objects of one kind at most; more are refused.
pub const OBJECTS_MAX: usize = 10_000;

/// Bytes of data of all objects together at most, as every node keeps them in memory and on disk; more are refused.
pub const DATA_BYTES_TOTAL_MAX: usize = 64 << 20;

/// Checks and carries out the creation of an object.
pub(super) fn create(
    (kind, id): (Kind, ObjectId),
    spec: &str,
    (data, edition): (&[u8], u64),
    store: &Store,
    now: WallTime,
) -> Result<Decision, WriteError> {
    let key = Key::Object(kind, id);
    let invalid = |error: SpecError| WriteError::Invalid(error.to_string());
    let (name, network) = match kind {
        Kind::Secret | Kind::Config => {
            let sealing = if kind == Kind::Secret { SEAL_BYTES } else { 0 };
            object::check_data(kind, data.len().saturating_sub(sealing)).map_err(invalid)?;
            (FileSpec::parse(kind, spec).map_err(invalid)?.name, None)
        }
        Kind::Network => {
            let spec = NetworkSpec::parse(spec).map_err(invalid)?;
            (spec.name.clone(), Some(spec))
        }
    };
    if let Some(existing) = store.object(kind, id) {
        return if existing.spec == spec {
            Ok(Decision::done(key, existing.index))
        } else {
            Err(WriteError::Conflict(format!("{} {id} already exists", kind.name())))
        };
    }
    if store.objects(kind).any(|(_, other, _)| other.name == name) || is_reserved(kind, &name) {
        return Err(WriteError::Conflict(match kind {
            Kind::Secret | Kind::Config => format!("{} {name} already exists", kind.name()),
            Kind::Network => format!("network with name {name} already exists"),
        }));
    }
    let (data, warnings) = match network {
        None => (data.to_vec(), Vec::new()),
        Some(spec) => (allocate(&spec, id, store)?, vec![network::WARNING.to_owned()]),
    };
    check_room(kind, data.len(), store)?;
    let edition = if kind == Kind::Secret { edition } else { 0 };
    let head = ObjectHead { index: 1, created: now, updated: now, edition, name, spec: spec.to_owned() };
    Ok(Decision::one(key, Some(Value::Object(Object { head, data })), 1).with(warnings))
}

fn is_reserved(kind: Kind, name: &str) -> bool {
    kind == Kind::Network && name == network::INGRESS
}

/// Allocates the addresses of a network and encodes them.
fn allocate(spec: &NetworkSpec, id: ObjectId, store: &Store) -> Result<Vec<u8>, WriteError> {
    let settings = settings(store);
    let pools = (settings.pools(), settings.pool_prefix);
    let blocks = allocator::allocate_blocks(&spec.blocks, (&pools.0, pools.1), &taken(id, store))
        .map_err(|error| WriteError::Precondition(error.to_string()))?;
    codec::encode(&NetworkState { blocks }).map_err(|error| WriteError::Invalid(error.to_string()))
}

/// Returns the addresses that networks other than `id` have.
fn taken(id: ObjectId, store: &Store) -> Vec<Subnet> {
    let others = store.objects(Kind::Network).map(|(other, ..)| other).filter(|other| *other != id);
    let blocks = others.flat_map(|other| store.network(other).unwrap_or_default().blocks);
    blocks.map(|block| block.subnet).chain([settings(store).ingress()]).collect()
}

fn settings(store: &Store) -> ClusterSettings {
    store.cluster().map(|cluster| cluster.settings.clone()).unwrap_or_default()
}

fn check_room(kind: Kind, bytes: usize, store: &Store) -> Result<(), WriteError> {
    if store.objects(kind).count() >= OBJECTS_MAX {
        let kind = kind.name();
        return Err(WriteError::Precondition(format!("the cluster has {OBJECTS_MAX} {kind}s, which is the limit")));
    }
    let used: usize = Kind::ALL.iter().flat_map(|kind| store.objects(*kind)).map(|(_, _, bytes)| bytes).sum();
    if used.saturating_add(bytes) > DATA_BYTES_TOTAL_MAX {
        return Err(WriteError::Precondition(format!(
            "secrets and configs have {used} bytes together, and with {bytes} more they would exceed the limit of {DATA_BYTES_TOTAL_MAX}: remove some"
        )));
    }
    Ok(())
}

/// Checks and carries out the replacement of an object's labels.
pub(super) fn update(
    (kind, id): (Kind, ObjectId),
    version: u64,
    spec: &str,
    store: &Store,
    now: WallTime,
) -> Result<Decision, WriteError> {
    let key = Key::Object(kind, id);
    let current = store.object_with_data(kind, id).ok_or_else(|| not_found(kind.name(), id))?;
    if current.head.index != version {
        return if current.head.index == version + 1 && current.head.spec == spec {
            Ok(Decision::done(key, current.head.index))
        } else {
            Err(WriteError::OutOfSequence)
        };
    }
    if kind == Kind::Network {
        return Err(WriteError::Invalid("networks cannot be updated".to_owned()));
    }
    let wanted = FileSpec::parse(kind, spec).map_err(|error| WriteError::Invalid(error.to_string()))?;
    let was_template = FileSpec::parse(kind, &current.head.spec).is_ok_and(|spec| spec.is_template);
    if (&wanted.name, wanted.is_template) != (&current.head.name, was_template) {
        return Err(WriteError::Invalid("only updates to Labels are allowed".to_owned()));
    }
    let index = version + 1;
    let head = ObjectHead { index, updated: now, spec: spec.to_owned(), ..current.head };
    Ok(Decision::one(key, Some(Value::Object(Object { head, data: current.data })), index))
}

/// Checks and carries out the replacement of a secret's data by the same, sealed with a later key. Its index stays: whoever
/// read the secret before may still update it.
pub(super) fn reseal(id: ObjectId, edition: u64, data: &[u8], store: &Store) -> Result<Decision, WriteError> {
    let kind = Kind::Secret;
    let key = Key::Object(kind, id);
    let current = store.object_with_data(kind, id).ok_or_else(|| not_found(kind.name(), id))?;
    let index = current.head.index;
    if current.head.edition >= edition {
        return Ok(Decision::done(key, index));
    }
    if current.data.len() != data.len() {
        return Err(WriteError::Invalid(format!("secret {id} was sealed as something else")));
    }
    let head = ObjectHead { edition, ..current.head };
    Ok(Decision::one(key, Some(Value::Object(Object { head, data: data.to_vec() })), index))
}

/// Checks and carries out the removal of an object.
pub(super) fn remove((kind, id): (Kind, ObjectId), store: &Store) -> Result<Decision, WriteError> {
    let key = Key::Object(kind, id);
    let Some(object) = store.object(kind, id) else {
        return if store.is_removed(&key) { Ok(Decision::done(key, 0)) } else { Err(not_found(kind.name(), id)) };
    };
    if kind == Kind::Network {
        let mut services = store.services();
        return match services.find(|(_, _, spec)| uses(spec, kind, id)) {
            None => Ok(Decision::one(key, None, 0)),
            Some((service, ..)) => {
                Err(WriteError::Precondition(format!("network {id} is in use by service {service}")))
            }
        };
    }
    let users: Vec<&str> =
        store.services().filter(|(_, _, spec)| uses(spec, kind, id)).map(|(_, _, spec)| spec.name.as_str()).collect();
    if users.is_empty() {
        return Ok(Decision::one(key, None, 0));
    }
    let services = if users.len() == 1 { "service" } else { "services" };
    Err(WriteError::Invalid(format!(
        "{} '{}' is in use by the following {services}: {}",
        kind.name(),
        object.name,
        users.join(", ")
    )))
}

fn uses(spec: &ServiceSpec, kind: Kind, id: ObjectId) -> bool {
    used(spec).any(|(used, text, _)| used == kind && text.parse() == Ok(id))
}

/// Returns what a spec uses: kind, identifier and, but of networks, name.
fn used(spec: &ServiceSpec) -> impl Iterator<Item = (Kind, &str, Option<&str>)> {
    let template = &spec.task_template;
    let files = template.container_spec.files().map(|file| (file.kind, file.id, Some(file.name)));
    files.chain(template.networks.iter().map(|network| (Kind::Network, network.target.as_str(), None)))
}

/// Checks that everything that a service uses is there under the name by which it is used. Returns what to warn of.
pub(super) fn check_used(spec: &ServiceSpec, store: &Store) -> Result<Vec<String>, WriteError> {
    let is_there = |kind: Kind, text: &str, name: Option<&str>| {
        let object = text.parse().ok().and_then(|id| store.object(kind, id));
        object.is_some_and(|object| name.is_none_or(|name| object.name == name))
    };
    for kind in [Kind::Secret, Kind::Config] {
        let missing: Vec<&str> = used(spec)
            .filter(|(used, text, name)| *used == kind && !is_there(kind, text, *name))
            .filter_map(|(_, _, name)| name)
            .collect();
        if !missing.is_empty() {
            let plural = if missing.len() == 1 { "" } else { "s" };
            return Err(WriteError::Invalid(format!("{}{plural} not found: {}", kind.name(), missing.join(", "))));
        }
    }
    let networks: Vec<&str> = spec.task_template.networks.iter().map(|network| network.target.as_str()).collect();
    let ingress = store.cluster().map(|cluster| network::ingress_id(cluster.id));
    if networks.iter().any(|text| text.parse().ok().is_some_and(|id: ObjectId| Some(id) == ingress)) {
        let text = "Service cannot be explicitly attached to the ingress network \"ingress\"";
        return Err(WriteError::Invalid(text.to_owned()));
    }
    match networks.iter().find(|text| !is_there(Kind::Network, text, None)) {
        Some(missing) => Err(not_found("network", missing)),
        None if networks.is_empty() => Ok(Vec::new()),
        None => Ok(vec![network::WARNING.to_owned()]),
    }
}

/// Returns what a write relies on being there: the objects that a service is to use.
pub(super) fn relies_on(write: &Write, store: &Store) -> Vec<Key> {
    let parsed;
    let spec = match write {
        Write::UpdateService { id, rollback: true, .. } => {
            let previous = store.service(*id).and_then(|service| service.previous_spec.as_deref());
            parsed = previous.and_then(|json| ServiceSpec::read(json).ok());
            parsed.as_ref()
        }
        Write::CreateService { spec, .. } | Write::UpdateService { spec, .. } => {
            parsed = ServiceSpec::read(spec).ok();
            parsed.as_ref()
        }
        Write::RemoveService { .. }
        | Write::AdmitNode { .. }
        | Write::UpdateNode { .. }
        | Write::RemoveNode { .. }
        | Write::UpdateCluster { .. }
        | Write::CreateObject { .. }
        | Write::ResealCredentials { .. }
        | Write::ResealSecret { .. }
        | Write::UpdateObject { .. }
        | Write::RemoveObject { .. } => None,
    };
    let keys = spec.into_iter().flat_map(used).filter_map(|(kind, id, _)| Some(Key::Object(kind, id.parse().ok()?)));
    keys.collect()
}

/// Returns whether an object that turned up late has the name or the addresses of another one.
pub(super) fn clashes(kind: Kind, id: ObjectId, store: &Store) -> bool {
    let Some(object) = store.object(kind, id) else { return false };
    let same_name = store.objects(kind).any(|(other, theirs, _)| other != id && theirs.name == object.name);
    let blocks = if kind == Kind::Network { store.network(id).unwrap_or_default().blocks } else { Vec::new() };
    same_name || allocator::check_blocks(&blocks, &taken(id, store)).is_err()
}

/// Returns whether a service that was just created, and turned up late, uses what was removed meanwhile.
pub(super) fn lacks(id: ServiceId, store: &Store) -> bool {
    // One that was there before is kept: its tasks say what they lack.
    let is_new = store.service(id).is_some_and(|service| service.index == 1);
    is_new && store.service_spec(id).is_some_and(|spec| check_used(spec, store).is_err())
}

#[cfg(test)]
mod tests;
