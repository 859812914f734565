//! A node while it is in a cluster: its decisions and the shells that serve them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shoal_control::core::{Action, Control, Event, PersistBatch, RequestId};
use shoal_control::departure::{Ask, End};
use shoal_control::discovery;
use shoal_control::task::DriverReport;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::spec::{PublishedPort, Transport};
use shoal_protocol::token::Role;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{NodeId, TaskId, Time};
use tokio::sync::{mpsc, oneshot, watch};

use super::clock;
use super::departing::Departing;
use super::files::FileAsk;
use super::finding::Finder;
use super::metrics::Notes;
use super::renewing::{Outcome, Renewing};
use super::reporting::Reporter;
use super::shells::Shells;
use crate::agent::AgentHandle;
use crate::disk::KnownPeer;
use crate::gossip::{Gossip, GossipEvent, Membership as _};
use crate::identity::Membership;
use crate::ingress::IngressHandle;
use crate::swarm::{JoinRefusal, JoinReply, JoinRequest, Priority, SwarmEvent, SwarmHandle};

/// How long a probe over a fresh connection may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(600);

/// Ports that a node says it cannot open; of further ones its log tells.
const PORT_ERRORS_MAX: usize = 64;

/// Events that may wait for the loop.
pub(super) const EVENTS_MAX: usize = 1024;

/// Something that happened to a member.
pub(super) enum Happening {
    Event(Event),
    Swarm(SwarmEvent),
    Driver(TaskId, DriverReport),
    Gossip(GossipEvent),
    /// Somebody calls on the local link in the name of a node.
    Heard(NodeId, SocketAddr),
    /// A task of this node needs a secret or config.
    File(FileAsk),
    /// An attempt to renew this node's credential ended.
    Renewed(Box<Outcome>),
    /// A manager has drained this node, or made it active again, because it asked; or why not.
    Departing(Result<Ask, String>),
    PortErrors,
    /// A shell is gone, and nothing more comes from it: this daemon cannot go on.
    Ended(&'static str),
}

/// A part of the daemon stopped, which it never does in order: a bug, or a panic that was logged before.
#[derive(Debug, thiserror::Error)]
#[error("the daemon's {0} has stopped; tasks keep running and are adopted when shoald is started again")]
pub(super) struct ShellEnded(&'static str);

/// Who waits for the answer to a write.
pub(super) enum Waiting {
    /// A user, whose request the span is of.
    Api(oneshot::Sender<Result<Written, WriteError>>, tracing::Span),
    /// This node itself, which replaces keys.
    Keys,
    Join {
        request: JoinRequest,
        role: Role,
        reply: oneshot::Sender<Result<JoinReply, JoinRefusal>>,
    },
}

/// A node that is in a cluster.
pub(super) struct Member {
    pub(super) control: Control,
    pub(super) reporter: Reporter,
    pub(super) membership: Membership,
    pub(super) swarm: SwarmHandle,
    pub(super) gossip: Gossip,
    pub(super) finder: Finder,
    pub(super) renewing: Renewing,
    pub(super) departing: Departing,
    /// Who seemed to be alive when gossip last said so.
    pub(super) gossiped: BTreeSet<NodeId>,
    /// The API, for calls of other nodes.
    pub(super) router: axum::Router,
    pub(super) agent: AgentHandle,
    pub(super) ingress: IngressHandle,
    pub(super) shells: Shells,
    pub(super) notes: Notes,
    pub(super) persist: mpsc::Sender<(u64, PersistBatch)>,
    pub(super) disk: crate::disk::Disk,
    /// Where the other nodes are, for the disk.
    pub(super) peers: watch::Sender<Vec<KnownPeer>>,
    pub(super) sender: mpsc::Sender<Event>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) swarm_events: mpsc::Receiver<SwarmEvent>,
    pub(super) driver_reports: mpsc::Receiver<(TaskId, DriverReport)>,
    pub(super) file_asks: mpsc::Receiver<FileAsk>,
    pub(super) gossip_events: mpsc::Receiver<GossipEvent>,
    pub(super) port_errors: watch::Receiver<BTreeMap<PublishedPort, String>>,
    pub(super) waiting: BTreeMap<RequestId, Waiting>,
    pub(super) last_request: RequestId,
}

impl Member {
    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) fn shells(&self) -> Shells {
        self.shells.clone()
    }

    /// Returns when [`Member::tick`] is due.
    pub(super) fn timeout(&self) -> Time {
        let departing = self.departing.timeout(&self.control);
        let others = [Some(self.finder.timeout()), self.renewing.timeout(), departing];
        others.into_iter().flatten().fold(self.control.poll_timeout(), Time::min)
    }

