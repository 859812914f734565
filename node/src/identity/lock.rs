//! How a manager's keys are kept from whoever has its disk: sealed with a key that people keep, and say after each start.
//!
//! The unlock key has 256 random bits, so nothing but those bits has to be made dear to guess. What is sealed on a disk is tied
//! to its purpose and its node. Source for the form of the key that people see: SwarmKit, `manager/encryption`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::hkdf;
use serde::{Deserialize, Serialize};
use shoal_protocol::NodeId;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{IdentityError, Membership, NodeKey, random, seal};

/// What the text of an unlock key begins with. Source: SwarmKit.
const PREFIX: &str = "SWMKEY-1-";

/// What bytes begin with that are sealed for the disk. Neither a key nor a frame of the codec begins so.
const MAGIC: &[u8] = b"shoal locked 1\n";

const NODE_BYTES: usize = 16;

/// The key that people keep. Its `Debug` form hides it; dropping it erases it. Comparing two is for tests of equality between
/// copies of one, never for checking what somebody says: that is what opening does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct UnlockKey([u8; 32]);

/// The text is no unlock key. Source: SwarmKit, the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key string")]
pub struct InvalidUnlockKey;

impl UnlockKey {
    /// Draws a new key.
    pub fn generate() -> Result<Self, IdentityError> {
        random().map(Self)
    }

    /// Returns it as people keep it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", STANDARD_NO_PAD.encode(self.0)))
    }

    /// Reads what [`UnlockKey::to_text`] returned.
    pub fn from_text(text: &str) -> Result<Self, InvalidUnlockKey> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
        let mut bytes = [0; 32];
        // Longer texts are refused by the decoder, which has no room for them.
        match STANDARD_NO_PAD.decode_slice(encoded, &mut bytes) {
            Ok(32) => Ok(Self(bytes)),
            Ok(_) | Err(_) => Err(InvalidUnlockKey),
        }
    }

    /// Returns the key with which something is sealed. HKDF (RFC 5869) with SHA-256.
    fn derive(&self, purpose: Purpose) -> Zeroizing<[u8; 32]> {
        let mut derived = Zeroizing::new([0; 32]);
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"shoal unlock key");
        let info = [purpose.name()];
        salt.extract(&self.0)
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|key| key.fill(derived.as_mut()))
            .expect("HKDF gives 32 bytes of SHA-256");
        derived
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(…)")
    }
}

/// An unlock key, and which one of the cluster's it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Counts the cluster's unlock keys, from 1.
    pub number: u64,
    /// The key.
    pub key: UnlockKey,
}

/// What is sealed.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Identity,
    Membership,
}

impl Purpose {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Identity => b"shoal identity at rest",
            Self::Membership => b"shoal membership at rest",
        }
    }
}

/// A node's keys in the form that its disk has them in: in the clear, or sealed if its membership has a lock.
#[derive(Clone, PartialEq, Eq)]
pub struct AtRest {
    /// The node's key.
    pub identity: Vec<u8>,
    /// Its membership.
    pub membership: Vec<u8>,
}

impl AtRest {
    /// Puts a node's keys into the form for its disk.
    pub fn of(key: &NodeKey, membership: &Membership) -> Result<Self, IdentityError> {
        let (identity, plain) = (key.to_bytes(), membership.to_bytes()?);
        let Some(lock) = &membership.lock else {
            return Ok(Self { identity: identity.to_vec(), membership: plain.to_vec() });
        };
        let node = key.node_id();
        Ok(Self {
            identity: seal_for(&lock.key, Purpose::Identity, node, &identity)?,
            membership: seal_for(&lock.key, Purpose::Membership, node, &plain)?,
        })
    }

    /// Returns whose sealed keys these are; `None` if they are in the clear.
    pub fn sealed_of(identity: &[u8]) -> Option<NodeId> {
        let node = identity.strip_prefix(MAGIC)?.first_chunk::<NODE_BYTES>()?;
        Some(NodeId(u128::from_le_bytes(*node)))
    }

    /// Opens a node's keys. Without a lock on them `unlock` is not looked at.
    pub fn open(
        identity: &[u8],
        membership: &[u8],
        unlock: Option<&UnlockKey>,
    ) -> Result<(NodeKey, Membership), IdentityError> {
        let Some(node) = Self::sealed_of(identity) else {
            return Ok((NodeKey::from_bytes(identity)?, Membership::from_bytes(membership)?));
        };
        let unlock = unlock.ok_or(IdentityError::Locked)?;
        let key = NodeKey::from_bytes(&open_for(unlock, Purpose::Identity, node, identity)?)?;
        let membership = Membership::from_bytes(&open_for(unlock, Purpose::Membership, node, membership)?)?;
        Ok((key, membership))
    }
}

impl fmt::Debug for AtRest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtRest(…)")
    }
}

