//! Published ports: listens on every port of the route table and forwards connections and datagrams to healthy tasks anywhere.
//!
//! Which backend gets a connection is decided by [`shoal_control::balance`], how long a flow of datagrams lasts by
//! [`shoal_control::flows`]; this shell opens sockets, relays bytes and
//! reports ports that it could not open. It assumes that somebody else computes the table and carries tunnel streams to
//! other nodes, and does not know how either is done.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shoal_control::flows::{FLOWS_MAX, Flows};
use shoal_control::routes::{Backend, Route, RouteTable};
use shoal_protocol::spec::{PortSettings, PublishedPort, Transport};
use shoal_protocol::{NodeId, ServiceId, TaskId, Time};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

mod datagrams;
mod forward;
mod lanes;
mod listener;
pub mod metrics;
mod port;
mod relay;
pub mod tunnel;
mod udp;

pub use lanes::Lanes;

use crate::serving::{Connection, Serving};
use metrics::IngressMetrics;
use port::Port;
use tunnel::TunnelError;
use udp::Upstream;

/// Client connections that a node forwards at once. Beyond, accepting waits: clients queue in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 8192;

/// Tunnels that a node serves at once for others. Beyond, they are refused as busy and the other node tries elsewhere.
pub const TUNNELS_MAX: usize = 8192;

/// Flows of datagrams that a node serves at once for others. Beyond, they are refused as busy.
pub const FLOWS_SERVED_MAX: usize = 4096;

/// Bytes of datagrams that wait at once for a tunnel to take them, over all flows; more are dropped.
const QUEUED_BYTES_MAX: usize = 16 << 20;

/// Name of the one task behind a port of this node alone, whose own name is not known here.
const HOST_NAME: &str = "host";

/// Between two looks for flows that fell silent.
const SWEEP: Duration = Duration::from_secs(1);

/// A byte stream to or from another node.
pub trait TunnelStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> TunnelStream for T {}

/// Opens streams to other nodes. Each must arrive there at [`IngressHandle::serve_tunnel`] or [`tunnel::serve_tunnel`].
#[async_trait]
pub trait Tunnels: Send + Sync + 'static {
    /// Opens a stream to `node`. May take long when the node is gone: the ingress keeps its own deadlines.
    async fn open(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>>;

    /// Opens a stream for datagrams, which must arrive at [`IngressHandle::serve_datagrams`].
    async fn open_datagrams(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>>;
}

/// How the ingress of a node works.
#[derive(Clone)]
pub struct IngressConfig {
    /// This node: its backends are reached directly.
    pub node: NodeId,
    /// Where published ports are bound; `None` means all addresses.
    pub publish_addr: Option<IpAddr>,
    /// Client connections at once, at least 1; normally [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// Flows of datagrams at once, at least 1; normally [`flows_max`].
    pub flows_max: usize,
    /// Seed of the draws among backends.
    pub seed: u64,
    /// The runtime's clock.
    pub clock: Arc<dyn Fn() -> Time + Send + Sync>,
    /// Connections to tasks of this node, shared with whoever stops them.
    pub serving: Arc<Serving>,
    /// Where to count.
    pub metrics: Arc<IngressMetrics>,
    /// Where TCP connections are accepted, and forwarded if not through a tunnel.
    pub lanes: Lanes,
}

impl fmt::Debug for IngressConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IngressConfig")
            .field("node", &self.node)
            .field("publish_addr", &self.publish_addr)
            .field("connections_max", &self.connections_max)
            .finish_non_exhaustive()
    }
}

/// Returns how many flows of datagrams this process can hold: [`FLOWS_MAX`], or a quarter of its file descriptors if that is
/// less, because each flow to a task of this node takes one and strangers can make flows.
pub fn flows_max() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(FLOWS_MAX, |all| FLOWS_MAX.min(usize::try_from(all / 4).unwrap_or(usize::MAX)))
}

/// What all ports of a node share.
struct Shared {
    config: IngressConfig,
    tunnels: Arc<dyn Tunnels>,
    /// Where tunnels are driven.
    home: Handle,
    connections: Arc<Semaphore>,
    flows: Mutex<Flows<Upstream>>,
    queued_bytes: Arc<Semaphore>,
    served: Semaphore,
    flows_served: Semaphore,
    metrics: Arc<IngressMetrics>,
    port_errors: watch::Sender<BTreeMap<PublishedPort, String>>,
}

