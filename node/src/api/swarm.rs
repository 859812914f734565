//! The cluster: making, joining, unlocking and leaving it, its tokens and its settings.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::subnet::InvalidSubnet;
use shoal_protocol::token::{JoinToken, Role};
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{ClusterId, NodeId, WallTime};
use zeroize::Zeroizing;

use super::snapshot::Want;
use super::{Api, ApiError, Rotation, query, render};
use crate::identity::UnlockKey;

mod settings;

/// Where Docker's clients want a node to listen when nobody says where.
const LISTEN_DEFAULT: &str = "0.0.0.0:2377";

/// The data path port that Docker has by default.
const DATA_PATH_PORT: u32 = 4789;

/// Bytes of a request to unlock at most; larger ones get status 413.
pub(super) const UNLOCK_BYTES_MAX: usize = 4096;

/// Seeds that one request may name.
const SEEDS_MAX: usize = 64;

/// What Docker's clients send to `/swarm/init` and `/swarm/join`, as far as it has a meaning here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Membership {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    data_path_port: u32,
    force_new_cluster: bool,
    auto_lock_managers: bool,
    availability: String,
    default_addr_pool: Option<Vec<String>>,
    subnet_size: u32,
    spec: Value,
    remote_addrs: Option<Vec<String>>,
    join_token: String,
}

impl Membership {
    fn parse(body: &str) -> Result<Self, ApiError> {
        serde_json::from_str(body).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
    }

    /// Refuses what the caller might believe was heeded.
    fn check(&self, api: &Api) -> Result<(), ApiError> {
        let own = api.backend.node().address;
        let is_at = |wanted: &str, own: SocketAddr| wanted == own.to_string() || wanted == own.ip().to_string();
        let is_own = |wanted: &str| own.is_some_and(|own| is_at(wanted, own));
        let listens = api.backend.listen();
        let is_default = ["", LISTEN_DEFAULT].contains(&self.listen_addr.as_str());
        if !is_default && !is_at(&self.listen_addr, listens) {
            return Err(ApiError::invalid(format!(
                "this node listens on {listens}: start shoald with --listen-addr {} to change it",
                self.listen_addr
            )));
        }
        if !self.advertise_addr.is_empty() && !is_own(&self.advertise_addr) {
            let own = own.map_or_else(|| "not known".to_owned(), |own| own.to_string());
            return Err(ApiError::invalid(format!(
                "the advertised address is {own}: start shoald with --advertise-addr {} to change it",
                self.advertise_addr
            )));
        }
        for (given, what, instead) in [
            (
                !self.data_path_addr.is_empty() && !is_own(&self.data_path_addr),
                "another data path address (--data-path-addr)",
                "everything goes over the advertised address",
            ),
            (
                ![0, DATA_PATH_PORT].contains(&self.data_path_port),
                "a data path port (--data-path-port)",
                "everything goes over the port between nodes",
            ),
            (
                self.force_new_cluster,
                "forcing a new cluster (--force-new-cluster)",
                "start the managers that were lost; if they are gone for good, 'swarm leave --force' and 'swarm init'",
            ),
        ] {
            if given {
                return Err(ApiError::meaningless(what, instead));
            }
        }
        Ok(())
    }

    fn availability(&self) -> Result<Availability, ApiError> {
        match self.availability.as_str() {
            "" | "active" => Ok(Availability::Active),
            "pause" => Ok(Availability::Pause),
            "drain" => Ok(Availability::Drain),
            other => Err(ApiError::invalid(format!(
                "invalid availability {other:?}, only active, pause and drain are supported"
            ))),
        }
    }

    /// Returns the settings of the cluster that is to be made.
    fn settings(&mut self) -> Result<ClusterSettings, ApiError> {
        let nobody = (ClusterId(0), NodeId(0));
        let plain = ClusterObject::first(nobody.0, nobody.1, String::new(), Vec::new(), WallTime(0));
        let mut settings = settings::read(self.spec.take(), &plain)?.settings;
        // Docker's client says it in both places.
        settings.auto_lock |= self.auto_lock_managers;
        for pool in self.default_addr_pool.iter().flatten() {
            settings.pools.push(pool.parse().map_err(|error: InvalidSubnet| ApiError::invalid(error.to_string()))?);
        }
        if self.subnet_size != 0 {
            settings.pool_prefix = u8::try_from(self.subnet_size).unwrap_or(u8::MAX);
        }
        settings.check().map_err(settings::invalid)?;
        Ok(settings)
    }
}

/// `GET /swarm`.
pub(super) async fn inspect(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let snapshot = api.backend.snapshot(Want::default()).await?;
    if snapshot.role != Role::Manager {
        return Err(ApiError::only_managers());
    }
    let tokens = api.backend.tokens().await?;
    let cluster = snapshot.cluster.ok_or_else(settings_missing)?;
    Ok(Json(render::swarm(&cluster, snapshot.rotating, &tokens)))
}

