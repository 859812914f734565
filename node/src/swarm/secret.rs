//! `/shoal/secret/2`: how a node gets from a manager what a task of its own needs and only managers can open: secrets, and what
//! the registry of its image knows the user by.
//!
//! One question and one answer on a stream of an admitted link, so who asks is proved. What may be handed out is decided by the
//! swarm's owner.

use std::io;

use serde::{Deserialize, Serialize};
use shoal_control::core::Withheld;
use shoal_protocol::codec::FRAME_BYTES_MAX;
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, ObjectId, TaskId};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::service;
use super::shared::Shared;
use super::stream::PeerStream;
use super::wire::{self, HELLO_TIMEOUT, SecretAnswer, SecretAsk};
use super::{SwarmEvent, SwarmHandle};

/// What only managers can open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hidden {
    /// A secret.
    Secret(ObjectId),
    /// The registry credentials of the task's service; none are an empty answer.
    Credentials,
}

/// Why a manager gave no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be reached, or is of an older version that hands out none.
    #[error("failed to ask the manager")]
    Unreachable(#[from] io::Error),
    /// It said no.
    #[error(transparent)]
    Withheld(#[from] Withheld),
}

impl SwarmHandle {
    /// Asks a linked manager for what a task of this node needs.
    pub async fn secret(&self, manager: NodeId, task: TaskId, what: Hidden) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let mut stream = self.open(manager, service::SECRET).await?;
        let exchange = async {
            wire::write(&mut stream, &SecretAsk { task, what }).await?;
            wire::read_at_most::<SecretAnswer>(FRAME_BYTES_MAX, &mut stream).await
        };
        match timeout(HELLO_TIMEOUT * 2, exchange).await.map_err(io::Error::from)?? {
            SecretAnswer::Secret(bytes) => Ok(Zeroizing::new(bytes)),
            SecretAnswer::NotYet(reason) => Err(Withheld::NotYet(reason).into()),
            SecretAnswer::Refused(reason) => Err(Withheld::Refused(reason).into()),
        }
    }
}

/// Serves a member that wants a secret.
pub(super) async fn serve(
    shared: &Shared,
    from: NodeId,
    events: &mpsc::Sender<SwarmEvent>,
    room: &Semaphore,
    stream: &mut PeerStream,
) -> io::Result<()> {
    let SecretAsk { task, what } = timeout(HELLO_TIMEOUT, wire::read(stream)).await??;
    let not_yet = |reason: &str| Err(Withheld::NotYet(reason.to_owned()));
    // Held until the answer is out: it bounds how many secrets lie open in memory.
    let permit = timeout(HELLO_TIMEOUT, room.acquire()).await;
    let decision = match permit {
        _ if !is_manager(shared) => not_yet("the asked node is no manager"),
        Ok(Ok(_)) => match decide(events, |reply| SwarmEvent::Secret { from, task, what, reply }).await {
            Some(decision) => decision,
            None => not_yet("the asked manager did not decide in time"),
        },
        Ok(Err(_)) | Err(_) => not_yet("the asked manager hands out too many secrets; try again"),
    };
    let answer = match decision {
        Ok(mut bytes) => SecretAnswer::Secret(std::mem::take(&mut *bytes)),
        Err(Withheld::NotYet(reason)) => SecretAnswer::NotYet(reason),
        Err(Withheld::Refused(reason)) => SecretAnswer::Refused(reason),
    };
    let written = timeout(HELLO_TIMEOUT, wire::write(stream, &answer)).await;
    if let SecretAnswer::Secret(bytes) = answer {
        drop(Zeroizing::new(bytes));
    }
    written?
}

fn is_manager(shared: &Shared) -> bool {
    let admission = shared.admission();
    admission.credentials().is_some_and(|(membership, _)| membership.role() == Role::Manager)
}

async fn decide<T>(
    events: &mpsc::Sender<SwarmEvent>,
    event: impl FnOnce(oneshot::Sender<T>) -> SwarmEvent,
) -> Option<T> {
    let (reply, decision) = oneshot::channel();
    timeout(HELLO_TIMEOUT, events.send(event(reply))).await.ok()?.ok()?;
    timeout(HELLO_TIMEOUT, decision).await.ok()?.ok()
}
