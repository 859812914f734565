//! What a manager does with the cluster's secrets: shows and rotates tokens, admits nodes, issues credentials.

use shoal_control::renewal::Source;
use shoal_protocol::NodeId;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::write::{Write, WriteError, Written};
use tokio::sync::oneshot;

use super::clock;
use super::command::Tokens;
use super::member::{Member, Waiting};
use super::renewing::Issuer;
use crate::identity::{ClusterSecrets, Membership, Root};
use crate::swarm::{JOIN_PEERS_MAX, JoinRefusal, JoinReply, JoinRequest, Renewed};

impl Member {
    pub(super) fn secrets(&self) -> Result<(ClusterSecrets, Root), WriteError> {
        let not_manager = || WriteError::NotManager { managers: self.control.manager_addresses() };
        let key = self.membership.manager_key.as_ref().ok_or_else(not_manager)?;
        let cluster = self
            .control
            .store()
            .cluster()
            .ok_or_else(|| WriteError::NoQuorum("this node has not heard from another manager yet".to_owned()))?;
        let open = || {
            let root = self.membership.root()?;
            Ok::<_, crate::identity::IdentityError>((ClusterSecrets::open(&cluster.sealed, key, cluster.id)?, root))
        };
        open().map_err(|error| WriteError::Storage(error.to_string()))
    }

    /// Returns both join tokens.
    pub(super) fn tokens(&self) -> Result<Tokens, WriteError> {
        let (secrets, root) = self.secrets()?;
        let token = |role| secrets.token(&root, role).to_string();
        Ok(Tokens { worker: token(Role::Worker), manager: token(Role::Manager) })
    }

    /// Replaces the join tokens of some roles.
    pub(super) fn rotate(&mut self, roles: &[Role], version: u64, reply: oneshot::Sender<Result<Written, WriteError>>) {
        match self.rotated(roles, version) {
            Ok(cluster) => self.write(Write::UpdateCluster { cluster }, reply),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn rotated(&self, roles: &[Role], version: u64) -> Result<shoal_protocol::value::ClusterObject, WriteError> {
        let (mut secrets, _) = self.secrets()?;
        let failed = |error: crate::identity::IdentityError| WriteError::Storage(error.to_string());
        for role in roles {
            secrets.rotate(*role).map_err(failed)?;
        }
        let mut cluster = self.control.store().cluster().cloned().ok_or_else(super::membership::no_cluster)?;
        let key = self.membership.manager_key.as_ref().ok_or_else(super::membership::no_cluster)?;
        cluster.index = version;
        cluster.sealed = secrets.seal(key, cluster.id).map_err(failed)?;
        Ok(cluster)
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
                let write = Write::AdmitNode { id: request.node, role };
                self.request(write, Waiting::Join { request, role, reply });
            }
            Err(refusal) => {
                tracing::warn!(node = %request.node, source = %request.source, %refusal, "refused a node that wants to join");
                let _ = reply.send(Err(refusal));
            }
        }
    }

    pub(super) fn admitted(&self, request: &JoinRequest, granted: RoleGrant) -> Result<JoinReply, JoinRefusal> {
        let unavailable = |error: String| JoinRefusal::Unavailable(error);
        let (secrets, root) = self.secrets().map_err(|error| unavailable(error.to_string()))?;
        let credential = secrets
            .issue(&root, &request.public_key, granted, clock::now().wall)
            .map_err(|error| unavailable(error.to_string()))?;
        let manager_key = self.membership.manager_key.clone().filter(|_| granted.role == Role::Manager);
        let membership = Membership { root_pem: root.pem().to_owned(), credential, granted, manager_key };
        let own = (self.control.me(), self.swarm.advertise_address());
        let others = self.swarm.peers().into_iter().map(|peer| (peer.node, peer.address));
        let peers = std::iter::once(own).chain(others).take(JOIN_PEERS_MAX).collect();
        Ok(JoinReply { membership, peers })
    }

    /// Renews this node's own credential if it is time to.
    pub(super) fn renew_if_due(&mut self) {
        let now = clock::now();
        let signs = self.membership.manager_key.is_some();
        let role = self.control.wanted_role();
        let Some(source) = self.renewing.due(&self.swarm, signs, role != self.membership.role(), now) else { return };
        let issuer = match source {
            Source::Manager(manager) => Issuer::Manager(manager),
            Source::Itself => Issuer::Itself(self.renew(self.control.me(), &self.renewing.public_key)),
        };
        self.renewing.begin(self.swarm.clone(), self.membership.clone(), role, issuer, now.wall);
    }

    /// Issues a member's next credential, for the role in which the cluster lists it.
    pub(super) fn renew(&self, node: NodeId, public_key: &[u8; 32]) -> Result<Renewed, String> {
        let store = self.control.store();
        let (Some(record), Some(spec)) = (store.node(node), store.node_spec(node)) else {
            return Err("the cluster does not list this node".to_owned());
        };
        let granted = RoleGrant { role: spec.role, index: record.index };
        let (secrets, root) = self.secrets().map_err(|error| error.to_string())?;
        let credential =
            secrets.issue(&root, public_key, granted, clock::now().wall).map_err(|error| error.to_string())?;
        let manager_key = self.membership.manager_key.clone().filter(|_| granted.role == Role::Manager);
        Ok(Renewed { credential, manager_key })
    }
}
