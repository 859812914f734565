//! The swarm's loop: owns libp2p's swarm and every connection's state. It never waits for the swarm's owner.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{self, ConnectionId, NetworkBehaviour, Stream, StreamProtocol, Swarm};
use libp2p::{Multiaddr, PeerId, connection_limits, noise, tcp, yamux};
use shoal_protocol::NodeId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant as TokioInstant;

use super::behaviour::{Inbound, OpenReply, Streams};
use super::dialer::{Dialer, JITTER_MAX};
use super::hello::{self, Outcome};
use super::limiter::Limiter;
use super::link::{Link, Peer};
use super::shared::{Credentials, Shared};
use super::stream::PeerStream;
use super::wire::Purpose;
use super::{Refusal, SwarmConfig, SwarmError, SwarmEvent, join};
use crate::identity;

pub(super) const HELLO: StreamProtocol = StreamProtocol::new("/shoal/hello/1");
pub(super) const JOIN: StreamProtocol = StreamProtocol::new("/shoal/join/1");
pub(super) const CONTROL: StreamProtocol = StreamProtocol::new("/shoal/control/1");
pub(super) const TUNNEL: StreamProtocol = StreamProtocol::new("/shoal/tunnel/1");
pub(super) const API: StreamProtocol = StreamProtocol::new("/shoal/api/1");
pub(super) const RENEW: StreamProtocol = StreamProtocol::new("/shoal/renew/1");

/// How long a node that connects has for a hello or for beginning to join.
const UNADMITTED_MAX: Duration = Duration::from_secs(8);

/// How long a refused node has to read why.
const REFUSED_MAX: Duration = Duration::from_secs(2);

/// How long a joining node's connection is kept: longer than the managers may take to decide.
const JOINING_MAX: Duration = Duration::from_secs(40);

/// How long connecting, with Noise and Yamux, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections from nodes that are not admitted yet; more are closed at once. With [`NEGOTIATING_MAX`] it bounds what
/// strangers can make this node keep in memory.
const STRANGERS_MAX: usize = 32;

/// Streams of one connection whose protocol is being negotiated; more are reset.
const NEGOTIATING_MAX: usize = 64;

/// Connections that have not finished their handshake; more are refused.
const HANDSHAKES_MAX: u32 = 64;

/// Dials under way; more fail and are tried again later.
const DIALS_MAX: u32 = 128;

/// Connections with one peer: both sides may dial at once, and each may probe.
const PER_PEER_MAX: u32 = 8;

/// Connections in all; more are refused.
const CONNECTIONS_MAX: u32 = 4096;

/// Streams of one connection before yamux ends it; see [`super::link::STREAMS_MAX`].
const YAMUX_STREAMS_MAX: usize = 4096;

/// Joining nodes served at the same time; more are told to come back.
const JOINS_MAX: usize = 16;

/// Streams and refusals that wait for the owner; more are dropped.
const OUTBOX_MAX: usize = 1024;

/// What tasks tell the loop; they wait when so much waits already.
const NOTES_MAX: usize = 256;

/// Refusing addresses remembered; when there are more, all are forgotten.
const REFUSALS_MAX: usize = 256;

/// The same refusal by the same address is told again after this time only.
const REFUSAL_REPEAT: Duration = Duration::from_secs(30);

/// How often links with expired credentials are looked for.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);

/// What handles ask of the loop.
#[derive(Debug)]
pub(super) enum Command {
    /// Open a stream.
    Open { peer: PeerId, connection: ConnectionId, protocol: StreamProtocol, reply: OpenReply },
    /// Dial afresh and say whether the node answers.
    Probe { node: NodeId, address: SocketAddr, reply: oneshot::Sender<bool> },
    /// Dial in order to join.
    Join { address: SocketAddr, reply: oneshot::Sender<io::Result<(PeerId, ConnectionId)>> },
    /// Close a connection.
    Close { connection: ConnectionId },
}

/// Why an address is dialled.
#[derive(Debug)]
enum Dial {
    Member(NodeId),
    Seed,
    Probe(NodeId, oneshot::Sender<bool>),
    Join(oneshot::Sender<io::Result<(PeerId, ConnectionId)>>),
}

