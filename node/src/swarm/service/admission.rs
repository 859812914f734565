//! From a connection to a link: hellos on both sides, admission, and what a connection may do in each state.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::{ConnectionId, Stream, StreamProtocol};
use shoal_protocol::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::{API, CONTROL, DATAGRAMS, HELLO, JOIN, RENEW, SECRET, TUNNEL};
use super::{Dial, Note, Service, UNADMITTED_MAX};
use crate::swarm::behaviour::Inbound;
use crate::swarm::hello::{self, Outcome};
use crate::swarm::link::{Link, Peer};
use crate::swarm::shared::Shared;
use crate::swarm::stream::PeerStream;
use crate::swarm::wire::Purpose;
use crate::swarm::{Refusal, SwarmEvent, join, secret};

/// How long a refused node has to read why.
const REFUSED_MAX: Duration = Duration::from_secs(2);

/// How long a joining node's connection is kept: longer than the managers may take to decide.
const JOINING_MAX: Duration = Duration::from_secs(40);

/// Refusing addresses remembered; when there are more, all are forgotten.
const REFUSALS_MAX: usize = 256;

/// The same refusal by the same address is told again after this time only.
const REFUSAL_REPEAT: Duration = Duration::from_secs(30);

/// What a connection has come to.
#[derive(Debug)]
pub(super) enum State {
    /// Nothing was said yet.
    New,
    /// A hello is under way that may lead to a link.
    Greeting,
    /// It serves a probe, or its hello was refused; it will be closed.
    Closing,
    /// A node joins on it.
    Joining,
    /// Both sides have admitted each other; the control stream follows.
    Admitted(Peer),
    /// It carries the link.
    Linked(Arc<Link>),
}

/// A connection and what is known of its peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) public_key: [u8; 32],
    pub(super) remote: SocketAddr,
    pub(super) dialled: bool,
    pub(super) state: State,
    pub(super) deadline: Option<Instant>,
}

impl Connection {
    pub(super) fn node(&self) -> NodeId {
        NodeId::from_public_key(&self.public_key)
    }

    pub(super) fn is_stranger(&self) -> bool {
        match self.state {
            State::New | State::Greeting | State::Closing | State::Joining => !self.dialled,
            State::Admitted(_) | State::Linked(_) => false,
        }
    }
}

impl Service {
    pub(super) fn on_dialled(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        public_key: [u8; 32],
        address: SocketAddr,
        dial: Dial,
    ) {
        let node = NodeId::from_public_key(&public_key);
        match dial {
            Dial::Join(reply) => {
                self.set_state(id, State::Joining, JOINING_MAX);
                let _ = reply.send(Ok((peer, id)));
            }
            Dial::Probe(wanted, reply) if wanted != node => {
                let _ = reply.send(false);
                self.close(id);
            }
            Dial::Probe(_, reply) => {
                self.set_state(id, State::Closing, UNADMITTED_MAX);
                let (stream, shared, notes) = (self.open(id, peer, HELLO), self.shared.clone(), self.notes.clone());
                tokio::spawn(async move {
                    let outcome = greet(&shared, &public_key, Purpose::Probe, stream).await;
                    let _ = reply.send(matches!(outcome, Outcome::Admitted(_)));
                    let _ = notes.send(Note::Close(id)).await;
                });
            }
            dial @ (Dial::Member(_) | Dial::Seed) => {
                let member = if let Dial::Member(member) = dial { Some(member) } else { None };
                if self.shared.link(node).is_some() || self.is_under_way(node, false) {
                    self.attempt_ended(member, member == Some(node));
                    return self.close(id);
                }
                self.set_state(id, State::Greeting, UNADMITTED_MAX);
                let (stream, shared, notes) = (self.open(id, peer, HELLO), self.shared.clone(), self.notes.clone());
                tokio::spawn(async move {
                    let outcome = greet(&shared, &public_key, Purpose::Link, stream).await;
                    let _ = notes.send(Note::Introduced { connection: id, member, address, outcome }).await;
                });
            }
        }
    }

