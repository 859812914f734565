//! Who seems to be alive, and where: chitchat, carried by whatever its owner sends bytes with.
//!
//! Any member could write any node's keys here, so what gossip says decides nothing but whom to dial and whom to probe. Its
//! bytes come from admitted nodes only. It is at home in clusters of up to [`NODES_MAX`] nodes; beyond, a node should be
//! refused admission, because one day its digest would not fit into one message any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion};
use shoal_protocol::{ClusterId, NodeId};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

mod shim;

use shim::Shim;

/// How often each node gossips with three others, and how often changes are looked for. Gossip is most of what an idle
/// cluster sends, and no verdict waits for it: silence is noticed by pings.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Nodes of a cluster at most. Measured: a handshake of 2,000 nodes in sync takes 12 kB, of the 65 kB that a message may have;
/// when everything has changed it takes about four times as much.
pub const NODES_MAX: usize = 2000;

/// From so many nodes on the size is warned of.
const NODES_ALARM: usize = NODES_MAX / 2;

/// Intervals between heartbeats remembered for each node, for the failure detector's mean.
const PHI_WINDOW: usize = 100;

/// How long a dead node, or a removed key, is remembered.
const GRACE: Duration = Duration::from_secs(600);

/// Bytes of one value at most; a node's values together should be a few hundred.
const VALUE_BYTES_MAX: usize = 256;

/// Frames received that wait to be decoded; more are dropped, gossip repeats itself.
const INBOUND_MAX: usize = 64;

/// What gossip needs to start.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// This node.
    pub node: NodeId,
    /// Grows with every start of the process, so that news of an older one is told from news of this one.
    pub incarnation: u64,
    /// Where others reach this node.
    pub advertise: SocketAddr,
    /// The cluster; messages of others are ignored.
    pub cluster: ClusterId,
    /// Where other members were last.
    pub seeds: Vec<SocketAddr>,
}

/// Why gossip could not start.
#[derive(Debug, thiserror::Error)]
#[error("failed to start gossip: {reason}")]
pub struct GossipError {
    /// What went wrong, from the outermost cause to the innermost.
    pub reason: String,
}

/// What is heard of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where it says that it can be dialled.
    pub address: SocketAddr,
    /// Which start of it that is.
    pub incarnation: u64,
    /// What it says of itself.
    pub values: BTreeMap<String, String>,
}

/// What gossip reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// The nodes that seem to be alive, without this one. Comes whenever it has changed.
    Live(BTreeMap<NodeId, Heard>),
}

/// Spreads liveness and small facts; the seam at which a simulation may put something else.
pub trait Membership: Send + Sync {
    /// Takes in bytes that the node which advertises `from` has sent. Drops them when it cannot keep up.
    fn received(&self, from: SocketAddr, bytes: Vec<u8>);
    /// Sets one of this node's facts.
    fn set(&self, key: &str, value: &str);
    /// Gossips with an address at once, as with a node that was just linked.
    fn meet(&self, address: SocketAddr);
}

/// Membership by chitchat. Dropping the last handle stops it.
#[derive(Debug, Clone)]
pub struct Gossip {
    requests: mpsc::Sender<Request>,
    inbound: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    _stop: std::sync::Arc<DropGuard>,
}

#[derive(Debug)]
enum Request {
    Set(String, String),
    Meet(SocketAddr),
}

impl Gossip {
    /// Starts gossiping. What it wants to send goes to `outbound`, with the advertised address of the receiver; what does not
    /// fit there is dropped.
    pub async fn spawn(
        config: GossipConfig,
        outbound: mpsc::Sender<(SocketAddr, Vec<u8>)>,
        events: mpsc::Sender<GossipEvent>,
    ) -> Result<Self, GossipError> {
        let (inbound, receiver) = mpsc::channel(INBOUND_MAX);
        let (requests, requested) = mpsc::channel(INBOUND_MAX);
        let shim = Shim::new(config.advertise, receiver, outbound);
        let own = config.node;
        let chitchat = chitchat::spawn_chitchat(chitchat_config(config), Vec::new(), &shim)
            .await
            .map_err(|error| GossipError { reason: format!("{error:#}") })?;
        let stop = CancellationToken::new();
        tokio::spawn(watch(own, chitchat, requested, events, stop.clone()));
        Ok(Self { requests, inbound, _stop: std::sync::Arc::new(stop.drop_guard()) })
    }
}

