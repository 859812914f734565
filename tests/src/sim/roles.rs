//! Credentials and keys of simulated nodes: a node whose record gives it another role, or whose root was replaced, gets another
//! credential from a manager, some time later; a manager gets the managers' key with it, or finds it sealed to itself.

use std::time::Duration;

use rand::RngExt;
use shoal_control::core::{Event, RequestId};
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::write::Write;
use shoal_protocol::{NodeId, Time};

use super::{Happening, Sim};

/// A manager that cannot be asked, or does not know of the change yet, is followed by another attempt.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Sim {
    /// Lets a node ask for another credential if its own is for the wrong role.
    pub(super) fn watch_role(&mut self, index: usize) {
        let host = &self.hosts[index];
        let is_outdated = host.control().is_some_and(|control| control.is_outdated());
        if is_outdated && host.asks_again_at <= self.now {
            let after = Duration::from_millis(self.random.random_range(1..200));
            let life = host.life;
            self.hosts[index].asks_again_at = self.now + ASK_AGAIN_AFTER;
            self.queue(after, index, Happening::Renewed { life });
        }
    }

    /// Gives a node the credential that the managers have for it, and shows that to its peers.
    pub(super) fn renew(&mut self, index: usize) {
        let (id, life) = (self.hosts[index].id, self.hosts[index].life);
        let Some(granted) = self.granted_by_itself(index).or_else(|| self.granted_by_managers(index, id)) else {
            return;
        };
        if self.hosts[index].control().is_none_or(|control| control.wanted_role() != granted.role) {
            return;
        }
        self.hosts[index].granted = granted;
        if granted.role == Role::Manager {
            self.hosts[index].keys.insert(granted.edition);
        }
        self.queue(Duration::ZERO, index, Happening::Event { life, event: Box::new(Event::Granted(granted)) });
        for peer in 0..self.hosts.len() {
            if peer != index && self.hosts[peer].is_running() && self.linked(index, peer) {
                let life = self.hosts[peer].life;
                let shown = Box::new(Event::PeerUp { node: id, granted });
                self.queue(Duration::from_millis(5), peer, Happening::Event { life, event: shown });
            }
        }
    }

    /// Makes the next edition of the cluster's keys, sealed to the linked managers, and asks for it to be written.
    pub(super) fn rotate(&mut self, index: usize) {
        let host = &self.hosts[index];
        let Some(store) = host.control().map(|control| control.store()) else { return };
        let Some(cluster) = store.cluster().filter(|cluster| self.opens(index, cluster)) else { return };
        let linked =
            |id: NodeId| self.hosts.iter().position(|host| host.id == id).is_some_and(|at| self.linked(index, at));
        let managers =
            store.nodes().filter(|(id, _, spec)| spec.role == Role::Manager && (*id == host.id || linked(*id)));
        let mut next = cluster.next_edition();
        next.root_pem = format!("root {}", next.edition);
        next.keys = managers.map(|(id, ..)| (id, SEALED.to_vec())).collect();
        self.counts.rotations += 1;
        self.request(index, Write::UpdateCluster { cluster: next });
    }

    /// Returns whether a node can open what is sealed in a cluster's edition.
    fn opens(&self, index: usize, cluster: &ClusterObject) -> bool {
        let host = &self.hosts[index];
        host.keys.contains(&cluster.edition) || cluster.keys.get(&host.id).is_some_and(|key| !key.is_empty())
    }

    /// Returns the credential that a manager signs for itself: one for the role that it has.
    fn granted_by_itself(&self, index: usize) -> Option<RoleGrant> {
        let host = &self.hosts[index];
        let control = host.control()?;
        let cluster = control.store().cluster()?;
        let may =
            control.wanted_role() == Role::Manager && host.granted.role == Role::Manager && self.opens(index, cluster);
        let index = control.store().node(host.id)?.index;
        may.then_some(RoleGrant { role: Role::Manager, index, edition: cluster.edition })
    }

    fn granted_by_managers(&self, index: usize, id: NodeId) -> Option<RoleGrant> {
        let can_be_asked = |peer: usize| {
            let host = &self.hosts[peer];
            peer != index && !host.paused && host.granted.role == Role::Manager && self.linked(index, peer)
        };
        let mut managers = (0..self.hosts.len()).filter(|peer| can_be_asked(*peer));
        managers.find_map(|peer| {
            let control = self.hosts[peer].control()?;
            let store = control.store();
            let (cluster, role) = (store.cluster()?, store.node_spec(id)?.role);
            let may = role == Role::Worker || control.may_have_key(id);
            let grant = RoleGrant { role, index: store.node(id)?.index, edition: cluster.edition };
            (may && self.opens(peer, cluster)).then_some(grant)
        })
    }

    /// Asks a node to give another one a role.
    pub fn give_role(&mut self, at: usize, node: usize, role: Role) -> Option<RequestId> {
        let id = self.hosts[node].id;
        let object = self.hosts[at].control()?.store().node(id)?;
        let spec = format!(r#"{{"Role": "{role}", "Availability": "active"}}"#);
        let write = Write::UpdateNode { id, version: object.index, spec };
        self.counts.roles += 1;
        Some(self.request(at, write))
    }

    /// Returns the nodes that act as managers, as a node sees itself.
    pub fn managers(&self) -> Vec<usize> {
        let acts = |at: &usize| self.hosts[*at].control().is_some_and(|control| control.role() == Role::Manager);
        (0..self.hosts.len()).filter(acts).collect()
    }
}

/// What stands for a key that is sealed to somebody.
const SEALED: [u8; 1] = [1];

/// Never asked before.
pub(super) const NEVER: Time = Time(0);
