//! Sealing to a node's key: HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
//!
//! A node's Ed25519 key serves as X25519 key by the birational map of the two curves (RFC 7748, section 4.1). Who sealed it is
//! not proved: what is sealed has to come from a manager.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zeroize::Zeroizing;

use super::{IdentityError, NodeKey, random};

/// Bytes of the sender's ephemeral key, before what is sealed.
const ENCAPSULATED_BYTES: usize = 32;

type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Seals bytes for a purpose to the owner of a public key (Ed25519).
pub(super) fn seal_to(public_key: &[u8; 32], purpose: &[u8], plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let point =
        ed25519_dalek::VerifyingKey::from_bytes(public_key).map_err(|_| IdentityError::NotAKey)?.to_montgomery();
    let recipient = PublicKey::from_bytes(point.as_bytes()).map_err(|_| IdentityError::NotAKey)?;
    let mut drawn = StdRng::from_seed(random()?);
    let (encapsulated, sealed) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &recipient,
        purpose,
        plain,
        &[],
        &mut drawn,
    )
    .map_err(|_| IdentityError::Sealed)?;
    Ok([encapsulated.to_bytes().as_slice(), &sealed].concat())
}

/// Opens what was sealed to `key` for the same purpose.
pub(super) fn open_with(key: &NodeKey, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let (encapsulated, sealed) = sealed.split_at_checked(ENCAPSULATED_BYTES).ok_or(IdentityError::Sealed)?;
    let encapsulated = Encapsulated::from_bytes(encapsulated).map_err(|_| IdentityError::Sealed)?;
    let scalar = Zeroizing::new(key.signing_key().to_scalar_bytes());
    let own = PrivateKey::from_bytes(scalar.as_slice()).map_err(|_| IdentityError::NotAKey)?;
    let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &own,
        &encapsulated,
        purpose,
        sealed,
        &[],
    );
    opened.map(Zeroizing::new).map_err(|_| IdentityError::Sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_opens_it_for_its_purpose() {
        let (key, other) = (NodeKey::generate(), NodeKey::generate());
        let sealed = seal_to(&key.public_key(), b"keys", b"hidden").unwrap();
        assert_eq!(open_with(&key, b"keys", &sealed).unwrap().as_slice(), b"hidden");
        let mut damaged = sealed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        for (name, opened) in [
            ("another node", open_with(&other, b"keys", &sealed)),
            ("another purpose", open_with(&key, b"other", &sealed)),
            ("damaged", open_with(&key, b"keys", &damaged)),
            ("cut off", open_with(&key, b"keys", &sealed[..40])),
            ("shorter than a key", open_with(&key, b"keys", &sealed[..7])),
            ("nothing", open_with(&key, b"keys", &[])),
        ] {
            assert!(opened.is_err(), "{name}");
        }
        assert_ne!(seal_to(&key.public_key(), b"keys", b"hidden").unwrap(), sealed, "each time anew");
        // A point of small order has no secret: whoever shows it as its key gets nothing.
        assert!(seal_to(&[0; 32], b"keys", b"hidden").is_err());
    }
}