    pub(super) fn on_stream(&mut self, inbound: Inbound) {
        let Inbound { connection: id, protocol, stream } = inbound;
        let Some(connection) = self.connections.get(&id) else { return };
        let (public_key, remote) = (connection.public_key, connection.remote);
        match (&connection.state, protocol) {
            (State::New, protocol) if protocol == HELLO && !connection.dialled => {
                self.set_state(id, State::Greeting, UNADMITTED_MAX);
                let (shared, notes) = (self.shared.clone(), self.notes.clone());
                let mut stream = PeerStream::new(stream);
                tokio::spawn(async move {
                    let note = match hello::listen(&shared, &public_key, &mut stream).await {
                        Ok((purpose, peer)) => Note::Heard { connection: id, purpose, peer, stream },
                        Err(_) => Note::Close(id),
                    };
                    let _ = notes.send(note).await;
                });
            }
            (State::New, protocol) if protocol == JOIN && !connection.dialled => {
                self.serve_join(id, public_key, remote, PeerStream::new(stream));
            }
            (State::Admitted(peer), protocol) if protocol == CONTROL && !connection.dialled => {
                let peer = *peer;
                self.start_link(id, peer, stream);
            }
            (State::Linked(link), protocol) => {
                let link = link.clone();
                self.on_link_stream(&link, public_key, &protocol, stream);
            }
            // Whoever is not admitted has no business here: the stream is dropped, which resets it.
            (State::New | State::Greeting | State::Closing | State::Joining | State::Admitted(_), _) => {}
        }
    }

    fn on_link_stream(&mut self, link: &Arc<Link>, public_key: [u8; 32], protocol: &StreamProtocol, stream: Stream) {
        let Ok(permit) = link.accepted.clone().try_acquire_owned() else { return };
        let from = link.peer.credential.node;
        let mut stream = PeerStream::bound(stream, link.ending(), permit);
        match protocol {
            protocol if *protocol == TUNNEL => self.tell(SwarmEvent::Tunnel { from, stream }),
            protocol if *protocol == DATAGRAMS => self.tell(SwarmEvent::Datagrams { from, stream }),
            protocol if *protocol == API => self.tell(SwarmEvent::Api { from, stream }),
            protocol if *protocol == RENEW => {
                let (shared, events) = (self.shared.clone(), self.events.clone());
                tokio::spawn(async move {
                    let _ = join::serve_renewal(&shared, public_key, &events, &mut stream).await;
                });
            }
            protocol if *protocol == HELLO => {
                let (shared, events, link) = (self.shared.clone(), self.events.clone(), link.clone());
                tokio::spawn(async move {
                    let _ = refreshed(&shared, &link, &public_key, &events, &mut stream).await;
                });
            }
            protocol if *protocol == SECRET => {
                let (shared, events, room) = (self.shared.clone(), self.events.clone(), self.secrets.clone());
                tokio::spawn(async move {
                    if let Err(error) = secret::serve(&shared, from, &events, &room, &mut stream).await {
                        tracing::debug!(node = %from, %error, "a node that asked for a secret went away");
                    }
                });
            }
            _ => {} // A join or a second control stream on a link has no meaning.
        }
    }

    fn serve_join(&mut self, id: ConnectionId, public_key: [u8; 32], remote: SocketAddr, mut stream: PeerStream) {
        self.set_state(id, State::Joining, JOINING_MAX);
        let permit = self.joins.clone().try_acquire_owned();
        let allowed = self.limiter.allow(remote.ip(), Instant::now());
        let (Ok(permit), true) = (permit, allowed) else {
            tokio::spawn(async move { join::refuse_busy(&mut stream).await });
            return;
        };
        let (shared, events, notes) = (self.shared.clone(), self.events.clone(), self.notes.clone());
        tokio::spawn(async move {
            let served = join::serve(&shared, (public_key, remote), &events, &mut stream).await;
            drop(permit);
            let admitted = served.unwrap_or_else(|error| {
                tracing::debug!(source = %remote, %error, "a node that tried to join gave up or broke the protocol");
                false
            });
            let _ = notes.send(Note::Served { connection: id, source: remote.ip(), admitted }).await;
        });
    }

