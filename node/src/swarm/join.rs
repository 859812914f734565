//! `/shoal/join/1` and `/shoal/renew/1`: how a node gets its first credential, and the next.
//!
//! The asked node shows the cluster's root and its own credential first. Only if the token was made for that root, and the
//! root signed the credential for the key at the other end, and the role in it is manager's, is the secret said.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use shoal_protocol::NodeId;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::{JoinToken, Role};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::address::public_key;
use super::service::{self, Command};
use super::shared::{self, Shared};
use super::stream::PeerStream;
use super::wire::{self, HELLO_TIMEOUT, JoinAnswer, JoinAsk, RenewAnswer};
use super::{JoinRefusal, JoinReply, JoinRequest, PORT_DEFAULT, Renewed, SwarmEvent, SwarmHandle};
use crate::identity::Root;

/// How long the managers may take to decide about a joining node: a write by quorum.
pub const DECISION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long reading a seed's name from the system's resolver may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses asked in one attempt to join at most: seeds, and managers that workers name.
const ASKED_MAX: usize = 32;

/// Managers that a worker names at most.
const MANAGERS_MAX: usize = 16;

/// Why a node could not join. Nothing was stored; joining may be retried.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address was given.
    #[error("no address of a node in the cluster was given")]
    NoSeeds,
    /// The address cannot be used.
    #[error("cannot resolve {seed}")]
    Unresolvable {
        /// As it was given.
        seed: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("failed to reach {address}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Who answers is no member of the token's cluster. The secret was not said.
    #[error(
        "remote CA does not match fingerprint: the node at {address} belongs to another cluster than the join token"
    )]
    WrongCluster {
        /// Where.
        address: SocketAddr,
    },
    /// Who answers could not prove to be a member of the token's cluster. The secret was not said.
    #[error("the node at {address} is not to be trusted: {reason}")]
    Untrusted {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The cluster said no.
    #[error("{reason}")]
    Refused {
        /// Where it was asked.
        address: SocketAddr,
        /// Why.
        reason: JoinRefusal,
    },
}

/// Why a credential was not renewed. The present one stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The manager cannot be reached.
    #[error("failed to ask for a new credential")]
    Unreachable(#[from] io::Error),
    /// The manager said no.
    #[error("the manager renews no credential: {0}")]
    Refused(String),
}

