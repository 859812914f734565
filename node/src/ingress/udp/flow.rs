//! One flow: the way to its backend, and what brings the backend's datagrams back to the client.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use shoal_control::flows::{Answer, FlowId, FlowKey};
use shoal_control::routes::Backend;
use shoal_protocol::TaskId;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::{debug, trace};

use super::super::metrics::{BackendCounts, Reached};
use super::super::port::{Counted, Port};
use super::super::tunnel::{self, TunnelError};
use super::super::{Shared, TunnelStream};
use super::datagrams;
use super::socket::PortSocket;

/// How long a tunnel to a backend's node may take to open; then the backend has failed and the flow's datagrams are lost.
const OPEN_WAIT: Duration = Duration::from_secs(1);

/// Datagrams of one flow that wait for its tunnel; more are dropped.
const QUEUE_MAX: usize = 64;

/// What a flow reaches its backend by. Dropping it ends the flow.
pub(in super::super) struct Upstream {
    way: Outward,
    back: AbortHandle,
    counted: Counted,
}

/// Where a flow is to lead, as long as nothing was sent.
pub(super) enum Way {
    Task(Arc<UdpSocket>),
    Tunnel,
}

enum Outward {
    Task(Arc<UdpSocket>),
    Tunnel(Sender<Queued>),
}

/// A datagram that waits for a tunnel.
struct Queued {
    frame: Vec<u8>,
    _bytes: OwnedSemaphorePermit,
}

/// What the task that serves a flow knows of it.
pub(super) struct Flow {
    shared: Arc<Shared>,
    port: Arc<Port>,
    /// Gone when the port is closed: a flow must not keep it open.
    socket: Weak<PortSocket>,
    key: FlowKey,
    id: FlowId,
    task: TaskId,
}

impl Way {
    /// Prepares what leads to a backend.
    pub(super) fn to(shared: &Shared, backend: &Backend) -> io::Result<Self> {
        if backend.node != shared.config.node {
            return Ok(Self::Tunnel);
        }
        let socket = datagrams::connect(SocketAddr::new(backend.address, backend.port))?;
        Ok(Self::Task(Arc::new(socket)))
    }
}

impl Upstream {
    /// Starts what brings answers back.
    pub(super) fn start(flow: Flow, counted: Counted, way: Way) -> Self {
        let port = counted.port.clone();
        let (way, back) = match way {
            Way::Task(socket) => {
                port.metrics.add(|port| &port.connected_local, 1);
                (Outward::Task(socket.clone()), tokio::spawn(flow.hear_task(socket, counted.reached())))
            }
            Way::Tunnel => {
                let (sender, queue) = mpsc::channel(QUEUE_MAX);
                let backend = (counted.backend.clone(), counted.counts.clone());
                (Outward::Tunnel(sender), tokio::spawn(flow.through_tunnel(backend, queue)))
            }
        };
        port.metrics.add(|port| &port.accepted, 1);
        port.metrics.add(|port| &port.open, 1);
        Self { way, back: back.abort_handle(), counted }
    }

    /// Returns the backend.
    pub(super) fn task(&self) -> TaskId {
        self.counted.task
    }

    /// Sends a datagram to the backend. Returns whether there was room; an error says that the backend cannot be reached.
    pub(super) fn send(&self, shared: &Shared, datagram: &[u8]) -> io::Result<bool> {
        let queue = match &self.way {
            Outward::Task(socket) => return datagrams::send(socket, datagram),
            Outward::Tunnel(queue) => queue,
        };
        let Some(frame) = datagrams::frame(datagram) else { return Ok(false) };
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let Ok(permit) = shared.queued_bytes.clone().try_acquire_many_owned(bytes) else { return Ok(false) };
        match queue.try_send(Queued { frame, _bytes: permit }) {
            Ok(()) => Ok(true),
            Err(mpsc::error::TrySendError::Full(_)) => Ok(false),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.back.abort();
        self.counted.port.metrics.sub(|port| &port.open, 1);
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("task", &self.counted.task).finish_non_exhaustive()
    }
}

impl Flow {
    pub(super) fn new(
        shared: &Arc<Shared>,
        port: &Arc<Port>,
        socket: &Arc<PortSocket>,
        key: FlowKey,
        (id, task): (FlowId, TaskId),
    ) -> Self {
        Self { shared: shared.clone(), port: port.clone(), socket: Arc::downgrade(socket), key, id, task }
    }

