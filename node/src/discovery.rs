//! The local link: says by multicast where this node listens, and hears the same of others.
//!
//! When to speak and what to make of what was heard is decided by [`shoal_control::discovery`]. All nodes use one group and
//! one UDP port, whatever port they listen on for their peers; any number of them may do so on one machine. The link is that
//! of the address on which the node listens, so containers on a bridge of their own hear nothing. IPv4 only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use shoal_protocol::discovery::{Announcement, DATAGRAM_BYTES_MAX};
use shoal_protocol::{ClusterId, NodeId};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The group. Source: RFC 2365, section 6.1, the local scope; routers do not forward it, and the hop limit is 1.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 23, 77);

/// The UDP port, for all nodes.
pub const PORT: u16 = 2377;

/// Announcements heard that wait for their reader; more are dropped, they are repeated.
pub const HEARD_MAX: usize = 64;

/// Datagrams read within [`WINDOW`]; the kernel drops what comes beyond.
const READ_MAX: u32 = 256;

/// See [`READ_MAX`].
const WINDOW: Duration = Duration::from_millis(250);

/// Between two attempts to open the sockets: the link may not be there yet.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Who speaks where.
#[derive(Debug, Clone)]
pub struct BeaconConfig {
    /// Whose members are spoken to.
    pub cluster: ClusterId,
    /// What is said.
    pub announcement: Announcement,
    /// Addresses of this node, the one whose link is meant first; those that do not fit are passed over.
    pub links: Vec<IpAddr>,
    /// The UDP port; [`PORT`] but in tests.
    pub port: u16,
}

/// Speaks on the local link. Dropping it ends that.
#[derive(Debug)]
pub struct Beacon {
    announce: Arc<Notify>,
    _stop: DropGuard,
}

