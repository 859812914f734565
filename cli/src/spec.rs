//! From flags to the JSON of a service's spec.
//!
//! Specs are changed as JSON, not as typed values, so that an update gives back every field that this client does not
//! know.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};
use shoal_protocol::spec::{PortConfig, PortSettings, PublishedPort, RESTART_DELAY_NANOS_DEFAULT, UpdateConfig};

use crate::error::CliError;
use crate::health::HealthArgs;
use crate::settings::SettingArgs;
use crate::units::{Bytes, NanoCpus, Nanos};
use crate::words;

/// Bytes of a `--env-file` at most.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags that `service create` and `service update` share.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct SpecArgs {
    /// Number of tasks
    #[arg(long, value_name = "N")]
    replicas: Option<u64>,
    /// Number of job tasks to run concurrently (default equal to --replicas)
    #[arg(long, value_name = "N")]
    max_concurrent: Option<u64>,
    /// Endpoint mode (vip or dnsrr)
    #[arg(long, value_parser = ["vip", "dnsrr"], value_name = "MODE")]
    endpoint_mode: Option<String>,
    /// Maximum number of tasks per node (0 = unlimited)
    #[arg(long, value_name = "N")]
    replicas_max_per_node: Option<u64>,
    /// Limit CPUs
    #[arg(long, value_name = "DECIMAL")]
    limit_cpu: Option<NanoCpus>,
    /// Limit Memory
    #[arg(long, value_name = "BYTES")]
    limit_memory: Option<Bytes>,
    /// Limit maximum number of processes (0 = unlimited)
    #[arg(long, value_name = "N")]
    limit_pids: Option<u64>,
    /// Reserve CPUs
    #[arg(long, value_name = "DECIMAL")]
    reserve_cpu: Option<NanoCpus>,
    /// Reserve Memory
    #[arg(long, value_name = "BYTES")]
    reserve_memory: Option<Bytes>,
    /// Restart when condition is met
    #[arg(long, value_parser = ["none", "on-failure", "any"], value_name = "CONDITION")]
    restart_condition: Option<String>,
    /// Delay between restart attempts (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    restart_delay: Option<Nanos>,
    /// Maximum number of restarts before giving up (0 = unlimited)
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u64>,
    /// Window used to evaluate the restart policy (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    restart_window: Option<Nanos>,
    /// Time to wait before force killing a container (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    stop_grace_period: Option<Nanos>,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Maximum number of tasks updated simultaneously (0 to update all at once)
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u64>,
    /// Delay between updates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    update_delay: Option<Nanos>,
    /// Duration after each task update to monitor for failure (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    update_monitor: Option<Nanos>,
    /// Action on update failure
    #[arg(long, value_parser = ["pause", "continue", "rollback"], value_name = "ACTION")]
    update_failure_action: Option<String>,
    /// Failure rate to tolerate during an update (0 to 1)
    #[arg(long, value_parser = ratio, value_name = "RATIO")]
    update_max_failure_ratio: Option<f64>,
    /// Update order
    #[arg(long, value_parser = ["stop-first", "start-first"], value_name = "ORDER")]
    update_order: Option<String>,
    /// Maximum number of tasks rolled back simultaneously (0 to roll back all at once)
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u64>,
    /// Delay between task rollbacks (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    rollback_delay: Option<Nanos>,
    /// Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    rollback_monitor: Option<Nanos>,
    /// Action on rollback failure
    #[arg(long, value_parser = ["pause", "continue"], value_name = "ACTION")]
    rollback_failure_action: Option<String>,
    /// Failure rate to tolerate during a rollback (0 to 1)
    #[arg(long, value_parser = ratio, value_name = "RATIO")]
    rollback_max_failure_ratio: Option<f64>,
    /// Rollback order
    #[arg(long, value_parser = ["stop-first", "start-first"], value_name = "ORDER")]
    rollback_order: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long)]
    user: Option<String>,
    /// Container hostname
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    read_only: Option<bool>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

