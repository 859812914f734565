//! What the API needs of the node: questions for the event loop, calls of the driver, and other nodes' APIs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use shoal_control::core::Control;
use shoal_control::renewal::Validity;
use shoal_control::view::Health;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::object::Sealed;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::value::NodeStatus;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{NodeId, Now, ObjectId, TaskId, WallTime};
use tokio::io::AsyncRead;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::command::{Command, Loop, LoopEnded, MembershipError};
use super::shells::Shells;
use crate::api::listen;
use crate::api::read::Source;
use crate::api::snapshot::NodeState;
use crate::api::status::{LeaseFacts, NodeFacts, StatusFacts};
use crate::api::{
    ApiError, Backend, Engine, FromPeer, Hub, JoinTokens, LogLines, Rotation, Snapshot, StatusReport, Want,
};
use crate::driver::inventory::Inventory;
use crate::driver::{DriverError, ImageInfo, LogQuery};
use crate::identity::{Purpose, UnlockKey};
use crate::swarm::{PeerStream, SwarmHandle};

/// What this node knows of itself while it is in no cluster, too.
pub struct Own {
    /// What it would say of itself.
    pub status: NodeStatus,
    /// Where it listens for other nodes.
    pub listen: SocketAddr,
    /// Whether its keys are sealed on its disk and nobody has opened them since it was started.
    pub is_locked: Arc<AtomicBool>,
}

/// The node behind its API.
pub struct NodeBackend {
    event_loop: Loop,
    own: Own,
    /// The engine that runs the node's containers, once that is decided; it stays decided while the daemon runs.
    engine: Arc<OnceLock<Arc<Engine>>>,
    events: Arc<Hub>,
}

impl NodeBackend {
    /// Returns the backend of the node that `event_loop` leads to.
    pub fn new(event_loop: Loop, own: Own, engine: Arc<OnceLock<Arc<Engine>>>, events: Arc<Hub>) -> Self {
        Self { event_loop, own, engine, events }
    }

    /// Looks at the decisions, if there are any.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Control, Now) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let seen = self.event_loop.look(move |control, now| control.map(|control| look(control, now))).await;
        seen.map_err(ended)?.ok_or_else(ApiError::not_in_cluster)
    }

    async fn shells(&self) -> Result<Shells, ApiError> {
        let shells = self.event_loop.ask(|reply| Command::Shells { reply }).await.map_err(ended)?;
        shells.ok_or_else(ApiError::not_in_cluster)
    }

    async fn driver(&self) -> Result<Arc<dyn crate::driver::Driver>, DriverError> {
        let shells = self.shells().await.map_err(|error| DriverError::Refused(error.to_string()))?;
        Ok(shells.driver)
    }

    async fn change(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), MembershipError>>) -> Command,
    ) -> Result<(), ApiError> {
        self.event_loop.ask(command).await.map_err(ended)?.map_err(|error| membership_error(&error))
    }
}

fn ended(error: LoopEnded) -> ApiError {
    ApiError::unavailable(error.to_string())
}

fn membership_error(error: &MembershipError) -> ApiError {
    match error {
        // Docker answers these with 503.
        MembershipError::Member | MembershipError::NotMember | MembershipError::Manager | MembershipError::Locked => {
            ApiError::unavailable(error.to_string())
        }
        MembershipError::NotLocked => ApiError::new(StatusCode::CONFLICT, error.to_string()),
        MembershipError::WrongKey => ApiError::new(StatusCode::UNAUTHORIZED, error.to_string()),
        MembershipError::Invalid(text) => ApiError::invalid(text.clone()),
        MembershipError::Failed(text) => ApiError::internal(text.clone()),
    }
}

fn write_ended(error: LoopEnded) -> WriteError {
    WriteError::NoQuorum(error.to_string())
}

pub(super) fn node_state(control: &Control, node: NodeId) -> NodeState {
    match control.health(node) {
        Health::Alive | Health::Restarting { .. } => NodeState::Ready,
        Health::Suspect => NodeState::Suspect,
        Health::Failed | Health::Left => NodeState::Down,
        Health::Unknown => NodeState::Unknown,
    }
}

