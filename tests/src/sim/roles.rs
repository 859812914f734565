//! Credentials of simulated nodes: a node whose record gives it another role gets one from a manager, some time later.

use std::time::Duration;

use rand::RngExt;
use shoal_control::core::{Event, RequestId};
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::write::Write;
use shoal_protocol::{NodeId, Time};

use super::{Happening, Sim};

/// A manager that cannot be asked, or does not know of the change yet, is followed by another attempt.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Sim {
    /// Lets a node ask for another credential if its own is for the wrong role.
    pub(super) fn watch_role(&mut self, index: usize) {
        let host = &self.hosts[index];
        let is_outdated = host.control().is_some_and(|control| control.wanted_role() != host.granted.role);
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
        let Some(granted) = self.granted_by_managers(index, id) else { return };
        if self.hosts[index].control().is_none_or(|control| control.wanted_role() != granted.role) {
            return;
        }
        self.hosts[index].granted = granted;
        self.queue(Duration::ZERO, index, Happening::Event { life, event: Box::new(Event::Granted(granted)) });
        for peer in 0..self.hosts.len() {
            if peer != index && self.hosts[peer].is_running() && self.linked(index, peer) {
                let life = self.hosts[peer].life;
                let shown = Box::new(Event::PeerUp { node: id, granted });
                self.queue(Duration::from_millis(5), peer, Happening::Event { life, event: shown });
            }
        }
    }

    fn granted_by_managers(&self, index: usize, id: NodeId) -> Option<RoleGrant> {
        let can_be_asked = |peer: usize| {
            let host = &self.hosts[peer];
            peer != index && !host.paused && host.granted.role == Role::Manager && self.linked(index, peer)
        };
        let mut managers = (0..self.hosts.len()).filter(|peer| can_be_asked(*peer));
        managers.find_map(|peer| {
            let store = self.hosts[peer].control()?.store();
            Some(RoleGrant { role: store.node_spec(id)?.role, index: store.node(id)?.index })
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

/// Never asked before.
pub(super) const NEVER: Time = Time(0);