    /// The node that this one dialled has answered.
    pub(super) fn on_introduced(
        &mut self,
        id: ConnectionId,
        member: Option<NodeId>,
        address: SocketAddr,
        outcome: Outcome,
    ) {
        let (admitted, reason) = match outcome {
            Outcome::Admitted(peer) => (Some(peer), None),
            Outcome::Failed(error) => {
                tracing::debug!(%address, %error, "the node at this address says no hello");
                (None, None)
            }
            Outcome::Refused(Refusal::Duplicate, _) => (None, None),
            Outcome::Refused(reason, by) => (None, Some((reason, by.map(|by| (by.node, by.granted.role))))),
            Outcome::Unfit(reason) => {
                if self.is_news(address, format!("ours: {reason}")) {
                    tracing::warn!(%address, %reason, "the node at this address is not admitted");
                }
                (None, None)
            }
        };
        if let Some((reason, by)) = reason
            && self.is_news(address, reason.to_string())
        {
            tracing::warn!(%address, %reason, "the node at this address does not admit this one");
            self.tell(SwarmEvent::Refused { address, reason, by });
        }
        self.attempt_ended(member, admitted.is_some_and(|peer| Some(peer.credential.node) == member));
        let yields = |peer: &Peer| {
            let link = self.shared.link(peer.credential.node);
            link.is_none_or(|link| link.yields_to(peer, self.shared.node))
        };
        let Some(peer) = admitted.filter(yields) else {
            return self.close(id);
        };
        self.refusals.remove(&address);
        let Some(peer_id) = self.connections.get(&id).map(|connection| connection.peer) else { return };
        self.set_state(id, State::Admitted(peer), UNADMITTED_MAX);
        let (stream, notes) = (self.open(id, peer_id, CONTROL), self.notes.clone());
        tokio::spawn(async move {
            let note = match stream.await {
                Ok(Ok(stream)) => Note::Control { connection: id, stream },
                Ok(Err(_)) | Err(_) => Note::Close(id),
            };
            let _ = notes.send(note).await;
        });
    }

    /// A node that dialled this one has introduced itself.
    pub(super) fn on_heard(
        &mut self,
        id: ConnectionId,
        purpose: Purpose,
        peer: Result<Peer, Refusal>,
        mut stream: PeerStream,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (node, source) = (connection.node(), connection.remote);
        let (state, refusal) = match (purpose, peer) {
            (Purpose::Probe, peer) => (State::Closing, peer.err()),
            // There is no link that could go on.
            (Purpose::Refresh, _) => (State::Closing, Some(Refusal::Duplicate)),
            (Purpose::Link, Err(refusal)) => (State::Closing, Some(refusal)),
            (Purpose::Link, Ok(peer)) => {
                let yields = self.shared.link(node).is_none_or(|link| link.yields_to(&peer, self.shared.node));
                match yields && !(self.shared.node < node && self.is_under_way(node, true)) {
                    true => (State::Admitted(peer), None),
                    false => (State::Closing, Some(Refusal::Duplicate)),
                }
            }
        };
        self.set_state(id, state, if refusal.is_some() { REFUSED_MAX } else { UNADMITTED_MAX });
        if let Some(reason) = refusal.as_ref().filter(|reason| **reason != Refusal::Duplicate)
            && self.may_complain()
        {
            tracing::warn!(%node, %source, %reason, "refused a node");
        }
        let shared = self.shared.clone();
        // A refused node closes the connection when it has read why; if it does not, the deadline does.
        tokio::spawn(async move { hello::answer(&shared, refusal, &mut stream).await });
    }

