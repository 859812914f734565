//! This node itself: what it says, what it runs, whom it watches and where it sends traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use shoal_protocol::message::PeerMessage;
use shoal_protocol::record::Record;
use shoal_protocol::spec::{PublishMode, PublishedPort, TaskTemplate};
use shoal_protocol::value::{NodeStatus, Value};
use shoal_protocol::{Key, NodeId, Now, Stamp, TaskId, TaskState};

use super::event::Action;
use super::{Control, lease_of};
use crate::lease;
use crate::routes;
use crate::task::{AgentAction, Wanted, plan};
use crate::view::{self, Health};

impl Control {
    /// Performs what the view asks for.
    pub(super) fn drain_view(&mut self, now: Now) -> bool {
        let mut moved = false;
        while let Some(action) = self.view.poll_action() {
            match action {
                view::Action::Ping { node } => {
                    let digest = self.store.digest();
                    self.outbox.send(node, PeerMessage::Ping { digest });
                }
                view::Action::Probe { node, request } => {
                    let address = self.address_of(node);
                    self.outbox.push(Action::Probe { node, address, request });
                }
                view::Action::AskProbe { via, node, request } => {
                    self.outbox.send(via, PeerMessage::Probe { request, target: node });
                }
                view::Action::Health { node, health } => {
                    moved = true;
                    self.note_change(Key::Node(node));
                    self.outbox.push(Action::Health { node, health });
                    self.dirty.candidates = true;
                    self.dirty.routes = true;
                    // Suspicion moves nothing, and what it hides from is only new tasks.
                    self.dirty.all_services |= !matches!(health, Health::Suspect);
                    match health {
                        Health::Alive => {
                            self.alive_since.entry(node).or_insert(now.time);
                        }
                        Health::Failed | Health::Left => {
                            self.alive_since.remove(&node);
                            self.repair.forget(node);
                        }
                        Health::Unknown | Health::Suspect | Health::Restarting { .. } => {}
                    }
                    self.watch_quorum(now);
                }
            }
        }
        moved
    }

    /// Looks at what changed in the document and marks what follows from it.
    pub(super) fn take_changes(&mut self) -> bool {
        let changed = self.store.take_dirty();
        let moved = !changed.is_empty();
        for key in changed {
            self.note_change(key);
            match key {
                // A task that waits for a secret or config asks again by itself.
                Key::Object(..) => self.dirty.keys = true,
                Key::Cluster => {
                    // How long histories are may have changed.
                    self.dirty.all_services = true;
                    self.dirty.keys = true;
                    self.dirty.peers = true;
                    self.dirty.candidates = true;
                }
                Key::Voters => {
                    self.dirty.voters = true;
                    self.dirty.peers = true;
                }
                Key::Claim(lease) => self.dirty.claims.extend([lease]),
                Key::Node(_) => {
                    self.dirty.all_services = true;
                    self.dirty.peers = true;
                    self.dirty.candidates = true;
                    self.dirty.members = true;
                    self.dirty.keys = true;
                }
                Key::Service(service) | Key::Progress(service) => {
                    // Its credentials may be sealed with a key that is not the present one.
                    self.dirty.keys |= matches!(key, Key::Service(_));
                    self.dirty.services.insert(service);
                    self.dirty.routes = true;
                }
                Key::Slot(service, _) => {
                    self.dirty.services.insert(service);
                    self.dirty.wanted = true;
                    self.dirty.routes = true;
                }
                Key::NodeStatus(node) => {
                    self.dirty.all_services = true;
                    self.dirty.peers = true;
                    self.dirty.candidates |= node != self.me;
                }
                Key::TaskStatus(node, task) => {
                    self.dirty.services.extend(self.store.report(node, task).map(|report| report.service));
                    self.dirty.routes = true;
                }
            }
        }
        moved
    }

