//! Datagrams between a node and a task: over a socket on the task's own node, over a stream from any other.
//!
//! A stream begins as a tunnel does, with the task and port that are meant and whether they are there. Then each datagram is
//! two bytes of length, big-endian, and its bytes. A stream carries one flow. It ends when the near node ends the flow, or
//! when the task is found not to listen: UDP has no other word for that.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{RecvFlags, SendFlags};
use shoal_protocol::TaskId;
use shoal_protocol::codec::CodecError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UdpSocket;

use super::tunnel::{self, Refusal, TunnelError};

/// Bytes of a datagram at most: what IPv4 can carry over UDP (RFC 768, RFC 791). A stream with a longer one is broken.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Bytes before each datagram on a stream.
const LENGTH_BYTES: usize = 2;

thread_local! {
    /// Where datagrams are received: their length is not known before, and thousands of flows cannot have a buffer each.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; usize::from(u16::MAX)]);
}

/// Makes a socket that sends to a task and hears it alone.
pub(super) fn connect(task: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match task {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(task)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Sends a datagram to a task. Returns whether there was room for it; an error says that the task does not listen, which the
/// kernel learns from the datagrams before.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<bool> {
    // Not the runtime's own call: that one sends nothing on a socket which it has not polled yet.
    match rustix::net::send(socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::MSGSIZE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a datagram of a task; an error says that the task does not listen.
pub(super) async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    // A refusal (ICMP) makes a socket erroneous but not readable.
    let interest = Interest::READABLE | Interest::ERROR;
    let receive = || {
        BUFFER.with_borrow_mut(|buffer| {
            let (bytes, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            Ok(buffer[..bytes].to_vec())
        })
    };
    socket.async_io(interest, receive).await
}

/// Returns a datagram as it is written to a stream; `None` if it is too long.
pub(super) fn frame(datagram: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(datagram.len()).ok().filter(|_| datagram.len() <= DATAGRAM_BYTES_MAX)?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + datagram.len());
    frame.extend(length.to_be_bytes());
    frame.extend(datagram);
    Some(frame)
}

/// Reads a datagram from a stream; `None` at its end.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, TunnelError> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => usize::from(length?),
    };
    if length > DATAGRAM_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: length }.into());
    }
    let mut datagram = vec![0; length];
    stream.read_exact(&mut datagram).await?;
    Ok(Some(datagram))
}

/// Serves one flow on the far side until it ends. `resolve` tells where a task of this node that publishes this container port
/// over UDP listens.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    resolve: impl Fn(TaskId, u16) -> Option<SocketAddr>,
) -> Result<(), TunnelError> {
    let Some(address) = tunnel::asked_for(&mut stream, resolve).await? else {
        return tunnel::refuse(&mut stream, Refusal::NoSuchTask).await;
    };
    let Ok(task) = connect(address) else {
        return tunnel::refuse(&mut stream, Refusal::Refused).await;
    };
    tunnel::confirm(&mut stream).await?;
    let (mut from_near, mut to_near) = tokio::io::split(stream);
    let forth = async {
        while let Some(datagram) = read(&mut from_near).await? {
            send(&task, &datagram)?;
        }
        Ok(())
    };
    let back = async {
        loop {
            let datagram = receive(&task).await?;
            if let Some(frame) = frame(&datagram) {
                to_near.write_all(&frame).await?;
                to_near.flush().await?;
            }
        }
    };
    // Whichever ends first ends the flow, and with it the stream.
    tokio::select! {
        result = forth => result,
        result = back => result,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds_on_a_stream() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        for bytes in [0, 1, 512, DATAGRAM_BYTES_MAX] {
            near.write_all(&frame(&vec![7; bytes]).unwrap()).await.unwrap();
        }
        for bytes in [0, 1, 512, DATAGRAM_BYTES_MAX] {
            assert_eq!(read(&mut far).await.unwrap(), Some(vec![7; bytes]));
        }
        assert_eq!(frame(&vec![7; DATAGRAM_BYTES_MAX + 1]), None);
        near.write_all(&[0xff, 0xff, 1]).await.unwrap();
        assert!(matches!(read(&mut far).await, Err(TunnelError::Malformed(CodecError::TooLarge { bytes: 65_535 }))));
        drop(near);
        far.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(read(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_task_that_does_not_listen_is_noticed() {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = connect(gone).unwrap();
        assert!(send(&socket, b"anybody?").unwrap());
        let error = timeout(Duration::from_secs(20), receive(&socket)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
