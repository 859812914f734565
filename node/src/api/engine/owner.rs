//! Who answers a request: the cluster, or the Docker Engine behind this node. Pure.
//!
//! The engine gets what is on a list and nothing else, and only by a path that means the same to everybody who reads it: an
//! engine that takes `/containers/../swarm/init` for `/swarm/init` must not be reached that way.

use axum::http::Method;

use crate::api::ApiError;

/// First parts of the paths that the engine answers. All others are the cluster's, whatever the engine makes of them.
const ENGINE: [&str; 12] = [
    "auth",
    "build",
    "commit",
    "containers",
    "distribution",
    "exec",
    "grpc",
    "images",
    "plugins",
    "session",
    "system",
    "volumes",
];

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This node, from what it knows of the cluster and of itself.
    Cluster,
    /// The Docker Engine.
    Engine,
    /// The cluster what it has, the Docker Engine the rest: networks.
    Both,
}

/// Returns who answers a request for a path without version. Refuses a path of the engine's that could be read in two ways.
pub fn owner(method: &Method, path: &str) -> Result<Owner, ApiError> {
    let rest = path.strip_prefix('/').unwrap_or_default();
    let first = rest.split('/').next().unwrap_or_default();
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE];
    let owner = match first {
        _ if !known.contains(method) => Owner::Cluster,
        "networks" => Owner::Both,
        first if ENGINE.contains(&first) => Owner::Engine,
        _ => Owner::Cluster,
    };
    if owner == Owner::Cluster {
        return Ok(owner);
    }
    let plain = percent_decoded(rest).is_some_and(|decoded| {
        let parts = || decoded.split(|byte| matches!(byte, b'/' | b'\\'));
        parts().all(|part| !matches!(part, b"" | b"." | b"..")) && !decoded.iter().any(u8::is_ascii_control)
    });
    if plain { Ok(owner) } else { Err(ApiError::invalid(format!("the path {path} is ambiguous"))) }
}

/// Replaces `%XX`; `None` if what follows a per cent sign is no number.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_gets_what_is_its_own() {
        for path in [
            "/containers/json",
            "/containers/web.1.x/exec",
            "/images/registry:5000/lab/web:1/json",
            "/images/shoal%2Fwhoami%3Alatest",
            "/exec/ab/start",
            "/build",
            "/session",
            "/system/df",
            "/distribution/lab/web:1/json",
            "/volumes/swarm",
            "/containers/a%20b/json",
            "/containers/%252e%252e/json",
            "/containers/...",
        ] {
            assert_eq!(owner(&Method::GET, path), Ok(Owner::Engine), "{path}");
        }
        assert_eq!(owner(&Method::GET, "/networks"), Ok(Owner::Both));
        assert_eq!(owner(&Method::DELETE, "/networks/init"), Ok(Owner::Both));
    }

    #[test]
    fn no_path_of_the_swarm_reaches_the_engine() {
        for path in [
            "/swarm/init",
            "/swarm",
            "/%73warm/init",
            "/nodes",
            "/services/create",
            "/tasks",
            "/secrets/create",
            "/configs",
            "/info",
            "/version",
            "/events",
            "/_ping",
            "/",
            "",
            "*",
            "//swarm/init",
            "//containers/json",
            "/./swarm/init",
            "/v1.41/swarm/init",
            "/v1/containers/json",
            "/v1.41.1/swarm/init",
            "/containers%2Fjson",
            "/containersx",
            "/Containers/json",
        ] {
            assert_eq!(owner(&Method::POST, path), Ok(Owner::Cluster), "{path}");
        }
        for path in [
            "/containers/../swarm/init",
            "/containers/..",
            "/containers/./json",
            "/containers/%2e%2e/swarm/init",
            "/containers/%2E./swarm/init",
            "/containers/..%2fswarm%2finit",
            "/containers/..%5cswarm%5cinit",
            "/containers/%2e%2e%2fswarm/init",
            "/containers//json",
            "/containers/",
            "/images/x/..%2F..%2Fswarm/init",
            "/containers/%",
            "/containers/%zz/json",
            "/containers/%0d%0a/json",
            "/containers/a%00/json",
            "/networks/../swarm/init",
        ] {
            let refused = owner(&Method::POST, path).unwrap_err();
            assert_eq!(refused.status.as_u16(), 400, "{path}");
        }
        assert_eq!(owner(&Method::CONNECT, "/containers/json"), Ok(Owner::Cluster));
        assert_eq!(owner(&Method::OPTIONS, "/containers/json"), Ok(Owner::Cluster));
    }
}
