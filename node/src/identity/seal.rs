//! Sealing with a key of the cluster's: XChaCha20-Poly1305, tied to a purpose.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use shoal_protocol::object::SEAL_BYTES;
use shoal_protocol::{ClusterId, ObjectId};
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

/// Seals the data of a secret.
pub fn seal_secret(key: &ManagerKey, cluster: ClusterId, id: ObjectId, plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    seal(&key.0, &purpose_of_secret(cluster, id), plain)
}

/// Opens the data of a secret.
pub fn open_secret(
    key: &ManagerKey,
    cluster: ClusterId,
    id: ObjectId,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    open(&key.0, &purpose_of_secret(cluster, id), sealed)
}

/// Ties a secret's data to its identifier, so that nobody passes one off as another.
fn purpose_of_secret(cluster: ClusterId, id: ObjectId) -> Vec<u8> {
    [b"shoal secret".as_slice(), &cluster.0.to_le_bytes(), &id.0.to_le_bytes()].concat()
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
            ("damaged", open_secret(&key, CLUSTER, ID, &damaged)),
            ("cut off", open_secret(&key, CLUSTER, ID, &sealed[..10])),
        ] {
            assert!(opened.is_err(), "{name}");
        }
        assert_ne!(seal_secret(&key, CLUSTER, ID, b"hidden").unwrap(), sealed, "sealed twice, it looks different");
    }
}
