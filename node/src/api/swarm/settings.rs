//! A cluster's settings as clients send them: which of them change, and which cannot be changed. Pure.
//!
//! Clients read the settings, change one and send them all back, so whatever was given out, and every value that Docker has by
//! default, has to pass.

use serde_json::{Value, json};
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::value::ClusterObject;

use crate::api::{ApiError, render};

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The settings, changed or not.
    pub(super) settings: ClusterSettings,
    /// Whether it wants another root than the present one.
    pub(super) rotates_root: bool,
}

/// Settings that have no meaning here, by where they are in a spec: what they are, and what to do instead.
const UNSUPPORTED: [(&str, &str, &str); 9] = [
    ("/Name", "another name of the swarm", "the cluster has its identifier"),
    ("/Labels", "labels of the swarm", "label nodes and services"),
    (
        "/Raft",
        "settings of Raft, such as --snapshot-interval and --max-snapshots",
        "there is no Raft here: leave them out",
    ),
    ("/Dispatcher", "--dispatcher-heartbeat", "there is no dispatcher: nodes notice within a second that one is gone"),
    ("/CAConfig/ExternalCAs", "--external-ca", "the cluster signs its certificates itself"),
    ("/CAConfig/SigningCACert", "--ca-cert", "'swarm ca --rotate' makes another root"),
    ("/CAConfig/SigningCAKey", "--ca-key", "'swarm ca --rotate' makes another root"),
    ("/TaskDefaults", "a log driver for all services", "give each service its --log-driver"),
    ("", "changing this setting of the swarm", "docs/compatibility.md lists those that can be changed"),
];

/// Reads what a client sent for a cluster.
pub(super) fn read(mut spec: Value, cluster: &ClusterObject) -> Result<Wanted, ApiError> {
    let mut settings = cluster.settings.clone();
    if let Some(history) = take(&mut spec, "Orchestration", "TaskHistoryRetentionLimit") {
        settings.task_history = whole("a task history limit", &history)?;
    }
    // Nobody who sends 0 wants certificates that end at once.
    if let Some(lasts) = take(&mut spec, "CAConfig", "NodeCertExpiry").filter(|lasts| *lasts != json!(0)) {
        settings.credential_ns = whole("a certificate expiry time", &lasts)?;
    }
    if let Some(lock) = take(&mut spec, "EncryptionConfig", "AutoLockManagers") {
        settings.auto_lock = lock.as_bool().ok_or_else(|| ApiError::invalid("AutoLockManagers is true or false"))?;
    }
    let rotation = take(&mut spec, "CAConfig", "ForceRotate").and_then(|wanted| wanted.as_u64());
    check_rest(&spec, cluster)?;
    settings.check().map_err(invalid)?;
    // Clients that know nothing of rotations send none, or zero.
    let rotates_root = rotation.is_some_and(|wanted| wanted != 0 && wanted != cluster.edition - 1);
    Ok(Wanted { settings, rotates_root })
}

/// Gives a refusal the form that Swarm's have.
pub(super) fn invalid(text: String) -> ApiError {
    ApiError::invalid(format!("rpc error: code = InvalidArgument desc = {text}"))
}

/// Takes a setting out of a spec, if it says anything.
fn take(spec: &mut Value, part: &str, name: &str) -> Option<Value> {
    spec.get_mut(part)?.as_object_mut()?.remove(name).filter(|value| !value.is_null())
}

fn whole(what: &str, value: &Value) -> Result<u64, ApiError> {
    value
        .as_u64()
        .ok_or_else(|| invalid(format!("{what} of {value} makes no sense: it is a whole number, not below 0")))
}

/// Refuses by name what differs from what is given out and from Docker's defaults.
fn check_rest(spec: &Value, cluster: &ClusterObject) -> Result<(), ApiError> {
    let ours = render::spec_of_swarm(cluster);
    let defaults = json!({
        "Name": "default",
        "Raft": {"SnapshotInterval": 10_000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500,
            "ElectionTick": 10, "HeartbeatTick": 1},
    });
    let Some(path) = difference(spec, &[&ours, &defaults], String::new()) else { return Ok(()) };
    let (_, what, instead) = UNSUPPORTED
        .into_iter()
        .find(|(start, ..)| path.starts_with(start))
        .unwrap_or(UNSUPPORTED[UNSUPPORTED.len() - 1]);
    let what = format!("{what} ({})", path.trim_start_matches('/').replace('/', "."));
    Err(ApiError::meaningless(&what, instead))
}