impl SpecArgs {
    /// Returns whether no flag was given.
    pub(crate) fn is_empty(&self) -> bool {
        let mut spec = json!({"Mode": {"Replicated": {}}});
        let before = spec.clone();
        self.apply(&mut spec).is_ok() && spec == before
    }

    /// Writes what the flags say into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<(), CliError> {
        self.apply_mode(spec)?;
        set(spec, &["EndpointSpec", "Mode"], self.endpoint_mode.clone());
        self.apply_resources(spec);
        self.apply_restart(spec)?;
        self.apply_update(spec);
        if is_job(spec) && (!spec["UpdateConfig"].is_null() || !spec["RollbackConfig"].is_null()) {
            let text = "update and rollback configuration is not supported for jobs";
            return Err(CliError::Misused(text.to_owned()));
        }
        self.apply_container(spec)?;
        self.settings.apply(spec);
        self.health.apply(spec)
    }

    fn apply_mode(&self, spec: &mut Value) -> Result<(), CliError> {
        let misused = |text: &str| Err(CliError::Misused(text.to_owned()));
        let path = replicas_path(spec);
        let is_job = spec["Mode"].get("ReplicatedJob").is_some();
        if path.is_none() && self.replicas.is_some() {
            return misused("replicas can only be used with replicated or replicated-job mode");
        }
        if path.is_none() && self.replicas_max_per_node.is_some_and(|most| most > 0) {
            return misused("replicas-max-per-node can only be used with replicated or replicated-job mode");
        }
        if !is_job && self.max_concurrent.is_some() {
            return misused("max-concurrent can only be used with replicated-job mode");
        }
        if let Some(path) = path {
            set(spec, &path, self.replicas);
        }
        set(spec, &["Mode", "ReplicatedJob", "MaxConcurrent"], self.max_concurrent);
        set(spec, &["TaskTemplate", "Placement", "MaxReplicas"], self.replicas_max_per_node);
        Ok(())
    }

    fn apply_resources(&self, spec: &mut Value) {
        let resource = |kind, name| ["TaskTemplate", "Resources", kind, name];
        set(spec, &resource("Limits", "NanoCPUs"), self.limit_cpu.map(|cpus| cpus.0));
        set(spec, &resource("Limits", "MemoryBytes"), self.limit_memory.map(|bytes| bytes.0));
        set(spec, &resource("Limits", "Pids"), self.limit_pids);
        set(spec, &resource("Reservations", "NanoCPUs"), self.reserve_cpu.map(|cpus| cpus.0));
        set(spec, &resource("Reservations", "MemoryBytes"), self.reserve_memory.map(|bytes| bytes.0));
    }

    fn apply_restart(&self, spec: &mut Value) -> Result<(), CliError> {
        if is_job(spec) && self.restart_condition.as_deref() == Some("any") {
            let text = "restart-condition any cannot be used with jobs: a task that completed has done its work";
            return Err(CliError::Misused(text.to_owned()));
        }
        let given = [
            ("Condition", self.restart_condition.as_ref().map(|condition| json!(condition))),
            ("Delay", self.restart_delay.map(|delay| json!(delay.0))),
            ("MaxAttempts", self.restart_max_attempts.map(|attempts| json!(attempts))),
            ("Window", self.restart_window.map(|window| json!(window.0))),
        ];
        let condition = if is_job(spec) { "on-failure" } else { "any" };
        let defaults = json!({"Condition": condition, "Delay": RESTART_DELAY_NANOS_DEFAULT, "MaxAttempts": 0});
        set_policy(spec, &["TaskTemplate", "RestartPolicy"], given, defaults);
        Ok(())
    }

    fn apply_update(&self, spec: &mut Value) {
        let given = [
            ("Parallelism", self.update_parallelism.map(|tasks| json!(tasks))),
            ("Delay", self.update_delay.map(|delay| json!(delay.0))),
            ("FailureAction", self.update_failure_action.as_ref().map(|action| json!(action))),
            ("Monitor", self.update_monitor.map(|monitor| json!(monitor.0))),
            ("MaxFailureRatio", self.update_max_failure_ratio.map(|ratio| json!(ratio))),
            ("Order", self.update_order.as_ref().map(|order| json!(order))),
        ];
        set_policy(spec, &["UpdateConfig"], given, json!(UpdateConfig::default()));
        let given = [
            ("Parallelism", self.rollback_parallelism.map(|tasks| json!(tasks))),
            ("Delay", self.rollback_delay.map(|delay| json!(delay.0))),
            ("FailureAction", self.rollback_failure_action.as_ref().map(|action| json!(action))),
            ("Monitor", self.rollback_monitor.map(|monitor| json!(monitor.0))),
            ("MaxFailureRatio", self.rollback_max_failure_ratio.map(|ratio| json!(ratio))),
            ("Order", self.rollback_order.as_ref().map(|order| json!(order))),
        ];
        set_policy(spec, &["RollbackConfig"], given, json!(UpdateConfig::default()));
    }

    fn apply_container(&self, spec: &mut Value) -> Result<(), CliError> {
        let field = |name| ["TaskTemplate", "ContainerSpec", name];
        set(spec, &field("StopGracePeriod"), self.stop_grace_period.map(|grace| grace.0));
        set(spec, &field("StopSignal"), self.stop_signal.clone());
        set(spec, &field("Dir"), self.workdir.clone());
        set(spec, &field("User"), self.user.clone());
        set(spec, &field("Hostname"), self.hostname.clone());
        set(spec, &field("ReadOnly"), self.read_only);
        if let Some(entrypoint) = &self.entrypoint {
            let command = words::split(entrypoint)
                .map_err(|reason| CliError::Misused(format!("--entrypoint '{entrypoint}': {reason}")))?;
            set(spec, &field("Command"), Some(command));
        }
        Ok(())
    }
}