    /// Passes on to the lease core and the view what the document says of voters, claims and members.
    pub(super) fn pass_on(&mut self, now: Now) -> bool {
        let mut moved = false;
        if std::mem::take(&mut self.dirty.voters)
            && let Some(voters) = self.store.voters().cloned()
        {
            self.leases.handle_event(lease::Event::VotersSeen(voters), now.time);
            moved = true;
        }
        for lease in std::mem::take(&mut self.dirty.claims) {
            if let Some((stamp, claim)) = self.store.claim(lease) {
                let event = lease::Event::ClaimSeen { lease, holder: claim.holder, epoch: stamp.epoch };
                self.leases.handle_event(event, now.time);
                self.dirty.wanted = true;
                moved = true;
            }
        }
        if std::mem::take(&mut self.dirty.members) {
            let members: BTreeSet<NodeId> = self.store.nodes().map(|(node, _, _)| node).collect();
            self.view.handle_event(view::Event::Members(members), now.time);
            if self.store.is_banned(self.me) {
                self.end();
            }
            moved = true;
        }
        moved
    }

    /// Tells the agent what it is to run, and performs what it asks for.
    pub(super) fn drain_agent(&mut self, now: Now) -> bool {
        if self.synced && !self.agent_synced {
            self.agent_synced = true;
            self.dirty.wanted = true;
            self.agent.sync_complete(now);
        }
        if std::mem::take(&mut self.dirty.wanted) {
            let wanted = self.wanted();
            self.agent.set_wanted(wanted, now);
        }
        let mut moved = false;
        while let Some(action) = self.agent.poll_action() {
            moved = true;
            match action {
                AgentAction::Call(task, call) => self.outbox.push(Action::Driver { task, call }),
                AgentAction::Adopt(task) => self.outbox.push(Action::Adopt { task }),
                AgentAction::Report(task, report) => {
                    let stamp = self.next_status_stamp();
                    self.author(Key::TaskStatus(self.me, task), stamp, Some(Value::TaskReport(report)));
                }
                // Nobody keeps the report of a task that no slot names.
                AgentAction::Forget(_) => {}
            }
        }
        moved
    }

    /// Returns every task that a slot places on this node.
    fn wanted(&mut self) -> BTreeMap<TaskId, Wanted> {
        let mut templates = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        for (service, slot, task) in self.store.slots_on(self.me) {
            let template: Result<Arc<TaskTemplate>, String> = match self.templates.remove(&task.id) {
                Some(template) => template,
                None => plan::read(&task.template).map(Arc::new),
            };
            templates.insert(task.id, template.clone());
            let key = Key::Slot(service, slot);
            let claim = lease_of(&key).and_then(|lease| self.store.claim(lease));
            let fenced = match (claim, self.store.stamp(&key)) {
                (Some((claim, _)), Some(stamp)) => (stamp.lineage, stamp.epoch) < (claim.lineage, claim.epoch),
                (None, _) | (_, None) => false,
            };
            let spec = self.store.service_spec(service);
            let service_name = spec.map(|spec| spec.name.clone()).unwrap_or_default();
            let service_labels = spec.map(|spec| spec.labels.clone()).unwrap_or_default();
            // A job's work may have been done elsewhere while this node was away: it does not begin with it on its own word.
            let is_job = spec.is_some_and(|spec| spec.mode.is_job());
            let fenced = (fenced || is_job && !self.synced) && !self.faults.no_fencing;
            let (ports, generic) = (task.ports.clone(), task.generic.clone());
            let desired = task.desired;
            let place =
                Wanted { service, slot, desired, template, service_name, service_labels, ports, generic, fenced };
            wanted.insert(task.id, place);
        }
        self.templates = templates;
        wanted
    }

    fn next_status_stamp(&mut self) -> Stamp {
        self.status_seq += 1;
        Stamp { lineage: 0, epoch: self.incarnation, seq: self.status_seq }
    }