fn snapshot(control: &Control, want: &Want) -> Snapshot {
    let state = |node| node_state(control, node);
    let source = Source {
        store: control.store(),
        me: control.me(),
        role: control.role(),
        leader: control.holder(LeaseId::REGISTRY).map(|(holder, _)| holder),
        rotating: control.is_rotation_under_way(),
        state: &state,
    };
    source.snapshot(want)
}

fn status(control: &Control, credential: Validity, now: Now) -> StatusReport {
    let store = control.store();
    StatusReport::new(&StatusFacts {
        cluster: store.cluster().map(|cluster| cluster.id),
        me: control.me(),
        quorum: control.has_quorum(now.time),
        voters: control.voters().clone(),
        leases: LeaseId::all()
            .map(|lease| LeaseFacts {
                lease,
                holder: control.holder(lease),
                expires_in: control.expires_in(lease, now.time),
            })
            .collect(),
        nodes: store
            .nodes()
            .map(|(id, _, _)| NodeFacts {
                id,
                state: node_state(control, id),
                status: store.node_status(id).cloned(),
                digest: control.digest_of(id),
            })
            .collect(),
        quarantined: store.quarantined().len(),
        troubles: control.troubles(),
        credential,
        now: now.wall,
    })
}

#[async_trait]
impl Backend for NodeBackend {
    fn node(&self) -> NodeStatus {
        self.own.status.clone()
    }

    fn events(&self) -> Arc<Hub> {
        self.events.clone()
    }

    fn now(&self) -> WallTime {
        super::clock::now().wall
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().cloned()
    }

    async fn snapshot(&self, want: Want) -> Result<Snapshot, ApiError> {
        self.look(move |control, _| snapshot(control, &want)).await
    }

    async fn status(&self) -> Result<StatusReport, ApiError> {
        let credential = *self.shells().await?.credential.borrow();
        self.look(move |control, now| status(control, credential, now)).await
    }

    async fn write(&self, write: Write) -> Result<Written, WriteError> {
        self.event_loop.ask(|reply| Command::Write { write, reply }).await.map_err(write_ended)?
    }

    async fn seal(&self, purpose: Purpose, data: Zeroizing<Vec<u8>>) -> Result<Sealed, WriteError> {
        self.event_loop.ask(|reply| Command::Seal { purpose, data, reply }).await.map_err(write_ended)?
    }

    async fn holds(&self, id: ObjectId, data: Zeroizing<Vec<u8>>) -> Result<bool, WriteError> {
        self.event_loop.ask(|reply| Command::Holds { id, data, reply }).await.map_err(write_ended)?
    }

    fn listen(&self) -> SocketAddr {
        self.own.listen
    }

    fn is_locked(&self) -> bool {
        self.own.is_locked.load(Ordering::Relaxed)
    }

    async fn init(&self, settings: ClusterSettings, availability: Availability) -> Result<(), ApiError> {
        self.change(|reply| Command::Init { settings, availability, reply }).await
    }

    async fn join(&self, seeds: Vec<String>, token: String, availability: Availability) -> Result<(), ApiError> {
        self.change(|reply| Command::Join { seeds, token, availability, reply }).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        // Nobody guesses a key of 256 bits, so nobody has to be kept from trying.
        self.change(|reply| Command::Unlock { key, reply }).await
    }

    async fn unlock_key(&self) -> Result<Option<Zeroizing<String>>, ApiError> {
        Ok(self.event_loop.ask(|reply| Command::UnlockKey { reply }).await.map_err(ended)??)
    }

    async fn leave(&self, force: bool) -> Result<(), ApiError> {
        self.change(|reply| Command::Leave { force, reply }).await
    }

    async fn tokens(&self) -> Result<JoinTokens, ApiError> {
        let tokens = self.event_loop.ask(|reply| Command::Tokens { reply }).await.map_err(ended)?;
        let tokens = tokens.map_err(ApiError::from)?;
        Ok(JoinTokens { worker: tokens.worker, manager: tokens.manager })
    }

