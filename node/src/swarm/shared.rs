//! What the swarm's handles, its loop and its tasks have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use shoal_protocol::{NodeId, WallTime};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::link::Link;
use super::wire::Introduction;
use super::{PeerInfo, Refusal, SwarmError};
use crate::identity::{Credential, Membership, Trust};
use shoal_control::core::Trust as Document;

/// Addresses that wait to be dialled once; more push others out.
pub(super) const DIALS_MAX: usize = 64;

/// State that more than one task uses. No lock is held while anything is waited for.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: NodeId,
    pub(super) public_key: [u8; 32],
    pub(super) listen: SocketAddr,
    pub(super) advertise: SocketAddr,
    pub(super) incarnation: u64,
    pub(super) clock: fn() -> WallTime,
    pub(super) closing: CancellationToken,
    pub(super) changed: Notify,
    links: RwLock<BTreeMap<NodeId, Arc<Link>>>,
    admission: RwLock<Admission>,
    wanted: Mutex<Wanted>,
}

/// Who is let in.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// This node's place in its cluster.
    membership: Option<Membership>,
    /// What the document says of whom to let in.
    document: Document,
    /// What follows from both.
    trust: Option<Trust>,
    pub(super) banned: BTreeSet<NodeId>,
}

/// What the owner wants the loop to do; the newest wish counts, so nothing queues up.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) peers: Option<BTreeMap<NodeId, Vec<SocketAddr>>>,
    pub(super) dials: BTreeSet<SocketAddr>,
    pub(super) check: bool,
    /// Whether to show the present credential on all links.
    pub(super) introduce: bool,
}

impl Admission {
    pub(super) fn new(membership: Option<Membership>) -> Result<Self, SwarmError> {
        let mut admission = Self::default();
        admission.set_membership(membership)?;
        Ok(admission)
    }

    /// Replaces this node's place in its cluster.
    pub(super) fn set_membership(&mut self, membership: Option<Membership>) -> Result<(), SwarmError> {
        self.trust = membership.as_ref().map(|own| Trust::with(own, &self.document)).transpose()?;
        self.membership = membership;
        Ok(())
    }

    /// Replaces what the document says.
    pub(super) fn set_document(&mut self, document: Document) -> Result<(), SwarmError> {
        self.trust = self.membership.as_ref().map(|own| Trust::with(own, &document)).transpose()?;
        self.document = document;
        Ok(())
    }

    /// Returns this node's place in its cluster and whom it trusts there.
    pub(super) fn credentials(&self) -> Option<(&Membership, &Trust)> {
        self.membership.as_ref().zip(self.trust.as_ref())
    }
}

impl Shared {
    pub(super) fn new(
        public_key: [u8; 32],
        (listen, advertise): (SocketAddr, SocketAddr),
        incarnation: u64,
        clock: fn() -> WallTime,
        admission: Admission,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: NodeId::from_public_key(&public_key),
            public_key,
            listen,
            advertise,
            incarnation,
            clock,
            closing: CancellationToken::new(),
            changed: Notify::new(),
            links: RwLock::default(),
            admission: RwLock::new(admission),
            wanted: Mutex::default(),
        })
    }

    /// Verifies a peer's credential and that it is not banned.
    pub(super) fn admit(&self, credential: &[u8], public_key: &[u8; 32]) -> Result<Credential, Refusal> {
        let admission = self.admission();
        let (_, trust) = admission.credentials().ok_or(Refusal::NotInCluster)?;
        // A banned node is told so whatever has become of its credential.
        if admission.banned.contains(&NodeId::from_public_key(public_key)) {
            return Err(Refusal::Banned);
        }
        trust.verify(credential, public_key, (self.clock)()).map_err(|error| Refusal::Credential(error.to_string()))
    }

    /// Returns how this node introduces itself, if it is in a cluster.
    pub(super) fn introduction(&self) -> Option<Introduction> {
        let admission = self.admission();
        let credential = admission.credentials()?.0.credential.clone();
        Some(Introduction { credential, incarnation: self.incarnation, advertise: self.advertise })
    }

    pub(super) fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn insert_link(&self, link: Arc<Link>) {
        let node = link.peer.credential.node;
        self.links.write().unwrap_or_else(PoisonError::into_inner).insert(node, link);
    }

    /// Removes a link unless another one took its place. Returns whether it was there.
    pub(super) fn remove_link(&self, link: &Link) -> bool {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let node = link.peer.credential.node;
        let is_current = links.get(&node).is_some_and(|current| current.connection == link.connection);
        if is_current {
            links.remove(&node);
        }
        is_current
    }

    pub(super) fn admission(&self) -> RwLockReadGuard<'_, Admission> {
        self.admission.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn admission_mut(&self) -> RwLockWriteGuard<'_, Admission> {
        self.admission.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wanted and wakes the loop.
    pub(super) fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// Takes what is wanted.
    pub(super) fn take_wanted(&self) -> Wanted {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns what a link's owner may know of its peer.
pub(super) fn info(link: &Link) -> PeerInfo {
    let credential = link.credential();
    PeerInfo { node: credential.node, granted: credential.granted, address: link.peer.advertise }
}
