//! The socket of one published UDP port: finds for each datagram the flow that it belongs to, or begins one.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_control::flows::{FlowId, FlowKey};
use shoal_protocol::TaskId;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::listener::{ACCEPT_RETRY, open_port};
use super::port::Port;
use super::{Shared, datagrams};

mod flow;
mod socket;

pub(super) use flow::Upstream;

use flow::{Flow, Way};
use socket::{PortSocket, Received};

/// Opens the port of UDP and forwards what arrives, until it is told to close. Its flows are ended by the caller.
pub(super) async fn listen(shared: Arc<Shared>, port: Arc<Port>, closing: CancellationToken) {
    closing.run_until_cancelled(receive(shared, port)).await;
}

async fn receive(shared: Arc<Shared>, port: Arc<Port>) {
    let socket = Arc::new(open_port(&shared, &port, PortSocket::open).await);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        match socket.receive(&mut buffer).await {
            // Nothing can be sent to port 0, so nobody who can be answered sends from it.
            Ok(Received { client, .. }) if client.port() == 0 => {}
            Ok(Received { bytes, client, local }) => {
                let key = FlowKey { port: port.published.number, client, local };
                forward(&shared, &port, &socket, key, &buffer[..bytes]);
            }
            Err(error) => {
                shared.metrics.accept_errors.add(1);
                debug!(port = %port.published, %error, "failed to receive");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Sends a client's datagram on. Never waits: what has no room at once is dropped.
fn forward(shared: &Arc<Shared>, port: &Arc<Port>, socket: &Arc<PortSocket>, key: FlowKey, datagram: &[u8]) {
    let mut tried = BTreeSet::new();
    // Ends because each turn but the first has one backend fewer to try.
    loop {
        let now = (shared.config.clock)();
        let sent = shared
            .flows()
            .sent(&key, |task| port.keeps(task, now), now)
            .map(|(id, upstream)| (id, upstream.task(), upstream.send(shared, datagram)));
        let (id, task, sent) = match sent {
            Some(sent) => sent,
            None => match begin(shared, port, socket, key, &mut tried, datagram) {
                Some(sent) => sent,
                None => {
                    port.metrics.add(|port| &port.given_up, 1);
                    return debug!(port = %port.published, "no backend is left for a datagram");
                }
            },
        };
        match sent {
            Ok(true) => return port.metrics.add(|port| &port.bytes_in, datagram.len() as u64),
            Ok(false) => return shared.metrics.datagrams_dropped.add(1),
            Err(error) => {
                tried.insert(task);
                flow::end(shared, port, &key, (id, task), &error);
            }
        }
    }
}

/// A flow, its task, and whether the datagram found room, or that the task does not listen.
type Sent = (FlowId, TaskId, std::io::Result<bool>);

/// Begins a flow with its first datagram; `None` if there is no backend that was not tried.
fn begin(
    shared: &Arc<Shared>,
    port: &Arc<Port>,
    socket: &Arc<PortSocket>,
    key: FlowKey,
    tried: &mut BTreeSet<TaskId>,
    datagram: &[u8],
) -> Option<Sent> {
    let (counted, way) = loop {
        let counted = port.choose(tried, (shared.config.clock)())?;
        match Way::to(shared, &counted.backend) {
            Ok(way) => break (counted, way),
            Err(error) => {
                debug!(port = %port.published, task = %counted.task, %error, "failed to make a socket for a flow");
                tried.insert(counted.task);
            }
        }
    };
    let (now, task) = ((shared.config.clock)(), counted.task);
    let mut sent = None;
    let ended = shared.flows().begin(key, task, now, |id| {
        let flow = Flow::new(shared, port, socket, key, (id, task));
        let upstream = Upstream::start(flow, counted, way);
        sent = Some((id, task, upstream.send(shared, datagram)));
        upstream
    });
    if ended.evicted.is_some() {
        shared.metrics.flows_evicted.add(1);
    }
    sent
}
