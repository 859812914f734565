//! How a node becomes a member of a cluster, comes back as one, and ends being one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shoal_control::core::{Boot, Control, Event, Faults, bootstrap};
use shoal_control::lease;
use shoal_protocol::codec;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::record::Record;
use shoal_protocol::token::{JoinToken, Role};
use shoal_protocol::value::NodeStatus;
use shoal_protocol::write::WriteError;
use shoal_protocol::{ClusterId, NodeId, WallTime};
use tokio::sync::{mpsc, oneshot};

use super::command::MembershipError;
use super::finding::Finder;
use super::member::{EVENTS_MAX, Member};
use super::shells::{Shells, SwarmTunnels};
use super::{Daemon, clock, persist};
use crate::agent::Agent;
use crate::disk::{Batch, KnownPeer, Loaded};
use crate::driver::{self, choice};
use crate::gossip::{Gossip, GossipConfig, GossipEvent};
use crate::identity::{Membership, NodeKey, create_cluster};
use crate::ingress::{CONNECTIONS_MAX, Ingress, IngressConfig, IngressHandle};
use crate::swarm::{self, JoinReply, Priority, SwarmConfig, SwarmEvent, SwarmHandle};

/// How long all tasks together may take to end when their node leaves.
const STOP_ALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames of gossip, and events of it, that may wait; more are dropped, it repeats itself.
const GOSSIP_MAX: usize = 64;

/// Between two attempts to join that `--join` asked for.
const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The setting with the names that this node joined by, so that it can ask them again.
const SEEDS: &str = "seeds";

/// A node that is on its way into a cluster.
pub(super) struct Joining {
    result: oneshot::Receiver<Joined>,
    reply: Option<oneshot::Sender<Result<(), MembershipError>>>,
    again: Option<(Vec<String>, String)>,
}

/// What came of an attempt to join.
pub(super) struct Joined {
    key: NodeKey,
    /// On failure why, with every cause.
    outcome: Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>, JoinReply), String>,
    seeds: Vec<String>,
    reply: Option<oneshot::Sender<Result<(), MembershipError>>>,
    again: Option<(Vec<String>, String)>,
}

/// What a member starts with.
struct Start {
    key: NodeKey,
    membership: Membership,
    records: Vec<Record>,
    leases: Option<lease::Durable>,
    restarted: bool,
    addresses: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    swarm: Option<(SwarmHandle, mpsc::Receiver<SwarmEvent>)>,
    seeds: Vec<String>,
}

/// The answer to whatever needs a cluster. Source: Docker Engine, the same words but for the command.
pub(super) fn no_cluster() -> WriteError {
    WriteError::NoQuorum(
        "This node is not a swarm manager. Use \"shoal init\" or \"shoal join\" to connect this node to swarm and try again."
            .to_owned(),
    )
}

/// Waits for the end of an attempt to join.
pub(super) async fn next_joined(joining: &mut Option<Joining>) -> Joined {
    let Some(attempt) = joining else { return std::future::pending().await };
    match (&mut attempt.result).await {
        Ok(mut joined) => {
            joined.reply = attempt.reply.take();
            joined.again = attempt.again.take();
            *joining = None;
            joined
        }
        Err(_) => {
            *joining = None;
            std::future::pending().await
        }
    }
}

impl Daemon {
    /// Makes a new cluster with this node as its first manager.
    pub(super) async fn init(&mut self) -> Result<(), MembershipError> {
        if self.member.is_some() || self.joining.is_some() {
            return Err(MembershipError::Member);
        }
        let failed = |error: anyhow::Error| MembershipError::Failed(format!("{error:#}"));
        let wall = clock::now().wall;
        let key = NodeKey::generate();
        let (membership, cluster) =
            create_cluster(&key, wall).map_err(|error| MembershipError::Failed(error.to_string()))?;
        let (records, leases) = bootstrap::first_document(key.node_id(), cluster, wall)
            .map_err(|error| MembershipError::Failed(error.to_string()))?;
        let start = Start {
            key,
            membership,
            records,
            leases: Some(leases),
            restarted: false,
            addresses: BTreeMap::new(),
            swarm: None,
            seeds: Vec::new(),
        };
        self.begin(start, true).await.map_err(failed)
    }

