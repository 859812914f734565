//! How the API and other tasks of the daemon reach the event loop.

use shoal_control::core::Control;
use shoal_protocol::object::Sealed;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{Now, ObjectId};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::shells::Shells;
use crate::api::Rotation;
use crate::identity::{Purpose, UnlockKey};

/// Commands that may wait for the event loop; whoever comes after waits to be let in.
pub const COMMANDS_MAX: usize = 256;

/// A look at the decisions, performed on the event loop. It must be quick: the cluster waits meanwhile.
pub type Look = Box<dyn FnOnce(Option<&Control>, Now) + Send>;

/// What the event loop is asked to do.
pub enum Command {
    /// Looks at the decisions; `None` while the node is in no cluster.
    Look(Look),
    /// Writes an object.
    Write {
        /// What.
        write: Write,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Written, WriteError>>,
    },
    /// Makes a new cluster.
    Init {
        /// What users set for it.
        settings: ClusterSettings,
        /// Whether this node is to take tasks.
        availability: Availability,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), MembershipError>>,
    },
    /// Joins a cluster.
    Join {
        /// Addresses of members.
        seeds: Vec<String>,
        /// The token.
        token: String,
        /// Whether this node is to take tasks.
        availability: Availability,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), MembershipError>>,
    },
    /// Leaves the cluster and stops all tasks of it.
    Leave {
        /// Whether to leave though this node is a manager.
        force: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), MembershipError>>,
    },
    /// Opens this node's keys, which are sealed on its disk, and comes back as the manager that it is.
    Unlock {
        /// The unlock key.
        key: UnlockKey,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), MembershipError>>,
    },
    /// Returns the unlock key; `None` while managers are not locked.
    UnlockKey {
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Option<Zeroizing<String>>, WriteError>>,
    },
    /// Returns the shells that the API uses directly; `None` while the node is in no cluster.
    Shells {
        /// Where the answer goes.
        reply: oneshot::Sender<Option<Shells>>,
    },
    /// Returns both join tokens.
    Tokens {
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Tokens, WriteError>>,
    },
    /// Seals the data of a new secret, or registry credentials.
    Seal {
        /// What they are.
        purpose: Purpose,
        /// What is to be sealed.
        data: Zeroizing<Vec<u8>>,
        /// Where it goes.
        reply: oneshot::Sender<Result<Sealed, WriteError>>,
    },
    /// Compares the data of a secret.
    Holds {
        /// Which secret.
        id: ObjectId,
        /// With what.
        data: Zeroizing<Vec<u8>>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<bool, WriteError>>,
    },
    /// Replaces join tokens, the unlock key or all keys of the cluster, or changes its settings.
    Rotate {
        /// What.
        what: Rotation,
        /// The index of the cluster object that the caller read.
        version: u64,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Written, WriteError>>,
    },
}

/// The join tokens of a cluster.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Lets workers in.
    pub worker: String,
    /// Lets managers in.
    pub manager: String,
}

/// Why a node could not be made a member, or end being one.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It is one already.
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    Member,
    /// It is none.
    #[error("This node is not part of a swarm")]
    NotMember,
    /// It is a manager, and was not told to leave all the same.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. Use `--force` to suppress \
         this message."
    )]
    Manager,
    /// Its keys are locked on its disk, and it was not told to leave all the same. Source: Docker Engine, the same words.
    #[error("Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")]
    Locked,
    /// There is nothing to unlock. Source: Docker Engine, the same words.
    #[error("swarm is not locked")]
    NotLocked,
    /// The unlock key is another one. Source: Docker Engine, the same words.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongKey,
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Something failed; nothing was changed unless the text says otherwise.
    #[error("{0}")]
    Failed(String),
}

/// A command, and the span of whoever asked: what the loop logs of it is found with the request that it is for.
pub type Asked = (tracing::Span, Command);

/// Reaches the event loop. Cheap to clone.
#[derive(Clone)]
pub struct Loop {
    commands: mpsc::Sender<Asked>,
}

/// The event loop has ended: the daemon is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the daemon is shutting down")]
pub struct LoopEnded;

impl Loop {
    /// Makes the way to an event loop and its other end.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        (Self { commands }, receiver)
    }

    /// Looks at the decisions and returns what `look` made of them.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(Option<&Control>, Now) -> T + Send + 'static,
    ) -> Result<T, LoopEnded> {
        let (sender, receiver) = oneshot::channel();
        let command = Command::Look(Box::new(move |control, now| {
            // Whoever asked may have gone away meanwhile.
            let _ = sender.send(look(control, now));
        }));
        self.send(command).await?;
        receiver.await.map_err(|_| LoopEnded)
    }

    /// Sends a command that carries its own way back, and waits for the answer.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, LoopEnded> {
        let (sender, receiver) = oneshot::channel();
        self.send(command(sender)).await?;
        receiver.await.map_err(|_| LoopEnded)
    }

    async fn send(&self, command: Command) -> Result<(), LoopEnded> {
        self.commands.send((tracing::Span::current(), command)).await.map_err(|_| LoopEnded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logged::Logged;

    #[tokio::test]
    async fn what_the_loop_logs_of_a_command_is_found_with_the_request() {
        use tracing::Instrument;
        let logged = Logged::capture();
        let (asker, mut commands) = Loop::new();
        let request = async move { asker.look(|_, _| ()).await }.instrument(tracing::info_span!("request", id = 7));
        let answer = async {
            let (span, command) = commands.recv().await.unwrap();
            span.in_scope(|| tracing::info!("working"));
            if let Command::Look(look) = command {
                look(None, Now::default());
            }
        };
        let (result, ()) = tokio::join!(request, answer);
        assert!(result.is_ok());
        let line = logged.lines().pop().unwrap();
        assert_eq!((&line["fields"]["message"], &line["span"]["id"]), (&"working".into(), &7.into()), "{line}");
    }
}
