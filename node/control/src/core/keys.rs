//! When the root and the managers' key are replaced: once somebody has that key who is no manager any more, or a user wants it.
//!
//! The holder of the registry lease sees to it, since its document has every acknowledged change of roles. It looks at the state,
//! not at what happened, so a new holder goes on where the last one stopped. First comes the new edition, in one write; then what is
//! still sealed with an older key, secrets and services' credentials, one after the other.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use shoal_protocol::lease::LeaseId;
use shoal_protocol::token::Role;
use shoal_protocol::value::{ClusterObject, ServiceObject};
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Key, Kind, NodeId, Now, Time};

use super::{Action, Control};

/// What was asked for and is not seen to be done is asked for again after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What becomes of the unlock key when users change the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relocking {
    /// It stays, or there is none.
    Keep,
    /// There is to be another one.
    Replace,
    /// There is to be none any more.
    Drop,
}

impl Relocking {
    /// Decides from whether managers were to be locked, are to be from now on, and whether users want another key.
    pub fn of(was: bool, is: bool, rotates: bool) -> Result<Self, WriteError> {
        match (was, is, rotates) {
            // Docker's client says so, too, before it asks.
            (_, false, true) => {
                Err(WriteError::Precondition("cannot rotate because autolock is not turned on".to_owned()))
            }
            (false, true, _) | (true, true, true) => Ok(Self::Replace),
            (true, false, false) => Ok(Self::Drop),
            (true, true, false) | (false, false, false) => Ok(Self::Keep),
        }
    }
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct Keys {
    ask_again: Option<Time>,
    /// What was last to be sealed anew. What cannot be opened must not hold up the rest.
    resealed: Option<Key>,
}

impl Control {
    /// Returns whether a node may have the managers' key of the edition that this node knows: it is noted in it, and a manager.
    ///
    /// It does not matter how old this node's document is. Whoever is kept out by an edition is not noted in it; and whoever is
    /// noted and was demoted since could have had the key before, and is why the next edition is on its way.
    pub fn may_have_key(&self, node: NodeId) -> bool {
        self.store.cluster().is_some_and(|cluster| cluster.keys.contains_key(&node)) && self.is_named_manager(node)
    }

    /// Returns whether no other manager can have the present key.
    pub fn is_key_lost(&self) -> bool {
        let Some(cluster) = self.store.cluster() else { return false };
        let may_have_it = |node: &NodeId| {
            let said = self.store.node_status(*node);
            said.is_none() || !self.is_alive(*node) || cluster.is_key_known_to(*node, said)
        };
        let others = cluster.keys.keys().filter(|node| **node != self.me && self.is_named_manager(**node));
        !others.into_iter().any(may_have_it)
    }

    /// Returns whether another root and another managers' key are wanted.
    pub fn is_rotation_due(&self) -> bool {
        let is_stranger = |node: &NodeId| !self.is_named_manager(*node);
        self.store.cluster().is_some_and(|cluster| cluster.rotate || cluster.keys.keys().any(is_stranger))
    }

    /// Returns whether a member that is not gone has a credential of a former root, or keys are about to be replaced.
    pub fn is_rotation_under_way(&self) -> bool {
        let Some(cluster) = self.store.cluster() else { return false };
        let lags = |node| self.store.node_status(node).is_some_and(|status| status.granted.edition < cluster.edition);
        self.is_rotation_due() || self.store.nodes().any(|(node, ..)| self.is_alive(node) && lags(node))
    }

    fn is_named_manager(&self, node: NodeId) -> bool {
        self.store.node_spec(node).is_some_and(|spec| spec.role == Role::Manager)
    }

    /// Asks for what is missing, one thing at a time.
    pub(super) fn watch_keys(&mut self, now: Now) {
        let again = self.keys.ask_again.is_some_and(|at| at <= now.time);
        if !std::mem::take(&mut self.dirty.keys) && !again {
            return;
        }
        self.keys.ask_again = None;
        // A holder that was demoted a moment ago must not make the next key.
        if !self.is_named_manager(self.me) || self.uses(LeaseId::REGISTRY, now.time).is_none() {
            return;
        }
        let Some(cluster) = self.store.cluster() else { return };
        if let Some(noted) = self.noting_managers(cluster) {
            self.requests.add_own(Write::UpdateCluster { cluster: noted }, now.time);
        } else if self.is_rotation_due() {
            self.outbox.push(Action::Rotate);
        } else {
            let old = self.sealed_before(cluster.edition);
            let after = self.keys.resealed.map_or(Bound::Unbounded, Bound::Excluded);
            let Some(&next) = old.range((after, Bound::Unbounded)).next().or(old.first()) else { return };
            self.keys.resealed = Some(next);
            match next {
                Key::Service(service) => self.outbox.push(Action::ResealCredentials { service }),
                Key::Object(_, secret) => self.outbox.push(Action::Reseal { secret }),
                _ => {}
            }
        }
        self.keys.ask_again = Some(now.time + ASK_AGAIN_AFTER);
    }

    /// Returns the secrets and services of which something is sealed with a key before this edition's.
    fn sealed_before(&self, edition: u64) -> BTreeSet<Key> {
        let secrets = self.store.objects(Kind::Secret).filter(|(_, head, _)| head.edition < edition);
        let secrets = secrets.map(|(id, ..)| Key::Object(Kind::Secret, id));
        let is_old = |service: &ServiceObject| service.oldest_edition().is_some_and(|oldest| oldest < edition);
        let services = self.store.services().filter(|(_, service, _)| is_old(service));
        secrets.chain(services.map(|(id, ..)| Key::Service(id))).collect()
    }

    /// Returns the cluster's object with the managers in it that it does not note as owners of the key, if there are any.
    fn noting_managers(&self, cluster: &ClusterObject) -> Option<ClusterObject> {
        let managers = self.store.nodes().filter(|(_, _, spec)| spec.role == Role::Manager).map(|(node, ..)| node);
        let missing: Vec<NodeId> = managers.filter(|node| !cluster.keys.contains_key(node)).collect();
        let mut noted = (!missing.is_empty()).then(|| cluster.clone())?;
        noted.keys.extend(missing.into_iter().map(|node| (node, Vec::new())));
        Some(noted)
    }
}

#[cfg(test)]
mod tests;
