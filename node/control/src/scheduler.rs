//! Which node runs a task: filters that explain, a ranking that spreads, and the account of what nodes have left.
//!
//! A decision from a snapshot: it knows services, templates and nodes, but neither slots nor leases. Other holders may place
//! at the same time from the same numbers, so the node counts again before it accepts. Equal input gives equal choices: ties
//! go to the lowest identifier.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::spec::{
    Availability, Constraint, GenericResources, Platform, PortConfig, PublishMode, PublishedPort, Reservations,
    SpreadKey, TaskTemplate, generic,
};
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, ServiceId, WallTime};

mod account;
mod filter;
mod rank;
mod spread;

pub use account::{GenericUsage, conflict};
pub use filter::{Filter, Refusals};

use spread::{Branches, Tree};

/// The nodes of the cluster and what is taken of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Every member that was not removed, whatever its health.
    pub nodes: BTreeMap<NodeId, Node>,
    /// How many tasks of each service are counted on each node. Apart from the nodes, so that a placement looks its service up
    /// once and not on every node.
    services: BTreeMap<ServiceId, BTreeMap<NodeId, u64>>,
}

/// A node as the scheduler sees it. The default is a ready, active worker that has nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Manager or worker.
    pub role: Role,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Whether it is alive and has said what it is: takes new tasks.
    pub ready: bool,
    /// Whether it is suspected: takes tasks only if no other node fits.
    pub suspect: bool,
    /// Whether it was found dead or left: its tasks are replaced. Neither ready nor failed (it restarts, or was not heard yet)
    /// means that its tasks are kept and it gets no new ones.
    pub failed: bool,
    /// When it became a member.
    pub joined: WallTime,
    /// Host name.
    pub hostname: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub architecture: String,
    /// Labels that operators gave it.
    pub labels: BTreeMap<String, String>,
    /// Labels that its daemon was started with.
    pub engine_labels: BTreeMap<String, String>,
    /// Billionths of a core that it has.
    pub nano_cpus: u64,
    /// Bytes of memory that it has.
    pub memory_bytes: u64,
    /// Generic resources that it offers.
    pub generic: GenericResources,
    /// Whether a Docker Engine runs its containers, which has terminals and all log drivers.
    pub has_engine: bool,
    /// What tasks take of it.
    pub usage: Usage,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            role: Role::Worker,
            availability: Availability::Active,
            ready: true,
            suspect: false,
            failed: false,
            joined: WallTime(0),
            hostname: String::new(),
            os: String::new(),
            architecture: String::new(),
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            nano_cpus: 0,
            memory_bytes: 0,
            generic: GenericResources::default(),
            has_engine: true,
            usage: Usage::default(),
        }
    }
}

/// What tasks take of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Billionths of a core that are reserved.
    pub nano_cpus: u64,
    /// Bytes of memory that are reserved.
    pub memory_bytes: u64,
    /// All tasks.
    pub tasks: u64,
    /// Ports published on the node itself, with how many tasks claim them.
    pub host_ports: BTreeMap<PublishedPort, u64>,
    /// Generic resources.
    pub generic: GenericUsage,
}

impl Cluster {
    /// Returns a cluster of nodes on which no task of a known service is counted yet.
    pub fn new(nodes: BTreeMap<NodeId, Node>) -> Self {
        Self { nodes, services: BTreeMap::new() }
    }

    /// Returns how many tasks of a service are counted on each node that has any.
    pub fn tasks_of(&self, service: ServiceId) -> &BTreeMap<NodeId, u64> {
        static NONE: BTreeMap<NodeId, u64> = BTreeMap::new();
        self.services.get(&service).unwrap_or(&NONE)
    }

    /// Counts a task on a node. A node that is not listed has no account, and nothing happens.
    pub fn occupy(&mut self, node: NodeId, service: ServiceId, share: Share<'_>) {
        let Some(Node { usage, .. }) = self.nodes.get_mut(&node) else { return };
        usage.nano_cpus = usage.nano_cpus.saturating_add(share.reservations.nano_cpus);
        usage.memory_bytes = usage.memory_bytes.saturating_add(share.reservations.memory_bytes);
        usage.tasks += 1;
        for port in host_ports(share.ports) {
            *usage.host_ports.entry(port).or_default() += 1;
        }
        usage.generic.add(share.generic);
        *self.services.entry(service).or_default().entry(node).or_default() += 1;
    }

