//! Who a node is and to which cluster it belongs: keys, the cluster's root, credentials and what is sealed to managers.
//!
//! A node is its Ed25519 key, the same that Noise proves on every connection. A credential is an X.509 certificate for that
//! key, signed by the cluster's root: it names the node, its role and the cluster. Time is passed in; nothing here reads a
//! clock, opens a file or a socket. Keys are drawn from the operating system.

use std::fmt;

use libp2p::identity::{Keypair, ed25519};
use shoal_protocol::NodeId;
use zeroize::Zeroizing;

mod cluster;
mod credential;
mod lock;
mod membership;
mod seal;
mod trust;
mod wrap;

pub use cluster::{ClusterSecrets, create_cluster, next_edition};
pub use credential::{Credential, CredentialError, Root};
pub use lock::{AtRest, InvalidUnlockKey, Lock, UnlockKey};
pub use membership::{ManagerKey, Membership};
pub use seal::{Purpose, open_secret, seal_secret};
pub use trust::Trust;

/// Why an identity could not be made, opened or sealed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not a node's key.
    #[error("not an Ed25519 key pair of 64 bytes")]
    NotAKey,
    /// The root certificate cannot be read.
    #[error("the root certificate is malformed: {0}")]
    BadRoot(String),
    /// There is no key of the edition with which something was sealed.
    #[error("the key of edition {0} is not known any more")]
    NoKey(u64),
    /// What is sealed was not sealed with this key for this cluster, or is damaged.
    #[error("the cluster's secrets cannot be opened: wrong key or damaged")]
    Sealed,
    /// The keys are sealed, and no unlock key was given.
    #[error("the keys of this node are locked")]
    Locked,
    /// The stored membership cannot be read.
    #[error("the stored membership is malformed")]
    BadMembership {
        /// What the decoder said.
        #[source]
        source: shoal_protocol::codec::CodecError,
    },
    /// The CA key does not work.
    #[error("failed to sign a certificate")]
    Signing {
        /// What the signer said.
        #[source]
        source: rcgen::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    /// The credential does not fit.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// A node's Ed25519 key pair. Its `Debug` form shows the node's identifier only.
#[derive(Clone)]
pub struct NodeKey {
    pair: ed25519::Keypair,
}

impl NodeKey {
    /// Draws a new key.
    pub fn generate() -> Self {
        Self { pair: ed25519::Keypair::generate() }
    }

    /// Reads what [`NodeKey::to_bytes`] returned.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let mut copy = Zeroizing::new(bytes.to_vec());
        let pair = ed25519::Keypair::try_from_bytes(&mut copy).map_err(|_| IdentityError::NotAKey)?;
        Ok(Self { pair })
    }

    /// Returns the 64 bytes to keep on disk, readable by the owner only.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.to_bytes().to_vec())
    }

    /// Returns the public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.pair.public().to_bytes()
    }

    /// Returns the node that owns this key.
    pub fn node_id(&self) -> NodeId {
        NodeId::from_public_key(&self.public_key())
    }

    /// Returns the key in the form that agreeing on secrets wants.
    fn signing_key(&self) -> ed25519_dalek::SigningKey {
        let secret = self.pair.secret();
        // The first half of what libp2p keeps is the seed.
        let seed = Zeroizing::new(<[u8; 32]>::try_from(secret.as_ref()).expect("an Ed25519 seed has 32 bytes"));
        ed25519_dalek::SigningKey::from_bytes(&seed)
    }

    /// Returns the key in the form that libp2p wants.
    pub(crate) fn libp2p(&self) -> Keypair {
        self.pair.clone().into()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.node_id())
    }
}

/// Draws random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| IdentityError::NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
