//! What a registry knows a user by.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

/// Characters of the header `X-Registry-Auth` at most; a longer one is refused.
pub const HEADER_CHARS_MAX: usize = 16 * 1024;

/// Credentials for one registry; empty texts are not there. Source: Docker Engine API v1.50, `AuthConfig`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
pub struct RegistryAuth {
    /// The user's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// The user's password.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// The registry they are for, as the user's own files name it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serveraddress: String,
    /// Fetches tokens in place of the password.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identitytoken: String,
    /// Is itself the token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub registrytoken: String,
}

impl RegistryAuth {
    /// Returns whether there is nothing that a registry could know somebody by.
    pub fn is_empty(&self) -> bool {
        let Self { username, password, serveraddress: _, identitytoken, registrytoken } = self;
        [username, password, identitytoken, registrytoken].iter().all(|text| text.is_empty())
    }
}

impl fmt::Debug for RegistryAuth {
    /// Shows nothing that is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_sends_is_read_and_never_shown() {
        let auth: RegistryAuth = serde_json::from_str(
            r#"{"username":"u","password":"hidden","auth":"","email":"a@b","serveraddress":"r:5000"}"#,
        )
        .unwrap();
        assert_eq!((&*auth.username, &*auth.password, auth.is_empty()), ("u", "hidden", false));
        assert!(!format!("{auth:?}").contains("hidden"));
        let nobody: RegistryAuth = serde_json::from_str(r#"{"serveraddress":"r:5000"}"#).unwrap();
        assert!(nobody.is_empty());
    }
}