    /// Takes a task that [`Cluster::occupy`] counted with the same arguments off a node's account.
    pub fn vacate(&mut self, node: NodeId, service: ServiceId, share: Share<'_>) {
        let Some(Node { usage, .. }) = self.nodes.get_mut(&node) else { return };
        usage.nano_cpus = usage.nano_cpus.saturating_sub(share.reservations.nano_cpus);
        usage.memory_bytes = usage.memory_bytes.saturating_sub(share.reservations.memory_bytes);
        usage.tasks = usage.tasks.saturating_sub(1);
        for port in host_ports(share.ports) {
            count_down(&mut usage.host_ports, port);
        }
        usage.generic.remove(share.generic);
        if let Some(nodes) = self.services.get_mut(&service) {
            count_down(nodes, node);
            if nodes.is_empty() {
                self.services.remove(&service);
            }
        }
    }
}

/// What one task takes of its node.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// CPU and memory.
    pub reservations: &'a Reservations,
    /// Its service's published ports.
    pub ports: &'a [PortConfig],
    /// The generic resources that it was given.
    pub generic: &'a GenericResources,
}

/// Where a task was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: NodeId,
    /// What it gets of the node's generic resources.
    pub generic: GenericResources,
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Returns the ports that a task takes on its node alone; the node finds a free one itself for those that name none.
fn host_ports(ports: &[PortConfig]) -> impl Iterator<Item = PublishedPort> {
    ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Host && port.published_port != 0)
        .map(PortConfig::published)
}

/// What is to be placed, its constraints parsed once.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The service whose task it is.
    pub service: ServiceId,
    /// What is set aside for the task.
    pub reservations: Reservations,
    /// How many of each kind of generic resource it gets.
    pub generic: BTreeMap<String, u64>,
    /// The service's published ports.
    pub ports: &'a [PortConfig],
    /// All of which must hold; `None` if one could not be read, which no node satisfies.
    pub constraints: Option<Vec<Constraint>>,
    /// Any of which must fit; empty fits everywhere.
    pub platforms: &'a [Platform],
    /// Tasks of the service on one node at most; 0 is no limit.
    pub max_replicas: u64,
    /// Labels over whose values the tasks are spread, the outermost first.
    pub spread: Vec<SpreadKey>,
    /// Where tasks of the service are that stay, with how many: those are to be spread, together with what is placed now.
    pub staying: BTreeMap<NodeId, u64>,
    /// Whether it asks for what only an engine has.
    pub needs_engine: bool,
    /// Nodes that are taken only if no other fits: they rejected or failed tasks of the service lately.
    pub avoid: BTreeSet<NodeId>,
}

impl<'a> Request<'a> {
    /// Returns the request of a service's template. An expression that is no constraint was refused when the spec was
    /// written; one that turns up here comes from a newer version, and placing in spite of it would break a promise.
    pub fn new(service: ServiceId, template: &'a TaskTemplate, ports: &'a [PortConfig]) -> Self {
        Self {
            service,
            reservations: template.resources.reservations.clone(),
            generic: generic::wanted(&template.resources.reservations.generic_resources),
            ports,
            constraints: template.placement.constraints.iter().map(|text| text.parse().ok()).collect(),
            platforms: &template.placement.platforms,
            max_replicas: template.placement.max_replicas,
            spread: template.placement.spread(),
            staying: BTreeMap::new(),
            needs_engine: needs_engine(template),
            avoid: BTreeSet::new(),
        }
    }

    /// Returns whether the node is one that the service wants, whatever its health, availability and load.
    pub fn is_wanted_on(&self, id: NodeId, node: &Node) -> bool {
        filter::suits(self, id, node).is_none()
    }