/// Returns where a spec says how many tasks there are, if its mode has a number of them.
pub(crate) fn replicas_path(spec: &Value) -> Option<[&'static str; 3]> {
    let mode = &spec["Mode"];
    if mode.get("ReplicatedJob").is_some() {
        return Some(["Mode", "ReplicatedJob", "TotalCompletions"]);
    }
    let has_none = mode.get("Global").is_some() || mode.get("GlobalJob").is_some();
    (!has_none).then_some(["Mode", "Replicated", "Replicas"])
}

/// Returns whether a spec is that of a job.
fn is_job(spec: &Value) -> bool {
    ["ReplicatedJob", "GlobalJob"].iter().any(|mode| spec["Mode"].get(mode).is_some())
}

/// Writes a value at a path of objects, if there is one to write.
pub(crate) fn set(spec: &mut Value, path: &[&str], value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        *slot(spec, path) = value.into();
    }
}

/// Returns the place at a path, making objects on the way.
pub(crate) fn slot<'a>(spec: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(spec, |place, key| {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        &mut place[*key]
    })
}

/// Writes the given fields of a policy over what it is, or over its defaults if it was not there.
fn set_policy<const N: usize>(spec: &mut Value, path: &[&str], given: [(&str, Option<Value>); N], defaults: Value) {
    if given.iter().all(|(_, value)| value.is_none()) {
        return;
    }
    let policy = slot(spec, path);
    if !policy.is_object() {
        *policy = defaults;
    }
    for (name, value) in given {
        if let Some(value) = value {
            policy[name] = value;
        }
    }
}