/// What tasks tell the loop.
enum Note {
    /// The dialled node's answer to the hello.
    Introduced { connection: ConnectionId, member: Option<NodeId>, address: SocketAddr, outcome: Outcome },
    /// The dialling node's hello, to be answered on the stream.
    Heard { connection: ConnectionId, purpose: Purpose, peer: Result<Peer, Refusal>, stream: PeerStream },
    /// The control stream that this node opened.
    Control { connection: ConnectionId, stream: Stream },
    /// A link ended; the peer may have broken the protocol.
    LinkEnded { link: Arc<Link>, violation: Option<String> },
    /// A joining node was served.
    Served { connection: ConnectionId, source: IpAddr, admitted: bool },
    /// The connection is of no more use.
    Close(ConnectionId),
}

#[derive(Debug)]
enum State {
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

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    public_key: [u8; 32],
    remote: SocketAddr,
    dialled: bool,
    state: State,
    deadline: Option<Instant>,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) streams: Streams,
}

type Libp2pEvent = swarm::SwarmEvent<BehaviourEvent>;

struct Service {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    events: mpsc::Sender<SwarmEvent>,
    outbox: VecDeque<SwarmEvent>,
    notes: mpsc::Sender<Note>,
    connections: BTreeMap<ConnectionId, Connection>,
    dialling: BTreeMap<ConnectionId, (SocketAddr, Dial)>,
    dialer: Dialer,
    /// The newest link's reader of each node, until it has delivered its last event.
    readers: BTreeMap<NodeId, JoinHandle<bool>>,
    limiter: Limiter,
    joins: Arc<Semaphore>,
    refusals: BTreeMap<SocketAddr, (String, Instant)>,
    complained: Option<Instant>,
    expiry_check: Instant,
}

/// Binds the port and spawns the loop.
pub(super) fn start(
    config: SwarmConfig,
    events: mpsc::Sender<SwarmEvent>,
    commands: mpsc::Receiver<Command>,
) -> Result<Arc<Shared>, SwarmError> {
    let SwarmConfig { key, listen, mut advertise, membership, clock } = config;
    // libp2p listens with SO_REUSEPORT, which would let two daemons share a port unawares.
    let refused = |source| SwarmError::Listen { address: listen, source };
    let listen = std::net::TcpListener::bind(listen).and_then(|listener| listener.local_addr()).map_err(refused)?;
    if advertise.port() == 0 {
        advertise.set_port(listen.port());
    }
    let credentials = membership.map(Credentials::new).transpose()?;
    let incarnation = u64::from_le_bytes(identity::random()?);
    let shared = Shared::new(key.public_key(), (listen, advertise), incarnation, clock, credentials);
    let mut swarm = build(&key)?;
    swarm
        .listen_on(multiaddr(listen))
        .map_err(|error| SwarmError::Listen { address: listen, source: io::Error::other(error) })?;
    let (notes, noted) = mpsc::channel(NOTES_MAX);
    let service = Service {
        swarm,
        shared: shared.clone(),
        events,
        outbox: VecDeque::new(),
        notes,
        connections: BTreeMap::new(),
        dialling: BTreeMap::new(),
        dialer: Dialer::new(shared.node),
        readers: BTreeMap::new(),
        limiter: Limiter::default(),
        joins: Arc::new(Semaphore::new(JOINS_MAX)),
        refusals: BTreeMap::new(),
        complained: None,
        expiry_check: Instant::now() + EXPIRY_CHECK,
    };
    tokio::spawn(service.run(commands, noted));
    Ok(shared)
}

/// Makes libp2p's swarm, not yet listening.
pub(super) fn build(key: &identity::NodeKey) -> Result<Swarm<Behaviour>, SwarmError> {
    let pair = key.libp2p();
    let noise = noise::Config::new(&pair).map_err(|error| SwarmError::Noise(error.to_string()))?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(YAMUX_STREAMS_MAX);
    let transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .timeout(CONNECT_TIMEOUT)
        .boxed();
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(HANDSHAKES_MAX))
        .with_max_pending_outgoing(Some(DIALS_MAX))
        .with_max_established_per_peer(Some(PER_PEER_MAX))
        .with_max_established(Some(CONNECTIONS_MAX));
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        streams: Streams::new(vec![HELLO, JOIN, CONTROL, TUNNEL, API, RENEW]),
    };
    // Each protocol's opener writes first, so the name of the protocol may travel with its first bytes.
    let config = swarm::Config::with_tokio_executor()
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(NEGOTIATING_MAX);
    Ok(Swarm::new(transport, behaviour, pair.public().to_peer_id(), config))
}

