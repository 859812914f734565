//! The authenticated links between nodes: one TCP port, Noise, Yamux.
//!
//! Every connection begins with `/shoal/hello/1`, where both sides show a credential for the key that Noise has proved. Before
//! that a connection can do nothing but ask to join (`/shoal/join/1`) and is closed when it does not get on with it. An
//! admitted pair of nodes keeps one link: the control stream `/shoal/control/1`, and beside it streams for tunnels, API calls,
//! renewals and secrets. This shell decides nothing about the cluster: who is a known member, who is banned and who may join is told
//! by its owner.
//!
//! Members are redialled for ever. A link ends when its connection ends or when nothing was heard on it for four seconds.
//!
//! Measured on two cores shared with other work (load 13): 512 MiB through one tunnel between two nodes of one process take
//! 1.9 s of CPU for both ends together, 101 MiB/s by the clock. Yamux sizes its windows by itself (up to 1 GiB for a
//! connection); what costs is encryption, not waiting for windows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_control::core::Withheld;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::{JoinSecret, Role, RoleGrant};
use shoal_protocol::{NodeId, TaskId, WallTime, codec};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::identity::{Lock, ManagerKey, Membership, NodeKey};

mod address;
mod behaviour;
mod dialer;
mod hello;
mod join;
mod limiter;
mod link;
mod secret;
mod service;
mod shared;
mod stream;
mod wire;

pub use join::{DECISION_TIMEOUT, JoinError, RenewError};
pub use secret::{Hidden, SecretError};
pub use stream::PeerStream;

use service::Command;
use shared::Shared;

/// The port that is meant where an address names none.
pub const PORT_DEFAULT: u16 = 2377;

/// How long opening a stream to a linked node may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands that wait for the loop; callers beyond wait.
const COMMANDS_MAX: usize = 256;

/// What the swarm needs to start.
#[derive(Debug)]
pub struct SwarmConfig {
    /// This node's key.
    pub key: NodeKey,
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where others reach this node; port 0 stands for the port that it listens on.
    pub advertise: SocketAddr,
    /// Its place in a cluster, if it has one yet; see also [`SwarmHandle::set_membership`].
    pub membership: Option<Membership>,
    /// Reads the wall clock, by which credentials expire.
    pub clock: fn() -> WallTime,
}

/// Why the swarm could not start.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The address cannot be bound.
    #[error("failed to listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The key or the membership is damaged.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// The encryption could not be set up.
    #[error("failed to set up Noise: {0}")]
    Noise(String),
}

/// What the swarm reports. Of each node the order is: `Up`, its messages, `Down`; a stream may be reported shortly before the
/// `Up` or after the `Down` of its node.
#[derive(Debug)]
pub enum SwarmEvent {
    /// A node is linked.
    Up {
        /// Which.
        node: NodeId,
        /// What its credential says.
        granted: RoleGrant,
        /// Where it says that it can be dialled.
        address: SocketAddr,
    },
    /// The link is gone: the connection broke, fell silent or was closed.
    Down {
        /// Which node's.
        node: NodeId,
    },
    /// A message of a linked node.
    Message {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        message: PeerMessage,
    },
    /// A node wants to join; this node is a manager.
    Join {
        /// Who, and the secret that it offers.
        request: JoinRequest,
        /// Where the answer goes; waited for up to [`DECISION_TIMEOUT`].
        reply: oneshot::Sender<Result<JoinReply, JoinRefusal>>,
    },
    /// A linked node wants a new credential; this node is a manager.
    Renew {
        /// Who.
        from: NodeId,
        /// Its key.
        public_key: [u8; 32],
        /// Where the new credential, or the reason why there is none, goes.
        reply: oneshot::Sender<Result<Renewed, String>>,
    },
    /// A linked node has shown a new credential.
    Refreshed {
        /// Which.
        node: NodeId,
        /// What it says.
        granted: RoleGrant,
    },
    /// A linked node wants a secret for a task of its own; this node is a manager.
    Secret {
        /// Who, as the connection has proved.
        from: NodeId,
        /// For which task.
        task: TaskId,
        /// What it needs for it.
        what: Hidden,
        /// Where it, or the reason why it is withheld, goes.
        reply: oneshot::Sender<Result<Zeroizing<Vec<u8>>, Withheld>>,
    },
    /// A linked node opened a tunnel.
    Tunnel {
        /// Who.
        from: NodeId,
        /// The stream, from its first byte.
        stream: PeerStream,
    },
    /// A linked node opened a tunnel for datagrams.
    Datagrams {
        /// Who.
        from: NodeId,
        /// The stream, from its first byte.
        stream: PeerStream,
    },
    /// A linked node calls this node's API.
    Api {
        /// Who.
        from: NodeId,
        /// The stream, from its first byte.
        stream: PeerStream,
    },
    /// A node that was dialled does not admit this one.
    Refused {
        /// Where it was dialled.
        address: SocketAddr,
        /// Why it refuses.
        reason: Refusal,
        /// Who refuses, if it has proved to be a member of this node's cluster.
        by: Option<(NodeId, Role)>,
    },
}

