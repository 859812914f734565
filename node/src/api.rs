//! The HTTP API: Docker's Engine API as far as its clients drive a cluster through it, and a little of shoal's own.
//!
//! A handler asks the [`Backend`] for a [`snapshot::Snapshot`], renders it, and knows nothing of how the cluster decides.
//! Reads are answered from this node's own replica, on every node; writes go to [`Backend::write`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::Response;
use axum::routing::{delete, get, post};
use futures::stream::BoxStream;
use shoal_protocol::object::Sealed;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::Role;
use shoal_protocol::value::NodeStatus;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{Kind, NodeId, ObjectId, TaskId, WallTime};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::driver::inventory::Inventory;
use crate::driver::{DriverError, ImageInfo, LogLine, LogQuery};
use crate::identity::{Purpose, UnlockKey};

pub mod engine;
pub mod error;
pub mod events;
pub mod filters;
pub mod listen;
pub mod metrics;
pub mod read;
mod registry;
pub mod render;
pub mod snapshot;
pub mod status;

mod containers;
mod frames;
mod gate;
mod images;
mod logs;
mod names;
mod networks;
mod nodes;
mod objects;
mod page;
mod query;
mod services;
mod swarm;
mod system;
mod tasks;
mod unsupported;
mod usage;
mod volumes;

#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use error::ApiError;
pub use events::Hub;
pub use metrics::Metrics;
pub use render::JoinTokens;
pub use snapshot::{Snapshot, StatusReport, Want};

/// Bytes of a request's body at most; images are streamed and have no limit here. Larger ones get status 413.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Requests that are worked on at once; more get status 503.
pub const REQUESTS_MAX: usize = 512;

/// What a task has written, oldest first.
pub type LogLines = BoxStream<'static, Result<LogLine, DriverError>>;

/// What a user wants to have replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// The join tokens of these roles.
    pub tokens: Vec<Role>,
    /// The root, the managers' key and both join tokens.
    pub keys: bool,
    /// Another unlock key.
    pub unlock_key: bool,
    /// Other settings.
    pub settings: Option<ClusterSettings>,
}

/// What the API needs of the node it runs on.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Returns what this node says of itself, in a cluster or not.
    fn node(&self) -> NodeStatus;

    /// Returns where this node listens for others.
    fn listen(&self) -> SocketAddr;

    /// Returns whether this node's keys are sealed on its disk, and nobody has opened them since its start.
    fn is_locked(&self) -> bool;

    /// Returns where this node tells what happens.
    fn events(&self) -> Arc<Hub>;

    /// Returns the present moment.
    fn now(&self) -> WallTime;

    /// Returns the Docker Engine that runs this node's containers; `None` where none does, or it is not decided yet.
    fn engine(&self) -> Option<Arc<Engine>>;

    /// Copies what a request needs out of this node's replica; [`ApiError::not_in_cluster`] outside a cluster.
    async fn snapshot(&self, want: Want) -> Result<Snapshot, ApiError>;

    /// Returns how the cluster is; [`ApiError::not_in_cluster`] outside a cluster.
    async fn status(&self) -> Result<StatusReport, ApiError>;

    /// Writes an object through the holder of the registry lease and waits until it is durable.
    async fn write(&self, write: Write) -> Result<Written, WriteError>;

    /// Seals the data of a new secret, or registry credentials, to be written; refused on nodes that are no managers.
    async fn seal(&self, purpose: Purpose, data: Zeroizing<Vec<u8>>) -> Result<Sealed, WriteError>;

    /// Returns whether the data of a secret are these; refused on nodes that are no managers.
    async fn holds(&self, id: ObjectId, data: Zeroizing<Vec<u8>>) -> Result<bool, WriteError>;

    /// Makes a new cluster of this node alone.
    async fn init(&self, settings: ClusterSettings, availability: Availability) -> Result<(), ApiError>;

    /// Joins the cluster of the first seed that answers. A seed is `HOST:PORT`.
    async fn join(&self, seeds: Vec<String>, token: String, availability: Availability) -> Result<(), ApiError>;

    /// Opens this node's keys, which are sealed on its disk.
    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError>;

    /// Returns the unlock key; `None` while managers are not locked. Fails on workers.
    async fn unlock_key(&self) -> Result<Option<Zeroizing<String>>, ApiError>;

    /// Leaves the cluster and stops this node's tasks.
    async fn leave(&self, force: bool) -> Result<(), ApiError>;

    /// Returns the join tokens; asked on managers only.
    async fn tokens(&self) -> Result<JoinTokens, ApiError>;

    /// Replaces join tokens, or has all keys replaced; `version` is the index of the cluster object that the caller read.
    async fn rotate(&self, what: Rotation, version: u64) -> Result<Written, WriteError>;

    /// Returns what a task of this node has written.
    async fn logs(&self, task: TaskId, query: LogQuery) -> Result<LogLines, DriverError>;

    /// Stores the images of an archive on this node and returns their references.
    async fn load_image(&self, archive: Box<dyn AsyncRead + Send + Unpin>) -> Result<Vec<String>, DriverError>;

    /// Lists the images of this node.
    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError>;

    /// Returns what this node's driver tells of its containers, images and volumes; refused where the driver tells nothing.
    async fn inventory(&self) -> Result<Arc<dyn Inventory>, ApiError>;

    /// Removes an image from this node.
    async fn remove_image(&self, image: &str) -> Result<(), DriverError>;

    /// Sends a request to the API of another node. Returns once the answer has begun.
    async fn forward(&self, node: NodeId, request: Request) -> Result<Response, ApiError>;
}