    /// Returns the groups that a node belongs to, of those over which the tasks are spread: the outermost first.
    pub fn groups_of<'n>(&self, node: &'n Node) -> Vec<&'n str> {
        spread::path(&self.spread, node)
    }

    /// Returns why a node may not have the task now, or `None` if it may.
    pub fn refusal(&self, id: NodeId, cluster: &Cluster) -> Option<Filter> {
        let Some(node) = cluster.nodes.get(&id) else { return Some(Filter::NotReady) };
        filter::refusal(self, id, node, cluster.tasks_of(self.service).get(&id).copied().unwrap_or(0))
    }
}

/// Returns whether a template asks for what the embedded driver does not have. Source: its own checks.
fn needs_engine(template: &TaskTemplate) -> bool {
    let has_own_log =
        template.log_driver.as_ref().is_some_and(|driver| !["", "json-file", "none"].contains(&driver.name.as_str()));
    template.container_spec.settings.tty || has_own_log
}

/// Chooses the node for one task, or tells how many nodes each filter refused. Nothing is counted.
pub fn place(request: &Request<'_>, cluster: &Cluster) -> Result<NodeId, Refusals> {
    let mut refusals = Refusals::default();
    let mut best = None;
    let tasks = cluster.tasks_of(request.service);
    let branches = Branches::new(request, cluster);
    for (&id, node) in &cluster.nodes {
        let tasks = tasks.get(&id).copied().unwrap_or(0);
        match filter::refusal(request, id, node, tasks) {
            Some(filter) => refusals.count(filter),
            None => {
                let standing = branches.standing(request, node, rank::rank(request, id, node, tasks));
                if best.is_none_or(|best| standing < best) {
                    best = Some(standing);
                }
            }
        }
    }
    best.map(|standing| standing.rank.id).ok_or(refusals)
}

/// Gives a task to a node that may have it: chooses its generic resources and counts it there.
pub fn assign(request: &Request<'_>, id: NodeId, cluster: &mut Cluster) -> Placed {
    let choose = |node: &Node| node.usage.generic.choose(&request.generic, &node.generic);
    let generic = cluster.nodes.get(&id).map(choose).unwrap_or_default();
    let share = Share { reservations: &request.reservations, ports: request.ports, generic: &generic };
    cluster.occupy(id, request.service, share);
    Placed { node: id, generic }
}

/// Places `count` tasks and counts each where it was placed. Once one is refused all that follow are, for the same reasons.
pub fn place_many(request: &Request<'_>, count: usize, cluster: &mut Cluster) -> Vec<Result<Placed, Refusals>> {
    let mut placer = Placer::new(request, cluster);
    (0..count).map(|_| placer.place(request, cluster)).collect()
}

/// Places tasks of one request one after another without looking at every node each time.
///
/// Holds the fitting nodes in the order of their rank. It stays right as long as nobody else changes the cluster.
#[derive(Debug, Clone)]
pub struct Placer {
    fitting: Tree,
    refusals: Refusals,
}

impl Placer {
    /// Filters and ranks all nodes.
    pub fn new(request: &Request<'_>, cluster: &Cluster) -> Self {
        let mut refusals = Refusals::default();
        let mut fitting = Vec::with_capacity(cluster.nodes.len());
        let tasks = cluster.tasks_of(request.service);
        for (&id, node) in &cluster.nodes {
            let tasks = tasks.get(&id).copied().unwrap_or(0);
            match filter::refusal(request, id, node, tasks) {
                Some(filter) => refusals.count(filter),
                None => fitting.push(rank::rank(request, id, node, tasks)),
            }
        }
        Self { fitting: Tree::new(request, cluster, fitting), refusals }
    }

    /// Chooses the node for the next task and counts it there.
    pub fn place(&mut self, request: &Request<'_>, cluster: &mut Cluster) -> Result<Placed, Refusals> {
        let Self { fitting, refusals } = self;
        let mut placed = None;
        fitting.place(0, &mut |best| {
            placed = Some(assign(request, best.id, cluster));
            let (node, tasks) = (cluster.nodes.get(&best.id)?, best.service_tasks + 1);
            match filter::refusal(request, best.id, node, tasks) {
                Some(filter) => {
                    refusals.count(filter);
                    None
                }
                None => Some(rank::rank(request, best.id, node, tasks)),
            }
        });
        placed.ok_or_else(|| self.refusals.clone())
    }
}

#[cfg(test)]
mod tests;