/// Why a hello was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The refusing node is in no cluster.
    #[error("that node is not in a cluster")]
    NotInCluster,
    /// The node was removed from the cluster.
    #[error("this node was removed from the cluster")]
    Banned,
    /// The credential does not do.
    #[error("{0}")]
    Credential(String),
    /// There is a link between the two already.
    #[error("the two nodes are connected already")]
    Duplicate,
}

/// Which messages go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Leases, pings, own writes.
    Own,
    /// Gossip and repair.
    Bulk,
}

/// A node that wants to join.
#[derive(Debug)]
pub struct JoinRequest {
    /// Which.
    pub node: NodeId,
    /// Its key, proved by the connection.
    pub public_key: [u8; 32],
    /// Where it says that it can be dialled.
    pub address: SocketAddr,
    /// Where it comes from.
    pub source: IpAddr,
    /// From the token; says which role was granted, if any.
    pub secret: JoinSecret,
    /// Whether it is to take tasks.
    pub availability: Availability,
}

/// What a node gets that may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Its place in the cluster, to be kept on disk.
    pub membership: Membership,
    /// Members and where they can be dialled, at most [`JOIN_PEERS_MAX`].
    pub peers: Vec<(NodeId, SocketAddr)>,
}

/// What a member gets that asks for its next credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The credential, DER.
    pub credential: Vec<u8>,
    /// The key that managers have, if the credential is a manager's.
    pub manager_key: Option<ManagerKey>,
    /// What such a node's keys are to be sealed with on its disk, if with anything.
    pub lock: Option<Lock>,
}

/// Members named to a joining node at most; it learns of the others by gossip.
pub const JOIN_PEERS_MAX: usize = 128;

/// Why a node may not join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The secret is none of this cluster's. Source: SwarmKit, the same words.
    #[error("A valid join token is necessary to join this cluster")]
    InvalidToken,
    /// The node was removed before; it needs a new identity.
    #[error("this node was removed from the cluster: its data directory must be removed before it can join again")]
    Banned,
    /// The cluster has as many nodes as it can.
    #[error("the cluster is full")]
    Full,
    /// The asked node is in no cluster.
    #[error("that node is not in a cluster")]
    NotInCluster,
    /// The asked node is a worker that knows no manager at the moment.
    #[error("that node is a worker and knows no manager")]
    NoManager,
    /// Too many nodes try to join at the same time; worth another try.
    #[error("too many attempts to join; try again later")]
    Busy,
    /// The managers cannot decide now; worth another try.
    #[error("{0}")]
    Unavailable(String),
}

/// A linked node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// Which.
    pub node: NodeId,
    /// What its credential says.
    pub granted: RoleGrant,
    /// Where it says that it can be dialled.
    pub address: SocketAddr,
}

/// Binds the port and starts the swarm. It stops when the last handle is dropped or [`SwarmHandle::shutdown`] is called.
pub async fn spawn(config: SwarmConfig, events: mpsc::Sender<SwarmEvent>) -> Result<SwarmHandle, SwarmError> {
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let shared = service::start(config, events, receiver)?;
    Ok(SwarmHandle { shared, commands })
}

/// The owner's side of the swarm. Clones are the same swarm.
#[derive(Debug, Clone)]
pub struct SwarmHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl SwarmHandle {
    /// Returns where the swarm listens.
    pub fn listen_address(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Returns where other nodes are told to dial.
    pub fn advertise_address(&self) -> SocketAddr {
        self.shared.advertise
    }

    /// Queues a message for a linked node, or drops it: without a link, or when too much waits already. Returns whether it
    /// was queued; never waits.
    pub fn send(&self, to: NodeId, message: &PeerMessage, priority: Priority) -> bool {
        let Some(link) = self.shared.link(to) else { return false };
        encode(message).is_some_and(|frame| link.send(frame, priority))
    }

    /// Queues a message for every linked node that `to` accepts, encoding it once.
    pub fn send_all(&self, message: &PeerMessage, priority: Priority, to: impl Fn(&PeerInfo) -> bool) {
        let Some(frame) = encode(message) else { return };
        for link in self.shared.links() {
            if to(&shared::info(&link)) {
                link.send(frame.clone(), priority);
            }
        }
    }

    /// Returns the linked nodes.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.links().iter().map(|link| shared::info(link)).collect()
    }

