//! How a node becomes a member of a cluster, comes back as one, and ends being one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shoal_control::core::{Boot, Control, Event, Faults, bootstrap};
use shoal_control::lease;
use shoal_control::renewal::Validity;
use shoal_protocol::codec;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::record::Record;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::Role;
use shoal_protocol::value::NodeStatus;
use shoal_protocol::write::WriteError;
use shoal_protocol::{ClusterId, NodeId, WallTime};
use tokio::sync::mpsc;

use super::command::MembershipError;
use super::departing::Departing;
use super::finding::Finder;
use super::member::{EVENTS_MAX, Member};
use super::renewing::Renewing;
use super::reporting::Reporter;
use super::shells::{Shells, SwarmTunnels};
use super::{Daemon, clock, files, persist, shells};
use crate::agent::Agent;
use crate::disk::{Batch, DiskError, KnownPeer, Loaded};
use crate::driver::measured::Measured;
use crate::driver::{self, choice};
use crate::gossip::{Gossip, GossipConfig, GossipEvent};
use crate::identity::{AtRest, IdentityError, Membership, NodeKey, UnlockKey, create_cluster};
use crate::ingress::{self, CONNECTIONS_MAX, Ingress, IngressConfig, IngressHandle};
use crate::swarm::{self, Priority, SwarmConfig, SwarmEvent, SwarmHandle};

/// How long all tasks together may take to end when their node leaves.
const STOP_ALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames of gossip, and events of it, that may wait; more are dropped, it repeats itself.
const GOSSIP_MAX: usize = 64;

/// The setting with the names that this node joined by, so that it can ask them again.
const SEEDS: &str = "seeds";

/// What a member starts with.
pub(super) struct Start {
    pub(super) key: NodeKey,
    pub(super) membership: Membership,
    pub(super) records: Vec<Record>,
    pub(super) leases: Option<lease::Durable>,
    pub(super) restarted: bool,
    pub(super) addresses: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    pub(super) swarm: Option<(SwarmHandle, mpsc::Receiver<SwarmEvent>)>,
    pub(super) seeds: Vec<String>,
}

/// A node's place in a cluster, as it was on disk.
pub(super) struct Stored {
    pub(super) key: NodeKey,
    pub(super) membership: Membership,
    pub(super) records: Vec<Record>,
    pub(super) leases: Option<lease::Durable>,
    pub(super) addresses: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
}

impl Stored {
    /// Reads what was on disk. Keys that are sealed there need `unlock`.
    pub(super) fn read(loaded: Loaded, unlock: Option<&UnlockKey>) -> anyhow::Result<Self> {
        let damaged = "the store of this node is damaged: move its data directory away and join the cluster again";
        let (identity, membership) = (loaded.identity.context(damaged)?, loaded.cluster.context(damaged)?);
        let (key, membership) = AtRest::open(&identity, &membership, unlock).context(damaged)?;
        Ok(Self {
            key,
            membership,
            records: loaded.records,
            leases: loaded.leases.as_deref().map(codec::decode).transpose().context(damaged)?,
            addresses: loaded.peers.into_iter().map(|peer| (peer.id, peer.addresses.into_iter().collect())).collect(),
        })
    }

    /// Returns whether its credential has ended and nothing but a token can bring a new one: a manager signs its own.
    pub(super) fn needs_token(&self) -> anyhow::Result<bool> {
        let expires = self.membership.valid(&self.key.public_key())?.expires;
        Ok(expires <= clock::now().wall && self.membership.manager_key.is_none())
    }
}

/// The answer to whatever needs a cluster. Source: Docker Engine, the same words but for the command.
pub(super) fn no_cluster() -> WriteError {
    WriteError::NoQuorum(
        "This node is not a swarm manager. Use \"shoal init\" or \"shoal join\" to connect this node to swarm and try again."
            .to_owned(),
    )
}

impl Daemon {
    /// Makes a new cluster with this node as its first manager.
    pub(super) async fn init(
        &mut self,
        settings: ClusterSettings,
        availability: Availability,
    ) -> Result<(), MembershipError> {
        if self.member.is_some() || self.joining.is_some() || self.locked.is_locked() {
            return Err(MembershipError::Member);
        }
        let failed = |error: anyhow::Error| MembershipError::Failed(format!("{error:#}"));
        let wall = clock::now().wall;
        let key = NodeKey::generate();
        let (membership, cluster) =
            create_cluster(&key, &settings, wall).map_err(|error| MembershipError::Failed(error.to_string()))?;
        let (records, leases) = bootstrap::first_document(key.node_id(), availability, cluster, wall)
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
    pub(super) async fn resume(&mut self, stored: Stored) -> anyhow::Result<()> {
        let Stored { key, membership, records, leases, addresses } = stored;
        let seeds = self.seeds();
        let start = Start { key, membership, records, leases, restarted: true, addresses, swarm: None, seeds };
        self.begin(start, false).await
    }

    /// Returns the names by which to look for the cluster: those of `--join`, or else those that it was joined by.
    fn seeds(&self) -> Vec<String> {
        let joined_by = self.settings.get(SEEDS).map_or("", String::as_str);
        let joined_by = joined_by.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned);
        if self.config.join.is_empty() { joined_by.collect() } else { self.config.join.clone() }
    }

