//! Docker's API, as far as a swarm, or shoal beside it, is measured with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::http;

/// How long an answer may take; managers without a leader keep silent for longer.
pub(crate) const API_WAIT: Duration = Duration::from_secs(2);

/// Sends a request to an engine and returns its answer, null if that is empty.
pub(crate) fn call(socket: &Path, method: &str, path: &str, body: &Value, limit: Duration) -> Result<Value> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = http::unix(socket, method, path, &body, limit)?;
    let said = String::from_utf8_lossy(&answer.body);
    ensure!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, said.trim());
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said).with_context(|| format!("{method} {path}: not JSON"))
}
