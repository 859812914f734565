//! What a registry knows a user by.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::image::HUB;

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

    /// Returns whether a registry, as names of images have it, may see this: an image that is changed to another registry's
    /// must not tell that one what the first knows the user by. Credentials that name no registry are for whichever is asked.
    pub fn is_for(&self, registry: &str) -> bool {
        self.serveraddress.is_empty() || named(&self.serveraddress).eq_ignore_ascii_case(named(registry))
    }
}

/// Returns the host of a registry as a user's own files name it, without scheme and path.
pub fn host_of(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    rest.split('/').next().unwrap_or_default()
}

/// Returns what names of images call a registry.
fn named(address: &str) -> &str {
    match host_of(address) {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
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

    #[test]
    fn credentials_are_for_the_registry_that_they_name() {
        for (address, registry, want) in [
            ("", "r.example", true),
            ("r.example", "r.example", true),
            ("https://R.example/v2/", "r.example", true),
            ("r.example:5000", "r.example:5000", true),
            ("r.example:5000", "r.example", false),
            ("r.example", "other.example", false),
            ("r.example", HUB, false),
            ("https://index.docker.io/v1/", HUB, true),
            ("docker.io", HUB, true),
            ("https://index.docker.io/v1/", "r.example", false),
        ] {
            let mut auth = RegistryAuth::default();
            address.clone_into(&mut auth.serveraddress);
            assert_eq!(auth.is_for(registry), want, "{address} {registry}");
        }
    }
}