    /// Starts the shells and the decisions of a member.
    pub(super) async fn begin(&mut self, start: Start, is_new: bool) -> anyhow::Result<()> {
        let (node, cluster) = (start.key.node_id(), start.membership.cluster()?);
        if is_new {
            self.store_membership(&start).await?;
        }
        std::fs::write(self.config.data_dir.join("node-id"), format!("{node}\n")).context("failed to write node-id")?;
        let driver = self.open_driver(node, cluster).await?;
        let status = self.node_status(driver.as_ref()).await?;
        let found = driver.list().await.context("failed to list this node's containers")?;

        let public_key = start.key.public_key();
        let valid = validity(&start.membership, &public_key)?;
        let (swarm, swarm_events) = self.open_swarm(start.key.clone(), &start.membership, start.swarm).await?;
        let (gossip, gossip_events) = self.start_gossip(node, cluster, &start.addresses, &swarm).await?;
        let seed = self.incarnation ^ node.0 as u64 ^ clock::now().wall.0;
        let finder =
            Finder::start(&self.config, (node, cluster), swarm.clone(), start.seeds, (seed, clock::now().time));
        let renewing = Renewing::start(start.key, valid, self.disk.clone(), seed, clock::now().time);
        let ingress = self.start_ingress(node, seed, &swarm);
        let (reports, driver_reports) = mpsc::channel(EVENTS_MAX);
        let (files, file_asks) = files::start(node, swarm.clone());
        let agent = Agent::spawn(driver.clone(), files, ingress.serving(), reports);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let boot = Boot {
            me: node,
            cluster,
            granted: start.membership.granted,
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
        let control = Control::new(boot, clock::now());
        let mut member = Member {
            reporter: Reporter::new(self.events.clone(), &control, self.engine.get().is_none(), clock::now().wall),
            control,
            membership: start.membership,
            port_errors: ingress.port_errors(),
            shells: Shells::new(node, driver, swarm.clone(), renewing.validity()),
            notes: self.metrics.notes(),
            renewing,
            departing: Departing::new(node, clock::now().time),
            swarm,
            gossip,
            finder,
            gossiped: BTreeSet::new(),
            router: self.router.clone(),
            agent,
            ingress,
            persist: persist::spawn(self.disk.clone(), sender.clone()),
            peers: persist::spawn_peers(self.disk.clone()),
            disk: self.disk.clone(),
            sender,
            events,
            swarm_events,
            driver_reports,
            file_asks,
            gossip_events,
            waiting: BTreeMap::new(),
            last_request: 0,
        };
        member.handle(Event::Found(found));
        tracing::info!(%node, %cluster, role = %member.membership.role(), "this node is a member");
        self.member = Some(member);
        Ok(())
    }

    /// Opens what runs the containers and remembers what `auto` chose.
    pub(super) async fn open_driver(
        &mut self,
        node: NodeId,
        cluster: ClusterId,
    ) -> anyhow::Result<Arc<dyn driver::Driver>> {
        let opened = choice::open(&self.config, &self.hostname(), &self.settings, node, cluster).await?;
        if let Some(chosen) = opened.chosen {
            self.settings.insert(choice::SETTING.to_owned(), chosen.to_owned());
            let batch = Batch { settings: self.settings.clone(), ..Batch::default() };
            self.disk.write(batch).await.context("failed to note which driver was chosen")?;
            super::note_engine(&self.engine, &self.config, &self.settings);
        }
        Ok(Measured::wrap(opened.driver, self.metrics.driver.clone()))
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
            flows_max: ingress::flows_max(),
            seed,
            clock: Arc::new(|| clock::now().time),
            serving: Arc::default(),
            metrics: self.metrics.ingress.clone(),
            lanes: self.lanes.clone(),
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
        let AtRest { identity, membership } = AtRest::of(&start.key, &start.membership)?;
        let batch = Batch {
            forget_cluster: true,
            // Whoever comes back with a token may have had its keys in the clear.
            scrub: start.membership.lock.is_some(),
            identity: Some(identity),
            cluster: Some(membership),
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
        let Some(member) = &mut self.member else { return self.leave_locked(force).await };
        if member.membership.role() == Role::Manager && !force {
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
        stop_all(&member.shells.driver).await;
        member.close().await;
        if let Err(error) = self.forget().await {
            tracing::error!(%error, "failed to forget the cluster on disk");
        }
    }

    /// Forgets the cluster on disk.
    pub(super) async fn forget(&mut self) -> Result<(), DiskError> {
        self.settings.insert(SEEDS.to_owned(), String::new());
        let settings = self.settings.clone();
        let batch = Batch { forget_cluster: true, identity: Some(Vec::new()), settings, ..Batch::default() };
        self.disk.write(batch).await?;
        let _ = std::fs::remove_file(self.config.data_dir.join("node-id"));
        Ok(())
    }
}

/// Stops and removes every container of a node, as far as it can be done in time.
pub(super) async fn stop_all(driver: &Arc<dyn driver::Driver>) {
    if tokio::time::timeout(STOP_ALL_TIMEOUT, shells::stop_all(driver)).await.is_err() {
        tracing::error!("some tasks did not end in time; their containers are left to the engine");
    }
}

/// Returns from when until when a node's credential is valid; says so if it has ended.
fn validity(membership: &Membership, public_key: &[u8; 32]) -> Result<Validity, IdentityError> {
    let valid = membership.valid(public_key)?;
    let expires = valid.expires;
    if expires <= clock::now().wall {
        tracing::error!(%expires, "this node's credential has ended: unless it is a manager, which renews its own, it must be started with --join and --token");
    }
    Ok(valid)
}

/// Carries gossip to the nodes that it is for, as long as they are linked.
async fn carry_gossip(mut frames: mpsc::Receiver<(SocketAddr, Vec<u8>)>, swarm: SwarmHandle) {
    while let Some((address, bytes)) = frames.recv().await {
        if let Some(node) = swarm.node_at(address) {
            swarm.send(node, &PeerMessage::Gossip(bytes), Priority::Bulk);
        }
    }
}

/// Reads the wall clock, by which credentials expire.
pub(super) fn wall() -> WallTime {
    clock::now().wall
}
