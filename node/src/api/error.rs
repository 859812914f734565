//! Refusals as Docker's clients expect them: a status and `{"message": …}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use shoal_protocol::write::WriteError;

/// What a node outside any cluster answers. Source: Docker Engine 20.10, as captured.
const NOT_IN_CLUSTER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                              connect this node to swarm and try again.";
/// What a worker answers to questions that only managers may see the answer of. Source: Docker Engine 20.10, as captured.
const ONLY_MANAGERS: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
                             Please run this command on a manager node or promote the current node to a manager.";

/// What a manager answers whose keys are locked. Source: Docker Engine 20.10, as captured.
pub(super) const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" \
                      to unlock it.";

/// Why a request was refused. Nothing was changed unless the message says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// For people; Docker's own words where Docker has them.
    pub message: String,
}

impl ApiError {
    /// Makes a refusal.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no such object.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{kind} {name} not found"))
    }

    /// Several objects fit the prefix of an identifier.
    pub fn ambiguous(kind: &str, name: &str, count: usize) -> Self {
        Self::invalid(format!("{kind} {name} is ambiguous ({count} matches found)"))
    }

    /// Docker can do this and shoal cannot.
    pub fn unsupported(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not supported yet"))
    }

    /// Docker can do this, and here it has no meaning; says what does instead.
    pub fn meaningless(what: &str, instead: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not supported: {instead}"))
    }

    /// This node is in no cluster.
    pub fn not_in_cluster() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, NOT_IN_CLUSTER)
    }

    /// This node's keys are sealed on its disk.
    pub fn locked() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, LOCKED)
    }

    /// The answer is sealed to managers, and this node is a worker.
    pub fn only_managers() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ONLY_MANAGERS)
    }

    /// This node cannot answer now: it shuts down, or too much waits already.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// Something failed that should not have.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"message": self.message}))).into_response()
    }
}

impl From<WriteError> for ApiError {
    /// Gives Docker's status, and the prefix that Swarm's messages have there.
    fn from(error: WriteError) -> Self {
        let text = error.to_string();
        let (status, code) = match error {
            WriteError::Invalid(_) => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            // Swarm calls a port that is taken an invalid argument, other collisions conflicts.
            WriteError::Conflict(_) if text.starts_with("port ") => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            WriteError::Conflict(_) => (StatusCode::CONFLICT, "AlreadyExists"),
            WriteError::Precondition(_) => (StatusCode::BAD_REQUEST, "FailedPrecondition"),
            WriteError::OutOfSequence => (StatusCode::INTERNAL_SERVER_ERROR, "Unknown"),
            WriteError::NotFound(_) => return Self::new(StatusCode::NOT_FOUND, text),
            WriteError::NoQuorum(_) | WriteError::NotManager { .. } => return Self::unavailable(text),
            WriteError::Storage(_) => return Self::new(StatusCode::INSUFFICIENT_STORAGE, text),
            WriteError::Busy => return Self::new(StatusCode::TOO_MANY_REQUESTS, text),
        };
        Self::new(status, format!("rpc error: code = {code} desc = {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_dockers_status_and_words() {
        for (error, status, message) in [
            (WriteError::Invalid("no".into()), 400, "rpc error: code = InvalidArgument desc = no"),
            (WriteError::NotFound("service x not found".into()), 404, "service x not found"),
            (
                WriteError::Conflict("name conflicts with an existing object: service web already exists".into()),
                409,
                "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists",
            ),
            (
                WriteError::Conflict("port '80' is already in use by service 'web' (id) as an ingress port".into()),
                400,
                "rpc error: code = InvalidArgument desc = port '80' is already in use by service 'web' (id) as an ingress port",
            ),
            (WriteError::OutOfSequence, 500, "rpc error: code = Unknown desc = update out of sequence"),
            (WriteError::Precondition("not now".into()), 400, "rpc error: code = FailedPrecondition desc = not now"),
            (WriteError::NoQuorum("1 of 3 voters".into()), 503, "the cluster has no quorum: 1 of 3 voters"),
            (
                WriteError::NotManager { managers: vec!["10.0.0.1:2377".into()] },
                503,
                "this node is a worker; send writes to a manager: 10.0.0.1:2377",
            ),
            (WriteError::Storage("/data: full".into()), 507, "/data: full"),
            (WriteError::Busy, 429, "too many writes are waiting; try again"),
        ] {
            let got = ApiError::from(error);
            assert_eq!((got.status.as_u16(), got.message.as_str()), (status, message));
        }
    }
}
