//! The cluster: making, joining and leaving it, and its join tokens.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use shoal_protocol::token::Role;
use shoal_protocol::value::ClusterObject;
use shoal_protocol::{NodeId, token::JoinToken};

use super::snapshot::Want;
use super::{Api, ApiError, Rotation, query, render};

/// Seeds that one request may name.
const SEEDS_MAX: usize = 64;

/// What Docker's clients send to `/swarm/init` and `/swarm/join`, as far as it has a meaning here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Membership {
    advertise_addr: String,
    data_path_addr: String,
    data_path_port: u32,
    force_new_cluster: bool,
    auto_lock_managers: bool,
    availability: String,
    default_addr_pool: Option<Vec<String>>,
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
        let is_own = |wanted: &str| own.is_some_and(|own| wanted == own.to_string() || wanted == own.ip().to_string());
        if !self.advertise_addr.is_empty() && !is_own(&self.advertise_addr) {
            let own = own.map_or_else(|| "not known".to_owned(), |own| own.to_string());
            return Err(ApiError::invalid(format!(
                "the advertised address is {own}: start shoald with --advertise-addr {} to change it",
                self.advertise_addr
            )));
        }
        for (given, what) in [
            (!self.data_path_addr.is_empty(), "a data path address"),
            (self.data_path_port != 0, "a data path port"),
            (self.force_new_cluster, "forcing a new cluster"),
            (self.auto_lock_managers, "locking managers"),
            (!matches!(self.availability.as_str(), "" | "active"), "an availability other than active here"),
            (self.default_addr_pool.as_ref().is_some_and(|pool| !pool.is_empty()), "an address pool"),
        ] {
            if given {
                return Err(ApiError::unsupported(what));
            }
        }
        Ok(())
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
    Membership::parse(&body)?.check(&api)?;
    api.backend.init().await?;
    let snapshot = api.backend.snapshot(Want::default()).await?;
    Ok(Json(snapshot.me))
}

/// `POST /swarm/join`.
pub(super) async fn join(State(api): State<Api>, body: String) -> Result<StatusCode, ApiError> {
    let request = Membership::parse(&body)?;
    request.check(&api)?;
    let seeds = request.remote_addrs.unwrap_or_default();
    if seeds.is_empty() || seeds.len() > SEEDS_MAX {
        return Err(ApiError::invalid(format!("expected 1 to {SEEDS_MAX} addresses of nodes to join")));
    }
    if request.join_token.parse::<JoinToken>().is_err() {
        return Err(ApiError::invalid(
            "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster",
        ));
    }
    api.backend.join(seeds, request.join_token.trim().to_owned()).await?;
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

/// `POST /swarm/update`: rotates tokens and the root; the settings themselves cannot be changed yet.
pub(super) async fn update(
    State(api): State<Api>,
    Query(query): Query<UpdateQuery>,
    body: String,
) -> Result<StatusCode, ApiError> {
    let version = query::version("swarm", query.version.as_deref())?;
    let (_, mut spec) = query::object(&body)?;
    let snapshot = api.backend.snapshot(Want::default()).await?;
    if snapshot.role != Role::Manager {
        return Err(ApiError::only_managers());
    }
    let cluster = snapshot.cluster.ok_or_else(settings_missing)?;
    if query::is_on(query.rotate_manager_unlock_key.as_deref()) {
        return Err(ApiError::unsupported("locking managers"));
    }
    let keys = wants_new_root(&mut spec, &cluster);
    if !changes_nothing(&spec, &cluster) {
        return Err(ApiError::unsupported("changing the swarm's settings"));
    }
    let wanted = [(Role::Worker, query.rotate_worker_token), (Role::Manager, query.rotate_manager_token)];
    let tokens: Vec<Role> =
        wanted.into_iter().filter(|(_, wanted)| query::is_on(wanted.as_deref())).map(|(role, _)| role).collect();
    if keys || !tokens.is_empty() {
        api.backend.rotate(Rotation { tokens, keys }, version).await?;
    }
    Ok(StatusCode::OK)
}

/// Takes out of the settings which rotation of the root they ask for, and returns whether it is another one than the last.
/// Clients that know nothing of it send none, or zero.
fn wants_new_root(spec: &mut Value, cluster: &ClusterObject) -> bool {
    let config = spec.get_mut("CAConfig").and_then(Value::as_object_mut);
    let wanted = config.and_then(|config| config.remove("ForceRotate")).and_then(|wanted| wanted.as_u64());
    wanted.is_some_and(|wanted| wanted != 0 && wanted != cluster.edition - 1)
}

/// Compares with what `GET /swarm` gives out. Clients send settings that they do not know, or left alone, as zero values.
fn changes_nothing(spec: &Value, cluster: &ClusterObject) -> bool {
    fn is_zero(value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.values().all(is_zero),
            Value::Bool(true) => false,
        }
    }
    fn fits(sent: &Value, ours: &Value) -> bool {
        match (sent, ours) {
            (Value::Object(sent), Value::Object(ours)) => {
                sent.iter().all(|(name, value)| fits(value, ours.get(name).unwrap_or(&Value::Null)))
            }
            _ => is_zero(sent) || sent == ours,
        }
    }
    fits(spec, &render::spec_of_swarm(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_that_were_read_may_be_sent_back() {
        let cluster = cluster(1);
        let nothing = |spec| changes_nothing(&spec, &cluster);
        assert!(nothing(render::spec_of_swarm(&cluster)));
        assert!(nothing(json!({"Name": "default", "Raft": {"ElectionTick": 0}, "Labels": null})));
        assert!(!nothing(json!({"Orchestration": {"TaskHistoryRetentionLimit": 3}})));
        assert!(!nothing(json!({"EncryptionConfig": {"AutoLockManagers": true}})));
        assert!(!nothing(json!({"CAConfig": {"SigningCACert": "-----BEGIN"}})));
    }

    #[test]
    fn another_root_is_wanted_by_another_number_than_the_last() {
        for (edition, config, wanted) in [
            (1, json!({}), false),
            (1, json!({"ForceRotate": 0}), false),
            (1, json!({"ForceRotate": 1}), true),
            (3, json!({"ForceRotate": 2}), false),
            (3, json!({"ForceRotate": 0}), false),
            (3, json!({"ForceRotate": 3}), true),
        ] {
            let mut spec = json!({"CAConfig": config});
            assert_eq!(wants_new_root(&mut spec, &cluster(edition)), wanted, "{config}");
            assert!(changes_nothing(&spec, &cluster(edition)));
        }
    }

    fn cluster(edition: u64) -> ClusterObject {
        let (id, founder) = (shoal_protocol::ClusterId(1), NodeId(1));
        let first = ClusterObject::first(id, founder, String::new(), Vec::new(), shoal_protocol::WallTime(0));
        ClusterObject { edition, ..first }
    }
}
