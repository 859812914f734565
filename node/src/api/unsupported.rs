//! What Docker's API has and shoal has not: refused by name, so that nobody takes silence for success.

use axum::body::{Body, to_bytes};
use axum::http::{Method, StatusCode, Uri};

use super::{ApiError, BODY_BYTES_MAX};

/// First parts of Docker's paths, with what they are about.
const DOCKER: [(&str, &str); 19] = [
    ("auth", "registry login"),
    ("build", "image build"),
    ("commit", "commit"),
    ("configs", "this operation on configs"),
    ("containers", "this operation on containers"),
    ("exec", "exec"),
    ("grpc", "grpc"),
    ("images", "this operation on images"),
    ("networks", "this operation on networks"),
    ("nodes", "this operation on nodes"),
    ("plugins", "plugin"),
    ("secrets", "this operation on secrets"),
    ("services", "this operation on services"),
    ("session", "session"),
    ("swarm", "this operation on the swarm"),
    ("system", "system"),
    ("tasks", "this operation on tasks"),
    ("volumes", "this operation on volumes"),
    ("checkpoints", "checkpoint"),
];

/// Answers what no other handler does.
///
/// The body is read first, as far as bodies are read at all: a client that is still writing when its connection is closed sees
/// that alone, and not the refusal.
pub(super) async fn fallback(method: Method, uri: Uri, body: Body) -> ApiError {
    // What the body says, or that it is too large, makes no difference.
    let _ = to_bytes(body, BODY_BYTES_MAX).await;
    let first = uri.path().split('/').nth(1).unwrap_or_default();
    match DOCKER.iter().find(|(part, _)| *part == first) {
        Some((_, what)) => {
            let message = format!("{what} is not supported yet ({method} {})", uri.path());
            ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
        }
        None => ApiError::new(StatusCode::NOT_FOUND, "page not found"),
    }
}
