//! `/shoal/hello/1`: both sides of a connection show who they are.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::Refusal;
use super::link::Peer;
use super::shared::Shared;
use super::stream::PeerStream;
use super::wire::{self, HELLO_TIMEOUT, Hello, HelloReply, Purpose};
use crate::identity::Credential;

/// How long writing an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How a hello ended for the node that dialled.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Both sides admit each other.
    Admitted(Peer),
    /// The other side refuses; it may have shown that it belongs to the same cluster.
    Refused(Refusal, Option<Credential>),
    /// This side refuses what the other one showed.
    Unfit(Refusal),
    /// No answer, or none that makes sense.
    Failed(io::Error),
}

/// Introduces this node on a connection that it dialled, and verifies the answer.
pub(super) async fn introduce(
    shared: &Shared,
    public_key: &[u8; 32],
    purpose: Purpose,
    stream: &mut PeerStream,
) -> Outcome {
    let Some(introduction) = shared.introduction() else {
        return Outcome::Unfit(Refusal::NotInCluster);
    };
    let exchange = async {
        wire::write(stream, &Hello { purpose, introduction }).await?;
        wire::read::<HelloReply>(stream).await
    };
    match timeout(HELLO_TIMEOUT, exchange).await {
        Err(_) => Outcome::Failed(io::ErrorKind::TimedOut.into()),
        Ok(Err(error)) => Outcome::Failed(error),
        Ok(Ok(HelloReply::Refused(reason, credential))) => {
            let by = credential.and_then(|credential| shared.admit(&credential, public_key).ok());
            Outcome::Refused(reason, by)
        }
        Ok(Ok(HelloReply::Welcome(theirs))) => match shared.admit(&theirs.credential, public_key) {
            Err(refusal) => Outcome::Unfit(refusal),
            Ok(credential) => Outcome::Admitted(Peer {
                credential,
                incarnation: theirs.incarnation,
                advertise: theirs.advertise,
                dialled: true,
            }),
        },
    }
}

/// Hears the hello of a node that dialled this one and verifies it. Nothing is answered yet.
pub(super) async fn listen(
    shared: &Shared,
    public_key: &[u8; 32],
    stream: &mut PeerStream,
) -> io::Result<(Purpose, Result<Peer, Refusal>)> {
    let hello: Hello = timeout(HELLO_TIMEOUT, wire::read(stream)).await??;
    let theirs = hello.introduction;
    let peer = shared.admit(&theirs.credential, public_key).map(|credential| Peer {
        credential,
        incarnation: theirs.incarnation,
        advertise: theirs.advertise,
        dialled: false,
    });
    Ok((hello.purpose, peer))
}

/// Answers a hello.
pub(super) async fn answer(shared: &Shared, refusal: Option<Refusal>, stream: &mut PeerStream) -> io::Result<()> {
    let reply = match (refusal, shared.introduction()) {
        (None, Some(introduction)) => HelloReply::Welcome(introduction),
        (None, None) => HelloReply::Refused(Refusal::NotInCluster, None),
        (Some(refusal), own) => HelloReply::Refused(refusal, own.map(|own| own.credential)),
    };
    timeout(ANSWER_TIMEOUT, wire::write(stream, &reply)).await?
}
