//! The cluster's secrets: the root's key and the join secrets, sealed with the key that only managers have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_protocol::token::{JoinSecret, JoinToken, Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{ClusterId, NodeId, WallTime, codec};
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
    /// Managers' keys of former editions, newest first, for secrets that are not sealed anew yet.
    former: Vec<(u64, ManagerKey)>,
}

/// Former keys that are kept. Sealing all secrets anew takes seconds, so hardly ever more than one is of use.
const FORMER_KEYS_MAX: usize = 8;

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

    /// Returns the managers' key of a former edition.
    pub fn former_key(&self, edition: u64) -> Result<&ManagerKey, IdentityError> {
        let key = self.former.iter().find(|(of, _)| *of == edition);
        key.map(|(_, key)| key).ok_or(IdentityError::NoKey(edition))
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
        former: Vec::new(),
    };
    let granted = RoleGrant::first(Role::Manager);
    let membership = Membership {
        root_pem: root.pem().to_owned(),
        credential: secrets.issue(&root, &key.public_key(), granted, now)?,
        granted,
        manager_key: Some(manager_key.clone()),
    };
    let sealed = secrets.seal(&manager_key, root.cluster())?;
    let cluster = ClusterObject::first(root.cluster(), key.node_id(), root.pem().to_owned(), sealed, now);
    Ok((membership, cluster))
}

/// Makes a cluster's next edition: another root, another managers' key, other join secrets. `key` is the present managers' key;
/// without it, as nobody has it any more, what is sealed with it is lost. The next one is sealed to the public keys of
/// `managers`, who alone can open it.
pub fn next_edition(
    cluster: &ClusterObject,
    key: Option<&ManagerKey>,
    managers: &BTreeMap<NodeId, [u8; 32]>,
    now: WallTime,
) -> Result<ClusterObject, IdentityError> {
    let mut former = Vec::new();
    if let Some(key) = key {
        let mut present = ClusterSecrets::open(&cluster.sealed, key, cluster.id)?;
        former.push((cluster.edition, key.clone()));
        former.append(&mut present.former);
        former.truncate(FORMER_KEYS_MAX);
    }
    let mut next = cluster.next_edition();
    let (root, ca_key) = Root::next(cluster.id, next.edition, now)?;
    let manager_key = ManagerKey::generate()?;
    let secrets = ClusterSecrets {
        ca_key,
        worker: JoinSecret::from_random(random()?),
        manager: JoinSecret::from_random(random()?),
        former,
    };
    next.root_pem = root.pem().to_owned();
    next.sealed = secrets.seal(&manager_key, cluster.id)?;
    for (node, public_key) in managers {
        next.keys.insert(*node, manager_key.seal_to(public_key, &next)?);
    }
    Ok(next)
}

/// Ties what is sealed to its purpose and its cluster.
fn associated_data(cluster: ClusterId) -> Vec<u8> {
    [b"shoal cluster secrets".as_slice(), &cluster.0.to_le_bytes()].concat()
}