    async fn hear_task(self, socket: Arc<UdpSocket>, _reached: Reached) {
        loop {
            match datagrams::receive(&socket).await {
                Ok(datagram) => self.answer(&datagram),
                Err(error) => return self.fail(&error),
            }
        }
    }

    async fn through_tunnel(self, (backend, counts): (Backend, Arc<BackendCounts>), queue: Receiver<Queued>) {
        let open = async {
            let mut stream = self.shared.tunnels.open_datagrams(backend.node).await?;
            tunnel::request(&mut stream, self.task, backend.port).await?;
            Ok::<_, TunnelError>(stream)
        };
        let result = match timeout(OPEN_WAIT, open).await {
            Err(_) => Err(TunnelError::Silent),
            Ok(Err(error)) => Err(error),
            Ok(Ok(stream)) => {
                self.port.metrics.add(|port| &port.connected_remote, 1);
                let _reached = Reached::new(counts);
                self.relay(stream, queue).await
            }
        };
        match result {
            Ok(()) => self.fail(&"the backend's node ended the flow"),
            Err(error) => self.fail(&error),
        }
    }

    /// Carries datagrams both ways until one direction ends.
    async fn relay(&self, stream: Box<dyn TunnelStream>, queue: Receiver<Queued>) -> Result<(), TunnelError> {
        let (mut from_far, to_far) = tokio::io::split(stream);
        let back = async {
            while let Some(datagram) = datagrams::read(&mut from_far).await? {
                self.answer(&datagram);
            }
            Ok(())
        };
        tokio::select! {
            result = back => result,
            result = write_all(queue, to_far) => Ok(result?),
        }
    }

    /// Passes a datagram of the backend to the client. One that finds no room is dropped, as any router does.
    fn answer(&self, datagram: &[u8]) {
        let now = (self.shared.config.clock)();
        match self.shared.flows().answered(&self.key, self.id, now) {
            Answer::Late => return,
            Answer::First => self.port.connected(self.task),
            Answer::Further => {}
        }
        let Some(socket) = self.socket.upgrade() else { return };
        match socket.send(datagram, self.key.client, self.key.local) {
            Ok(()) => self.port.metrics.add(|port| &port.bytes_out, datagram.len() as u64),
            Err(error) => trace!(port = %self.port.published, %error, "failed to answer a client"),
        }
    }

    fn fail(&self, error: &dyn fmt::Display) {
        end(&self.shared, &self.port, &self.key, (self.id, self.task), error);
    }
}

/// Ends a flow whose backend failed, unless it has ended already. The client's next datagram finds another backend.
pub(super) fn end(shared: &Shared, port: &Port, key: &FlowKey, (id, task): (FlowId, TaskId), error: &dyn fmt::Display) {
    let Some(upstream) = shared.flows().end(key, id) else { return };
    debug!(port = %port.published, %task, node = %upstream.counted.backend.node, %error, "backend failed a flow");
    port.failed(task, &upstream.counted.counts, (shared.config.clock)());
}

/// Writes what is queued; ends with the flow.
async fn write_all(mut queue: Receiver<Queued>, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(mut queued) = queue.recv().await {
        loop {
            stream.write_all(&queued.frame).await?;
            match queue.try_recv() {
                Ok(next) => queued = next,
                Err(_) => break,
            }
        }
        stream.flush().await?;
    }
    Ok(())
}
