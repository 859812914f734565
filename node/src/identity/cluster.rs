//! The cluster's secrets: the root's key, the join secrets and the unlock key, sealed with the key that only managers have.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::token::{JoinSecret, JoinToken, Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{ClusterId, NodeId, WallTime, codec};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{IdentityError, Lock, ManagerKey, Membership, NodeKey, Root, UnlockKey, random, seal};

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
    /// What managers' keys are sealed with on their disks, while the cluster is to be locked.
    unlock: Option<UnlockKey>,
    /// Managers' keys of former editions, newest first, for secrets that are not sealed anew yet.
    former: Vec<(u64, ManagerKey)>,
}

/// Former keys that are kept. Sealing all secrets anew takes seconds, so hardly ever more than one is of use.
const FORMER_KEYS_MAX: usize = 8;

impl ClusterSecrets {
    /// Opens what was sealed with `key` for `cluster`.
    pub fn open(sealed: &[u8], key: &ManagerKey, cluster: ClusterId) -> Result<Self, IdentityError> {
        let plain = seal::open(&key.0, &associated_data(cluster), sealed)?;
        codec::decode(&plain).map_err(|_| IdentityError::Sealed)
    }

    /// Seals it with `key` for `cluster`.
    pub fn seal(&self, key: &ManagerKey, cluster: ClusterId) -> Result<Vec<u8>, IdentityError> {
        let plain = Zeroizing::new(codec::encode(self).map_err(|_| IdentityError::Sealed)?);
        seal::seal(&key.0, &associated_data(cluster), &plain)
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

    /// Issues a credential (DER), new or renewed, for the owner of a public key, from now on for so long.
    pub fn issue(
        &self,
        root: &Root,
        public_key: &[u8; 32],
        granted: RoleGrant,
        valid: (WallTime, Duration),
    ) -> Result<Vec<u8>, IdentityError> {
        root.issue(&self.ca_key, public_key, granted, valid)
    }

    /// Returns what managers' keys are to be sealed with on their disks, if with anything.
    pub fn lock(&self, cluster: &ClusterObject) -> Option<Lock> {
        let number = cluster.wanted_lock()?;
        Some(Lock { number, key: self.unlock.clone()? })
    }

    /// Replaces the unlock key; the former one opens only what no manager has sealed anew yet.
    pub fn relock(&mut self) -> Result<(), IdentityError> {
        self.unlock = Some(UnlockKey::generate()?);
        Ok(())
    }

    /// Forgets the unlock key, as managers are not to be locked any more.
    pub fn unlock(&mut self) {
        self.unlock = None;
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
pub fn create_cluster(
    key: &NodeKey,
    settings: &ClusterSettings,
    now: WallTime,
) -> Result<(Membership, ClusterObject), IdentityError> {
    let (root, ca_key) = Root::generate(now)?;
    let manager_key = ManagerKey::generate()?;
    let secrets = ClusterSecrets {
        ca_key,
        worker: JoinSecret::from_random(random()?),
        manager: JoinSecret::from_random(random()?),
        unlock: settings.auto_lock.then(UnlockKey::generate).transpose()?,
        former: Vec::new(),
    };
    let sealed = secrets.seal(&manager_key, root.cluster())?;
    let first = ClusterObject::first(root.cluster(), key.node_id(), root.pem().to_owned(), sealed, now);
    let cluster = ClusterObject { settings: settings.clone(), lock: u64::from(settings.auto_lock), ..first };
    let granted = RoleGrant::first(Role::Manager);
    let membership = Membership {
        root_pem: root.pem().to_owned(),
        credential: secrets.issue(&root, &key.public_key(), granted, (now, settings.credential()))?,
        granted,
        manager_key: Some(manager_key.clone()),
        lock: secrets.lock(&cluster),
    };
    Ok((membership, cluster))
}

/// Makes a cluster's next edition: another root, another managers' key, other join secrets. `key` is the present managers' key;
/// without it, as nobody has it any more, what is sealed with it is lost, and there is another unlock key. The next one is sealed to the public keys of
/// `managers`, who alone can open it.
pub fn next_edition(
    cluster: &ClusterObject,
    key: Option<&ManagerKey>,
    managers: &BTreeMap<NodeId, [u8; 32]>,
    now: WallTime,
) -> Result<ClusterObject, IdentityError> {
    let mut next = cluster.next_edition();
    let (mut former, mut unlock) = (Vec::new(), None);
    if let Some(key) = key {
        let mut present = ClusterSecrets::open(&cluster.sealed, key, cluster.id)?;
        former.push((cluster.edition, key.clone()));
        former.append(&mut present.former);
        former.truncate(FORMER_KEYS_MAX);
        unlock = present.unlock.take();
    }
    if unlock.is_none() && next.settings.auto_lock {
        unlock = Some(UnlockKey::generate()?);
        next.lock += 1;
    }
    let (root, ca_key) = Root::next(cluster.id, next.edition, now)?;
    let manager_key = ManagerKey::generate()?;
    let secrets = ClusterSecrets {
        ca_key,
        worker: JoinSecret::from_random(random()?),
        manager: JoinSecret::from_random(random()?),
        unlock,
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