/// What is to be listened on.
#[derive(Debug, Clone, Default, PartialEq)]
struct Wanted {
    table: RouteTable,
    host: BTreeMap<PublishedPort, SocketAddr>,
}

/// Starts ingresses.
#[derive(Debug)]
pub struct Ingress;

/// Directs a running ingress. It listens until the last handle is dropped; connections then open are left until they end.
#[derive(Clone)]
pub struct IngressHandle {
    wanted: Arc<watch::Sender<Wanted>>,
    shared: Arc<Shared>,
}

impl fmt::Debug for IngressHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IngressHandle").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Ingress {
    /// Starts an ingress without ports on the current tokio runtime.
    pub fn spawn(config: IngressConfig, tunnels: Arc<dyn Tunnels>) -> IngressHandle {
        let shared = Arc::new(Shared {
            connections: Arc::new(Semaphore::new(config.connections_max.max(1))),
            flows: Mutex::new(Flows::new(config.flows_max)),
            queued_bytes: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            served: Semaphore::new(TUNNELS_MAX),
            flows_served: Semaphore::new(FLOWS_SERVED_MAX),
            metrics: config.metrics.clone(),
            port_errors: watch::Sender::new(BTreeMap::new()),
            tunnels,
            home: Handle::current(),
            config,
        });
        let (wanted, changes) = watch::channel(Wanted::default());
        tokio::spawn(follow(shared.clone(), changes));
        IngressHandle { wanted: Arc::new(wanted), shared }
    }
}

impl IngressHandle {
    /// Replaces what is listened on: `table` on every node, and `host`, the ports that tasks of this node publish on it
    /// alone, each with the task's own address. Connections to backends that are no longer named are left until they end; flows
    /// move on with their next datagram.
    pub fn apply(&self, table: RouteTable, host: BTreeMap<PublishedPort, SocketAddr>) {
        let new = Wanted { table, host };
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != new;
            *wanted = new;
            changed
        });
    }

    /// Watches which ports could not be opened, with the reason.
    pub fn port_errors(&self) -> watch::Receiver<BTreeMap<PublishedPort, String>> {
        self.shared.port_errors.subscribe()
    }

    /// Returns the connections to tasks of this node, for whoever stops them.
    pub fn serving(&self) -> Arc<Serving> {
        self.shared.config.serving.clone()
    }

    /// Returns the counters of this ingress.
    pub fn metrics(&self) -> Arc<IngressMetrics> {
        self.shared.metrics.clone()
    }

    /// Serves one tunnel that another node opened to this one: reaches only tasks that run here and are behind a published
    /// port of the current table, and only at the port that is published.
    pub async fn serve_tunnel(&self, mut stream: impl TunnelStream) -> Result<(), TunnelError> {
        let metrics = &self.shared.metrics;
        let Ok(_permit) = self.shared.served.try_acquire() else {
            metrics.tunnels_refused.add(1);
            return tunnel::refuse_busy(&mut stream).await;
        };
        metrics.tunnels_served.add(1);
        let resolve = |task, port| self.connection(task, port);
        let result = tunnel::serve_tunnel(stream, resolve).await;
        if matches!(result, Err(TunnelError::Answered(_))) {
            metrics.tunnels_refused.add(1);
        }
        result
    }

    /// Serves one flow of datagrams that another node opened to this one, under the same conditions as a tunnel.
    pub async fn serve_datagrams(&self, mut stream: impl TunnelStream) -> Result<(), TunnelError> {
        let metrics = &self.shared.metrics;
        let Ok(_permit) = self.shared.flows_served.try_acquire() else {
            metrics.tunnels_refused.add(1);
            return tunnel::refuse_busy(&mut stream).await;
        };
        metrics.tunnels_served.add(1);
        let resolve = |task, port| self.local_backend(Transport::Udp, task, port);
        let result = datagrams::serve(stream, resolve).await;
        if matches!(result, Err(TunnelError::Answered(_))) {
            metrics.tunnels_refused.add(1);
        }
        result
    }

    /// Returns where a task of this node listens, and counts a connection to it.
    fn connection(&self, task: TaskId, port: u16) -> Option<(SocketAddr, Connection)> {
        let address = self.local_backend(Transport::Tcp, task, port)?;
        Some((address, self.shared.config.serving.connect(task)?))
    }

    fn local_backend(&self, transport: Transport, task: TaskId, port: u16) -> Option<SocketAddr> {
        if self.shared.config.serving.is_retired(task) {
            return None;
        }
        let wanted = self.wanted.borrow();
        let routes = wanted.table.iter().filter(|(published, _)| published.transport == transport);
        let mut backends = routes.filter_map(|(_, route)| route.backends.get(&task));
        let backend = backends.find(|backend| backend.node == self.shared.config.node && backend.port == port)?;
        Some(SocketAddr::new(backend.address, backend.port))
    }
}