    pub(super) fn start_link(&mut self, id: ConnectionId, peer: Peer, stream: Stream) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let node = peer.credential.node;
        if let Some(old) = self.shared.link(node) {
            if !old.yields_to(&peer, self.shared.node) {
                return self.close(id);
            }
            match old.peer.incarnation == peer.incarnation {
                true => old.replace(),
                false => old.close(),
            }
        }
        let (link, queues) = Link::new(id, connection.peer, peer);
        connection.state = State::Linked(link.clone());
        connection.deadline = None;
        self.shared.insert_link(link.clone());
        self.dialer.linked(node);
        let (shared, notes) = (self.shared.clone(), self.notes.clone());
        let ended = move |link: Arc<Link>, violation| async move {
            shared.remove_link(&link);
            let _ = notes.send(Note::LinkEnded { link, violation }).await;
        };
        let predecessor = self.readers.remove(&node);
        let stream = PeerStream::new(stream);
        let reader = link.run(stream, queues, predecessor, self.events.clone(), ended);
        self.readers.insert(node, reader);
    }

    /// Shows this node's present credential on all links. One on which that fails is dialled anew, with a hello of its own. One
    /// whose peer refuses it, as it has not heard of a new root yet, goes on with the old one, which that peer knows.
    pub(super) fn refresh_links(&mut self) {
        for link in self.shared.links() {
            let Some(connection) = self.connections.get(&link.connection) else { continue };
            let (id, public_key) = (link.connection, connection.public_key);
            let stream = self.open(id, link.peer_id, HELLO);
            let (shared, notes) = (self.shared.clone(), self.notes.clone());
            tokio::spawn(async move {
                let outcome = greet(&shared, &public_key, Purpose::Refresh, stream).await;
                if matches!(outcome, Outcome::Unfit(_) | Outcome::Failed(_)) {
                    let _ = notes.send(Note::Close(id)).await;
                }
            });
        }
    }

    /// Returns whether a connection to a node is about to become a link: its hello is on its way, or was answered well.
    ///
    /// While one is, no other is begun, and of two nodes that dial each other the one with the lower identifier refuses the
    /// other's dial. So two connections hardly ever become links at once, and no message is lost in giving one up.
    fn is_under_way(&self, node: NodeId, dialled_only: bool) -> bool {
        self.connections.values().any(|connection| match connection.state {
            State::Greeting => connection.dialled && connection.node() == node,
            State::Admitted(_) => (connection.dialled || !dialled_only) && connection.node() == node,
            State::New | State::Closing | State::Joining | State::Linked(_) => false,
        })
    }

    /// Returns whether an address has not refused for the same reason a short while ago.
    fn is_news(&mut self, address: SocketAddr, reason: String) -> bool {
        let now = Instant::now();
        if self.refusals.get(&address).is_some_and(|(last, at)| *last == reason && now - *at < REFUSAL_REPEAT) {
            return false;
        }
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.clear();
        }
        self.refusals.insert(address, (reason, now));
        true
    }
}

/// A linked node shows a new credential. If it does not do, the link goes on with the old one as long as that does.
async fn refreshed(
    shared: &Shared,
    link: &Link,
    public_key: &[u8; 32],
    events: &mpsc::Sender<SwarmEvent>,
    stream: &mut PeerStream,
) -> io::Result<()> {
    let (purpose, peer) = hello::listen(shared, public_key, stream).await?;
    if purpose != Purpose::Refresh {
        return hello::answer(shared, Some(Refusal::Duplicate), stream).await;
    }
    match peer {
        Err(refusal) => hello::answer(shared, Some(refusal), stream).await,
        Ok(peer) => {
            link.shows(peer.credential);
            let (node, granted) = (peer.credential.node, peer.credential.granted);
            let _ = events.send(SwarmEvent::Refreshed { node, granted }).await;
            hello::answer(shared, None, stream).await
        }
    }
}

async fn greet(
    shared: &Shared,
    public_key: &[u8; 32],
    purpose: Purpose,
    stream: oneshot::Receiver<io::Result<Stream>>,
) -> Outcome {
    match stream.await {
        Ok(Ok(stream)) => hello::introduce(shared, public_key, purpose, &mut PeerStream::new(stream)).await,
        Ok(Err(error)) => Outcome::Failed(error),
        Err(_) => Outcome::Failed(io::ErrorKind::NotConnected.into()),
    }
}
