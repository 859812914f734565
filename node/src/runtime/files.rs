//! Where this node's tasks get their secrets and configs: from its own document, or a secret from a manager.
//!
//! The decision is [`shoal_control::core::Control::may_have`], on the manager that hands out; a manager asks itself the same.

use std::sync::Arc;

use async_trait::async_trait;
use rand::seq::SliceRandom;
use shoal_control::core::Withheld;
use shoal_control::task::PlannedFile;
use shoal_protocol::object::FileSpec;
use shoal_protocol::token::Role;
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Kind, NodeId, ObjectId, TaskId};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::member::{Member, Waiting};
use crate::driver::files::{FileContent, FileSource, TaskFiles};
use crate::identity::{open_secret, seal_secret};
use crate::swarm::{SecretError, SwarmHandle};

/// Questions that may wait for the loop; whoever comes after waits to be let in.
const ASKS_MAX: usize = 16;

/// Managers that are asked for one secret in one attempt; the next attempt asks others, by chance.
const MANAGERS_ASKED_MAX: usize = 3;

/// The bytes of a secret or config.
type Content = Zeroizing<Vec<u8>>;

/// A question of this node's own tasks.
pub(super) struct FileAsk {
    task: TaskId,
    kind: Kind,
    id: ObjectId,
    reply: oneshot::Sender<Result<Have, Withheld>>,
}

/// A file that may be had.
struct Have {
    place: Place,
    is_template: bool,
}

/// Where a file is.
enum Place {
    /// Here.
    Here(Content),
    /// Sealed: one of these managers can open it.
    Ask(Vec<NodeId>),
}

/// Fetches the files of this node's tasks.
struct Fetcher {
    asks: mpsc::Sender<FileAsk>,
    swarm: SwarmHandle,
}

/// Returns the files of a node's tasks, and the questions about them, which the member answers.
pub(super) fn start(node: NodeId, swarm: SwarmHandle) -> (TaskFiles, mpsc::Receiver<FileAsk>) {
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    (TaskFiles::new(node, Arc::new(Fetcher { asks, swarm })), asked)
}

#[async_trait]
impl FileSource for Fetcher {
    async fn content(&self, task: TaskId, file: &PlannedFile) -> Result<FileContent, Withheld> {
        let ended = || Withheld::NotYet("the daemon is shutting down".to_owned());
        let (reply, answer) = oneshot::channel();
        let ask = FileAsk { task, kind: file.kind, id: file.id, reply };
        self.asks.send(ask).await.map_err(|_| ended())?;
        let Have { place, is_template } = answer.await.map_err(|_| ended())??;
        let mut managers = match place {
            Place::Here(bytes) => return Ok(FileContent { bytes, is_template }),
            Place::Ask(managers) => managers,
        };
        managers.shuffle(&mut rand::rng());
        let mut last = "no manager is connected".to_owned();
        for manager in managers.into_iter().take(MANAGERS_ASKED_MAX) {
            match self.swarm.secret(manager, task, file.id).await {
                Ok(bytes) => return Ok(FileContent { bytes, is_template }),
                Err(SecretError::Withheld(refused @ Withheld::Refused(_))) => return Err(refused),
                Err(SecretError::Withheld(Withheld::NotYet(reason))) => last = reason,
                Err(SecretError::Unreachable(error)) => last = format!("failed to ask manager {manager}: {error}"),
            }
        }
        Err(Withheld::NotYet(last))
    }
}

impl Member {
    /// Answers a question of a task of this node.
    pub(super) fn answer_file(&self, ask: FileAsk) {
        let FileAsk { task, kind, id, reply } = ask;
        // Whoever asked may have given up.
        let _ = reply.send(self.file(task, kind, id));
    }

