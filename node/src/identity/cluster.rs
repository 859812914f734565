//! The cluster's secrets: the root's key and the join secrets, sealed with the key that only managers have.

use serde::{Deserialize, Serialize};
use shoal_protocol::token::{JoinSecret, JoinToken, Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{ClusterId, WallTime, codec};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{IdentityError, ManagerKey, Membership, NodeKey, Root, random, seal};

/// What `ClusterObject::sealed` holds. Dropping it erases the root's key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecrets {
    /// The root's key, PKCS #8 in DER.
    ca_key: Vec<u8>,
    /// The secret of worker tokens.
    #[zeroize(skip)]
    worker: JoinSecret,
    /// The secret of manager tokens.
    #[zeroize(skip)]
    manager: JoinSecret,
}

impl ClusterSecrets {
    /// Opens what was sealed with `key` for `cluster`.
    pub fn open(sealed: &[u8], key: &ManagerKey, cluster: ClusterId) -> Result<Self, IdentityError> {
        let plain = seal::open(key, &associated_data(cluster), sealed)?;
        codec::decode(&plain).map_err(|_| IdentityError::Sealed)
    }

    /// Seals it with `key` for `cluster`.
    pub fn seal(&self, key: &ManagerKey, cluster: ClusterId) -> Result<Vec<u8>, IdentityError> {
        let plain = Zeroizing::new(codec::encode(self).map_err(|_| IdentityError::Sealed)?);
        seal::seal(key, &associated_data(cluster), &plain)
    }

    /// Returns the join token for a role.
    pub fn token(&self, root: &Root, role: Role) -> JoinToken {
        JoinToken::new(root.der(), self.secret(role).clone())
    }

    /// Replaces the join secret of a role; tokens given out before are void.
    pub fn rotate(&mut self, role: Role) -> Result<(), IdentityError> {
        let secret = JoinSecret::from_random(random()?);
        match role {
            Role::Worker => self.worker = secret,
            Role::Manager => self.manager = secret,
        }
        Ok(())
    }

    /// Returns the role that a joiner's secret grants, if any.
    pub fn role_of(&self, secret: &JoinSecret) -> Option<Role> {
        [Role::Manager, Role::Worker].into_iter().find(|role| self.secret(*role).matches(secret))
    }

    /// Issues a credential (DER), new or renewed, for the owner of a public key.
    pub fn issue(
        &self,
        root: &Root,
        public_key: &[u8; 32],
        granted: RoleGrant,
        now: WallTime,
    ) -> Result<Vec<u8>, IdentityError> {
        root.issue(&self.ca_key, public_key, granted, now)
    }

    fn secret(&self, role: Role) -> &JoinSecret {
        match role {
            Role::Worker => &self.worker,
            Role::Manager => &self.manager,
        }
    }
}

impl std::fmt::Debug for ClusterSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecrets(…)")
    }
}

/// Makes a new cluster with the owner of `key` as its first manager. Returns that node's membership and the cluster's first
/// object.
pub fn create_cluster(key: &NodeKey, now: WallTime) -> Result<(Membership, ClusterObject), IdentityError> {
    let (root, ca_key) = Root::generate(now)?;
    let manager_key = ManagerKey::generate()?;
    let secrets = ClusterSecrets {
        ca_key,
        worker: JoinSecret::from_random(random()?),
        manager: JoinSecret::from_random(random()?),
    };
    let granted = RoleGrant::first(Role::Manager);
    let membership = Membership {
        root_pem: root.pem().to_owned(),
        credential: secrets.issue(&root, &key.public_key(), granted, now)?,
        granted,
        manager_key: Some(manager_key.clone()),
    };
    let cluster = ClusterObject {
        id: root.cluster(),
        index: 1,
        created: now,
        updated: now,
        root_pem: root.pem().to_owned(),
        sealed: secrets.seal(&manager_key, root.cluster())?,
    };
    Ok((membership, cluster))
}

/// Ties what is sealed to its purpose and its cluster.
fn associated_data(cluster: ClusterId) -> Vec<u8> {
    [b"shoal cluster secrets".as_slice(), &cluster.0.to_le_bytes()].concat()
}
