//! Who acts as a manager.
//!
//! A role counts when a node's credential and its record in the document both say it; users change the record, and the node
//! then gets a credential to match. With two exceptions. A manager that was demoted goes on as one until the voters have been
//! changed without it, since until then its vote is needed to change them. And a credential that is newer than the record
//! that this node has is believed: otherwise a node that was away while all managers were replaced would believe nobody.
//!
//! What a former root signed proves nothing, as somebody may have its key who should not. A member that is listed is let in
//! with such a credential, since its own key says who it is; what it may do, its record says alone.

use shoal_protocol::spec::NodeSpec;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::{NodeId, Now};

use super::{Control, Trust};

impl Control {
    /// Returns whether a node acts as a manager, by the credential that it showed last.
    pub(super) fn is_manager(&self, node: NodeId) -> bool {
        let granted = if node == self.me { Some(self.granted) } else { self.peers.get(&node).copied() };
        granted.is_some_and(|granted| self.is_manager_by(node, granted))
    }

    /// Returns whether a node whose credential says this acts as a manager.
    pub fn is_manager_by(&self, node: NodeId, granted: RoleGrant) -> bool {
        granted.role == Role::Manager
            && !self.store.is_banned(node)
            && (self.listed_role(node, granted) == Role::Manager || self.is_voter(node))
    }

    pub(super) fn role_of(&self, node: NodeId) -> Role {
        if self.is_manager(node) { Role::Manager } else { Role::Worker }
    }

    /// Returns whether this node's credential ought to be another one: for another role, or of a later root.
    pub fn is_outdated(&self) -> bool {
        let edition = self.store.cluster().map_or(0, |cluster| cluster.edition);
        self.wanted_role() != self.granted.role || self.granted.edition < edition
    }

    /// Returns the role that this node's credential ought to have.
    pub fn wanted_role(&self) -> Role {
        let is_needed = self.granted.role == Role::Manager && self.is_voter(self.me);
        if is_needed { Role::Manager } else { self.listed_role(self.me, self.granted) }
    }

    /// Returns with which unlock key this node's keys ought to be sealed on its disk, if with any: those of managers are.
    pub fn wanted_lock(&self) -> Option<u64> {
        let cluster = self.store.cluster().filter(|_| self.wanted_role() == Role::Manager)?;
        cluster.wanted_lock()
    }

    /// Returns whether users want a node to be a manager, as far as is known.
    pub(super) fn is_listed(&self, node: NodeId) -> bool {
        let granted = if node == self.me { Some(self.granted) } else { self.peers.get(&node).copied() };
        granted.is_some_and(|granted| self.listed_role(node, granted) == Role::Manager)
    }

    /// Returns the role that users gave a node: what its record says, unless its credential was issued by a later one.
    fn listed_role(&self, node: NodeId, granted: RoleGrant) -> Role {
        let is_former = self.store.cluster().is_some_and(|cluster| granted.edition < cluster.edition);
        match (self.store.node(node), self.store.node_spec(node)) {
            (Some(record), Some(spec)) if is_former || record.index >= granted.index => spec.role,
            (None, _) | (_, None) if is_former => Role::Worker,
            _ => granted.role,
        }
    }

    /// Returns whom to let in, as the document has it.
    pub(super) fn trusted(&self) -> Trust {
        let role = |node, spec: &NodeSpec| if self.is_voter(node) { Role::Manager } else { spec.role };
        let listed = self.store.nodes().map(|(node, _, spec)| (node, role(node, spec))).collect();
        match self.store.cluster() {
            None => Trust { listed, ..Trust::default() },
            Some(cluster) => Trust {
                edition: cluster.edition,
                root_pem: cluster.root_pem.clone(),
                former_roots: cluster.former_roots.clone(),
                listed,
            },
        }
    }

    /// Returns whether a node votes, or did so before the present voters, who are not all in place yet.
    fn is_voter(&self, node: NodeId) -> bool {
        let voters = self.leases.voters();
        voters.contains(node) || (voters.previous.contains(&node) && !self.are_voters_in_place())
    }

    /// Returns whether a majority of the voters is known to have merged from the previous ones.
    fn are_voters_in_place(&self) -> bool {
        let voters = self.leases.voters();
        let is_ready = |voter: &&NodeId| {
            let said = self.store.node_status(**voter).map_or(0, |status| status.votes);
            said >= voters.version
        };
        voters.members.iter().filter(is_ready).count() >= voters.majority()
    }

    /// This node has a new credential.
    pub(super) fn set_granted(&mut self, granted: RoleGrant, now: Now) {
        self.granted = granted;
        self.say_status();
        if granted.role == Role::Manager {
            self.yielding.clear();
        }
        self.dirty.candidates = true;
        self.dirty.members = true;
        self.dirty.voters = true;
        self.start_repairs(now);
    }
}