    fn file(&self, task: TaskId, kind: Kind, id: ObjectId) -> Result<Have, Withheld> {
        let me = self.control.me();
        self.control.may_have(me, task, kind, id)?;
        let gone = || Withheld::NotYet(format!("{} {id} is gone", kind.name()));
        let head = self.control.store().object(kind, id).ok_or_else(gone)?;
        let spec = FileSpec::parse(kind, &head.spec).map_err(|error| Withheld::Refused(error.to_string()))?;
        let place = match kind {
            Kind::Secret if !self.opens_secrets() => Place::Ask(self.managers()),
            Kind::Secret => Place::Here(self.secret_for(me, task, id)?),
            Kind::Config | Kind::Network => {
                let object = self.control.store().object_with_data(kind, id).ok_or_else(gone)?;
                Place::Here(Zeroizing::new(object.data))
            }
        };
        Ok(Have { place, is_template: spec.is_template })
    }

    /// Opens a secret for a task of a node, if it may have it. `node` was proved by the connection, or is this node.
    pub(super) fn secret_for(&self, node: NodeId, task: TaskId, id: ObjectId) -> Result<Content, Withheld> {
        if !self.opens_secrets() {
            return Err(Withheld::NotYet("the asked node is no manager".to_owned()));
        }
        self.control.may_have(node, task, Kind::Secret, id)?;
        self.open_secret(id).map_err(Withheld::NotYet)
    }

    /// Opens a secret. Only for whoever may have it.
    fn open_secret(&self, id: ObjectId) -> Result<Content, String> {
        let store = self.control.store();
        let object = store.object_with_data(Kind::Secret, id).ok_or_else(|| format!("secret {id} is gone"))?;
        let (key, cluster) = self.managers_key().map_err(|error| error.to_string())?;
        let opened = match object.head.edition == cluster.edition {
            true => open_secret(&key, cluster.id, id, &object.data),
            false => self
                .secrets()
                .map_err(|error| error.to_string())?
                .0
                .former_key(object.head.edition)
                .and_then(|key| open_secret(key, cluster.id, id, &object.data)),
        };
        opened.map_err(|error| format!("secret {id} cannot be opened: {error}"))
    }

    /// Seals the data of a secret. Returns the edition of the key, too.
    pub(super) fn seal(&self, id: ObjectId, data: &[u8]) -> Result<(u64, Vec<u8>), WriteError> {
        self.check_opens_secrets()?;
        let (key, cluster) = self.managers_key()?;
        let sealed = seal_secret(&key, cluster.id, id, data).map_err(|error| WriteError::Storage(error.to_string()))?;
        Ok((cluster.edition, sealed))
    }

    /// Seals a secret anew with the present key, and asks for it to be written.
    pub(super) fn reseal(&mut self, id: ObjectId) {
        let sealed =
            self.open_secret(id).and_then(|content| self.seal(id, &content).map_err(|error| error.to_string()));
        match sealed {
            Ok((edition, data)) => self.request(Write::ResealSecret { id, edition, data }, Waiting::Keys),
            Err(error) => tracing::error!(secret = %id, %error, "failed to seal a secret with the present key"),
        }
    }

    /// Returns whether the data of a secret are these.
    pub(super) fn holds(&self, id: ObjectId, data: &[u8]) -> Result<bool, WriteError> {
        self.check_opens_secrets()?;
        let opened = self.open_secret(id).map_err(WriteError::Precondition)?;
        Ok(opened.as_slice() == data)
    }

    fn check_opens_secrets(&self) -> Result<(), WriteError> {
        if self.opens_secrets() {
            return Ok(());
        }
        Err(WriteError::NotManager { managers: self.control.manager_addresses() })
    }

    fn opens_secrets(&self) -> bool {
        self.control.role() == Role::Manager && self.membership.manager_key.is_some()
    }

    fn managers(&self) -> Vec<NodeId> {
        let peers = self.swarm.peers().into_iter();
        peers.filter(|peer| self.control.is_manager_by(peer.node, peer.granted)).map(|peer| peer.node).collect()
    }
}
