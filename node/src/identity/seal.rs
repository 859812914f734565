//! Sealing with a key of the cluster's: XChaCha20-Poly1305, tied to a purpose.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use shoal_protocol::object::SEAL_BYTES;
use shoal_protocol::{ClusterId, ObjectId, ServiceId};
use zeroize::Zeroizing;

use super::{IdentityError, ManagerKey, random};

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

const _: () = assert!(NONCE_BYTES + TAG_BYTES == SEAL_BYTES);

/// Seals bytes for a purpose. The nonce is random: at 192 bits repeats need not be feared.
pub(super) fn seal(key: &[u8; 32], purpose: &[u8], plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let nonce = random::<NONCE_BYTES>()?;
    let ciphertext = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: purpose })
        .map_err(|_| IdentityError::Sealed)?;
    Ok([nonce.as_slice(), &ciphertext].concat())
}

/// Opens what was sealed with `key` for the same purpose.
pub(super) fn open(key: &[u8; 32], purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(IdentityError::Sealed)?;
    let opened =
        XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: purpose });
    opened.map(Zeroizing::new).map_err(|_| IdentityError::Sealed)
}

/// What is sealed, which ties the bytes to it, so that nobody passes one off as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The data of a secret.
    Secret(ObjectId),
    /// What the registry of a service's image knows the user by.
    Credentials(ServiceId),
}

impl From<ObjectId> for Purpose {
    fn from(id: ObjectId) -> Self {
        Self::Secret(id)
    }
}

impl Purpose {
    fn bytes(self, cluster: ClusterId) -> Vec<u8> {
        let (what, id) = match self {
            Self::Secret(id) => ("shoal secret", id.0.to_le_bytes()),
            Self::Credentials(id) => ("shoal registry credentials", id.0.to_le_bytes()),
        };
        [what.as_bytes(), &cluster.0.to_le_bytes(), &id].concat()
    }
}

/// Seals a secret of users.
pub fn seal_secret(
    key: &ManagerKey,
    cluster: ClusterId,
    purpose: impl Into<Purpose>,
    plain: &[u8],
) -> Result<Vec<u8>, IdentityError> {
    seal(&key.0, &purpose.into().bytes(cluster), plain)
}

/// Opens a secret of users.
pub fn open_secret(
    key: &ManagerKey,
    cluster: ClusterId,
    purpose: impl Into<Purpose>,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    open(&key.0, &purpose.into().bytes(cluster), sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(1);
    const ID: ObjectId = ObjectId(2);

    #[test]
    fn a_secret_opens_with_its_key_as_itself_alone() {
        let (key, other) = (ManagerKey::generate().unwrap(), ManagerKey::generate().unwrap());
        let sealed = seal_secret(&key, CLUSTER, ID, b"hidden").unwrap();
        assert_eq!(sealed.len(), b"hidden".len() + SEAL_BYTES);
        assert_eq!(open_secret(&key, CLUSTER, ID, &sealed).unwrap().as_slice(), b"hidden");
        let mut damaged = sealed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        for (name, opened) in [
            ("another key", open_secret(&other, CLUSTER, ID, &sealed)),
            ("another cluster", open_secret(&key, ClusterId(9), ID, &sealed)),
            ("another secret", open_secret(&key, CLUSTER, ObjectId(9), &sealed)),
            ("credentials", open_secret(&key, CLUSTER, Purpose::Credentials(ServiceId(ID.0)), &sealed)),
            ("damaged", open_secret(&key, CLUSTER, ID, &damaged)),
            ("cut off", open_secret(&key, CLUSTER, ID, &sealed[..10])),
        ] {
            assert!(opened.is_err(), "{name}");
        }
        assert_ne!(seal_secret(&key, CLUSTER, ID, b"hidden").unwrap(), sealed, "sealed twice, it looks different");
    }
}