impl SwarmHandle {
    /// Joins the cluster of a token through the first of `seeds` (`host[:port]`) that admits this node.
    ///
    /// The reply was verified: its credential is valid for this node's key under the root that the token names. It is the
    /// caller's to keep it and to call [`SwarmHandle::set_membership`].
    pub async fn join(
        &self,
        seeds: &[String],
        token: &JoinToken,
        availability: Availability,
    ) -> Result<JoinReply, JoinError> {
        let mut last = JoinError::NoSeeds;
        let mut queue = VecDeque::new();
        for seed in seeds {
            match resolve(seed).await {
                Ok(addresses) => queue.extend(addresses),
                Err(source) => last = JoinError::Unresolvable { seed: seed.clone(), source },
            }
        }
        let mut asked = BTreeSet::new();
        while let Some(address) = queue.pop_front() {
            if asked.len() >= ASKED_MAX || !asked.insert(address) {
                continue;
            }
            match self.ask(address, token, availability).await {
                Ok(Answer::Admitted(reply)) => return Ok(reply),
                Ok(Answer::Managers(managers)) => {
                    if managers.is_empty() {
                        last = JoinError::Refused { address, reason: JoinRefusal::NoManager };
                    }
                    queue.extend(managers);
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Resolves the names of seeds and dials what they lead to, except this node and those it is linked with.
    pub async fn dial_seeds(&self, seeds: &[String]) {
        let mut addresses = BTreeSet::new();
        for seed in seeds.iter().take(ASKED_MAX) {
            match resolve(seed).await {
                Ok(found) => addresses.extend(found),
                Err(error) => tracing::debug!(%seed, %error, "a seed's name leads nowhere at present"),
            }
        }
        let linked: BTreeSet<_> = self.peers().into_iter().map(|peer| peer.address).collect();
        let own = [self.advertise_address(), self.listen_address()];
        let worth_dialling = |address: &SocketAddr| !linked.contains(address) && !own.contains(address);
        addresses.into_iter().filter(worth_dialling).take(ASKED_MAX).for_each(|address| self.dial(address));
    }

    /// Asks a linked manager for a new credential. It was verified for this node's key.
    pub async fn renew(&self, manager: NodeId) -> Result<Renewed, RenewError> {
        let mut stream = self.open(manager, service::RENEW).await?;
        let exchange = async {
            wire::write(&mut stream, &()).await?;
            wire::read::<RenewAnswer>(&mut stream).await
        };
        match timeout(DECISION_TIMEOUT + HELLO_TIMEOUT, exchange).await.map_err(io::Error::from)?? {
            RenewAnswer::Refused(reason) => Err(RenewError::Refused(reason)),
            RenewAnswer::Renewed(renewed) => match self.shared.admit(&renewed.credential, &self.shared.public_key) {
                Ok(_) => Ok(renewed),
                Err(refusal) => Err(RenewError::Refused(refusal.to_string())),
            },
        }
    }

    async fn ask(
        &self,
        address: SocketAddr,
        token: &JoinToken,
        availability: Availability,
    ) -> Result<Answer, JoinError> {
        let unreachable = |source| JoinError::Unreachable { address, source };
        let (peer, connection) = self.connect(address).await.map_err(unreachable)?;
        let answer = self.ask_on((peer, connection), address, token, availability).await;
        let _ = self.commands.send(Command::Close { connection }).await;
        answer
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<(PeerId, ConnectionId)> {
        let gone = |_| io::Error::from(io::ErrorKind::NotConnected);
        let (reply, connected) = oneshot::channel();
        self.commands.send(Command::Join { address, reply }).await.map_err(|_| gone(()))?;
        timeout(CONNECT_TIMEOUT, connected).await?.map_err(|_| gone(()))?
    }

    async fn ask_on(
        &self,
        (peer, connection): (PeerId, ConnectionId),
        address: SocketAddr,
        token: &JoinToken,
        availability: Availability,
    ) -> Result<Answer, JoinError> {
        let unreachable = |source| JoinError::Unreachable { address, source };
        let refused = |reason| JoinError::Refused { address, reason };
        let untrusted = |reason: String| JoinError::Untrusted { address, reason };
        let public_key = public_key(&peer).ok_or_else(|| untrusted("its key is not Ed25519".into()))?;
        let open = self.open_on(peer, connection, service::JOIN);
        let stream = within(HELLO_TIMEOUT, open).await.map_err(unreachable)?;
        let mut stream = PeerStream::new(stream);

        let answer = within(HELLO_TIMEOUT, exchange(&mut stream, &JoinAsk::Root)).await.map_err(unreachable)?;
        let (root_pem, credential, managers) = match answer {
            JoinAnswer::Root { root_pem, credential, managers } => (root_pem, credential, managers),
            JoinAnswer::Refused(reason) => return Err(refused(reason)),
            JoinAnswer::Admitted(_) => return Err(untrusted("it does not keep to the protocol".into())),
        };
        let root = Root::from_pem(&root_pem).map_err(|error| untrusted(error.to_string()))?;
        if !token.is_for_root(root.der()) {
            return Err(JoinError::WrongCluster { address });
        }
        let now = (self.shared.clock)();
        let seed = root.verify(&credential, &public_key, now).map_err(|error| untrusted(error.to_string()))?;
        if seed.granted.role != Role::Manager {
            return Ok(Answer::Managers(managers.into_iter().take(MANAGERS_MAX).collect()));
        }

        let (secret, advertise) = (token.secret.clone(), self.shared.advertise);
        let ask = JoinAsk::Admit { secret, advertise, availability };
        let deciding = exchange(&mut stream, &ask);
        match within(DECISION_TIMEOUT + HELLO_TIMEOUT, deciding).await.map_err(unreachable)? {
            JoinAnswer::Root { .. } => Err(untrusted("it does not keep to the protocol".into())),
            JoinAnswer::Refused(reason) => Err(refused(reason)),
            JoinAnswer::Admitted(reply) => {
                let own = root
                    .verify(&reply.membership.credential, &self.shared.public_key, now)
                    .map_err(|error| untrusted(error.to_string()))?;
                if reply.membership.root_pem != root_pem || reply.membership.granted != own.granted {
                    return Err(untrusted("its answer contradicts itself".into()));
                }
                Ok(Answer::Admitted(reply))
            }
        }
    }
}

impl JoinError {
    /// Returns whether asking another node cannot help.
    fn is_final(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => match reason {
                JoinRefusal::InvalidToken | JoinRefusal::Banned | JoinRefusal::Full => true,
                JoinRefusal::NotInCluster
                | JoinRefusal::NoManager
                | JoinRefusal::Busy
                | JoinRefusal::Unavailable(_) => false,
            },
            Self::NoSeeds
            | Self::Unresolvable { .. }
            | Self::Unreachable { .. }
            | Self::WrongCluster { .. }
            | Self::Untrusted { .. } => false,
        }
    }
}

/// What an asked node says to one that may join.
enum Answer {
    Admitted(JoinReply),
    Managers(Vec<SocketAddr>),
}

/// Serves a joining node. Returns whether it was admitted.
pub(super) async fn serve(
    shared: &Shared,
    (public_key, source): ([u8; 32], SocketAddr),
    events: &mpsc::Sender<SwarmEvent>,
    stream: &mut PeerStream,
) -> io::Result<bool> {
    let JoinAsk::Root = within(HELLO_TIMEOUT, wire::read(stream)).await? else {
        return Err(wire::invalid("the secret was said before the root was asked for"));
    };
    let (answer, role) = introduction(shared);
    within(HELLO_TIMEOUT, wire::write(stream, &answer)).await?;
    if role != Some(Role::Manager) {
        return Ok(false);
    }
    let JoinAsk::Admit { secret, advertise, availability } = within(HELLO_TIMEOUT, wire::read(stream)).await? else {
        return Err(wire::invalid("the root was asked for twice"));
    };
    let node = NodeId::from_public_key(&public_key);
    let address = reachable(advertise, source);
    let request = JoinRequest { node, public_key, address, source: source.ip(), secret, availability };
    let decision = match shared.admission().banned.contains(&node) {
        true => Err(JoinRefusal::Banned),
        false => Ok(()),
    };
    let decision = match decision {
        Err(refusal) => Err(refusal),
        Ok(()) => decide(events, |reply| SwarmEvent::Join { request, reply })
            .await
            .unwrap_or_else(|| Err(JoinRefusal::Unavailable("the managers did not decide in time".into()))),
    };
    let admitted = decision.is_ok();
    let answer = match decision {
        Ok(reply) => JoinAnswer::Admitted(reply),
        Err(refusal) => JoinAnswer::Refused(refusal),
    };
    within(HELLO_TIMEOUT, wire::write(stream, &answer)).await?;
    Ok(admitted)
}

/// Tells a joining node that too many try.
pub(super) async fn refuse_busy(stream: &mut PeerStream) -> io::Result<()> {
    within(HELLO_TIMEOUT, wire::write(stream, &JoinAnswer::Refused(JoinRefusal::Busy))).await
}

/// Serves a member that wants a new credential.
pub(super) async fn serve_renewal(
    shared: &Shared,
    public_key: [u8; 32],
    events: &mpsc::Sender<SwarmEvent>,
    stream: &mut PeerStream,
) -> io::Result<()> {
    let () = within(HELLO_TIMEOUT, wire::read(stream)).await?;
    let is_manager = matches!(introduction(shared).1, Some(Role::Manager));
    let from = NodeId::from_public_key(&public_key);
    let decision = match is_manager {
        false => Some(Err("this node is no manager".to_owned())),
        true => decide(events, |reply| SwarmEvent::Renew { from, public_key, reply }).await,
    };
    let answer = match decision.unwrap_or_else(|| Err("the managers did not decide in time".into())) {
        Ok(renewed) => RenewAnswer::Renewed(renewed),
        Err(reason) => RenewAnswer::Refused(reason),
    };
    within(HELLO_TIMEOUT, wire::write(stream, &answer)).await
}

/// Lets the swarm's owner decide.
async fn decide<T>(
    events: &mpsc::Sender<SwarmEvent>,
    event: impl FnOnce(oneshot::Sender<T>) -> SwarmEvent,
) -> Option<T> {
    let (reply, decision) = oneshot::channel();
    events.send(event(reply)).await.ok()?;
    timeout(DECISION_TIMEOUT, decision).await.ok()?.ok()
}

/// Returns how this node answers a joining node first, and its own role.
fn introduction(shared: &Shared) -> (JoinAnswer, Option<Role>) {
    let links = shared.links();
    let admission = shared.admission();
    let Some((membership, trust)) = admission.credentials() else {
        return (JoinAnswer::Refused(JoinRefusal::NotInCluster), None);
    };
    let managers = match membership.role() {
        Role::Manager => Vec::new(),
        Role::Worker => links
            .iter()
            .map(|link| shared::info(link))
            .filter(|peer| peer.granted.role == Role::Manager)
            .map(|peer| peer.address)
            .take(MANAGERS_MAX)
            .collect(),
    };
    let (root_pem, credential) = (trust.newest().pem().to_owned(), membership.credential.clone());
    (JoinAnswer::Root { root_pem, credential, managers }, Some(membership.role()))
}

/// Returns the address at which to dial a node: where it comes from, if it does not know its own address.
fn reachable(advertise: SocketAddr, source: SocketAddr) -> SocketAddr {
    match advertise.ip().is_unspecified() {
        true => SocketAddr::new(source.ip(), advertise.port()),
        false => advertise,
    }
}

async fn exchange(stream: &mut PeerStream, ask: &JoinAsk) -> io::Result<JoinAnswer> {
    wire::write(stream, ask).await?;
    wire::read(stream).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await?
}

/// Resolves `host[:port]` with the default port.
async fn resolve(seed: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = seed.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = seed.parse() {
        return Ok(vec![SocketAddr::new(ip, PORT_DEFAULT)]);
    }
    let with_port = match seed.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => seed.to_owned(),
        _ => format!("{seed}:{PORT_DEFAULT}"),
    };
    let addresses: Vec<_> = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(with_port)).await??.collect();
    match addresses.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "no address is known for this name")),
        false => Ok(addresses),
    }
}
