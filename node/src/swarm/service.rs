//! The swarm's loop: owns libp2p's swarm and every connection's state. It never waits for the swarm's owner.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{self, ConnectionId, NetworkBehaviour, Stream, StreamProtocol, Swarm};
use libp2p::{PeerId, connection_limits, noise, tcp, yamux};
use shoal_protocol::NodeId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant as TokioInstant;

use super::address::{multiaddr, public_key, socket_address};
use super::behaviour::{OpenReply, Streams};
use super::dialer::{Dialer, JITTER_MAX};
use super::hello::Outcome;
use super::limiter::Limiter;
use super::link::{Link, Peer};
use super::shared::{Admission, Shared};
use super::stream::PeerStream;
use super::wire::Purpose;
use super::{Refusal, SwarmConfig, SwarmError, SwarmEvent};
use crate::identity::{self, Credential};

mod admission;

use admission::{Connection, State};

pub(super) const HELLO: StreamProtocol = StreamProtocol::new("/shoal/hello/1");
pub(super) const JOIN: StreamProtocol = StreamProtocol::new("/shoal/join/1");
pub(super) const CONTROL: StreamProtocol = StreamProtocol::new("/shoal/control/1");
pub(super) const TUNNEL: StreamProtocol = StreamProtocol::new("/shoal/tunnel/1");
/// As a tunnel, for datagrams; nodes that do not know it refuse it when it is negotiated.
pub(super) const DATAGRAMS: StreamProtocol = StreamProtocol::new("/shoal/datagrams/1");
pub(super) const API: StreamProtocol = StreamProtocol::new("/shoal/api/1");
pub(super) const RENEW: StreamProtocol = StreamProtocol::new("/shoal/renew/1");
pub(super) const SECRET: StreamProtocol = StreamProtocol::new("/shoal/secret/2");

/// How long a node that connects has for a hello or for beginning to join.
const UNADMITTED_MAX: Duration = Duration::from_secs(8);

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

/// Secrets on their way to other nodes at the same time; further nodes wait a little and are told to come back.
const SECRETS_MAX: usize = 8;

/// Streams and refusals that wait for the owner; more are dropped.
const OUTBOX_MAX: usize = 1024;

/// What tasks tell the loop; they wait when so much waits already.
const NOTES_MAX: usize = 256;

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
    secrets: Arc<Semaphore>,
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
    let admission = Admission::new(membership)?;
    let incarnation = u64::from_le_bytes(identity::random()?);
    let shared = Shared::new(key.public_key(), (listen, advertise), incarnation, clock, admission);
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
        secrets: Arc::new(Semaphore::new(SECRETS_MAX)),
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
        streams: Streams::new(vec![HELLO, JOIN, CONTROL, TUNNEL, DATAGRAMS, API, RENEW, SECRET]),
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
        if wanted.introduce {
            self.refresh_links();
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
        let trust = admission.credentials().map(|(_, trust)| trust);
        let now = (self.shared.clock)();
        let fits = |credential: &Credential| {
            !admission.banned.contains(&credential.node) && trust.is_some_and(|trust| trust.fits(credential, now))
        };
        let mut unfit = Vec::new();
        for (id, connection) in &self.connections {
            match &connection.state {
                State::Admitted(peer) if !fits(&peer.credential) => unfit.push(*id),
                State::Linked(link) if !fits(&link.credential()) => link.close(),
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

/// Draws a pause by which nodes that lost each other at the same moment do not dial at the same moment.
fn jitter() -> Duration {
    JITTER_MAX.mul_f64(rand::random())
}
