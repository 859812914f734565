//! Objects in the shape of Docker's API. Source: Docker Engine API v1.50; field by field what its clients were seen to read.

use serde::Serialize;
use serde_json::value::RawValue;

mod container;
mod network;
mod node;
mod object;
mod service;
mod swarm;
mod task;
mod tls;

pub use container::{container, container_state, container_summary, image, image_summary, volume};
pub use network::network;
pub use node::node;
pub use object::file;
pub use service::{Extras, service, update_state};
pub use swarm::{JoinTokens, info, info_with_engine, spec_of_swarm, swarm, version};
pub use task::{task, words};
pub use tls::TlsInfo;

/// The API version that is spoken at most.
pub const API_VERSION: &str = "1.50";
/// The oldest API version that is understood.
pub const API_VERSION_MIN: &str = "1.24";

/// The count of an object's writes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    index: u64,
}

/// Returns how often a job was run before it was changed to its index, which with jobs runs it once more.
fn iteration(index: u64) -> u64 {
    index.saturating_sub(1)
}

/// Puts stored JSON into an answer as it is. What is stored was JSON when it was accepted; damage reads as `null`.
fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
