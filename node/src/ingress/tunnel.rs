//! What two nodes say on a tunnel stream before a connection's bytes: which task and port, and whether it was reached.
//!
//! A tunnel counts as connected only when the far node has connected to the task, so that the near node may still try
//! another backend. Both messages are `protocol::codec` frames after two bytes of length.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_protocol::TaskId;
use shoal_protocol::codec::{self, CodecError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::relay;

/// Bytes of a message at most; longer ones are refused unread.
const MESSAGE_BYTES_MAX: usize = 64;

/// How long the near node may take to say what it wants; then the stream is dropped.
const REQUEST_WAIT: Duration = Duration::from_secs(3);

/// How long connecting to the task may take; then the near node is told so.
const TASK_CONNECT_WAIT: Duration = Duration::from_secs(2);

/// The first message: from the near node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    /// The task to reach.
    task: TaskId,
    /// The container's port.
    port: u16,
}

/// The second message: from the far node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Reply {
    Connected,
    NotConnected(Refusal),
}

/// Why the far node did not connect a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such task runs there, or it does not publish that port.
    #[error("no such task behind a published port")]
    NoSuchTask,
    /// The task does not listen.
    #[error("the task refused the connection")]
    Refused,
    /// The task did not answer in time.
    #[error("the task did not answer in time")]
    TimedOut,
    /// The far node serves as many tunnels as it may.
    #[error("the node serves too many connections")]
    Busy,
}

/// Why a tunnel did not come to be, or broke. No byte of the connection is kept.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The far node did not connect; on the far side: what was answered.
    #[error("tunnel was not connected: {0}")]
    Answered(Refusal),
    /// The other side sent something that is no tunnel message.
    #[error("malformed tunnel message")]
    Malformed(#[from] CodecError),
    /// The near node did not say what it wants.
    #[error("tunnel request did not arrive in time")]
    Silent,
    /// The stream, or the connection to the task, broke.
    #[error("tunnel broke")]
    Io(#[from] io::Error),
}

/// Asks the far node to connect `stream` to a task; when this returns without an error it is connected.
pub async fn request<S>(stream: &mut S, task: TaskId, port: u16) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(stream, &Request { task, port }).await?;
    match receive(stream).await? {
        Reply::Connected => Ok(()),
        Reply::NotConnected(refusal) => Err(TunnelError::Answered(refusal)),
    }
}

/// Serves one tunnel on the far side until it ends. `resolve` tells where a task of this node that publishes this container
/// port listens, and gives what is to be held until then; `None` refuses the tunnel.
pub async fn serve_tunnel<S, H>(
    mut stream: S,
    resolve: impl Fn(TaskId, u16) -> Option<(SocketAddr, H)>,
) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some((address, _held)) = asked_for(&mut stream, resolve).await? else {
        return refuse(&mut stream, Refusal::NoSuchTask).await;
    };
    let task = match timeout(TASK_CONNECT_WAIT, relay::dial(address)).await {
        Err(_) => return refuse(&mut stream, Refusal::TimedOut).await,
        Ok(Err(_)) => return refuse(&mut stream, Refusal::Refused).await,
        Ok(Ok(task)) => task,
    };
    confirm(&mut stream).await?;
    // The near node counts the bytes of the connection.
    relay::relay(task, stream, (|_| {}, |_| {})).await?;
    Ok(())
}

/// Reads what the near node asks for and returns where that is, if `resolve` knows it.
pub(super) async fn asked_for<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    resolve: impl Fn(TaskId, u16) -> Option<T>,
) -> Result<Option<T>, TunnelError> {
    let request: Request = timeout(REQUEST_WAIT, receive(stream)).await.map_err(|_| TunnelError::Silent)??;
    Ok(resolve(request.task, request.port))
}

/// Says that the task was reached.
pub(super) async fn confirm<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    send(stream, &Reply::Connected).await
}

/// Answers a tunnel that this node has no capacity for.
pub(super) async fn refuse_busy<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), TunnelError> {
    refuse(stream, Refusal::Busy).await
}

pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    refusal: Refusal,
) -> Result<(), TunnelError> {
    let answer = async {
        send(stream, &Reply::NotConnected(refusal)).await?;
        stream.shutdown().await
    };
    match timeout(REQUEST_WAIT, answer).await {
        Err(_) => Err(TunnelError::Silent),
        Ok(result) => result.map_err(TunnelError::Io).and(Err(TunnelError::Answered(refusal))),
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Serialize) -> io::Result<()> {
    let frame = codec::encode(message).map_err(io::Error::other)?;
    let length = u16::try_from(frame.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(frame);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin, T: DeserializeOwned>(stream: &mut S) -> Result<T, TunnelError> {
    let length = usize::from(stream.read_u16().await?);
    if length > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: length }.into());
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(codec::decode(&frame)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere(_task: TaskId, _port: u16) -> Option<(SocketAddr, ())> {
        None
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        for (bytes, want) in [
            (&[0xff, 0xff, 1, 2][..], "larger than"),
            (&[0, 0][..], "empty"),
            (&[0, 2, 9, 9][..], "version 9"),
            (&[0, 3, 1, 0, 0][..], "malformed"),
        ] {
            let (mut near, far) = tokio::io::duplex(64);
            near.write_all(bytes).await.unwrap();
            let error = serve_tunnel(far, nowhere).await.unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(source.contains(want), "{bytes:?}: {error}: {source}");
        }
    }

    #[tokio::test]
    async fn a_silent_stream_is_dropped() {
        let (_near, far) = tokio::io::duplex(64);
        assert!(matches!(serve_tunnel(far, nowhere).await, Err(TunnelError::Silent)));
    }
}
