//! Frames on streams, and the messages of `/shoal/hello/1`, `/shoal/join/1`, `/shoal/renew/1` and `/shoal/secret/2`.
//!
//! A frame is its length in four bytes, big-endian, and a frame of `protocol::codec`. A length of zero is a sign of life and
//! says nothing else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_protocol::TaskId;
use shoal_protocol::codec;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::JoinSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::{Hidden, JoinRefusal, JoinReply, Refusal, Renewed};

/// Bytes of a frame's length.
pub(super) const LENGTH_BYTES: usize = 4;

/// Bytes of a frame before admission at most; a peer that announces more is cut off.
pub(super) const EARLY_FRAME_BYTES_MAX: usize = 16 * 1024;

/// How long a peer may take for a hello.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// To carry messages until one side goes away.
    Link,
    /// To see whether the other side answers.
    Probe,
    /// To show a new credential on a link that goes on.
    Refresh,
}

/// How a node introduces itself. That it owns the credential's key was proved by Noise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Introduction {
    /// The credential, DER.
    pub(super) credential: Vec<u8>,
    /// Drawn when the process started, so that a restarted node is told from a second connection of the same one.
    pub(super) incarnation: u64,
    /// Where it can be dialled.
    pub(super) advertise: SocketAddr,
}

/// The first frame of a hello, from the node that dialled.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// What for.
    pub(super) purpose: Purpose,
    /// Who.
    pub(super) introduction: Introduction,
}

/// The answer to a hello.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum HelloReply {
    /// The dialling node is admitted.
    Welcome(Introduction),
    /// It is not. Whoever is in a cluster shows by its credential who refuses.
    Refused(Refusal, Option<Vec<u8>>),
}

/// What a node asks that wants to join. Two frames: the secret is said only to whom the token names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum JoinAsk {
    /// "Who are you?"
    Root,
    /// "Let me in."
    Admit {
        /// From the token.
        secret: JoinSecret,
        /// Where the joining node can be dialled.
        advertise: SocketAddr,
        /// Whether it is to take tasks.
        availability: Availability,
    },
}

/// Answers to [`JoinAsk`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum JoinAnswer {
    /// The answer to [`JoinAsk::Root`].
    Root {
        /// The cluster's root, PEM.
        root_pem: String,
        /// The answering node's credential, DER.
        credential: Vec<u8>,
        /// Managers that it knows, if it is none itself and so cannot admit anyone.
        managers: Vec<SocketAddr>,
    },
    /// The answer to [`JoinAsk::Admit`].
    Admitted(JoinReply),
    /// No.
    Refused(JoinRefusal),
}

/// The answer of a manager to a member that wants a new credential.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RenewAnswer {
    /// Yes.
    Renewed(Renewed),
    /// No, and why.
    Refused(String),
}

/// What a member asks that is about to run a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SecretAsk {
    /// For which task of the asking node.
    pub(super) task: TaskId,
    /// What it needs for it.
    pub(super) what: Hidden,
}

/// The answer of a manager. Not to be shown: there is no `Debug`.
#[derive(Serialize, Deserialize)]
pub(super) enum SecretAnswer {
    /// What it says.
    Secret(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Not now, and why.
    NotYet(String),
    /// Not to this task, and why.
    Refused(String),
}

/// Writes one message and flushes it.
pub(super) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let frame = Zeroizing::new(codec::encode(message).map_err(io::Error::other)?);
    stream.write_all(&length(&frame)).await?;
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads one message of at most [`EARLY_FRAME_BYTES_MAX`] bytes.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    read_at_most(EARLY_FRAME_BYTES_MAX, stream).await
}

/// Reads one message of at most `limit` bytes.
pub(super) async fn read_at_most<T: DeserializeOwned>(
    limit: usize,
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > limit {
        return Err(invalid(format!("a frame of {length} bytes is too long here")));
    }
    let mut frame = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut frame).await?;
    codec::decode(&frame).map_err(|error| invalid(error.to_string()))
}

/// Returns the length of a frame as it goes before it.
pub(super) fn length(frame: &[u8]) -> [u8; LENGTH_BYTES] {
    u32::try_from(frame.len()).expect("the codec limits frames to far less").to_be_bytes()
}

/// Makes the error of a peer that does not keep to the protocol.
pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
