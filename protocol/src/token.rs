//! Join tokens in Swarm's shape: `SWMTKN-1-<digest of the root certificate>-<secret>`.
//!
//! The digest tells a joiner whom it talks to before it says the secret; the secret tells the cluster which role was
//! granted. Source: SwarmKit, `ca.GenerateJoinToken`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const PREFIX: &str = "SWMTKN-1-";
/// Base-36 digits that hold 256 bits.
const DIGEST_CHARS: usize = 50;
/// Base-36 digits that hold 128 bits.
const SECRET_CHARS: usize = 25;

/// What a node may do in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks, may vote, hold leases and author desired state.
    Manager,
}

/// A role as a credential grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RoleGrant {
    /// The role.
    pub role: Role,
    /// The index of the node's record by which it was granted. Who has a record with a lower index has not heard of the grant
    /// yet; one with a greater index may have taken it back.
    pub index: u64,
    /// The edition of the root that signed it; 0 if that root is not known. What a former root signed says nothing that a
    /// record does not say.
    pub edition: u64,
}

impl RoleGrant {
    /// Returns the grant of a node's first record by a cluster's first root.
    pub fn first(role: Role) -> Self {
        Self { role, index: 1, edition: 1 }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// A join token. Its `Debug` form hides the secret; `Display` prints it whole.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate in DER.
    pub root_digest: [u8; 32],
    /// The role's secret.
    pub secret: JoinSecret,
}

/// The secret part of a join token, as text of 25 base-36 characters. Its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecret(String);

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: expected {PREFIX}<{DIGEST_CHARS} characters>-<{SECRET_CHARS} characters> of 0-9 and a-z")]
pub struct InvalidToken;

impl JoinSecret {
    /// Makes a secret from 16 random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(to_base36(&bytes, SECRET_CHARS))
    }

    /// Compares in time that does not depend on where the two differ.
    pub fn matches(&self, other: &JoinSecret) -> bool {
        self.0.len() == other.0.len()
            && self.0.bytes().zip(other.0.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl JoinToken {
    /// Makes the token for a root certificate (DER) and a role's secret.
    pub fn new(root_der: &[u8], secret: JoinSecret) -> Self {
        Self { root_digest: Sha256::digest(root_der).into(), secret }
    }

    /// Returns whether a root certificate (DER) is the one this token was made for.
    pub fn is_for_root(&self, root_der: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(root_der).into();
        digest == self.root_digest
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", to_base36(&self.root_digest, DIGEST_CHARS), self.secret.0)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(SWMTKN-1-…)")
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let (digest, secret) =
            text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(InvalidToken)?;
        if secret.len() != SECRET_CHARS
            || !secret.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
        {
            return Err(InvalidToken);
        }
        Ok(Self { root_digest: from_base36(digest)?, secret: JoinSecret(secret.to_owned()) })
    }
}

/// Writes big-endian bytes as base-36, padded with zeros to `chars`.
fn to_base36(bytes: &[u8], chars: usize) -> String {
    let mut digits = vec![0u8; chars];
    for &byte in bytes {
        let mut carry = u32::from(byte);
        for digit in digits.iter_mut().rev() {
            carry += u32::from(*digit) * 256;
            *digit = (carry % 36) as u8;
            carry /= 36;
        }
    }
    digits.into_iter().map(|digit| char::from_digit(u32::from(digit), 36).expect("below 36")).collect()
}

fn from_base36(text: &str) -> Result<[u8; 32], InvalidToken> {
    if text.len() != DIGEST_CHARS {
        return Err(InvalidToken);
    }
    let mut bytes = [0u8; 32];
    for char in text.bytes() {
        let mut carry = match char {
            b'0'..=b'9' => u32::from(char - b'0'),
            b'a'..=b'z' => u32::from(char - b'a') + 10,
            _ => return Err(InvalidToken),
        };
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 36;
            *byte = (carry % 256) as u8;
            carry /= 256;
        }
        if carry != 0 {
            return Err(InvalidToken);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_print_and_parse(root: Vec<u8>, secret: [u8; 16]) {
            let token = JoinToken::new(&root, JoinSecret::from_random(secret));
            let text = token.to_string();
            prop_assert_eq!(text.len(), 85);
            let parsed: JoinToken = text.parse().unwrap();
            prop_assert!(parsed.is_for_root(&root));
            prop_assert!(parsed.secret.matches(&token.secret));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn damaged_tokens_are_refused_and_secrets_stay_hidden() {
        let token = JoinToken::new(b"root", JoinSecret::from_random([7; 16]));
        let text = token.to_string();
        assert!(text[..84].parse::<JoinToken>().is_err());
        assert!(text.to_uppercase().parse::<JoinToken>().is_err());
        assert!("SWMTKN-1-zzzz-yyyy".parse::<JoinToken>().is_err());
        assert!(!format!("{token:?}").contains(&text[60..]));
    }
}