/// A listening port and the task that serves it.
struct Listening {
    port: Arc<Port>,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

/// Opens, re-targets and closes ports as the table changes, until there is no handle left.
async fn follow(shared: Arc<Shared>, mut changes: watch::Receiver<Wanted>) {
    let mut listening: BTreeMap<PublishedPort, Listening> = BTreeMap::new();
    loop {
        let routes = routes_of(&changes.borrow_and_update(), shared.config.node);
        let stays = |published: &PublishedPort, open: &Listening| {
            routes.get(published).is_some_and(|route| route.settings.address == open.port.address)
        };
        let unwanted: Vec<PublishedPort> =
            listening.iter().filter(|(published, open)| !stays(published, open)).map(|(port, _)| *port).collect();
        for published in unwanted {
            close(&shared, published, listening.remove(&published)).await;
        }
        for (published, route) in routes {
            match listening.get(&published) {
                Some(open) => open.port.retarget(route),
                None => {
                    let port = Arc::new(Port::new(published, route, &shared.config));
                    let closing = CancellationToken::new();
                    let task = match published.transport {
                        Transport::Udp => tokio::spawn(udp::listen(shared.clone(), port.clone(), closing.clone())),
                        Transport::Tcp | Transport::Other => {
                            tokio::spawn(listener::listen(shared.clone(), port.clone(), closing.clone()))
                        }
                    };
                    listening.insert(published, Listening { port, closing, task });
                }
            }
        }
        if changed(&shared, &mut changes).await.is_err() {
            break;
        }
    }
    for (published, port) in listening {
        close(&shared, published, Some(port)).await;
    }
}

/// Waits for a change, and ends flows that fell silent meanwhile.
async fn changed(shared: &Shared, changes: &mut watch::Receiver<Wanted>) -> Result<(), watch::error::RecvError> {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let has_flows = changes.borrow().has_datagrams();
        tokio::select! {
            changed = changes.changed() => return changed,
            _ = sweep.tick(), if has_flows => {
                let ended = shared.flows().expire((shared.config.clock)());
                drop(ended);
            }
        }
    }
}

impl Wanted {
    fn has_datagrams(&self) -> bool {
        self.table.keys().chain(self.host.keys()).any(|published| published.transport == Transport::Udp)
    }
}

/// Closes a port and waits until its socket is gone, so that opening it again cannot fail because of us.
async fn close(shared: &Shared, published: PublishedPort, listening: Option<Listening>) {
    let Some(listening) = listening else { return };
    listening.closing.cancel();
    if let Err(error) = listening.task.await {
        tracing::error!(port = %published, %error, "the listener of a published port panicked");
    }
    if published.transport == Transport::Udp {
        let ended = shared.flows().end_port(published.number);
        drop(ended);
    }
    shared.clear_port_error(published);
    shared.metrics.close(published);
}

/// Merges both kinds of ports. A port of the table wins over the same port in host mode: it is promised on every node.
fn routes_of(wanted: &Wanted, here: NodeId) -> RouteTable {
    let host_route = |address: &SocketAddr| {
        let (address, port) = (address.ip(), address.port());
        let backend = Backend { name: HOST_NAME.into(), node: here, address, port, suspect: false };
        Route {
            service: ServiceId::default(),
            settings: PortSettings::default(),
            backends: BTreeMap::from([(TaskId::default(), backend)]),
        }
    };
    let mut routes: RouteTable = wanted.host.iter().map(|(port, address)| (*port, host_route(address))).collect();
    routes.extend(wanted.table.clone());
    routes
}

impl Shared {
    fn flows(&self) -> MutexGuard<'_, Flows<Upstream>> {
        // Nothing under this lock leaves the table half-changed, so a panic elsewhere does not make it unusable.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_port_error(&self, port: PublishedPort, error: String) {
        self.port_errors.send_if_modified(|errors| errors.insert(port, error.clone()) != Some(error));
    }

    fn clear_port_error(&self, port: PublishedPort) {
        self.port_errors.send_if_modified(|errors| errors.remove(&port).is_some());
    }
}

#[cfg(test)]
mod tests;