/// Marks a request that came from another node, and from which: it is never passed on to the engine behind this one.
#[derive(Debug, Clone, Copy)]
pub struct FromPeer(pub NodeId);

/// What every handler has at hand. Cheap to clone.
#[derive(Clone)]
struct Api {
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    /// How many requests there were: each has its number in the log.
    requests: Arc<AtomicU64>,
    page: Arc<page::Latest>,
}

/// Makes the API's router, for the sockets of this node and for other nodes that forward requests to it.
pub fn router(backend: Arc<dyn Backend>, metrics: Arc<Metrics>) -> Router {
    let api = Api {
        backend,
        metrics,
        room: Arc::new(Semaphore::new(REQUESTS_MAX)),
        requests: Arc::default(),
        page: Arc::default(),
    };
    let routes = routes()
        .fallback(unsupported::fallback)
        .method_not_allowed_fallback(unsupported::fallback)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api.clone());
    // The version in the path has to go before anything is routed, so the gate wraps the router as a whole.
    Router::new().fallback_service(routes).layer(axum::middleware::from_fn_with_state(api, gate::pass))
}

fn routes() -> Router<Api> {
    Router::new()
        .route("/", get(page::show))
        .route("/shoal/page", get(page::show_contents))
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/events", get(events::show))
        .route("/metrics", get(metrics::show))
        .route("/shoal/status", get(system::status))
        .route("/shoal/self/{what}", post(nodes::change_self))
        .route("/distribution/{*image}", get(registry::distribution))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlock", post(swarm::unlock).layer(DefaultBodyLimit::max(swarm::UNLOCK_BYTES_MAX)))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::of_service))
        .merge(objects::routes(Kind::Secret))
        .merge(objects::routes(Kind::Config))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}/connect", post(networks::attach))
        .route("/networks/{id}/disconnect", post(networks::attach))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
        .route("/images/json", get(images::list))
        .route("/images/load", post(images::load).layer(DefaultBodyLimit::disable()))
        .route("/images/{*name}", delete(images::remove).get(images::inspect))
        .route("/containers/json", get(containers::list))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/logs", get(containers::logs))
        .route("/volumes", get(volumes::list))
        .route("/volumes/{name}", get(volumes::inspect))
        .route("/system/df", get(usage::show))
}

/// Returns what a refusal says.
pub async fn read_refusal(response: Response) -> String {
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), BODY_BYTES_MAX).await.unwrap_or_default();
    let value = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    value["message"].as_str().map_or_else(|| status.to_string(), str::to_owned)
}

/// An empty body, for requests and answers that have none.
fn no_body() -> Body {
    Body::empty()
}
