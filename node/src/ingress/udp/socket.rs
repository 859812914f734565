//! A published port's UDP socket, which answers from the address that was asked.
//!
//! A socket on all addresses leaves the choice of an answer's source to the routing table; a client that asked another of the
//! node's addresses would not take it. So each datagram's destination is asked of the kernel (`IP_PKTINFO`, ip(7), and RFC
//! 3542) and given back as the source of the answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The socket of a published port.
pub(super) struct PortSocket {
    inner: UdpSocket,
    /// Whether it is bound to all addresses, so that each datagram's own matters.
    is_on_all: bool,
}

/// What is known of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) client: SocketAddr,
    /// Where it was sent to, if that is not the socket's only address.
    pub(super) local: Option<IpAddr>,
}

impl PortSocket {
    /// Opens a port on one address or on all.
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        let (family, is_on_all) = match address {
            SocketAddr::V4(_) => (AddressFamily::INET, address.ip().is_unspecified()),
            SocketAddr::V6(_) => (AddressFamily::INET6, address.ip().is_unspecified()),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        if is_on_all {
            match address {
                SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => {
                    // One socket for both families, whatever `net.ipv6.bindv6only` says.
                    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
                    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                }
            }
        }
        rustix::net::bind(&socket, &address)?;
        Ok(Self { inner: UdpSocket::from_std(socket.into())?, is_on_all })
    }

    /// Waits for a datagram.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let descriptor = self.inner.as_raw_fd();
        let received = self.inner.async_io(Interest::READABLE, || receive(descriptor, buffer)).await?;
        Ok(Received { local: received.local.filter(|_| self.is_on_all), ..received })
    }

    /// Sends a datagram to a client, from `local` if that is known. Never waits.
    pub(super) fn send(&self, datagram: &[u8], client: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let (descriptor, payload) = (self.inner.as_raw_fd(), [IoSlice::new(datagram)]);
        let client = SockaddrStorage::from(client);
        match local {
            None => sendmsg(descriptor, &payload, &[], flags, Some(&client)),
            Some(IpAddr::V4(local)) => {
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) };
                let any = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: any };
                sendmsg(descriptor, &payload, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&client))
            }
            Some(IpAddr::V6(local)) => {
                let source = libc::in6_addr { s6_addr: local.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                sendmsg(descriptor, &payload, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&client))
            }
        }?;
        Ok(())
    }
}

fn receive(descriptor: RawFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let message = recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut local = None;
    for control in message.cmsgs()? {
        local = match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes())))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
            _ => local, // The enum is foreign; no other message was asked for.
        };
    }
    let client = message.address.as_ref().and_then(address_of).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Received { bytes: message.bytes, client, local })
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks each address of a socket on all of them, and is answered by that one.
    async fn answers_come_from(socket: PortSocket, asked: &[IpAddr]) {
        let port = socket.inner.local_addr().unwrap().port();
        for &asked in asked {
            let own = if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = UdpSocket::bind(own).await.unwrap();
            // A connected socket takes datagrams of that address alone.
            client.connect((asked, port)).await.unwrap();
            client.send(b"who?").await.unwrap();
            let mut buffer = [0; 64];
            let received = socket.receive(&mut buffer).await.unwrap();
            assert_eq!(received.bytes, 4);
            socket.send(b"me", received.client, received.local).unwrap();
            let bytes = tokio::time::timeout(std::time::Duration::from_secs(20), client.recv(&mut buffer)).await;
            assert_eq!(&buffer[..bytes.expect("an answer from the address that was asked").unwrap()], b"me");
        }
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        let other = IpAddr::from([127, 0, 0, 9]);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let v4 = PortSocket::open("0.0.0.0:0".parse().unwrap()).unwrap();
        answers_come_from(v4, &[loopback, other]).await;
        if let Ok(both) = PortSocket::open("[::]:0".parse().unwrap()) {
            answers_come_from(both, &[Ipv6Addr::LOCALHOST.into(), loopback, other]).await;
        }
        let one = PortSocket::open("127.0.0.9:0".parse().unwrap()).unwrap();
        answers_come_from(one, &[other]).await;
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error() {
        let first = PortSocket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let again = PortSocket::open(first.inner.local_addr().unwrap());
        assert_eq!(again.err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
    }
}