fn settings_missing() -> ApiError {
    ApiError::unavailable("the cluster's settings have not arrived yet")
}

/// `POST /swarm/init`.
pub(super) async fn init(State(api): State<Api>, body: String) -> Result<Json<NodeId>, ApiError> {
    let mut request = Membership::parse(&body)?;
    request.check(&api)?;
    api.backend.init(request.settings()?, request.availability()?).await?;
    let snapshot = api.backend.snapshot(Want::default()).await?;
    Ok(Json(snapshot.me))
}

/// `POST /swarm/join`.
pub(super) async fn join(State(api): State<Api>, body: String) -> Result<StatusCode, ApiError> {
    let request = Membership::parse(&body)?;
    request.check(&api)?;
    let availability = request.availability()?;
    let seeds = request.remote_addrs.unwrap_or_default();
    if seeds.is_empty() || seeds.len() > SEEDS_MAX {
        return Err(ApiError::invalid(format!("expected 1 to {SEEDS_MAX} addresses of nodes to join")));
    }
    if request.join_token.parse::<JoinToken>().is_err() {
        return Err(ApiError::invalid(
            "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster",
        ));
    }
    api.backend.join(seeds, request.join_token.trim().to_owned(), availability).await?;
    Ok(StatusCode::OK)
}

#[derive(Debug, Deserialize)]
pub(super) struct LeaveQuery {
    force: Option<String>,
}

/// `POST /swarm/leave`.
pub(super) async fn leave(State(api): State<Api>, Query(query): Query<LeaveQuery>) -> Result<StatusCode, ApiError> {
    api.backend.leave(query::is_on(query.force.as_deref())).await?;
    Ok(StatusCode::OK)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpdateQuery {
    version: Option<String>,
    rotate_worker_token: Option<String>,
    rotate_manager_token: Option<String>,
    rotate_manager_unlock_key: Option<String>,
}

/// `POST /swarm/update`: changes settings, rotates tokens, the unlock key and the root.
pub(super) async fn update(
    State(api): State<Api>,
    Query(query): Query<UpdateQuery>,
    body: String,
) -> Result<StatusCode, ApiError> {
    let version = query::version("swarm", query.version.as_deref())?;
    let (_, spec) = query::object(&body)?;
    let snapshot = api.backend.snapshot(Want::default()).await?;
    if snapshot.role != Role::Manager {
        return Err(ApiError::only_managers());
    }
    let cluster = snapshot.cluster.ok_or_else(settings_missing)?;
    let wanted = settings::read(spec, &cluster)?;
    let tokens = [(Role::Worker, query.rotate_worker_token), (Role::Manager, query.rotate_manager_token)];
    let what = Rotation {
        tokens: tokens.into_iter().filter(|(_, on)| query::is_on(on.as_deref())).map(|(role, _)| role).collect(),
        keys: wanted.rotates_root,
        unlock_key: query::is_on(query.rotate_manager_unlock_key.as_deref()),
        settings: (wanted.settings != cluster.settings).then_some(wanted.settings),
    };
    if what != Rotation::default() {
        api.backend.rotate(what, version).await?;
    }
    Ok(StatusCode::OK)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Unlock {
    unlock_key: String,
}

/// `POST /swarm/unlock`.
pub(super) async fn unlock(State(api): State<Api>, body: String) -> Result<StatusCode, ApiError> {
    let body = Zeroizing::new(body);
    // What was said is not repeated: it may be a key with a slip in it.
    let mut request: Unlock = serde_json::from_str(&body).map_err(|_| ApiError::invalid("invalid JSON"))?;
    let text = Zeroizing::new(std::mem::take(&mut request.unlock_key));
    // Whether there is anything to unlock comes first, as with Docker.
    if !api.backend.is_locked() {
        let snapshot = api.backend.snapshot(Want::default()).await?;
        return Err(match snapshot.role {
            Role::Manager => ApiError::new(StatusCode::CONFLICT, "swarm is not locked"),
            Role::Worker => ApiError::only_managers(),
        });
    }
    let key = UnlockKey::from_text(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
    api.backend.unlock(key).await?;
    Ok(StatusCode::OK)
}

/// `GET /swarm/unlockkey`.
pub(super) async fn unlock_key(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let snapshot = api.backend.snapshot(Want::default()).await?;
    if snapshot.role != Role::Manager {
        return Err(ApiError::only_managers());
    }
    let key = api.backend.unlock_key().await?;
    Ok(Json(json!({"UnlockKey": key.as_ref().map_or("", |key| key.as_str())})))
}
