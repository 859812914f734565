//! Where this node's tasks get their secrets, configs and registry credentials: from its own document, or what only managers can
//! open from a manager.
//!
//! The decisions are [`shoal_control::core::Control::may_have`] and [`shoal_control::core::Control::credentials_for`], on the
//! manager that hands out; a manager asks itself the same.

use std::sync::Arc;

use async_trait::async_trait;
use rand::seq::SliceRandom;
use shoal_control::core::Withheld;
use shoal_control::task::PlannedFile;
use shoal_protocol::object::{FileSpec, Sealed};
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::token::Role;
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Kind, NodeId, ObjectId, ServiceId, TaskId};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::member::{Member, Waiting};
use crate::driver::files::{FileContent, FileSource, TaskFiles};
use crate::identity::{Purpose, open_secret, seal_secret};
use crate::swarm::{Hidden, SecretError, SwarmHandle};

/// Questions that may wait for the loop; whoever comes after waits to be let in.
const ASKS_MAX: usize = 16;

/// Managers that are asked for one secret in one attempt; the next attempt asks others, by chance.
const MANAGERS_ASKED_MAX: usize = 3;

/// The bytes of a secret or config.
type Content = Zeroizing<Vec<u8>>;

/// A question of this node's own tasks.
pub(super) struct FileAsk {
    task: TaskId,
    what: Asked,
    reply: oneshot::Sender<Result<Have, Withheld>>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    File(Kind, ObjectId),
    Credentials,
}

/// Something that may be had.
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
        let Have { place, is_template } = self.ask(task, Asked::File(file.kind, file.id)).await?;
        let bytes = self.fetch(task, place, Hidden::Secret(file.id)).await?;
        Ok(FileContent { bytes, is_template })
    }

    async fn credentials(&self, task: TaskId) -> Result<Option<RegistryAuth>, Withheld> {
        let Have { place, .. } = self.ask(task, Asked::Credentials).await?;
        let bytes = self.fetch(task, place, Hidden::Credentials).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let auth = serde_json::from_slice(&bytes).map_err(|_| Withheld::Refused("they are malformed".to_owned()))?;
        Ok(Some(auth))
    }
}

impl Fetcher {
    /// Asks this node itself.
    async fn ask(&self, task: TaskId, what: Asked) -> Result<Have, Withheld> {
        let ended = || Withheld::NotYet("the daemon is shutting down".to_owned());
        let (reply, answer) = oneshot::channel();
        self.asks.send(FileAsk { task, what, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Takes something from where it is.
    async fn fetch(&self, task: TaskId, place: Place, what: Hidden) -> Result<Content, Withheld> {
        let mut managers = match place {
            Place::Here(bytes) => return Ok(bytes),
            Place::Ask(managers) => managers,
        };
        managers.shuffle(&mut rand::rng());
        let mut last = "no manager is connected".to_owned();
        for manager in managers.into_iter().take(MANAGERS_ASKED_MAX) {
            match self.swarm.secret(manager, task, what).await {
                Ok(bytes) => return Ok(bytes),
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
        let FileAsk { task, what, reply } = ask;
        // Whoever asked may have given up.
        let _ = reply.send(match what {
            Asked::File(kind, id) => self.file(task, kind, id),
            Asked::Credentials => self.credentials(task),
        });
    }

    fn credentials(&self, task: TaskId) -> Result<Have, Withheld> {
        let me = self.control.me();
        let place = match self.control.credentials_for(me, task)? {
            None => Place::Here(Content::default()),
            Some(_) if !self.opens_secrets() => Place::Ask(self.managers()),
            Some(_) => Place::Here(self.credentials_of(me, task)?),
        };
        Ok(Have { place, is_template: false })
    }

    /// Opens what a task of a node needs, if it may have it. `node` was proved by the connection, or is this node.
    pub(super) fn hidden_for(&self, node: NodeId, task: TaskId, what: Hidden) -> Result<Content, Withheld> {
        match what {
            Hidden::Secret(id) => self.secret_for(node, task, id),
            Hidden::Credentials => self.credentials_of(node, task),
        }
    }

    fn credentials_of(&self, node: NodeId, task: TaskId) -> Result<Content, Withheld> {
        if !self.opens_secrets() {
            return Err(Withheld::NotYet("the asked node is no manager".to_owned()));
        }
        match self.control.credentials_for(node, task)? {
            None => Ok(Content::default()),
            Some((service, sealed)) => {
                let opened = self.open(Purpose::Credentials(service), sealed.edition, &sealed.data);
                opened.map_err(|error| Withheld::NotYet(format!("they cannot be opened: {error}")))
            }
        }
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

    fn secret_for(&self, node: NodeId, task: TaskId, id: ObjectId) -> Result<Content, Withheld> {
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
        let opened = self.open(id.into(), object.head.edition, &object.data);
        opened.map_err(|error| format!("secret {id} cannot be opened: {error}"))
    }

    fn open(&self, purpose: Purpose, edition: u64, data: &[u8]) -> Result<Content, String> {
        let (key, cluster) = self.managers_key().map_err(|error| error.to_string())?;
        let opened = match edition == cluster.edition {
            true => open_secret(&key, cluster.id, purpose, data),
            false => self
                .secrets()
                .map_err(|error| error.to_string())?
                .0
                .former_key(edition)
                .and_then(|key| open_secret(key, cluster.id, purpose, data)),
        };
        opened.map_err(|error| error.to_string())
    }

    /// Seals the data of a secret, or registry credentials.
    pub(super) fn seal(&self, purpose: Purpose, data: &[u8]) -> Result<Sealed, WriteError> {
        self.check_opens_secrets()?;
        let (key, cluster) = self.managers_key()?;
        let data =
            seal_secret(&key, cluster.id, purpose, data).map_err(|error| WriteError::Storage(error.to_string()))?;
        Ok(Sealed { edition: cluster.edition, data })
    }

    /// Seals a secret anew with the present key, and asks for it to be written.
    pub(super) fn reseal(&mut self, id: ObjectId) {
        let sealed =
            self.open_secret(id).and_then(|content| self.seal(id.into(), &content).map_err(|error| error.to_string()));
        match sealed {
            Ok(Sealed { edition, data }) => self.request(Write::ResealSecret { id, edition, data }, Waiting::Keys),
            Err(error) => tracing::error!(secret = %id, %error, "failed to seal a secret with the present key"),
        }
    }

    /// The same for a service's credentials.
    pub(super) fn reseal_credentials(&mut self, id: ServiceId) {
        let Some(service) = self.control.store().service(id) else { return };
        let purpose = Purpose::Credentials(id);
        let again = |sealed: &Sealed| {
            let content = self.open(purpose, sealed.edition, &sealed.data)?;
            self.seal(purpose, &content).map_err(|error| error.to_string())
        };
        let version = service.index;
        let both =
            service.credentials.as_ref().map(again).transpose().and_then(|credentials| {
                Ok((credentials, service.previous_credentials.as_ref().map(again).transpose()?))
            });
        match both {
            Ok((credentials, previous)) => {
                self.request(Write::ResealCredentials { id, version, credentials, previous }, Waiting::Keys);
            }
            Err(error) => tracing::error!(service = %id, %error, "failed to seal credentials with the present key"),
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
