//! What registries know a service's user by: kept with each spec, sealed before it comes here.

use shoal_protocol::object::{SEAL_BYTES, Sealed};
use shoal_protocol::registry_auth::HEADER_CHARS_MAX;
use shoal_protocol::value::{ServiceObject, Value};
use shoal_protocol::write::{CredentialsChange, WriteError};
use shoal_protocol::{Key, ServiceId};

use super::{Decision, not_found};
use crate::store::Store;

/// Checks how large credentials are.
pub(super) fn check(credentials: Option<&Sealed>) -> Result<(), WriteError> {
    match credentials {
        Some(sealed) if sealed.data.len() > HEADER_CHARS_MAX + SEAL_BYTES => {
            let text = format!("registry credentials are larger than the limit of {HEADER_CHARS_MAX} bytes");
            Err(WriteError::Invalid(text))
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the credentials of a service after an update.
pub(super) fn changed(
    id: ServiceId,
    current: &ServiceObject,
    change: &CredentialsChange,
) -> Result<Option<Sealed>, WriteError> {
    match change {
        CredentialsChange::Keep => Ok(current.credentials.clone()),
        CredentialsChange::Previous if current.previous_spec.is_none() => {
            Err(WriteError::Precondition(format!("service {id} does not have a previous spec")))
        }
        CredentialsChange::Previous => Ok(current.previous_credentials.clone()),
        CredentialsChange::Set(credentials) => check(credentials.as_ref()).map(|()| credentials.clone()),
    }
}

/// Checks and carries out the replacement of a service's credentials by the same, sealed with a later key. Its index stays:
/// whoever read the service before may still update it, and no task is replaced.
pub(super) fn reseal(
    id: ServiceId,
    version: u64,
    (credentials, previous): (&Option<Sealed>, &Option<Sealed>),
    store: &Store,
) -> Result<Decision, WriteError> {
    let current = store.service(id).ok_or_else(|| not_found("service", id))?;
    if current.index != version {
        return Err(WriteError::OutOfSequence); // they may be others by now
    }
    let pairs = [(&current.credentials, credentials), (&current.previous_credentials, previous)];
    let is_same = |(old, new): &(&Option<Sealed>, &Option<Sealed>)| match (old, new) {
        (Some(old), Some(new)) => old.data.len() == new.data.len(),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !pairs.iter().all(is_same) {
        return Err(WriteError::Invalid(format!("the credentials of service {id} were sealed as something else")));
    }
    let is_older = |(old, new): &(&Option<Sealed>, &Option<Sealed>)| {
        old.as_ref().zip(new.as_ref()).is_some_and(|(old, new)| old.edition < new.edition)
    };
    if !pairs.iter().any(is_older) {
        return Ok(Decision::done(Key::Service(id), version));
    }
    let service =
        ServiceObject { credentials: credentials.clone(), previous_credentials: previous.clone(), ..current.clone() };
    Ok(Decision::one(Key::Service(id), Some(Value::Service(service)), version))
}

#[cfg(test)]
mod tests;