    async fn rotate(&self, what: Rotation, version: u64) -> Result<Written, WriteError> {
        self.event_loop.ask(|reply| Command::Rotate { what, version, reply }).await.map_err(write_ended)?
    }

    async fn logs(&self, task: TaskId, query: LogQuery) -> Result<LogLines, DriverError> {
        self.driver().await?.logs(task, query).await
    }

    async fn load_image(&self, mut archive: Box<dyn AsyncRead + Send + Unpin>) -> Result<Vec<String>, DriverError> {
        self.driver().await?.load_image(archive.as_mut()).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        self.driver().await?.images().await
    }

    async fn inventory(&self) -> Result<Arc<dyn Inventory>, ApiError> {
        let driver = self.shells().await?.driver;
        driver.inventory().ok_or_else(|| ApiError::unsupported("looking at containers with this node's driver"))
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        self.driver().await?.remove_image(image).await
    }

    async fn forward(&self, node: NodeId, request: Request) -> Result<Response, ApiError> {
        call_peer(&self.shells().await?.swarm, node, request).await
    }
}

/// Sends a request to the API of another node. Returns once the answer has begun.
pub(super) async fn call_peer(swarm: &SwarmHandle, node: NodeId, request: Request) -> Result<Response, ApiError> {
    let unreachable =
        |error: &dyn std::fmt::Display| ApiError::unavailable(format!("node {node} cannot be reached: {error}"));
    let stream = swarm.open_api(node).await.map_err(|error| unreachable(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    tokio::spawn(async move {
        // How it ends shows in the answer's body.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
    Ok(response.map(axum::body::Body::new))
}

/// Returns what another node may ask of this node's API: what tasks here have written, to be drained itself and to be taken
/// in again after, and, as a manager, to take images in. Everything else it has in its own replica or sends to the holder of a lease.
fn is_open_to_peers(method: &Method, path: &str, is_manager: bool) -> bool {
    let is_logs =
        path.strip_prefix("/tasks/").and_then(|rest| rest.strip_suffix("/logs")).is_some_and(|id| !id.contains('/'));
    match *method {
        Method::GET => is_logs,
        Method::POST => {
            matches!(path, "/shoal/self/drain" | "/shoal/self/resume") || is_manager && path == "/images/load"
        }
        _ => false,
    }
}

/// Serves one connection of another node to this node's API.
pub(super) async fn serve_peer(
    stream: PeerStream,
    router: Router,
    from: NodeId,
    is_manager: bool,
) -> Result<(), hyper::Error> {
    let guard = axum::middleware::from_fn(move |mut request: Request, next: axum::middleware::Next| async move {
        if is_open_to_peers(request.method(), request.uri().path(), is_manager) {
            request.extensions_mut().insert(FromPeer(from));
            next.run(request).await
        } else {
            ApiError::not_found("page", request.uri().path()).into_response()
        }
    });
    let service = TowerToHyperService::new(router.layer(guard));
    listen::http().serve_connection(TokioIo::new(stream), service).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_nodes_may_ask_for_little() {
        for (method, path, manager, want) in [
            (Method::GET, "/tasks/abc/logs", false, true),
            (Method::GET, "/tasks/abc", true, false),
            (Method::GET, "/tasks/a/b/logs", true, false),
            (Method::GET, "/swarm", true, false),
            (Method::POST, "/images/load", false, false),
            (Method::POST, "/images/load", true, true),
            (Method::POST, "/services/create", true, false),
            (Method::POST, "/shoal/self/drain", false, true),
            (Method::POST, "/shoal/self/resume", false, true),
            (Method::POST, "/shoal/self/promote", true, false),
            (Method::POST, "/nodes/abc/update", true, false),
            (Method::DELETE, "/services/web", true, false),
        ] {
            assert_eq!(is_open_to_peers(&method, path, manager), want, "{method} {path} {manager}");
        }
    }
}
