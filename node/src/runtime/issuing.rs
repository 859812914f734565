//! What a manager does with the cluster's secrets: shows and replaces them, admits nodes, issues credentials.

use shoal_control::core::{Relocking, Trust};
use shoal_control::renewal::Source;
use shoal_protocol::NodeId;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::write::{Write, WriteError, Written};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::clock;
use super::command::Tokens;
use super::member::{Member, Waiting};
use super::renewing::{Issuer, Wanted};
use crate::api::Rotation;
use crate::identity::{ClusterSecrets, IdentityError, ManagerKey, Membership, Root, next_edition};
use crate::swarm::{JOIN_PEERS_MAX, JoinRefusal, JoinReply, JoinRequest, Renewed};

impl Member {
    /// Returns the managers' key of the cluster's present edition, and the cluster.
    pub(super) fn managers_key(&self) -> Result<(ManagerKey, &ClusterObject), WriteError> {
        let cluster = self
            .control
            .store()
            .cluster()
            .ok_or_else(|| WriteError::NoQuorum("this node has not heard from another manager yet".to_owned()))?;
        if let Some(key) = &self.membership.manager_key
            && self.membership.granted.edition == cluster.edition
        {
            return Ok((key.clone(), cluster));
        }
        match ManagerKey::sealed_to(&self.renewing.key, cluster) {
            Some(opened) => Ok((opened.map_err(|error| WriteError::Storage(error.to_string()))?, cluster)),
            None if self.membership.manager_key.is_none() => {
                Err(WriteError::NotManager { managers: self.control.manager_addresses() })
            }
            None => {
                let text = "the managers' key was replaced, and this node has not got the new one yet";
                Err(WriteError::NoQuorum(text.to_owned()))
            }
        }
    }

    pub(super) fn secrets(&self) -> Result<(ClusterSecrets, Root), WriteError> {
        let (key, cluster) = self.managers_key()?;
        let open = || {
            let root = Root::from_pem(&cluster.root_pem)?;
            Ok::<_, IdentityError>((ClusterSecrets::open(&cluster.sealed, &key, cluster.id)?, root))
        };
        open().map_err(|error| WriteError::Storage(error.to_string()))
    }

    /// Returns both join tokens.
    pub(super) fn tokens(&self) -> Result<Tokens, WriteError> {
        let (secrets, root) = self.secrets()?;
        let token = |role| secrets.token(&root, role).to_string();
        Ok(Tokens { worker: token(Role::Worker), manager: token(Role::Manager) })
    }

    /// Returns the unlock key, if managers are to be locked.
    pub(super) fn unlock_key(&self) -> Result<Option<Zeroizing<String>>, WriteError> {
        let ((secrets, _), (_, cluster)) = (self.secrets()?, self.managers_key()?);
        Ok(secrets.lock(cluster).map(|lock| lock.key.to_text()))
    }