fn seal_for(key: &UnlockKey, purpose: Purpose, node: NodeId, plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let head = [MAGIC, &node.0.to_le_bytes()].concat();
    let sealed = seal::seal(&key.derive(purpose), &[purpose.name(), head.as_slice()].concat(), plain)?;
    Ok([head, sealed].concat())
}

fn open_for(
    key: &UnlockKey,
    purpose: Purpose,
    node: NodeId,
    bytes: &[u8],
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let head = [MAGIC, &node.0.to_le_bytes()].concat();
    let sealed = bytes.strip_prefix(head.as_slice()).ok_or(IdentityError::Sealed)?;
    seal::open(&key.derive(purpose), &[purpose.name(), head.as_slice()].concat(), sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::create_cluster;
    use shoal_protocol::WallTime;
    use shoal_protocol::settings::ClusterSettings;

    const NOW: WallTime = WallTime(1_795_398_702_000_000_000);

    #[test]
    fn the_text_of_a_key_is_dockers() {
        // Source: Docker Engine 20.10, as captured.
        let text = "SWMKEY-1-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGU";
        let key = UnlockKey::from_text(text).unwrap();
        assert_eq!(*key.to_text(), text);
        assert_eq!(UnlockKey::from_text(&format!(" {text}\n")).unwrap(), key);
        for text in [
            "",
            "SWMKEY-1-",
            "pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGU",
            "SWMKEY-2-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGU",
            "SWMKEY-1-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXG",
            "SWMKEY-1-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGUAAAA",
            "SWMKEY-1-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXG!",
        ] {
            assert_eq!(UnlockKey::from_text(text), Err(InvalidUnlockKey), "{text}");
        }
        assert_eq!(UnlockKey::from_text(&"SWMKEY-1-".repeat(1 << 16)), Err(InvalidUnlockKey));
        assert!(!format!("{key:?}").contains("pJZt"), "it is not printed");
    }

    fn locked() -> (NodeKey, Membership) {
        let key = NodeKey::generate();
        let settings = ClusterSettings { auto_lock: true, ..Default::default() };
        let (membership, _) = create_cluster(&key, &settings, NOW).unwrap();
        (key, membership)
    }

    fn shows(bytes: &[u8], secret: &[u8]) -> bool {
        bytes.windows(secret.len()).any(|window| window == secret)
    }

    #[test]
    fn a_locked_managers_disk_shows_no_key() {
        let (key, membership) = locked();
        let lock = membership.lock.clone().unwrap();
        let at_rest = AtRest::of(&key, &membership).unwrap();
        assert_eq!(AtRest::sealed_of(&at_rest.identity), Some(key.node_id()));
        let manager_key = membership.manager_key.clone().unwrap();
        for bytes in [&at_rest.identity, &at_rest.membership] {
            for secret in [&key.to_bytes()[..32], &manager_key.0, &lock.key.0] {
                assert!(!shows(bytes, secret));
            }
        }
        let (opened, place) = AtRest::open(&at_rest.identity, &at_rest.membership, Some(&lock.key)).unwrap();
        assert_eq!((opened.node_id(), &place), (key.node_id(), &membership));

        // Without the lock they are as before, and open without a key.
        let open = Membership { lock: None, ..membership };
        let plain = AtRest::of(&key, &open).unwrap();
        assert!(shows(&plain.identity, &key.to_bytes()) && shows(&plain.membership, &manager_key.0));
        assert_eq!(AtRest::sealed_of(&plain.identity), None);
        assert_eq!(AtRest::open(&plain.identity, &plain.membership, None).unwrap().1, open);
    }

    #[test]
    fn sealed_keys_open_with_their_unlock_key_as_themselves_alone() {
        let (key, membership) = locked();
        let lock = membership.lock.clone().unwrap();
        let AtRest { identity, membership: place } = AtRest::of(&key, &membership).unwrap();
        let (other_key, other) = locked();
        let others = AtRest::of(&other_key, &Membership { lock: Some(lock.clone()), ..other }).unwrap();
        let mut renamed = identity.clone();
        renamed[MAGIC.len()] ^= 1;
        let mut damaged = place.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let unlock = Some(&lock.key);
        for (name, opened) in [
            ("no key", AtRest::open(&identity, &place, None)),
            ("another key", AtRest::open(&identity, &place, Some(&UnlockKey::generate().unwrap()))),
            ("another node's", AtRest::open(&identity, &others.membership, unlock)),
            ("renamed", AtRest::open(&renamed, &place, unlock)),
            ("damaged", AtRest::open(&identity, &damaged, unlock)),
            ("swapped", AtRest::open(&identity, &identity, unlock)),
            ("cut off", AtRest::open(&identity[..40], &place, unlock)),
            ("nothing", AtRest::open(&identity, &[], unlock)),
        ] {
            assert!(opened.is_err(), "{name}");
        }
    }
}
