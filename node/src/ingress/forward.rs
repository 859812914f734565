//! Brings one client's connection to a backend: tries one after another, races slow ones, then relays.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_control::proxy;
use shoal_protocol::TaskId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::lanes::Place;
use super::metrics::{BackendCounts, PortMetrics};
use super::port::{Counted, Port};
use super::tunnel::{self, Refusal, TunnelError};
use super::{Shared, TunnelStream, relay};
use crate::serving::Connection;

/// An attempt that takes longer counts as failed for the balance, and the next backend is tried beside it.
const ATTEMPT_WAIT: Duration = Duration::from_millis(250);

/// How long a client waits for a backend, over all attempts; then its connection is reset.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// Pause before trying all backends again when none took the connection: the route may be about to change.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

enum Upstream {
    Task(TcpStream, Connection),
    Tunnel(Box<dyn TunnelStream>),
}

/// Forwards `client` until its connection has ended; it has its place on a lane while bytes pass there.
pub(super) async fn forward(shared: &Shared, port: &Arc<Port>, client: TcpStream, place: Place) {
    let metrics = &port.metrics;
    let Some((counted, mut upstream)) = connect(shared, port).await else {
        metrics.add(|port| &port.given_up, 1);
        debug!(port = %port.published, "no backend took the connection");
        return relay::reset(client);
    };
    let _reached = counted.reached();
    if let Err(error) = introduce(port, &client, &mut upstream).await {
        debug!(port = %port.published, %error, "failed to tell a task who its client is");
        return relay::reset(client);
    }
    let result = match upstream {
        Upstream::Task(task, _connection) => {
            let _place = place;
            relay::relay_tcp(client, task, counters(metrics)).await
        }
        Upstream::Tunnel(stream) => {
            drop(place);
            relay_at_home(shared, port, client, stream).await
        }
    };
    if let Err(error) = result {
        debug!(port = %port.published, %error, "connection broke");
    }
}

/// Relays on the runtime that drives the links to other nodes: a tunnel's bytes would otherwise cross threads once more.
async fn relay_at_home(
    shared: &Shared,
    port: &Arc<Port>,
    client: TcpStream,
    stream: Box<dyn TunnelStream>,
) -> io::Result<()> {
    let (client, port) = (client.into_std()?, port.clone());
    let relayed = shared.home.spawn(async move {
        let client = TcpStream::from_std(client)?;
        relay::relay(client, stream, counters(&port.metrics)).await
    });
    relayed.await.map_err(io::Error::other)?
}

/// Counts bytes from the client, and to it.
fn counters(metrics: &PortMetrics) -> (impl Fn(u64), impl Fn(u64)) {
    (|bytes| metrics.add(|port| &port.bytes_in, bytes), |bytes| metrics.add(|port| &port.bytes_out, bytes))
}

/// Writes the header that tells the task who the client is, if the port wants it. It is the first thing that the task reads.
async fn introduce(port: &Port, client: &TcpStream, upstream: &mut Upstream) -> io::Result<()> {
    let Some(version) = port.proxy() else { return Ok(()) };
    let header = proxy::header(version, client.peer_addr()?, client.local_addr()?);
    match upstream {
        Upstream::Task(task, _) => task.write_all(&header).await,
        Upstream::Tunnel(stream) => {
            stream.write_all(&header).await?;
            stream.flush().await
        }
    }
}

/// Connects to some backend of the port, or gives up after [`CONNECT_WAIT`].
///
/// Slow attempts go on while others are tried, and the first to succeed wins, so that backends which are all slow are
/// still reached. There is at most one attempt per backend at a time.
async fn connect(shared: &Shared, port: &Arc<Port>) -> Option<(Counted, Upstream)> {
    let deadline = Instant::now() + CONNECT_WAIT;
    let (mut tried, mut pending) = (BTreeSet::new(), BTreeSet::new());
    let mut attempts = FuturesUnordered::new();
    loop {
        let newest = port.choose(&tried, (shared.config.clock)());
        let started = newest.as_ref().map(|counted| (counted.task, counted.counts.clone()));
        let wait = match newest {
            Some(counted) => {
                tried.insert(counted.task);
                pending.insert(counted.task);
                attempts.push(attempt(shared, port, counted));
                ATTEMPT_WAIT
            }
            None => ROUND_PAUSE,
        };
        let next = deadline.min(Instant::now() + wait);
        loop {
            tokio::select! {
                biased;
                Some((counted, result)) = attempts.next() => {
                    pending.remove(&counted.task);
                    match result {
                        Ok(upstream) => {
                            port.connected(counted.task);
                            return Some((counted, upstream));
                        }
                        Err(error) => note_failure(shared, port, &counted, &error),
                    }
                    if started.is_some() {
                        break;
                    }
                }
                () = sleep_until(next) => {
                    match started {
                        Some((task, counts)) => note_slow(shared, port, task, &counts),
                        None => tried = pending.clone(),
                    }
                    break;
                }
            }
        }
        if Instant::now() >= deadline {
            return None;
        }
    }
}

async fn attempt(shared: &Shared, port: &Port, counted: Counted) -> (Counted, Result<Upstream, TunnelError>) {
    let backend = &counted.backend;
    let result = if backend.node == shared.config.node {
        connect_here(shared, &counted).await
    } else {
        open_tunnel(shared, &counted).await.map(Upstream::Tunnel)
    };
    if result.is_ok() {
        match backend.node == shared.config.node {
            true => port.metrics.add(|port| &port.connected_local, 1),
            false => port.metrics.add(|port| &port.connected_remote, 1),
        }
    }
    (counted, result)
}

async fn connect_here(shared: &Shared, counted: &Counted) -> Result<Upstream, TunnelError> {
    let connection = shared.config.serving.connect(counted.task);
    let connection = connection.ok_or(TunnelError::Answered(Refusal::NoSuchTask))?;
    let task = relay::dial(SocketAddr::new(counted.backend.address, counted.backend.port)).await?;
    Ok(Upstream::Task(task, connection))
}

async fn open_tunnel(shared: &Shared, counted: &Counted) -> Result<Box<dyn TunnelStream>, TunnelError> {
    let mut stream = shared.tunnels.open(counted.backend.node).await?;
    tunnel::request(&mut stream, counted.task, counted.backend.port).await?;
    Ok(stream)
}

fn note_failure(shared: &Shared, port: &Port, counted: &Counted, error: &TunnelError) {
    debug!(port = %port.published, task = %counted.task, node = %counted.backend.node, %error, "backend failed");
    port.failed(counted.task, &counted.counts, (shared.config.clock)());
}

fn note_slow(shared: &Shared, port: &Port, task: TaskId, counts: &BackendCounts) {
    debug!(port = %port.published, %task, "backend is slow to connect");
    port.failed(task, counts, (shared.config.clock)());
}