impl Membership for Gossip {
    fn received(&self, from: SocketAddr, bytes: Vec<u8>) {
        let _ = self.inbound.try_send((from, bytes));
    }

    fn set(&self, key: &str, value: &str) {
        if value.len() > VALUE_BYTES_MAX || self.requests.try_send(Request::Set(key.into(), value.into())).is_err() {
            tracing::warn!(key, bytes = value.len(), "a fact is not gossiped: too long, or too many at once");
        }
    }

    fn meet(&self, address: SocketAddr) {
        let _ = self.requests.try_send(Request::Meet(address));
    }
}

fn chitchat_config(config: GossipConfig) -> ChitchatConfig {
    let GossipConfig { node, incarnation, advertise, cluster, seeds } = config;
    ChitchatConfig {
        chitchat_id: ChitchatId::new(node.to_string(), incarnation, advertise),
        cluster_id: cluster.to_string(),
        gossip_interval: INTERVAL,
        listen_addr: advertise,
        seed_nodes: seeds.iter().map(SocketAddr::to_string).collect(),
        failure_detector_config: FailureDetectorConfig {
            sampling_window_size: PHI_WINDOW,
            initial_interval: INTERVAL * 2,
            max_interval: INTERVAL * 10,
            dead_node_grace_period: GRACE,
            ..FailureDetectorConfig::default()
        },
        marked_for_deletion_grace_period: GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    }
}

/// Performs requests and reports changes until it is stopped.
async fn watch(
    own: NodeId,
    chitchat: ChitchatHandle,
    mut requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<GossipEvent>,
    stop: CancellationToken,
) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = BTreeMap::new();
    let mut alarmed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            request = requests.recv() => match request {
                Some(Request::Set(key, value)) => {
                    chitchat.with_chitchat(|chitchat| chitchat.self_node_state().set(&key, &value)).await;
                }
                Some(Request::Meet(address)) => {
                    if chitchat.gossip(address).is_err() {
                        break;
                    }
                }
                None => break,
            },
            _ = interval.tick() => {
                let live = live(own, &chitchat).await;
                if live.len() >= NODES_ALARM && !alarmed {
                    alarmed = true;
                    tracing::warn!(nodes = live.len(), limit = NODES_MAX, "the cluster comes near to the size that gossip can carry");
                }
                // A full queue is tried again at the next tick, with what is true then.
                if live != reported && events.try_send(GossipEvent::Live(live.clone())).is_ok() {
                    reported = live;
                }
            }
        }
    }
    let _ = chitchat.initiate_shutdown();
}

/// Returns what is heard of the newest start of each live node.
async fn live(own: NodeId, chitchat: &ChitchatHandle) -> BTreeMap<NodeId, Heard> {
    chitchat
        .with_chitchat(|chitchat| {
            let mut live: BTreeMap<NodeId, Heard> = BTreeMap::new();
            let ids: Vec<_> = chitchat.live_nodes().cloned().collect();
            for id in ids {
                let Ok(node) = id.node_id.parse::<NodeId>() else { continue };
                let newer = live.get(&node).is_none_or(|known| known.incarnation < id.generation_id);
                if let Some(state) = chitchat.node_state(&id).filter(|_| newer && node != own) {
                    let values = state.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                    let (address, incarnation) = (id.gossip_advertise_addr, id.generation_id);
                    live.insert(node, Heard { address, incarnation, values });
                }
            }
            live
        })
        .await
}

#[cfg(test)]
mod tests;