    /// Says what this node is.
    pub(super) fn say_status(&mut self) {
        let stamp = self.next_status_stamp();
        self.votes_said = self.votes();
        let status = NodeStatus { votes: self.votes_said, granted: self.granted, ..self.status.clone() };
        self.author(Key::NodeStatus(self.me), stamp, Some(Value::NodeStatus(status)));
        if let Some(address) = self.status.address {
            self.addresses.insert(self.me, BTreeSet::from([address]));
        }
    }

    /// Says so when this node is ready to vote under other voters. Returns whether it did.
    pub(super) fn say_readiness(&mut self) -> bool {
        let is_news = self.votes() != self.votes_said;
        if is_news {
            self.say_status();
        }
        is_news
    }

    fn votes(&self) -> u64 {
        if self.leases.is_ready() { self.leases.voters().version } else { 0 }
    }

    /// Tells a peer that just connected what only this node can say.
    pub(super) fn say_everything_to(&mut self, node: NodeId) {
        let own = self.store.reports_of(self.me).map(|(task, _)| Key::TaskStatus(self.me, task));
        let keys = std::iter::once(Key::NodeStatus(self.me)).chain(own);
        let records: Vec<Record> = keys.filter_map(|key| self.store.record(&key)).collect();
        self.outbox.say(node, records);
    }

    pub(super) fn learn_address(&mut self, node: NodeId, address: SocketAddr) {
        // The newest word counts: a node that moved is not looked for where it was.
        if self.addresses.insert(node, BTreeSet::from([address])) != Some(BTreeSet::from([address])) {
            self.dirty.peers = true;
        }
    }

    pub(super) fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        let said = self.store.node_status(node).and_then(|status| status.address);
        said.or_else(|| self.addresses.get(&node)?.first().copied())
    }

    /// Recomputes where published ports lead.
    pub(super) fn update_routes(&mut self) {
        if !std::mem::take(&mut self.dirty.routes) {
            return;
        }
        let table = routes::route_table(&self.store, |node| self.health(node));
        let host = self.host_routes();
        if table != self.routes || host != self.host_ports {
            self.routes.clone_from(&table);
            self.host_ports.clone_from(&host);
            self.outbox.push(Action::Routes { ingress: table, host });
        }
    }

    /// Returns the ports that tasks publish on this node alone, where no engine does it for them.
    fn host_routes(&self) -> BTreeMap<PublishedPort, SocketAddr> {
        if !self.serves_host_ports {
            return BTreeMap::new();
        }
        let mut ports = BTreeMap::new();
        for (_, _, task) in self.store.slots_on(self.me) {
            let report = self.store.report(self.me, task.id).filter(|report| report.state == TaskState::Running);
            let Some(address) = report.and_then(|report| report.address) else { continue };
            for port in task.ports.iter().filter(|port| port.publish_mode == PublishMode::Host) {
                if task.desired <= TaskState::Running && port.published_port != 0 {
                    ports.insert(port.published(), SocketAddr::new(address, port.target_port));
                }
            }
        }
        ports
    }

    /// Says with whom this node is to stay connected.
    pub(super) fn update_peers(&mut self) {
        if !std::mem::take(&mut self.dirty.peers) {
            return;
        }
        let mut listed: BTreeSet<NodeId> = self.store.nodes().map(|(node, _, _)| node).collect();
        if listed.is_empty() {
            // Nothing was heard from a manager yet: whoever was named when joining has to do.
            listed = self.addresses.keys().copied().collect();
        }
        listed.remove(&self.me);
        let known = listed.into_iter().map(|node| {
            let said = self.store.node_status(node).and_then(|status| status.address);
            let addresses = self.addresses.get(&node).into_iter().flatten().copied().chain(said).collect();
            (node, addresses)
        });
        let known = known.collect();
        let banned = self.store.banned().collect();
        self.outbox.push(Action::Peers { known, banned });
        let trust = self.trusted();
        if trust != self.trust {
            self.trust = trust.clone();
            self.outbox.push(Action::Trust(trust));
        }
    }
}