    /// Comes back as the member that this node was.
    pub(super) async fn resume(&mut self, loaded: Loaded) -> anyhow::Result<()> {
        let damaged = "the store of this node is damaged: move its data directory away and join the cluster again";
        let key = NodeKey::from_bytes(loaded.identity.as_deref().context(damaged)?).context(damaged)?;
        let membership = Membership::from_bytes(loaded.cluster.as_deref().context(damaged)?).context(damaged)?;
        let leases = loaded.leases.as_deref().map(codec::decode).transpose().context(damaged)?;
        let addresses = loaded.peers.into_iter().map(|peer| (peer.id, peer.addresses.into_iter().collect())).collect();
        let seeds = self.seeds();
        let start =
            Start { key, membership, records: loaded.records, leases, restarted: true, addresses, swarm: None, seeds };
        self.begin(start, false).await
    }

    /// Returns the names by which to look for the cluster: those of `--join`, or else those that it was joined by.
    fn seeds(&self) -> Vec<String> {
        let joined_by = self.settings.get(SEEDS).map_or("", String::as_str);
        let joined_by = joined_by.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned);
        if self.config.join.is_empty() { joined_by.collect() } else { self.config.join.clone() }
    }

    /// Begins to join for a user who waits for the result.
    pub(super) fn join_for(
        &mut self,
        seeds: Vec<String>,
        token: &str,
        reply: oneshot::Sender<Result<(), MembershipError>>,
    ) -> Result<(), (oneshot::Sender<Result<(), MembershipError>>, MembershipError)> {
        if self.member.is_some() || self.joining.is_some() {
            return Err((reply, MembershipError::Member));
        }
        match token.parse::<JoinToken>() {
            Ok(token) => {
                self.try_to_join(seeds, token, Some(reply), None);
                Ok(())
            }
            Err(error) => Err((reply, MembershipError::Invalid(error.to_string()))),
        }
    }

    /// Begins to join because the daemon was started with `--join`, and tries again until it succeeds.
    pub(super) fn join(
        &mut self,
        seeds: Vec<String>,
        text: &str,
        reply: Option<oneshot::Sender<Result<(), MembershipError>>>,
    ) -> Result<(), MembershipError> {
        let token: JoinToken = text
            .parse()
            .map_err(|error: shoal_protocol::token::InvalidToken| MembershipError::Invalid(error.to_string()))?;
        self.try_to_join(seeds.clone(), token, reply, Some((seeds, text.to_owned())));
        Ok(())
    }

    fn try_to_join(
        &mut self,
        seeds: Vec<String>,
        token: JoinToken,
        reply: Option<oneshot::Sender<Result<(), MembershipError>>>,
        again: Option<(Vec<String>, String)>,
    ) {
        let (sender, result) = oneshot::channel();
        let (listen, advertise) = (self.config.listen_addr, self.advertised);
        tokio::spawn(async move {
            let key = NodeKey::generate();
            let (events, receiver) = mpsc::channel(EVENTS_MAX);
            let config = SwarmConfig { key: key.clone(), listen, advertise, membership: None, clock: wall };
            let outcome = match swarm::spawn(config, events).await {
                Ok(handle) => match handle.join(&seeds, &token).await {
                    Ok(joined) => Ok((handle, receiver, joined)),
                    Err(error) => {
                        handle.shutdown().await;
                        Err(with_causes(&error))
                    }
                },
                Err(error) => Err(with_causes(&error)),
            };
            // The daemon may have ended meanwhile.
            let _ = sender.send(Joined { key, outcome, seeds, reply: None, again: None });
        });
        self.joining = Some(Joining { result, reply, again });
    }

    /// Takes in what came of an attempt to join.
    pub(super) async fn joined(&mut self, joined: Joined) {
        let result = match joined.outcome {
            Ok((handle, receiver, reply)) => {
                let addresses =
                    reply.peers.into_iter().map(|(node, address)| (node, BTreeSet::from([address]))).collect();
                let start = Start {
                    key: joined.key,
                    membership: reply.membership,
                    records: Vec::new(),
                    leases: None,
                    restarted: false,
                    addresses,
                    swarm: Some((handle, receiver)),
                    seeds: joined.seeds,
                };
                self.begin(start, true).await.map_err(|error| MembershipError::Failed(format!("{error:#}")))
            }
            Err(error) => {
                tracing::warn!(%error, "failed to join");
                if let Some((seeds, token)) = joined.again {
                    tokio::time::sleep(JOIN_AGAIN_AFTER).await;
                    // The token was read before, so this cannot fail for a new reason.
                    let _ = self.join(seeds, &token, None);
                }
                Err(MembershipError::Invalid(error))
            }
        };
        if let Some(reply) = joined.reply {
            let _ = reply.send(result);
        } else if let Err(error) = result
            && self.joining.is_none()
        {
            tracing::error!(%error, "failed to become a member");
        }
    }

    /// Starts the shells and the decisions of a member.
    async fn begin(&mut self, start: Start, is_new: bool) -> anyhow::Result<()> {
        let node = start.key.node_id();
        let cluster = start.membership.cluster()?;
        if is_new {
            self.store_membership(&start).await?;
        }
        std::fs::write(self.config.data_dir.join("node-id"), format!("{node}\n")).context("failed to write node-id")?;
        let driver = self.open_driver(node, cluster).await?;
        let status = self.node_status(driver.as_ref()).await?;
        let found = driver.list().await.context("failed to list this node's containers")?;

        let (swarm, swarm_events) = self.open_swarm(start.key, &start.membership, start.swarm).await?;
        let (gossip, gossip_events) = self.start_gossip(node, cluster, &start.addresses, &swarm).await?;
        let seed = self.incarnation ^ node.0 as u64 ^ clock::now().wall.0;
        let finder =
            Finder::start(&self.config, (node, cluster), swarm.clone(), start.seeds, (seed, clock::now().time));
        let ingress = self.start_ingress(node, seed, &swarm);
        let (reports, driver_reports) = mpsc::channel(EVENTS_MAX);
        let agent = Agent::spawn(driver.clone(), reports);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let boot = Boot {
            me: node,
            cluster,
            role: start.membership.role,
            incarnation: self.incarnation,
            records: start.records,
            leases: start.leases,
            restarted: start.restarted,
            status,
            serves_host_ports: !driver.publishes_host_ports(),
            addresses: start.addresses,
            seed,
            faults: Faults::default(),
        };
        let mut member = Member {
            control: Control::new(boot, clock::now()),
            membership: start.membership,
            port_errors: ingress.port_errors(),
            shells: Shells::new(node, driver, swarm.clone(), ingress.metrics()),
            swarm,
            gossip,
            finder,
            gossiped: BTreeSet::new(),
            router: self.router.clone(),
            agent,
            ingress,
            persist: persist::spawn(self.disk.clone(), sender.clone()),
            peers: persist::spawn_peers(self.disk.clone()),
            sender,
            events,
            swarm_events,
            driver_reports,
            gossip_events,
            waiting: BTreeMap::new(),
            last_request: 0,
        };
        member.handle(Event::Found(found));
        tracing::info!(%node, %cluster, role = %member.membership.role, "this node is a member");
        self.member = Some(member);
        Ok(())
    }

    /// Opens what runs the containers and remembers what `auto` chose.
    async fn open_driver(&mut self, node: NodeId, cluster: ClusterId) -> anyhow::Result<Arc<dyn driver::Driver>> {
        let opened = choice::open(&self.config, &self.hostname(), &self.settings, node, cluster).await?;
        if let Some(chosen) = opened.chosen {
            self.settings.insert(choice::SETTING.to_owned(), chosen.to_owned());
            let batch = Batch { settings: self.settings.clone(), ..Batch::default() };
            self.disk.write(batch).await.context("failed to note which driver was chosen")?;
        }
        Ok(opened.driver)
    }

    /// Returns the swarm that the node joined with, or starts one.
    async fn open_swarm(
        &self,
        key: NodeKey,
        membership: &Membership,
        joined: Option<(SwarmHandle, mpsc::Receiver<SwarmEvent>)>,
    ) -> anyhow::Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>)> {
        if let Some((swarm, events)) = joined {
            swarm.set_membership(Some(membership.clone()))?;
            return Ok((swarm, events));
        }
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let config = SwarmConfig {
            key,
            listen: self.config.listen_addr,
            advertise: self.advertised,
            membership: Some(membership.clone()),
            clock: wall,
        };
        Ok((swarm::spawn(config, sender).await?, events))
    }

    async fn start_gossip(
        &self,
        node: NodeId,
        cluster: ClusterId,
        addresses: &BTreeMap<NodeId, BTreeSet<SocketAddr>>,
        swarm: &SwarmHandle,
    ) -> anyhow::Result<(Gossip, mpsc::Receiver<GossipEvent>)> {
        let (events, receiver) = mpsc::channel(GOSSIP_MAX);
        let (outbound, frames) = mpsc::channel(GOSSIP_MAX);
        let config = GossipConfig {
            node,
            incarnation: self.incarnation,
            advertise: self.advertised,
            cluster,
            seeds: addresses.values().flatten().copied().collect(),
        };
        let gossip = Gossip::spawn(config, outbound, events).await?;
        tokio::spawn(carry_gossip(frames, swarm.clone()));
        Ok((gossip, receiver))
    }

    fn start_ingress(&self, node: NodeId, seed: u64, swarm: &SwarmHandle) -> IngressHandle {
        let config = IngressConfig {
            node,
            publish_addr: self.config.publishes(self.advertised),
            connections_max: CONNECTIONS_MAX,
            seed,
            clock: Arc::new(|| clock::now().time),
            metrics: self.ingress_metrics.clone(),
        };
        Ingress::spawn(config, Arc::new(SwarmTunnels(swarm.clone())))
    }

    async fn store_membership(&mut self, start: &Start) -> anyhow::Result<()> {
        self.settings.insert(SEEDS.to_owned(), start.seeds.join(","));
        let leases = start.leases.as_ref().map(codec::encode).transpose()?;
        let peers = start
            .addresses
            .iter()
            .map(|(id, addresses)| KnownPeer { id: *id, addresses: addresses.iter().copied().collect() });
        let batch = Batch {
            forget_cluster: true,
            identity: Some(start.key.to_bytes().to_vec()),
            cluster: Some(start.membership.to_bytes()?.to_vec()),
            records: start.records.clone(),
            leases,
            peers: Some(peers.collect()),
            settings: self.settings.clone(),
            ..Batch::default()
        };
        self.disk.write(batch).await.context("failed to store the membership")
    }

    fn hostname(&self) -> String {
        self.config.hostname.clone().unwrap_or_else(super::machine::hostname)
    }

    async fn node_status(&self, driver: &dyn driver::Driver) -> anyhow::Result<NodeStatus> {
        let capacity = driver.capacity().await.context("failed to measure what this node can give to tasks")?;
        Ok(NodeStatus {
            nano_cpus: capacity.nano_cpus,
            memory_bytes: capacity.memory_bytes,
            engine: driver.engine(),
            ..super::own_status(&self.config, self.advertised)
        })
    }

    /// Leaves the cluster because a user wants it.
    pub(super) async fn leave(&mut self, force: bool) -> Result<(), MembershipError> {
        let Some(member) = &mut self.member else { return Err(MembershipError::NotMember) };
        if member.membership.role == Role::Manager && !force {
            return Err(MembershipError::Manager);
        }
        member.leave(false);
        member.perform().await;
        // The leases that are given back have to be on their way before the connections close.
        let _ = tokio::time::timeout(super::FAREWELL, member.settle()).await;
        self.end_membership().await;
        Ok(())
    }

    /// Stops and removes all tasks, forgets the cluster.
    pub(super) async fn end_membership(&mut self) {
        let Some(mut member) = self.member.take() else { return };
        member.ingress.apply(BTreeMap::new(), BTreeMap::new());
        if tokio::time::timeout(STOP_ALL_TIMEOUT, member.shells.stop_all()).await.is_err() {
            tracing::error!("some tasks did not end in time; their containers are left to the engine");
        }
        member.close().await;
        self.settings.insert(SEEDS.to_owned(), String::new());
        let settings = self.settings.clone();
        let batch = Batch { forget_cluster: true, identity: Some(Vec::new()), settings, ..Batch::default() };
        if let Err(error) = self.disk.write(batch).await {
            tracing::error!(%error, "failed to forget the cluster on disk");
        }
        let _ = std::fs::remove_file(self.config.data_dir.join("node-id"));
    }
}

/// Carries gossip to the nodes that it is for, as long as they are linked.
async fn carry_gossip(mut frames: mpsc::Receiver<(SocketAddr, Vec<u8>)>, swarm: SwarmHandle) {
    while let Some((address, bytes)) = frames.recv().await {
        if let Some(node) = swarm.node_at(address) {
            swarm.send(node, &PeerMessage::Gossip(bytes), Priority::Bulk);
        }
    }
}

/// Writes an error with the errors that caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Reads the wall clock, by which credentials expire.
fn wall() -> WallTime {
    clock::now().wall
}