/// Returns the texts of a list in a spec.
pub(crate) fn texts(place: &Value) -> Vec<String> {
    place
        .as_array()
        .map_or_else(Vec::new, |list| list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
}

/// Removes texts from a list and adds others that are not in it.
pub(crate) fn change_list(spec: &mut Value, path: &[&str], remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let place = slot(spec, path);
    let mut list = texts(place);
    list.retain(|item| !remove.contains(item));
    for item in add {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
    *place = json!(list);
}

/// Removes variables by name and adds `NAME=VALUE`, which replaces one of that name.
pub(crate) fn change_env(spec: &mut Value, remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let place = slot(spec, &["TaskTemplate", "ContainerSpec", "Env"]);
    let mut list = texts(place);
    let name_of = |variable: &str| variable.split_once('=').map_or(variable, |(name, _)| name).to_owned();
    list.retain(|variable| !remove.contains(&name_of(variable)));
    for variable in add {
        let name = name_of(variable);
        match list.iter_mut().find(|old| name_of(old) == name) {
            Some(old) => old.clone_from(variable),
            None => list.push(variable.clone()),
        }
    }
    *place = json!(list);
}

/// Removes labels by name and adds `NAME=VALUE` or `NAME`.
pub(crate) fn change_labels(spec: &mut Value, path: &[&str], remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let place = slot(spec, path);
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    for label in add {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        place[name] = json!(value);
    }
    if let Some(labels) = place.as_object_mut() {
        labels.retain(|name, _| !remove.contains(name));
    }
}

/// Removes the labels about ports that are to be removed by target.
pub(crate) fn forget_ports(spec: &mut Value, remove: &[PortConfig]) {
    if remove.is_empty() {
        return;
    }
    let ports: Vec<PortConfig> =
        serde_json::from_value(slot(spec, &["EndpointSpec", "Ports"]).clone()).unwrap_or_default();
    let is_gone = |port: &PortConfig| {
        remove.iter().any(|gone| gone.target_port == port.target_port && gone.transport() == port.transport())
    };
    let gone: Vec<PortConfig> = ports.iter().filter(|port| is_gone(port)).cloned().collect();
    forget_settings(spec, &gone);
}

/// Removes the labels about published ports.
pub(crate) fn forget_settings(spec: &mut Value, ports: &[PortConfig]) {
    if ports.is_empty() {
        return;
    }
    let gone: Vec<PublishedPort> = ports.iter().map(PortConfig::published).collect();
    if let Some(labels) = slot(spec, &["Labels"]).as_object_mut() {
        labels.retain(|label, _| !PortSettings::port_of(label).is_some_and(|port| gone.contains(&port)));
    }
}

/// Removes published ports by target and adds others.
pub(crate) fn change_ports(spec: &mut Value, remove: &[PortConfig], add: &[PortConfig]) -> Result<(), CliError> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let place = slot(spec, &["EndpointSpec", "Ports"]);
    let mut ports: Vec<PortConfig> = if place.is_null() {
        Vec::new()
    } else {
        serde_json::from_value(place.take())
            .map_err(|error| CliError::Failed(format!("the service's ports make no sense: {error}")))?
    };
    let is_protocol = |have: &str, want: &str| have == want || have.is_empty() && want == "tcp";
    ports.retain(|port| {
        !remove.iter().any(|gone| gone.target_port == port.target_port && is_protocol(&port.protocol, &gone.protocol))
    });
    for port in add {
        if !ports.contains(port) {
            ports.push(port.clone());
        }
    }
    *place = json!(ports);
    let mode = slot(spec, &["EndpointSpec", "Mode"]);
    if mode.is_null() {
        *mode = json!("vip");
    }
    Ok(())
}

/// Completes `NAME` from this process's environment, as Docker's client does; a variable that is not set is left out.
pub(crate) fn env_from_flags(flags: &[String]) -> Result<Vec<String>, CliError> {
    let mut env = Vec::new();
    for flag in flags {
        let (name, value) = flag.split_once('=').map_or((flag.as_str(), None), |(name, value)| (name, Some(value)));
        if name.is_empty() {
            return Err(CliError::Misused(format!("'{flag}' is not a variable: expected NAME=VALUE")));
        }
        match value {
            Some(_) => env.push(flag.clone()),
            None => env.extend(std::env::var(name).ok().map(|value| format!("{name}={value}"))),
        }
    }
    Ok(env)
}

/// Reads a file of variables: one a line, empty lines and those that begin with `#` are passed over.
pub(crate) fn env_from_file(path: &Path) -> Result<Vec<String>, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("{}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut text = String::new();
    // Of a device the size is not known before.
    let size = file.take(ENV_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if size as u64 > ENV_FILE_BYTES_MAX {
        return Err(failed(&format!("larger than {ENV_FILE_BYTES_MAX} bytes")));
    }
    let lines: Vec<String> = text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    env_from_flags(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(texts: &[&str]) -> Vec<PortConfig> {
        texts.iter().flat_map(|text| text.parse::<crate::ports::Publish>().unwrap().0).collect()
    }

    #[test]
    fn variables_are_read_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, "# comment\n\n  A=1 2\nB=\nSHOAL_NOT_SET_ANYWHERE\n").unwrap();
        assert_eq!(env_from_file(&path).unwrap(), ["A=1 2", "B="]);
        std::fs::write(&path, "=1\n").unwrap();
        assert!(env_from_file(&path).unwrap_err().to_string().contains("is not a variable"));
        for (name, reason) in [("/dev/zero", "larger than"), ("nosuch", "No such file")] {
            let error = env_from_file(&directory.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn policies_start_from_dockers_defaults() {
        let mut spec = json!({});
        let args = SpecArgs { update_parallelism: Some(2), restart_max_attempts: Some(3), ..SpecArgs::default() };
        args.apply(&mut spec).unwrap();
        assert_eq!(spec["UpdateConfig"]["Parallelism"], 2);
        assert_eq!(spec["UpdateConfig"]["Monitor"], 5_000_000_000u64);
        assert_eq!(spec["TaskTemplate"]["RestartPolicy"]["Condition"], "any");
        assert_eq!(spec["TaskTemplate"]["RestartPolicy"]["MaxAttempts"], 3);
    }

    #[test]
    fn unknown_fields_survive_a_change() {
        let mut spec = json!({"Mode": {"Replicated": {"Replicas": 3}}, "TaskTemplate": {"Runtime": "container"}});
        SpecArgs { replicas: Some(5), ..SpecArgs::default() }.apply(&mut spec).unwrap();
        assert_eq!(spec, json!({"Mode": {"Replicated": {"Replicas": 5}}, "TaskTemplate": {"Runtime": "container"}}));
        assert!(SpecArgs::default().is_empty());
    }

    #[test]
    fn global_services_have_no_replicas() {
        let mut spec = json!({"Mode": {"Global": {}}});
        assert!(SpecArgs { replicas: Some(5), ..SpecArgs::default() }.apply(&mut spec).is_err());
    }

    #[test]
    fn a_port_that_goes_takes_its_label_along() {
        let mut spec = json!({"Labels": {"shoal.proxy.80": "v1", "shoal.proxy.90": "v2", "shoal.publish.80": "::1", "a": "b"}, "EndpointSpec": {"Ports": [
            {"TargetPort": 8080, "PublishedPort": 80}, {"TargetPort": 9090, "PublishedPort": 90}]}});
        forget_ports(&mut spec, &ports(&["8080"]));
        assert_eq!(spec["Labels"], json!({"shoal.proxy.90": "v2", "a": "b"}));
    }

    #[test]
    fn lists_variables_labels_and_ports_change() {
        let mut spec = json!({"TaskTemplate": {"ContainerSpec": {"Env": ["A=1", "B=2"]}},
            "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]}});
        change_env(&mut spec, &["B".to_owned()], &["A=3".to_owned(), "C=4".to_owned()]);
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=3", "C=4"]));
        change_labels(&mut spec, &["Labels"], &[], &["a=b".to_owned(), "c".to_owned()]);
        change_labels(&mut spec, &["Labels"], &["a".to_owned()], &[]);
        assert_eq!(spec["Labels"], json!({"c": ""}));
        change_ports(&mut spec, &ports(&["80"]), &ports(&["8081:81"])).unwrap();
        assert_eq!(spec["EndpointSpec"]["Ports"].as_array().unwrap().len(), 1);
        assert_eq!(spec["EndpointSpec"]["Ports"][0]["TargetPort"], 81);
        change_list(&mut spec, &["TaskTemplate", "Placement", "Constraints"], &[], &["node.role==worker".to_owned()]);
        assert_eq!(spec["TaskTemplate"]["Placement"]["Constraints"], json!(["node.role==worker"]));
    }
}
