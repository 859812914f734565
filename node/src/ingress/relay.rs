//! Moves bytes between two streams until both directions have ended.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tracing::trace;

/// Bytes of a direction's buffer at first: thousands of idle connections must be cheap.
const BUFFER_MIN: usize = 8 * 1024;

/// Bytes that a buffer grows to while reads fill it: bulk transfers need few calls. Nothing else is held back, so a slow
/// reader stops its writer.
const BUFFER_MAX: usize = 256 * 1024;

/// Silence after which the kernel asks whether the other end of a connection still exists.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered questions after which the connection counts as gone.
const KEEPALIVE_PROBES: u32 = 6;

/// Connects to a task and sets the connection up.
///
/// A task of this machine answers while the call of `connect` lasts. So the kernel is asked at once, and neither the reactor nor a
/// timer of the caller is troubled for most connections.
pub(super) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    set_up(&socket);
    let is_connected = match rustix::net::connect(&socket, &address) {
        Ok(()) => true,
        Err(Errno::INPROGRESS) => is_writable(&socket),
        Err(error) => return Err(error.into()),
    };
    let stream = TcpStream::from_std(socket.into())?;
    if !is_connected {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

/// Returns whether a socket is known to be writable now and to have no error.
fn is_writable(socket: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let asked = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    asked.is_ok() && polled[0].revents() == PollFlags::OUT
}

/// Sends small pieces at once, and notices when the other end vanished without a word. Idle connections are kept. What a
/// listening socket is set to, the connections that it accepts are (Linux).
pub(super) fn set_up(socket: &impl AsFd) {
    use rustix::net::sockopt;
    let result = sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES))
        .and_then(|()| sockopt::set_socket_keepalive(socket, true));
    if let Err(error) = result {
        // Bytes pass without them, too.
        trace!(%error, "failed to set socket options");
    }
}

/// Relays between `client` and a task over TCP. A broken direction ends both, and the other end sees a reset, not an end.
pub(super) async fn relay_tcp(
    mut client: TcpStream,
    mut task: TcpStream,
    bytes: (impl Fn(u64), impl Fn(u64)),
) -> io::Result<()> {
    let result = {
        let ((from_client, to_client), (from_task, to_task)) = (client.split(), task.split());
        let has_ended = AtomicBool::new(false);
        // Who ends last need not say so: both connections are closed then, which says it, too.
        let end = async |mut writer: WriteHalf<'_>| match has_ended.swap(true, Ordering::Relaxed) {
            false => writer.shutdown().await,
            true => Ok(()),
        };
        let there = async { end(copy(from_client, to_task, bytes.0).await?).await };
        let back = async { end(copy(from_task, to_client, bytes.1).await?).await };
        both(there, back).await
    };
    if result.is_err() {
        reset(client);
        reset(task);
    }
    result
}

/// Relays between a TCP connection and any other stream. `bytes` are told how many went from TCP to the stream, and back.
pub(super) async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    mut tcp: TcpStream,
    stream: S,
    bytes: (impl Fn(u64), impl Fn(u64)),
) -> io::Result<()> {
    let result = {
        let ((from_tcp, to_tcp), (from_stream, to_stream)) = (tcp.split(), tokio::io::split(stream));
        let there = async { copy(from_tcp, to_stream, bytes.0).await?.shutdown().await };
        let back = async { copy(from_stream, to_tcp, bytes.1).await?.shutdown().await };
        both(there, back).await
    };
    if result.is_err() {
        reset(tcp);
    }
    result
}

/// Closes a connection so that its other end learns that something went wrong.
pub(super) fn reset(stream: TcpStream) {
    // If it fails the other end sees an ordinary close, which is all that can be done.
    let _ = stream.set_zero_linger();
}

async fn both<A, B>(first: A, second: B) -> io::Result<()>
where
    A: Future<Output = io::Result<()>>,
    B: Future<Output = io::Result<()>>,
{
    tokio::try_join!(first, second).map(|_| ())
}

/// Copies until the reader ends; returns the writer, which is to be ended as well: the other direction may go on.
async fn copy<W: AsyncWrite + Unpin>(
    mut reader: impl AsyncRead + Unpin,
    mut writer: W,
    count: impl Fn(u64),
) -> io::Result<W> {
    let mut buffer = vec![0; BUFFER_MIN];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Ok(writer);
        }
        writer.write_all(&buffer[..read]).await?;
        writer.flush().await?;
        count(read as u64);
        if read == buffer.len() && read < BUFFER_MAX {
            buffer.resize(BUFFER_MAX.min(read * 4), 0);
        }
    }
}