    /// Returns the linked node that advertises an address.
    pub fn node_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.peers().into_iter().find(|peer| peer.address == address).map(|peer| peer.node)
    }

    /// Replaces the members to keep links with; those without one are dialled for ever. Links to others stay.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, Vec<SocketAddr>>) {
        self.shared.change(|wanted| wanted.peers = Some(peers));
    }

    /// Dials an address once without knowing who is there. Success shows as `Up`.
    pub fn dial(&self, address: SocketAddr) {
        self.shared.change(|wanted| {
            wanted.dials.insert(address);
            while wanted.dials.len() > shared::DIALS_MAX {
                wanted.dials.pop_last();
            }
        });
    }

    /// Replaces the removed nodes: their links are closed and they are refused by name.
    pub fn set_banned(&self, banned: BTreeSet<NodeId>) {
        self.shared.admission_mut().banned = banned;
        self.shared.change(|wanted| wanted.check = true);
    }

    /// Replaces this node's place in a cluster and shows it on all links, which go on. Links to members of another cluster are
    /// closed; without a place all are.
    pub fn set_membership(&self, membership: Option<Membership>) -> Result<(), SwarmError> {
        self.shared.admission_mut().set_membership(membership)?;
        self.shared.change(|wanted| (wanted.check, wanted.introduce) = (true, true));
        Ok(())
    }

    /// Replaces what the document says of whom to let in. Links to nodes that are not let in any more are closed.
    pub fn set_trust(&self, document: shoal_control::core::Trust) -> Result<(), SwarmError> {
        self.shared.admission_mut().set_document(document)?;
        self.shared.change(|wanted| wanted.check = true);
        Ok(())
    }

    /// Returns the public key (Ed25519) of a linked node, which its connection has proved.
    pub fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        address::public_key(&self.shared.link(node)?.peer_id)
    }

    /// Closes the link to a node; if it is a known member it is dialled again.
    pub fn disconnect(&self, node: NodeId) {
        if let Some(link) = self.shared.link(node) {
            link.close();
        }
    }

    /// Dials an address afresh and returns whether `node` is there and answers a hello within `timeout`.
    pub async fn probe(&self, node: NodeId, address: SocketAddr, timeout: Duration) -> bool {
        let answers = async {
            let (reply, answer) = oneshot::channel();
            self.commands.send(Command::Probe { node, address, reply }).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(timeout, answers).await.ok().flatten().unwrap_or(false)
    }

    /// Opens a tunnel to a linked node.
    pub async fn open_tunnel(&self, node: NodeId) -> io::Result<PeerStream> {
        self.open(node, service::TUNNEL).await
    }

    /// Opens a tunnel for datagrams to a linked node. One of an older version that does not know them shows on first reading.
    pub async fn open_datagrams(&self, node: NodeId) -> io::Result<PeerStream> {
        self.open(node, service::DATAGRAMS).await
    }

    /// Opens a connection to the API of a linked node.
    pub async fn open_api(&self, node: NodeId) -> io::Result<PeerStream> {
        self.open(node, service::API).await
    }

    /// Ends all links and stops listening. Returns when nothing is left.
    pub async fn shutdown(&self) {
        self.shared.closing.cancel();
        self.commands.closed().await;
    }

    async fn open(&self, node: NodeId, protocol: libp2p::StreamProtocol) -> io::Result<PeerStream> {
        let link = self.shared.link(node).ok_or(io::ErrorKind::NotConnected)?;
        let permit = link.opened.clone().try_acquire_owned().map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let opening = self.open_on(link.peer_id, link.connection, protocol);
        let stream = tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(PeerStream::bound(stream, link.ending(), permit))
    }

    async fn open_on(
        &self,
        peer: libp2p::PeerId,
        connection: libp2p::swarm::ConnectionId,
        protocol: libp2p::StreamProtocol,
    ) -> io::Result<libp2p::Stream> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let (reply, stream) = oneshot::channel();
        self.commands.send(Command::Open { peer, connection, protocol, reply }).await.map_err(|_| gone())?;
        stream.await.map_err(|_| gone())?
    }
}

/// Encodes a message; one too large for a frame is a fault of this node, told once where it happens, and not sent.
fn encode(message: &PeerMessage) -> Option<Bytes> {
    match codec::encode(message) {
        Ok(frame) => Some(frame.into()),
        Err(error) => {
            tracing::error!(%error, "a message cannot be sent");
            None
        }
    }
}

#[cfg(test)]
mod tests;
