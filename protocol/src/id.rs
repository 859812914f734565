//! Identifiers: 128 bits, printed as 25 base-36 characters in the manner of Docker's Swarm objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// Characters of a printed identifier: the least number of base-36 digits that hold 128 bits.
pub const ID_CHARS: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an ID: expected {ID_CHARS} characters of 0-9 and a-z")]
pub struct InvalidId {
    /// What was given, cut to 64 characters.
    pub text: String,
}

fn encode(mut value: u128) -> [u8; ID_CHARS] {
    let mut text = [b'0'; ID_CHARS];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(value % 36) as usize];
        value /= 36;
    }
    text
}

fn decode(text: &str) -> Result<u128, InvalidId> {
    let invalid = || InvalidId { text: text.chars().take(64).collect() };
    if text.len() != ID_CHARS {
        return Err(invalid());
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(invalid()),
        };
        value.checked_mul(36).and_then(|value| value.checked_add(u128::from(digit))).ok_or_else(invalid)
    })
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = encode(self.0);
                f.pad(std::str::from_utf8(&text).expect("base-36 digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                decode(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.to_le_bytes().serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(|bytes| Self(u128::from_le_bytes(bytes)))
                }
            }
        }

        impl $name {
            /// Returns the first twelve characters, as Docker's clients show identifiers.
            pub fn short(self) -> String {
                self.to_string()[..12].to_owned()
            }
        }
    )+};
}

id_types! {
    /// A node: the hash of its Ed25519 public key, so identity never depends on an address.
    NodeId,
    /// A cluster: the hash of its root certificate's public key.
    ClusterId,
    /// A service.
    ServiceId,
    /// One run of a slot on one node.
    TaskId,
    /// A secret, a config or a network.
    ObjectId,
}

impl NodeId {
    /// Derives the identifier of the node that owns an Ed25519 public key.
    pub fn from_public_key(public_key: &[u8; 32]) -> Self {
        Self(truncated_hash(b"shoal node id", public_key))
    }
}

impl ClusterId {
    /// Derives the identifier of a cluster from its root certificate in DER.
    pub fn from_root(root_der: &[u8]) -> Self {
        Self(truncated_hash(b"shoal cluster id", root_der))
    }
}

fn truncated_hash(domain: &[u8], bytes: &[u8]) -> u128 {
    let hash = Sha256::new().chain_update(domain).chain_update(bytes).finalize();
    u128::from_le_bytes(hash[..16].try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(value: u128) {
            let id = TaskId(value);
            prop_assert_eq!(id.to_string().len(), ID_CHARS);
            prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "abc", "zzzzzzzzzzzzzzzzzzzzzzzzz", "ABCDEFGHIJKLMNOPQRSTUVWXY", "0000000000000000000000000é"]
        {
            assert!(text.parse::<NodeId>().is_err(), "{text:?}");
        }
    }
}