    /// Waits for the next thing to happen. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Happening {
        tokio::select! {
            biased;
            event = self.events.recv() => event.map_or(Happening::Ended("store"), Happening::Event),
            event = self.swarm_events.recv() => event.map_or(Happening::Ended("swarm"), Happening::Swarm),
            report = self.driver_reports.recv() => {
                report.map_or(Happening::Ended("agent"), |(task, report)| Happening::Driver(task, report))
            }
            Some(ask) = self.file_asks.recv() => Happening::File(ask),
            event = self.gossip_events.recv() => event.map_or(Happening::Ended("gossip"), Happening::Gossip),
            (node, address) = self.finder.next() => Happening::Heard(node, address),
            renewed = self.renewing.next() => Happening::Renewed(Box::new(renewed)),
            answer = self.departing.next() => Happening::Departing(answer),
            Ok(()) = self.port_errors.changed() => Happening::PortErrors,
        }
    }

    pub(super) fn tick(&mut self) {
        self.handle(Event::Tick);
    }

    pub(super) fn handle(&mut self, event: Event) {
        let began = Instant::now();
        self.control.handle_event(event, clock::now());
        self.notes.decided(self.control.take_counts(), began.elapsed());
    }

    fn find(&mut self, event: discovery::Event) {
        self.finder.handle(event, clock::now().time);
    }

    pub(super) fn take_in(&mut self, happening: Happening) -> Result<(), ShellEnded> {
        match happening {
            Happening::Event(event) => self.handle(event),
            Happening::Swarm(event) => self.swarm_event(event),
            Happening::Driver(task, report) => self.handle(Event::Driver { task, report }),
            Happening::Gossip(event) => self.gossip_event(event),
            Happening::Heard(node, address) => self.find(discovery::Event::Heard { node, address }),
            Happening::File(ask) => self.answer_file(ask),
            Happening::Renewed(renewed) => {
                if let Some(membership) = self.renewing.ended(*renewed, clock::now().time) {
                    let granted = membership.granted;
                    if granted.role != self.membership.role() {
                        tracing::info!(role = %granted.role, "this node has a new role");
                    }
                    self.membership = membership;
                    self.handle(Event::Granted(granted));
                }
            }
            Happening::Departing(answer) => self.departing.answered(answer, clock::now().time),
            Happening::PortErrors => {
                let port_errors = by_number(&self.port_errors.borrow_and_update());
                let status = self.control.own_status().clone();
                self.handle(Event::Status(shoal_protocol::value::NodeStatus { port_errors, ..status }));
            }
            Happening::Ended(shell) => return Err(ShellEnded(shell)),
        }
        Ok(())
    }

    fn swarm_event(&mut self, event: SwarmEvent) {
        match event {
            SwarmEvent::Up { node, granted, address } => {
                tracing::info!(%node, role = %granted.role, %address, "connected");
                self.handle(Event::Address { node, address });
                self.handle(Event::PeerUp { node, granted });
                self.find(discovery::Event::Up(node));
                self.gossip.meet(address);
            }
            SwarmEvent::Down { node } => {
                tracing::info!(%node, "disconnected");
                self.notes.parted(node);
                self.handle(Event::PeerDown { node });
                self.find(discovery::Event::Down(node));
            }
            SwarmEvent::Message { from, message: PeerMessage::Gossip(bytes) } => {
                if let Some(peer) = self.swarm.peers().into_iter().find(|peer| peer.node == from) {
                    self.gossip.received(peer.address, bytes);
                }
            }
            SwarmEvent::Message { from, message } => {
                self.notes.heard(from, &message);
                self.handle(Event::Message { from, message });
            }
            SwarmEvent::Join { request, reply } => self.join_request(request, reply),
            SwarmEvent::Renew { from, public_key, reply } => {
                let _ = reply.send(self.renew(from, &public_key));
            }
            SwarmEvent::Refreshed { node, granted } => {
                // The link may be gone by now; then the next one says it.
                if self.control.peers().contains_key(&node) {
                    self.handle(Event::PeerUp { node, granted });
                }
            }
            SwarmEvent::Secret { from, task, what, reply } => {
                let given = self.hidden_for(from, task, what);
                if let Err(reason) = &given {
                    tracing::debug!(node = %from, %task, ?what, %reason, "withheld a secret");
                }
                let _ = reply.send(given);
            }
            SwarmEvent::Tunnel { from, stream } => {
                let ingress = self.ingress.clone();
                tokio::spawn(async move {
                    if let Err(error) = ingress.serve_tunnel(stream).await {
                        tracing::debug!(node = %from, %error, "a tunnel ended");
                    }
                });
            }
            SwarmEvent::Datagrams { from, stream } => {
                let ingress = self.ingress.clone();
                tokio::spawn(async move {
                    if let Err(error) = ingress.serve_datagrams(stream).await {
                        tracing::debug!(node = %from, %error, "a tunnel of datagrams ended");
                    }
                });
            }
            SwarmEvent::Api { from, stream } => self.serve_peer(from, stream),
            SwarmEvent::Refused { address, reason, by } => self.refused(address, &reason, by),
        }
    }

    /// Serves one call of another node to this node's API.
    fn serve_peer(&self, from: NodeId, stream: crate::swarm::PeerStream) {
        // Asked of the link itself: its first calls may come here before the word that it is there.
        let peer = self.swarm.peers().into_iter().find(|peer| peer.node == from);
        let is_manager = peer.is_some_and(|peer| self.control.is_manager_by(from, peer.granted));
        let router = self.router.clone();
        tokio::spawn(async move {
            if let Err(error) = super::backend::serve_peer(stream, router, from, is_manager).await {
                tracing::debug!(node = %from, %error, "a call of another node ended");
            }
        });
    }

    fn refused(&mut self, address: SocketAddr, reason: &crate::swarm::Refusal, by: Option<(NodeId, Role)>) {
        tracing::warn!(%address, %reason, "refused by another node");
        if let (crate::swarm::Refusal::Banned, Some((node, Role::Manager))) = (reason, by) {
            // A manager of this very cluster says so, over a connection that proves who it is.
            tracing::warn!(%node, "this node was removed from the cluster");
            self.handle(Event::Banned);
        }
    }

    fn gossip_event(&mut self, event: GossipEvent) {
        let GossipEvent::Live(live) = event;
        let silent: Vec<NodeId> = self.gossiped.iter().filter(|node| !live.contains_key(node)).copied().collect();
        for node in silent {
            self.handle(Event::Phi { node, alive: false });
        }
        self.gossiped = live.keys().copied().collect();
        for (node, heard) in live {
            self.handle(Event::Address { node, address: heard.address });
            self.handle(Event::Phi { node, alive: true });
        }
    }

    /// Takes in a write of the API.
    pub(super) fn write(&mut self, write: Write, reply: oneshot::Sender<Result<Written, WriteError>>) {
        // Not what was found a second ago: whoever has just made room may write.
        let refusal = self.disk.refusal().map(|error| error.to_string());
        if refusal.as_deref() != self.control.storage_refusal() {
            self.handle(Event::Storage(refusal));
        }
        self.request(write, Waiting::Api(reply, tracing::Span::current()));
    }

    pub(super) fn request(&mut self, write: Write, waiting: Waiting) {
        self.last_request += 1;
        self.waiting.insert(self.last_request, waiting);
        tracing::debug!(write = self.last_request, "a write begins");
        self.handle(Event::Request { request: self.last_request, write });
    }

    /// Performs what the decisions ask for. Returns whether this node was removed from the cluster.
    pub(super) async fn perform(&mut self) -> bool {
        self.find(discovery::Event::Tick);
        self.renew_if_due();
        self.depart_if_due();
        let mut removed = false;
        while let Some(action) = self.control.poll_action() {
            match action {
                Action::Send { to, message, bulk } => {
                    let priority = if bulk { Priority::Bulk } else { Priority::Own };
                    self.notes.sending(to, &message);
                    self.swarm.send(to, &message, priority);
                }
                Action::Persist { token, batch } => {
                    if self.persist.send((token, batch)).await.is_err() {
                        self.handle(Event::PersistFailed { token, error: "the store is closed".to_owned() });
                    }
                }
                Action::Reply { request, result } => self.reply(request, result),
                Action::Driver { task, call } => self.agent.call(task, call),
                Action::Adopt { task } => self.agent.adopt(task),
                Action::Probe { node, address, request } => self.probe(node, address, request),
                Action::Routes { ingress, host } => self.ingress.apply(ingress, host),
                Action::Peers { known, banned } => self.keep_peers(known, banned),
                Action::Trust(trust) => self.trust(trust),
                Action::Rotate => self.rotate_keys(),
                Action::Reseal { secret } => self.reseal(secret),
                Action::ResealCredentials { service } => self.reseal_credentials(service),
                Action::Health { node, health } => self.notes.health.note(node, health),
                Action::LeaseAcquired { lease, epoch } => self.notes.lease_acquired(lease, epoch),
                Action::LeaseLost { lease, epoch, expired } => self.notes.lease_lost(lease, epoch, expired),
                Action::Planned { service, epoch, writes } => self.notes.planned(service, epoch, writes),
                Action::Trouble { what } => {
                    tracing::error!(trouble = what, "something cannot be done, see shoal status")
                }
                Action::Removed => removed = true,
            }
        }
        self.notes.see(&self.control, clock::now().time);
        let news = self.control.take_news();
        if !news.is_empty() {
            self.reporter.tell(&self.control, &news, clock::now().wall);
        }
        removed
    }

    fn reply(&mut self, request: RequestId, result: Result<Written, WriteError>) {
        match self.waiting.remove(&request) {
            Some(Waiting::Api(reply, asker)) => {
                asker.in_scope(|| match &result {
                    Ok(Written { index, .. }) => tracing::debug!(write = request, index, "a write was carried out"),
                    Err(error) => tracing::debug!(write = request, %error, "a write was refused"),
                });
                let _ = reply.send(result);
            }
            Some(Waiting::Keys) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "failed to replace keys; trying again");
                }
            }
            Some(Waiting::Join { request, role, reply }) => {
                let answer = match result {
                    Ok(written) => self.admitted(&request, role, written.index),
                    Err(error) => Err(JoinRefusal::Unavailable(error.to_string())),
                };
                match &answer {
                    Ok(_) => tracing::info!(node = %request.node, %role, "admitted a node"),
                    Err(refusal) => {
                        tracing::warn!(node = %request.node, %role, %refusal, "failed to admit a node that wants to join");
                    }
                }
                let _ = reply.send(answer);
            }
            None => {}
        }
    }

    fn probe(&self, node: NodeId, address: Option<SocketAddr>, request: u64) {
        let (swarm, sender, probed) = (self.swarm.clone(), self.sender.clone(), self.notes.probes());
        tokio::spawn(async move {
            let alive = match address {
                Some(address) => swarm.probe(node, address, PROBE_TIMEOUT).await,
                None => false,
            };
            probed(node, alive);
            // The loop may have ended meanwhile.
            let _ = sender.send(Event::Probed { node, request, alive }).await;
        });
    }

    fn keep_peers(&mut self, known: BTreeMap<NodeId, BTreeSet<SocketAddr>>, banned: BTreeSet<NodeId>) {
        let known: BTreeMap<NodeId, Vec<_>> =
            known.into_iter().map(|(node, addresses)| (node, addresses.into_iter().collect())).collect();
        self.swarm.set_banned(banned);
        self.find(discovery::Event::Known(known.keys().copied().collect()));
        let peers = known.iter().map(|(id, addresses)| KnownPeer { id: *id, addresses: addresses.clone() });
        self.peers.send_replace(peers.collect());
        self.swarm.set_peers(known);
    }

    /// Asks to be drained or taken in again, if it is time to.
    fn depart_if_due(&mut self) {
        self.departing.ask_if_due(&self.control, &self.router, &self.swarm, clock::now().time);
    }

    /// Begins to give this node's tasks to others, within a limit.
    pub(super) fn depart(&mut self, wait: Duration) {
        self.departing.leave(wait, clock::now().time);
    }

    /// Returns why a daemon that was told to end may do so, if it may.
    pub(super) fn may_end(&self) -> Option<End> {
        self.departing.end(&self.control, clock::now().time)
    }

    /// Says that this node goes away.
    pub(super) fn leave(&mut self, restarting: bool) {
        self.handle(Event::Leave { restarting });
    }

    /// Goes on until it is cancelled.
    pub(super) async fn settle(&mut self) {
        loop {
            let happening = self.next().await;
            if self.take_in(happening).is_err() {
                return;
            }
            self.perform().await;
        }
    }

    /// Closes the connections and what is queued for the disk.
    pub(super) async fn close(&mut self) {
        self.swarm.shutdown().await;
    }
}

/// Puts the faults of a node's ports into the form of its status, where a port is a number: what is not TCP says so.
fn by_number(errors: &BTreeMap<PublishedPort, String>) -> BTreeMap<u16, String> {
    let mut numbers: BTreeMap<u16, String> = BTreeMap::new();
    for (port, error) in errors.iter().take(PORT_ERRORS_MAX) {
        let text = match port.transport {
            Transport::Tcp => error.clone(),
            Transport::Udp | Transport::Other => format!("{error} ({})", port.transport.name()),
        };
        let all = numbers.entry(port.number).or_default();
        if !all.is_empty() {
            all.push_str(", ");
        }
        all.push_str(&text);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_one_number_are_told_together() {
        let errors = [
            (PublishedPort::tcp(80), "taken"),
            (PublishedPort::tcp(53), "taken"),
            (PublishedPort::udp(53), "taken"),
            (PublishedPort::udp(67), "denied"),
        ];
        let got = by_number(&errors.map(|(port, error)| (port, error.to_owned())).into());
        let want = [(53, "taken, taken (udp)"), (67, "denied (udp)"), (80, "taken")];
        assert_eq!(got, want.map(|(port, error)| (port, error.to_owned())).into());
    }
}
