//! What a node keeps on disk to prove that it is a member.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_control::renewal::Validity;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{ClusterId, WallTime, codec};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Credential, CredentialError, IdentityError, Lock, NodeKey, Root, random, wrap};

/// The key that only managers have: it opens [`super::ClusterSecrets`]. Its `Debug` form hides it; dropping it erases it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct ManagerKey(pub(super) [u8; 32]);

impl ManagerKey {
    /// Draws a new key.
    pub fn generate() -> Result<Self, IdentityError> {
        random().map(Self)
    }

    /// Returns the key of a cluster's edition if it is sealed to a node in it.
    pub fn sealed_to(node: &NodeKey, cluster: &ClusterObject) -> Option<Result<Self, IdentityError>> {
        let sealed = cluster.keys.get(&node.node_id()).filter(|sealed| !sealed.is_empty())?;
        let opened = wrap::open_with(node, &Self::purpose(cluster), sealed);
        Some(opened.and_then(|key| key.as_slice().try_into().map(Self).map_err(|_| IdentityError::Sealed)))
    }

    /// Seals it to the owner of a public key, as the key of a cluster's edition.
    pub(super) fn seal_to(&self, public_key: &[u8; 32], cluster: &ClusterObject) -> Result<Vec<u8>, IdentityError> {
        wrap::seal_to(public_key, &Self::purpose(cluster), &self.0)
    }

    /// Ties a sealed key to its cluster and edition.
    fn purpose(cluster: &ClusterObject) -> Vec<u8> {
        [b"shoal managers' key".as_slice(), &cluster.id.0.to_le_bytes(), &cluster.edition.to_le_bytes()].concat()
    }
}

impl fmt::Debug for ManagerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ManagerKey(…)")
    }
}

/// A node's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster's root certificate, PEM.
    pub root_pem: String,
    /// This node's credential, DER.
    pub credential: Vec<u8>,
    /// What the credential says of this node's role.
    pub granted: RoleGrant,
    /// Only on managers. It is of the edition of the root that issued the credential.
    pub manager_key: Option<ManagerKey>,
    /// What this node's keys are sealed with on its disk. Only on managers, and only while the cluster is to be locked.
    pub lock: Option<Lock>,
}

impl Membership {
    /// Returns this node's role.
    pub fn role(&self) -> Role {
        self.granted.role
    }

    /// Returns the cluster's root.
    pub fn root(&self) -> Result<Root, IdentityError> {
        Root::from_pem(&self.root_pem)
    }

    /// Returns the cluster.
    pub fn cluster(&self) -> Result<ClusterId, IdentityError> {
        self.root().map(|root| root.cluster())
    }

    /// Verifies the node's own credential.
    pub fn verify(&self, public_key: &[u8; 32], now: WallTime) -> Result<Credential, IdentityError> {
        Ok(self.root()?.verify(&self.credential, public_key, now)?)
    }

    /// Returns from when until when the node's own credential is valid, or was.
    pub fn valid(&self, public_key: &[u8; 32]) -> Result<Validity, IdentityError> {
        // At the end of time everything that is otherwise in order has ended, and the error says when.
        match self.root()?.verify(&self.credential, public_key, WallTime(u64::MAX)) {
            Ok(credential) => Ok(credential.valid),
            Err(CredentialError::Expired(valid)) => Ok(valid),
            Err(error) => Err(error.into()),
        }
    }

    /// Encodes it. A manager's form holds the managers' key: on disk it is put in the form of [`super::AtRest`].
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        codec::encode(self).map(Zeroizing::new).map_err(|source| IdentityError::BadMembership { source })
    }

    /// Reads what [`Membership::to_bytes`] returned.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        codec::decode(bytes).map_err(|source| IdentityError::BadMembership { source })
    }
}