impl Beacon {
    /// Starts to listen; what members of the cluster call out goes to `heard`, this node's own calls included.
    pub fn spawn(config: BeaconConfig, heard: mpsc::Sender<(NodeId, SocketAddr)>) -> Self {
        let (announce, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        tokio::spawn(stop.clone().run_until_cancelled_owned(keep(config, announce.clone(), heard)));
        Self { announce, _stop: stop.drop_guard() }
    }

    /// Says where this node listens, as soon as the link is there.
    pub fn announce(&self) {
        self.announce.notify_one();
    }
}

/// Keeps sockets open and serves them.
async fn keep(config: BeaconConfig, announce: Arc<Notify>, heard: mpsc::Sender<(NodeId, SocketAddr)>) {
    let datagram = match config.announcement.encode(config.cluster) {
        Ok(datagram) => datagram,
        Err(error) => return tracing::error!(%error, "an announcement cannot be encoded"),
    };
    let mut told = false;
    loop {
        let error = match open(&config) {
            Ok((link, sender, receiver)) => {
                told = false;
                tracing::debug!(%link, group = %GROUP, port = config.port, "listening for members on the local link");
                serve(&config, &datagram, &announce, &heard, (&sender, &receiver)).await
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, "members on the local link cannot be heard for now");
        }
        tokio::time::sleep(OPEN_AGAIN_AFTER).await;
    }
}

/// Sends and receives until something fails.
async fn serve(
    config: &BeaconConfig,
    datagram: &[u8],
    announce: &Notify,
    heard: &mpsc::Sender<(NodeId, SocketAddr)>,
    (sender, receiver): (&UdpSocket, &UdpSocket),
) -> io::Error {
    // One byte more than any announcement has, so that longer datagrams are seen to be longer.
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    let (mut window, mut read) = (Instant::now(), 0);
    loop {
        let may_read_at = if read < READ_MAX { Instant::now() } else { window + WINDOW };
        let received = async {
            tokio::time::sleep_until(may_read_at).await;
            receiver.recv_from(&mut buffer).await
        };
        tokio::select! {
            () = announce.notified() => {
                if let Err(error) = sender.send_to(datagram, (GROUP, config.port)).await {
                    return error;
                }
            }
            received = received => {
                let (bytes, from) = match received {
                    Ok(received) => received,
                    Err(error) => return error,
                };
                if window.elapsed() >= WINDOW {
                    (window, read) = (Instant::now(), 0);
                }
                read += 1;
                match Announcement::decode(&buffer[..bytes], config.cluster) {
                    // Dropped if too many wait: callers call again.
                    Ok(Announcement { node, port }) => {
                        let _ = heard.try_send((node, SocketAddr::new(from.ip(), port)));
                    }
                    Err(error) => tracing::trace!(address = %from, %error, "heard something that is no announcement"),
                }
            }
        }
    }
}

/// Opens a socket to speak and one to hear, on the first link that works; at last on the one of the default route.
fn open(config: &BeaconConfig) -> io::Result<(Ipv4Addr, UdpSocket, UdpSocket)> {
    let links = config.links.iter().filter_map(|link| match link {
        IpAddr::V4(link) if !link.is_unspecified() => Some(*link),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for link in links.chain([Ipv4Addr::UNSPECIFIED]) {
        match open_on(link, config.port) {
            Ok((sender, receiver)) => return Ok((link, sender, receiver)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open_on(link: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, UdpSocket)> {
    let sender = std::net::UdpSocket::bind((link, 0))?;
    if !link.is_unspecified() {
        sockopt::set_ip_multicast_if(&sender, &link)?;
    }
    sender.set_multicast_ttl_v4(1)?;
    // Other nodes of this machine are to hear it as well.
    sender.set_multicast_loop_v4(true)?;
    sender.set_nonblocking(true)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let receiver = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // Each node of a machine gets a copy of what is sent to the group; what is sent to the machine itself does not come here.
    sockopt::set_socket_reuseaddr(&receiver, true)?;
    rustix::net::bind(&receiver, &SocketAddrV4::new(GROUP, port))?;
    let receiver = std::net::UdpSocket::from(receiver);
    receiver.join_multicast_v4(&GROUP, &link)?;
    Ok((UdpSocket::from_std(sender)?, UdpSocket::from_std(receiver)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);
    const CLUSTER: ClusterId = ClusterId(7);

    /// A port of our own: others of this machine may speak as well.
    fn free_port() -> u16 {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    fn beacon(cluster: ClusterId, node: u128, udp: u16) -> (Beacon, mpsc::Receiver<(NodeId, SocketAddr)>) {
        let (heard, receiver) = mpsc::channel(HEARD_MAX);
        let last = u8::try_from(node).unwrap();
        let config = BeaconConfig {
            cluster,
            announcement: Announcement { node: NodeId(node), port: 3000 + u16::from(last) },
            links: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(127, 0, 0, last).into()],
            port: udp,
        };
        (Beacon::spawn(config, heard), receiver)
    }

    /// Announces until `heard` says something: the others may not listen yet.
    async fn heard(speaker: &Beacon, heard: &mut mpsc::Receiver<(NodeId, SocketAddr)>) -> (NodeId, SocketAddr) {
        let listening = async {
            loop {
                speaker.announce();
                if let Ok(Some(heard)) = tokio::time::timeout(Duration::from_millis(20), heard.recv()).await {
                    return heard;
                }
            }
        };
        tokio::time::timeout(DEADLINE, listening).await.unwrap()
    }

    #[tokio::test]
    async fn nodes_of_one_machine_hear_each_other() {
        let udp = free_port();
        let (two, mut hears_two) = beacon(CLUSTER, 2, udp);
        let (_three, mut hears_three) = beacon(CLUSTER, 3, udp);
        let (foreign, mut hears_foreign) = beacon(ClusterId(8), 4, udp);
        let want = (NodeId(2), "127.0.0.2:3002".parse().unwrap());
        assert_eq!(heard(&two, &mut hears_three).await, want);
        assert_eq!(heard(&two, &mut hears_two).await, want);
        assert_eq!(heard(&foreign, &mut hears_foreign).await.0, NodeId(4));
        // Both clusters were on the link all the time; each heard its own alone.
        while let Ok((node, _)) = hears_three.try_recv() {
            assert_eq!(node, NodeId(2));
        }
    }

    #[tokio::test]
    async fn noise_does_no_harm() {
        let udp = free_port();
        let (two, mut hears) = beacon(CLUSTER, 2, udp);
        heard(&two, &mut hears).await;
        let noise = std::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).unwrap();
        sockopt::set_ip_multicast_if(&noise, &Ipv4Addr::new(127, 0, 0, 9)).unwrap();
        for bytes in [&[0u8; 0][..], &[1], &[0xff; 36], &[1; 64], &[1; 65], &[0; 9000]] {
            noise.send_to(bytes, (GROUP, udp)).unwrap();
        }
        for _ in 0..READ_MAX {
            noise.send_to(&[7; 64], (GROUP, udp)).unwrap();
        }
        assert_eq!(heard(&two, &mut hears).await.0, NodeId(2), "goes on afterwards");
    }
}
