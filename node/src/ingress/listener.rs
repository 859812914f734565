//! The listening socket of one published port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::port::{Admitted, Port};
use super::{Shared, forward, relay};

/// Between two attempts to open a port that is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Pause after the kernel could not hand over a connection: time for others to end and free what it lacks.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections that wait in the kernel to be accepted; the kernel lowers it to `net.core.somaxconn` and drops the rest.
const BACKLOG: u32 = 4096;

/// Opens the port of TCP and forwards what arrives, until it is told to close. When it returns nothing listens any more.
pub(super) async fn listen(shared: Arc<Shared>, port: Arc<Port>, closing: CancellationToken) {
    let opened = closing.run_until_cancelled(open_port(&shared, &port, open)).await;
    let Some(listener) = opened else { return };
    let mut accepting = JoinSet::new();
    for lane in shared.config.lanes.handles() {
        match on_lane(&listener, lane) {
            Ok(listener) => {
                let (shared, port, is_first) = (shared.clone(), port.clone(), accepting.is_empty());
                accepting.spawn_on(async move { accept(&shared, &port, &listener, is_first).await }, lane);
            }
            Err(error) => warn!(port = %port.published, %error, "one thread less accepts connections"),
        }
    }
    if accepting.is_empty() {
        let (shared, port) = (shared.clone(), port.clone());
        accepting.spawn(async move { accept(&shared, &port, &listener, true).await });
    } else {
        drop(listener);
    }
    closing.cancelled().await;
    accepting.shutdown().await;
}

/// Returns the same socket for another runtime. Whichever is free takes a connection.
fn on_lane(listener: &TcpListener, lane: &Handle) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
    let _entered = lane.enter();
    TcpListener::from_std(socket)
}

/// Opens a port by `open`, trying again while it is taken.
pub(super) async fn open_port<T>(shared: &Shared, port: &Port, open: fn(SocketAddr) -> io::Result<T>) -> T {
    let mut reported = false;
    loop {
        let address = address(shared.config.publish_addr, port.address);
        match address.and_then(|address| bind(address, port.published.number, open)) {
            Ok(opened) => {
                info!(port = %port.published, "listening on published port");
                shared.clear_port_error(port.published);
                return opened;
            }
            Err(error) => {
                if !reported {
                    warn!(port = %port.published, %error, "failed to open published port; trying again");
                }
                reported = true;
                let text = match port.address {
                    Some(address) => format!("{address}: {error}"),
                    None => error.to_string(),
                };
                shared.set_port_error(port.published, text);
                tokio::time::sleep(BIND_RETRY).await;
            }
        }
    }
}

/// Returns where to listen, given the node's own address for published ports and the service's. What the node's operator set is a
/// limit: another address is refused.
pub(super) fn address(own: Option<IpAddr>, wanted: Option<IpAddr>) -> io::Result<Option<IpAddr>> {
    match (own, wanted) {
        (Some(own), Some(wanted)) if !own.is_unspecified() && own != wanted => {
            let reason = format!("published ports of this node are on {own} alone (--publish-addr)");
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason))
        }
        (own, wanted) => Ok(wanted.or(own)),
    }
}

fn bind<T>(address: Option<IpAddr>, port: u16, open: fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match address {
        Some(address) => open(SocketAddr::new(address, port)),
        None => match open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                debug!(%error, "no IPv6 here, using IPv4 alone");
                open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            result => result,
        },
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // One socket for both families, whatever `net.ipv6.bindv6only` says.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    relay::set_up(&socket);
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts while the port has no limit, and where it has one if this is the lane that does so alone: each of several would have
/// to hold a place free for the connection that it waits for.
async fn accept(shared: &Arc<Shared>, port: &Arc<Port>, listener: &TcpListener, is_first: bool) {
    let mut limited = port.limited();
    loop {
        let is_limited = *limited.borrow_and_update();
        let (admitted, accepted) = match is_limited {
            true if !is_first => match limited.changed().await {
                Ok(()) => continue,
                Err(_) => return, // the port is gone
            },
            // Who has to wait for room does so in the kernel's backlog.
            true => (Some(port.admit().await), listener.accept().await),
            false => tokio::select! {
                biased;
                Ok(()) = limited.changed() => continue,
                accepted = listener.accept() => (None, accepted),
            },
        };
        match accepted {
            Ok((client, _)) => take(shared, (port, admitted.unwrap_or_else(|| port.admit_unlimited())), client).await,
            Err(error) => {
                shared.metrics.accept_errors.add(1);
                debug!(port = %port.published, %error, "failed to accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Forwards `client` in a task of its own, as soon as the node may forward one more connection.
async fn take(shared: &Arc<Shared>, (port, admitted): (&Arc<Port>, Admitted), client: TcpStream) {
    let permit = match shared.connections.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            shared.metrics.paused.add(1);
            shared.connections.clone().acquire_owned().await.expect("the semaphore is never closed")
        }
    };
    port.metrics.add(|port| &port.accepted, 1);
    let (shared, port) = (shared.clone(), port.clone());
    tokio::spawn(async move {
        let _permits = (permit, admitted);
        port.metrics.add(|port| &port.open, 1);
        forward::forward(&shared, &port, client).await;
        port.metrics.sub(|port| &port.open, 1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;

    #[tokio::test]
    async fn accepted_connections_are_set_up_as_the_listener_is() {
        let listener = open((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), relay::KEEPALIVE_IDLE);
    }
}