impl Service {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut noted: mpsc::Receiver<Note>) {
        let closing = self.shared.closing.clone();
        loop {
            let wake = TokioInstant::from_std(self.next_timer());
            let events = self.events.clone();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                note = noted.recv() => self.on_note(note.expect("the loop itself holds a sender")),
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                () = self.shared.changed.notified() => self.on_change(),
                () = tokio::time::sleep_until(wake) => self.on_timer(),
                permit = events.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => if let Some(event) = self.outbox.pop_front() { permit.send(event) },
                    Err(_) => break,
                },
                () = closing.cancelled() => break,
            }
        }
        for link in self.shared.links() {
            link.close();
        }
    }

    fn on_event(&mut self, event: Libp2pEvent) {
        match event {
            Libp2pEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            Libp2pEvent::ConnectionClosed { connection_id, .. } => {
                if let Some(Connection { state: State::Linked(link), .. }) = self.connections.remove(&connection_id) {
                    link.close();
                }
            }
            Libp2pEvent::OutgoingConnectionError { connection_id, error, .. } => {
                let reason = error.to_string();
                if let Some((address, dial)) = self.dialling.remove(&connection_id) {
                    tracing::debug!(%address, %reason, "dialling failed");
                    self.dial_failed(dial, io::Error::new(io::ErrorKind::ConnectionRefused, reason));
                }
            }
            Libp2pEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(source = %send_back_addr, %error, "a connection was refused");
            }
            Libp2pEvent::Behaviour(BehaviourEvent::Streams(inbound)) => self.on_stream(inbound),
            Libp2pEvent::Behaviour(BehaviourEvent::Limits(never)) => match never {},
            Libp2pEvent::ListenerClosed { reason: Err(error), .. } | Libp2pEvent::ListenerError { error, .. } => {
                tracing::error!(address = %self.shared.listen, %error, "listening failed");
            }
            _ => {} // The enum is non-exhaustive and foreign; the rest tells nothing new.
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let remote = socket_address(endpoint.get_remote_address());
        let (Some(public_key), Some(remote)) = (public_key(&peer), remote) else {
            self.swarm.close_connection(connection);
            return;
        };
        let dial = self.dialling.remove(&connection);
        let deadline = Some(Instant::now() + UNADMITTED_MAX);
        let entry = Connection { peer, public_key, remote, dialled: dial.is_some(), state: State::New, deadline };
        let strangers = self.connections.values().filter(|other| other.is_stranger()).count();
        self.connections.insert(connection, entry);
        match dial {
            None if strangers >= STRANGERS_MAX => self.close(connection),
            None => {}
            Some((address, dial)) => self.on_dialled(connection, peer, public_key, address, dial),
        }
    }

    fn on_dialled(&mut self, id: ConnectionId, peer: PeerId, public_key: [u8; 32], address: SocketAddr, dial: Dial) {
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

    fn on_stream(&mut self, inbound: Inbound) {
        let Inbound { connection: id, protocol, stream } = inbound;
        let Some(connection) = self.connections.get(&id) else { return };
        let (public_key, remote) = (connection.public_key, connection.remote);
        match (&connection.state, protocol) {
            (State::New, protocol) if protocol == HELLO && !connection.dialled => {
                self.set_state(id, State::Greeting, UNADMITTED_MAX);
                let (shared, notes) = (self.shared.clone(), self.notes.clone());
                let mut stream = PeerStream::new(stream, None);
                tokio::spawn(async move {
                    let note = match hello::listen(&shared, &public_key, &mut stream).await {
                        Ok((purpose, peer)) => Note::Heard { connection: id, purpose, peer, stream },
                        Err(_) => Note::Close(id),
                    };
                    let _ = notes.send(note).await;
                });
            }
            (State::New, protocol) if protocol == JOIN && !connection.dialled => {
                self.serve_join(id, public_key, remote, PeerStream::new(stream, None));
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

    fn on_link_stream(&mut self, link: &Link, public_key: [u8; 32], protocol: &StreamProtocol, stream: Stream) {
        let Ok(permit) = link.accepted.clone().try_acquire_owned() else { return };
        let (from, role) = (link.peer.credential.node, link.peer.credential.role);
        let mut stream = PeerStream::new(stream, Some(permit));
        match protocol {
            protocol if *protocol == TUNNEL => self.tell(SwarmEvent::Tunnel { from, stream }),
            protocol if *protocol == API => self.tell(SwarmEvent::Api { from, stream }),
            protocol if *protocol == RENEW => {
                let (shared, events) = (self.shared.clone(), self.events.clone());
                tokio::spawn(async move {
                    let _ = join::serve_renewal(&shared, (public_key, role), &events, &mut stream).await;
                });
            }
            _ => {} // A second hello, join or control stream on a link has no meaning.
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

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Introduced { connection, member, address, outcome } => {
                self.on_introduced(connection, member, address, outcome);
            }
            Note::Heard { connection, purpose, peer, stream } => self.on_heard(connection, purpose, peer, stream),
            Note::Control { connection, stream } => {
                if let Some(Connection { state: State::Admitted(peer), .. }) = self.connections.get(&connection) {
                    let peer = *peer;
                    self.start_link(connection, peer, stream);
                }
            }
            Note::LinkEnded { link, violation } => {
                let node = link.peer.credential.node;
                if let Some(reason) = violation.filter(|_| self.may_complain()) {
                    tracing::error!(%node, %reason, "closed a connection on which the peer broke the protocol");
                }
                self.close(link.connection);
                if self.shared.link(node).is_none() {
                    self.dialer.unlinked(node, Instant::now(), jitter());
                }
            }
            Note::Served { connection, source, admitted } => {
                if admitted {
                    self.limiter.refund(source);
                }
                // The joining node closes the connection once it has the answer; until then it may not linger.
                if let Some(entry) = self.connections.get_mut(&connection) {
                    entry.deadline = Some(Instant::now() + UNADMITTED_MAX);
                }
            }
            Note::Close(connection) => self.close(connection),
        }
    }

    /// The node that this one dialled has answered.
    fn on_introduced(&mut self, id: ConnectionId, member: Option<NodeId>, address: SocketAddr, outcome: Outcome) {
        let (admitted, reason) = match outcome {
            Outcome::Admitted(peer) => (Some(peer), None),
            Outcome::Failed(error) => {
                tracing::debug!(%address, %error, "the node at this address says no hello");
                (None, None)
            }
            Outcome::Refused(Refusal::Duplicate, _) => (None, None),
            Outcome::Refused(reason, by) => (None, Some((reason, by.map(|by| (by.node, by.role))))),
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
    fn on_heard(&mut self, id: ConnectionId, purpose: Purpose, peer: Result<Peer, Refusal>, mut stream: PeerStream) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (node, source) = (connection.node(), connection.remote);
        let (state, refusal) = match (purpose, peer) {
            (Purpose::Probe, peer) => (State::Closing, peer.err()),
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

    fn start_link(&mut self, id: ConnectionId, peer: Peer, stream: Stream) {
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
        let stream = PeerStream::new(stream, None);
        let reader = link.run(stream, queues, predecessor, self.events.clone(), ended);
        self.readers.insert(node, reader);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Open { peer, connection, protocol, reply } => {
                if self.connections.contains_key(&connection) {
                    self.swarm.behaviour_mut().streams.open(peer, connection, protocol, reply);
                }
            }
            Command::Probe { node, address, reply } => self.dial(address, Dial::Probe(node, reply)),
            Command::Join { address, reply } => self.dial(address, Dial::Join(reply)),
            Command::Close { connection } => self.close(connection),
        }
    }

    fn on_change(&mut self) {
        let wanted = self.shared.take_wanted();
        if let Some(peers) = wanted.peers {
            let shared = &self.shared;
            self.dialer.set(peers, |node| shared.link(node).is_some(), Instant::now());
        }
        for address in wanted.dials {
            self.dial(address, Dial::Seed);
        }
        if wanted.check {
            self.check_admissions();
        }
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        for (node, address) in self.dialer.take_due(now, jitter) {
            self.dial(address, Dial::Member(node));
        }
        let is_over = |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let over: Vec<_> =
            self.connections.iter().filter(|(_, connection)| is_over(connection)).map(|(id, _)| *id).collect();
        for id in over {
            self.close(id);
        }
        if self.expiry_check <= now {
            self.expiry_check = now + EXPIRY_CHECK;
            self.check_admissions();
            self.readers.retain(|_, reader| !reader.is_finished());
        }
    }

    /// Closes links that would not be admitted any more.
    fn check_admissions(&mut self) {
        let admission = self.shared.admission();
        let cluster = admission.credentials.as_ref().map(|credentials| credentials.root.cluster());
        let now = (self.shared.clock)();
        let fits = |peer: &Peer| {
            Some(peer.credential.cluster) == cluster
                && !admission.banned.contains(&peer.credential.node)
                && peer.credential.expires > now
        };
        let mut unfit = Vec::new();
        for (id, connection) in &self.connections {
            match &connection.state {
                State::Admitted(peer) if !fits(peer) => unfit.push(*id),
                State::Linked(link) if !fits(&link.peer) => link.close(),
                State::New | State::Greeting | State::Closing | State::Joining => {}
                State::Admitted(_) | State::Linked(_) => {}
            }
        }
        drop(admission);
        for id in unfit {
            self.close(id);
        }
    }

    fn next_timer(&self) -> Instant {
        let deadlines = self.connections.values().filter_map(|connection| connection.deadline);
        let dial = self.dialer.next_due().into_iter();
        deadlines.chain(dial).fold(self.expiry_check, Instant::min)
    }

    fn dial(&mut self, address: SocketAddr, dial: Dial) {
        let options = DialOpts::unknown_peer_id().address(multiaddr(address)).allocate_new_port().build();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dialling.insert(connection, (address, dial));
            }
            Err(error) => self.dial_failed(dial, io::Error::other(error)),
        }
    }

    fn dial_failed(&mut self, dial: Dial, error: io::Error) {
        match dial {
            Dial::Member(node) => self.attempt_ended(Some(node), false),
            Dial::Seed => {}
            Dial::Probe(_, reply) => {
                let _ = reply.send(false);
            }
            Dial::Join(reply) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn attempt_ended(&mut self, member: Option<NodeId>, succeeded: bool) {
        match member {
            Some(node) if succeeded => self.dialer.succeeded(node),
            Some(node) => self.dialer.failed(node, Instant::now(), jitter()),
            None => {}
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

    fn open(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        protocol: StreamProtocol,
    ) -> oneshot::Receiver<io::Result<Stream>> {
        let (reply, stream) = oneshot::channel();
        self.swarm.behaviour_mut().streams.open(peer, id, protocol, reply);
        stream
    }

    fn close(&mut self, id: ConnectionId) {
        self.swarm.close_connection(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.deadline = None;
            if let State::Linked(link) = std::mem::replace(&mut connection.state, State::Closing) {
                link.close();
            }
        }
    }

    fn set_state(&mut self, id: ConnectionId, state: State, limit: Duration) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.state = state;
            connection.deadline = Some(Instant::now() + limit);
        }
    }

    fn tell(&mut self, event: SwarmEvent) {
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(event);
        }
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

    /// Returns whether another complaint about peers may be logged: one a second.
    fn may_complain(&mut self) -> bool {
        let now = Instant::now();
        let may = self.complained.is_none_or(|last| now - last >= Duration::from_secs(1));
        if may {
            self.complained = Some(now);
        }
        may
    }
}

impl Connection {
    fn node(&self) -> NodeId {
        NodeId::from_public_key(&self.public_key)
    }

    fn is_stranger(&self) -> bool {
        match self.state {
            State::New | State::Greeting | State::Closing | State::Joining => !self.dialled,
            State::Admitted(_) | State::Linked(_) => false,
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
        Ok(Ok(stream)) => hello::introduce(shared, public_key, purpose, &mut PeerStream::new(stream, None)).await,
        Ok(Err(error)) => Outcome::Failed(error),
        Err(_) => Outcome::Failed(io::ErrorKind::NotConnected.into()),
    }
}

/// Returns the Ed25519 key that a peer's identifier consists of.
pub(super) fn public_key(peer: &PeerId) -> Option<[u8; 32]> {
    let hash: &libp2p::multihash::Multihash<64> = peer.as_ref();
    let key = libp2p::identity::PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(address.ip().into()).with(Protocol::Tcp(address.port()))
}

fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// Draws a pause by which nodes that lost each other at the same moment do not dial at the same moment.
fn jitter() -> Duration {
    JITTER_MAX.mul_f64(rand::random())
}
