//! A node whose keys are sealed on its disk, and what brings it back.
//!
//! Such a node has no identity that it could prove: it has no links and takes no part in anything. Its tasks go on as under a
//! daemon that does not run, its ports lead nowhere, and to the others it is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shoal_protocol::value::Value;
use shoal_protocol::{ClusterId, Key};

use super::Daemon;
use super::command::MembershipError;
use super::membership::{self, Stored};
use crate::disk::Loaded;
use crate::identity::{AtRest, IdentityError, UnlockKey};

/// What is on the disk of a node that waits for its unlock key.
#[derive(Default)]
pub(super) struct Locked {
    loaded: Option<Loaded>,
    /// The same for the API.
    flag: Arc<AtomicBool>,
}

impl Locked {
    /// Returns what tells the API whether this node is locked.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    pub(super) fn is_locked(&self) -> bool {
        self.loaded.is_some()
    }

    /// Keeps what was on disk if its keys are sealed; returns it otherwise.
    pub(super) fn take_in(&mut self, loaded: Loaded) -> Option<Loaded> {
        if loaded.identity.as_deref().and_then(AtRest::sealed_of).is_none() {
            return Some(loaded);
        }
        self.set(Some(loaded));
        None
    }

    fn set(&mut self, loaded: Option<Loaded>) {
        self.flag.store(loaded.is_some(), Ordering::Relaxed);
        self.loaded = loaded;
    }

    /// Opens what was on disk; it stays kept until the node is back.
    fn open(&self, key: &UnlockKey) -> Result<Stored, MembershipError> {
        let loaded = self.loaded.as_ref().ok_or(MembershipError::NotLocked)?;
        let (Some(identity), Some(membership)) = (&loaded.identity, &loaded.cluster) else {
            return Err(MembershipError::NotLocked);
        };
        // Before all records are copied: whoever guesses must not cost that.
        match AtRest::open(identity, membership, Some(key)) {
            Ok(_) => {}
            Err(IdentityError::Sealed) => return Err(MembershipError::WrongKey),
            Err(error) => return Err(failed(error.into())),
        }
        Stored::read(loaded.clone(), Some(key)).map_err(failed)
    }

    /// Returns the cluster, which the document names in the clear.
    fn cluster(&self) -> Result<ClusterId, String> {
        let mut records = self.loaded.iter().flat_map(|loaded| &loaded.records);
        let record = records.find(|record| record.key == Key::Cluster).ok_or("this node's document has none")?;
        match Value::open(record) {
            Ok(Some(Value::Cluster(cluster))) => Ok(cluster.id),
            Ok(_) => Err("its record is of another version".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Daemon {
    /// Comes back as the manager that this node is, if the key opens its keys. It stays locked otherwise.
    pub(super) async fn unlock(&mut self, key: &UnlockKey) -> Result<(), MembershipError> {
        if !self.locked.is_locked() && self.member.is_none() {
            return Err(MembershipError::NotMember);
        }
        let stored = self.locked.open(key)?;
        self.come_back(stored).await.map_err(failed)?;
        self.locked.set(None);
        tracing::info!("this node was unlocked");
        Ok(())
    }

    /// Leaves the cluster without having been unlocked: nobody is told.
    pub(super) async fn leave_locked(&mut self, force: bool) -> Result<(), MembershipError> {
        let identity = self.locked.loaded.as_ref().and_then(|loaded| loaded.identity.as_deref());
        let Some(node) = identity.and_then(AtRest::sealed_of) else { return Err(MembershipError::NotMember) };
        if !force {
            return Err(MembershipError::Locked);
        }
        match self.locked.cluster() {
            Ok(cluster) => {
                let driver = self.open_driver(node, cluster).await.map_err(failed)?;
                membership::stop_all(&driver).await;
            }
            Err(reason) => tracing::error!(
                %reason,
                "this node leaves and cannot tell which cluster's containers it runs: end them by hand"
            ),
        }
        self.forget().await.map_err(|error| failed(error.into()))?;
        self.locked.set(None);
        Ok(())
    }
}

fn failed(error: anyhow::Error) -> MembershipError {
    MembershipError::Failed(format!("{error:#}"))
}