/// Returns where a spec says something that none of `known` says there. Settings that clients do not know, or leave alone, are
/// sent as zero values.
fn difference(sent: &Value, known: &[&Value], path: String) -> Option<String> {
    match sent {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let known: Vec<&Value> = known.iter().filter_map(|known| known.get(name)).collect();
            difference(value, &known, format!("{path}/{name}"))
        }),
        sent if is_zero(sent) || known.contains(&sent) => None,
        _ => Some(path),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::{ClusterId, NodeId, WallTime};

    fn cluster(edition: u64) -> ClusterObject {
        let first = ClusterObject::first(ClusterId(1), NodeId(1), String::new(), Vec::new(), WallTime(0));
        ClusterObject { edition, ..first }
    }

    #[test]
    fn what_was_read_may_be_sent_back() {
        let locked = ClusterSettings {
            auto_lock: true,
            task_history: 0,
            credential_ns: 7_200_000_000_000,
            ..Default::default()
        };
        for cluster in [cluster(1), cluster(4), ClusterObject { settings: locked, lock: 1, ..cluster(2) }] {
            for spec in [
                render::spec_of_swarm(&cluster),
                json!({}),
                json!({"Name": "default", "Raft": {"ElectionTick": 0}, "Labels": null, "Orchestration": {}}),
                json!({"Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500,
                    "ElectionTick": 10, "HeartbeatTick": 1}, "Dispatcher": {"HeartbeatPeriod": 5_000_000_000u64},
                    "CAConfig": {"NodeCertExpiry": 0, "ExternalCAs": null, "SigningCACert": "", "ForceRotate": 0}}),
            ] {
                let wanted = read(spec, &cluster).unwrap();
                assert_eq!(wanted, Wanted { settings: cluster.settings.clone(), rotates_root: false });
            }
        }
    }

    #[test]
    fn what_is_changed_is_heeded_or_refused_by_name() {
        let with = |change: fn(&mut ClusterSettings)| {
            let mut settings = ClusterSettings::default();
            change(&mut settings);
            settings
        };
        for (spec, want) in [
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": 3}}), with(|settings| settings.task_history = 3)),
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": 0}}), with(|settings| settings.task_history = 0)),
            (json!({"EncryptionConfig": {"AutoLockManagers": true}}), with(|settings| settings.auto_lock = true)),
            (
                json!({"CAConfig": {"NodeCertExpiry": 3_600_000_000_000u64}}),
                with(|settings| settings.credential_ns = 3_600_000_000_000),
            ),
        ] {
            assert_eq!(read(spec, &cluster(1)).unwrap().settings, want);
        }
        for (spec, status, word) in [
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": -1}}), 400, "task history limit"),
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": 21}}), 400, "limit of 20"),
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": "3"}}), 400, "task history limit"),
            (json!({"CAConfig": {"NodeCertExpiry": 1}}), 400, "minimum certificate expiry time is: 1h0m0s"),
            (json!({"EncryptionConfig": {"AutoLockManagers": "yes"}}), 400, "true or false"),
            (json!({"Dispatcher": {"HeartbeatPeriod": 6_000_000_000u64}}), 501, "--dispatcher-heartbeat"),
            (json!({"Raft": {"SnapshotInterval": 1}}), 501, "Raft.SnapshotInterval"),
            (json!({"Name": "other"}), 501, "another name"),
            (json!({"Labels": {"a": "b"}}), 501, "labels of the swarm"),
            (json!({"CAConfig": {"SigningCACert": "-----BEGIN"}}), 501, "--ca-cert"),
            (json!({"CAConfig": {"ExternalCAs": [{"URL": "x"}]}}), 501, "--external-ca"),
            (json!({"TaskDefaults": {"LogDriver": {"Name": "syslog"}}}), 501, "log driver"),
            (json!({"Novelty": true}), 501, "Novelty"),
        ] {
            let error = read(spec.clone(), &cluster(1)).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{spec}: {error}");
            assert!(error.message.contains(word), "{spec}: {error}");
        }
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
            let read = read(json!({"CAConfig": config}), &cluster(edition)).unwrap();
            assert_eq!(read.rotates_root, wanted, "{config}");
        }
    }
}