    /// Replaces and changes what a user wants; all keys together a moment later.
    pub(super) fn rotate(
        &mut self,
        what: &Rotation,
        version: u64,
        reply: oneshot::Sender<Result<Written, WriteError>>,
    ) {
        match self.rotated(what, version) {
            Ok(cluster) => self.write(Write::UpdateCluster { cluster }, reply),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn rotated(&self, what: &Rotation, version: u64) -> Result<ClusterObject, WriteError> {
        let (key, cluster) = self.managers_key()?;
        let settings = what.settings.clone().unwrap_or_else(|| cluster.settings.clone());
        let relocking = Relocking::of(cluster.settings.auto_lock, settings.auto_lock, what.unlock_key)?;
        let rotate = cluster.rotate || what.keys;
        let mut changed = ClusterObject { index: version, settings, rotate, ..cluster.clone() };
        if what.tokens.is_empty() && relocking == Relocking::Keep {
            return Ok(changed);
        }
        let (mut secrets, _) = self.secrets()?;
        let failed = |error: IdentityError| WriteError::Storage(error.to_string());
        for role in &what.tokens {
            secrets.rotate(*role).map_err(failed)?;
        }
        match relocking {
            Relocking::Keep => {}
            Relocking::Drop => secrets.unlock(),
            Relocking::Replace => {
                secrets.relock().map_err(failed)?;
                changed.lock += 1;
            }
        }
        changed.sealed = secrets.seal(&key, cluster.id).map_err(failed)?;
        Ok(changed)
    }

    /// Makes the cluster's next edition and asks for it to be written. The key is sealed to the managers that are linked; others
    /// get it over a connection.
    pub(super) fn rotate_keys(&mut self) {
        match self.next_edition() {
            Ok(cluster) => {
                tracing::info!(edition = cluster.edition, "replacing the root, the managers' key and the join tokens");
                self.request(Write::UpdateCluster { cluster }, Waiting::Keys);
            }
            Err(error) => tracing::error!(%error, "failed to make new keys for the cluster; trying again"),
        }
    }

    fn next_edition(&self) -> Result<ClusterObject, WriteError> {
        let key = match self.managers_key() {
            Ok((key, _)) => Some(key),
            Err(_) if self.control.is_key_lost() => {
                tracing::error!(
                    "no manager has the cluster's keys any more: secrets that were sealed with them are lost"
                );
                None
            }
            Err(error) => return Err(error),
        };
        let cluster = self.control.store().cluster().ok_or_else(super::membership::no_cluster)?;
        let me = self.control.me();
        let managers = self.control.store().nodes().filter(|(_, _, spec)| spec.role == Role::Manager);
        let public_key = |node| match node == me {
            true => Some(self.renewing.key.public_key()),
            false => self.swarm.public_key(node),
        };
        let managers = managers.filter_map(|(node, ..)| Some((node, public_key(node)?))).collect();
        next_edition(cluster, key.as_ref(), &managers, clock::now().wall)
            .map_err(|error| WriteError::Storage(error.to_string()))
    }

    /// The document says anew whom to let in.
    pub(super) fn trust(&self, trust: Trust) {
        if let Err(error) = self.swarm.set_trust(trust) {
            tracing::error!(%error, "this node's own root certificate cannot be read");
        }
    }

    /// A node wants to join: the secret says in which role, the cluster has to write it down first.
    pub(super) fn join_request(
        &mut self,
        request: JoinRequest,
        reply: oneshot::Sender<Result<JoinReply, JoinRefusal>>,
    ) {
        let role = match self.secrets() {
            Ok((secrets, _)) => secrets.role_of(&request.secret).ok_or(JoinRefusal::InvalidToken),
            Err(error) => Err(JoinRefusal::Unavailable(error.to_string())),
        };
        match role {
            Ok(_) if self.control.store().is_banned(request.node) => {
                let _ = reply.send(Err(JoinRefusal::Banned));
            }
            Ok(role) => {
                let write = Write::AdmitNode { id: request.node, role, availability: request.availability };
                self.request(write, Waiting::Join { request, role, reply });
            }
            Err(refusal) => {
                tracing::warn!(node = %request.node, source = %request.source, %refusal, "refused a node that wants to join");
                let _ = reply.send(Err(refusal));
            }
        }
    }

    pub(super) fn admitted(&self, request: &JoinRequest, role: Role, index: u64) -> Result<JoinReply, JoinRefusal> {
        let unavailable = |error: String| JoinRefusal::Unavailable(error);
        let (secrets, root) = self.secrets().map_err(|error| unavailable(error.to_string()))?;
        let (key, cluster) = self.managers_key().map_err(|error| unavailable(error.to_string()))?;
        let granted = RoleGrant { role, index, edition: root.edition() };
        let valid = (clock::now().wall, cluster.settings.credential());
        let credential = secrets
            .issue(&root, &request.public_key, granted, valid)
            .map_err(|error| unavailable(error.to_string()))?;
        // It was just admitted as a manager, and so is noted as one that has the key.
        let (manager_key, lock) = match role {
            Role::Manager => (Some(key), secrets.lock(cluster)),
            Role::Worker => (None, None),
        };
        let membership = Membership { root_pem: root.pem().to_owned(), credential, granted, manager_key, lock };
        let own = (self.control.me(), self.swarm.advertise_address());
        let others = self.swarm.peers().into_iter().map(|peer| (peer.node, peer.address));
        let peers = std::iter::once(own).chain(others).take(JOIN_PEERS_MAX).collect();
        Ok(JoinReply { membership, peers })
    }

    /// Renews this node's own credential if it is time to.
    pub(super) fn renew_if_due(&mut self) {
        let now = clock::now();
        let lock = self.control.wanted_lock();
        let is_locked_right = self.membership.lock.as_ref().map(|lock| lock.number) == lock;
        if !self.renewing.is_due(self.control.is_outdated() || !is_locked_right, now.time) {
            return;
        }
        let role = self.control.wanted_role();
        let Some(root) = self.wanted_root() else { return };
        // Another role is for others to give.
        let signs = role == self.membership.role() && self.managers_key().is_ok();
        let linked = self.swarm.peers().into_iter().filter(|peer| peer.granted.role == Role::Manager);
        let managers = linked.map(|peer| peer.node).collect();
        let source = self.renewing.due(&managers, signs, now);
        let issuer = match source {
            None => return,
            Some(Source::Manager(manager)) => Issuer::Manager(manager),
            Some(Source::Itself) => Issuer::Itself(self.renew(self.control.me(), &self.renewing.key.public_key())),
        };
        let wanted = Wanted { role, root, lock, present: self.membership.lock.clone() };
        self.renewing.begin(self.swarm.clone(), wanted, issuer, now.wall);
    }

    /// Returns the root that is to sign this node's credential.
    fn wanted_root(&self) -> Option<Root> {
        let said = self.control.store().cluster().and_then(|cluster| Root::from_pem(&cluster.root_pem).ok());
        said.or_else(|| self.membership.root().ok())
    }

    /// Issues a member's next credential, for the role in which the cluster lists it.
    pub(super) fn renew(&self, node: NodeId, public_key: &[u8; 32]) -> Result<Renewed, String> {
        let store = self.control.store();
        let (Some(record), Some(spec)) = (store.node(node), store.node_spec(node)) else {
            return Err("the cluster does not list this node".to_owned());
        };
        let (secrets, root) = self.secrets().map_err(|error| error.to_string())?;
        let granted = RoleGrant { role: spec.role, index: record.index, edition: root.edition() };
        let may_have_key = node == self.control.me() || self.control.may_have_key(node);
        let (key, cluster) = self.managers_key().map_err(|error| error.to_string())?;
        let (manager_key, lock) = match granted.role {
            Role::Worker => (None, None),
            Role::Manager if may_have_key => (Some(key), secrets.lock(cluster)),
            Role::Manager => {
                return Err(
                    "the asked manager does not know yet that this node is to have the managers' key".to_owned()
                );
            }
        };
        let valid = (clock::now().wall, cluster.settings.credential());
        let credential = secrets.issue(&root, public_key, granted, valid).map_err(|error| error.to_string())?;
        Ok(Renewed { credential, manager_key, lock })
    }
}
