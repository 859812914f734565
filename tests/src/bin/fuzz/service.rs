//! Services with as much as fits into one.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use shoal_tests::lab::IMAGE;

/// Draws a service. Its image is there half of the time.
pub fn service(name: &str, random: &mut StdRng) -> Value {
    let mut service = json!({"Name": name, "Labels": {"l": "1"}, "Mode": mode(random), "TaskTemplate": task(random),
        "UpdateConfig": {"Parallelism": 1, "Delay": 0, "FailureAction": "rollback", "Monitor": 1_000_000_000u64,
            "MaxFailureRatio": 0.1, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 0, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8099,
            "PublishMode": "ingress"}, {"Name": "u", "Protocol": "udp", "TargetPort": 53, "PublishMode": "host"}]}});
    leave_out(&mut service, &["UpdateConfig", "RollbackConfig", "EndpointSpec"], random);
    let is_job = ["ReplicatedJob", "GlobalJob"].iter().any(|mode| service["Mode"][mode].is_object());
    if is_job && random.random_ratio(7, 8) {
        for part in ["UpdateConfig", "RollbackConfig"] {
            service[part] = Value::Null;
        }
        service["TaskTemplate"]["RestartPolicy"]["Condition"] = json!("on-failure");
    }
    service
}

/// Leaves most of the parts out that not every service has: one that has everything is refused for one of them.
pub fn leave_out(value: &mut Value, parts: &[&str], random: &mut StdRng) {
    for part in parts {
        if random.random_ratio(3, 4) {
            value[part] = Value::Null;
        }
    }
}

fn mode(random: &mut StdRng) -> Value {
    match random.random_range(0..6) {
        0 => json!({"Global": {}}),
        1 => json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 3}}),
        2 => json!({"GlobalJob": {}}),
        _ => json!({"Replicated": {"Replicas": 1}}),
    }
}

fn task(random: &mut StdRng) -> Value {
    let mut task = json!({
        "ContainerSpec": container(random),
        "Resources": {"Limits": {"NanoCPUs": 100_000_000, "MemoryBytes": 16_777_216, "Pids": 50},
            "Reservations": {"NanoCPUs": 1_000_000, "MemoryBytes": 4_194_304, "GenericResources": [
                {"DiscreteResourceSpec": {"Kind": "SSD", "Value": 1}}, {"NamedResourceSpec": {"Kind": "GPU", "Value": "gpu0"}}]}},
        "RestartPolicy": {"Condition": "any", "Delay": 1_000_000_000u64, "MaxAttempts": 2, "Window": 0},
        "Placement": {"Constraints": ["node.role==manager", "node.labels.zone!=b", "engine.labels.x==y"], "MaxReplicas": 3,
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}},
                {"Spread": {"SpreadDescriptor": "engine.labels.rack"}}],
            "Platforms": [{"Architecture": "x86_64", "OS": "linux"}]},
        "Networks": [{"Target": "a", "Aliases": ["x", "y"], "DriverOpts": {}}], "ForceUpdate": 0, "Runtime": "container",
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}}});
    leave_out(&mut task, &["Placement", "Networks", "LogDriver", "Resources"], random);
    task
}

fn container(random: &mut StdRng) -> Value {
    const TEMPLATES: [&str; 10] = [
        "{{.Node.ID}}",
        "{{.Node.Hostname}}-{{.Task.Slot}}",
        "{{.Service.Name}}",
        "{{.Service.Labels}}",
        "{{index .Service.Labels \"l\"}}",
        "{{.Task.Name}}.{{.Task.ID}}",
        "{{.Node.Platform.OS}}{{.Nope}}",
        "{{if .Task.Slot}}x{{end}}",
        "{{printf \"%999999999d\" .Task.Slot}}",
        "{{{{}}}}",
    ];
    let template = |random: &mut StdRng| {
        let template = TEMPLATES.choose(random).copied().unwrap_or_default();
        if random.random_ratio(1, 4) { template } else { "{{.Task.Slot}}" }
    };
    let (env, host, source) = (template(random), template(random), template(random));
    let image = if random.random() { IMAGE } else { "nosuch:1" };
    let mut container = json!({"Image": image, "Command": [], "Args": ["x"],
        "Env": ["A=1", format!("B={env}")], "Hostname": if random.random() { "h" } else { host },
        "Dir": "/tmp", "User": "0", "Groups": ["1"], "Labels": {"c": "1"}, "Init": false, "ReadOnly": true, "TTY": false,
        "OpenStdin": false, "Mounts": [
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 65_536, "Mode": 511}},
            {"Type": "volume", "Source": if random.random_ratio(3, 4) { "vol" } else { source }, "Target": "/v",
                "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"}, "DriverConfig": {"Name": "local", "Options": {}}}},
            {"Type": "bind", "Source": "/etc/hostname", "Target": format!("/n/{source}"), "ReadOnly": true,
                "BindOptions": {"Propagation": "rprivate", "NonRecursive": true}}],
        "StopGracePeriod": 100_000_000, "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["CMD", "/whoami", "check"], "Interval": 1_000_000_000u64, "Timeout": 1_000_000_000u64,
            "StartPeriod": 0, "StartInterval": 0, "Retries": 3},
        "Secrets": [{"SecretID": "<secret>", "SecretName": "a", "File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292}}],
        "Configs": [{"ConfigID": "<config>", "ConfigName": "a", "File": {"Name": "/c", "UID": "0", "GID": "0", "Mode": 292}}],
        "Hosts": ["10.0.0.1 h"], "DNSConfig": {"Nameservers": ["10.0.0.1"], "Search": ["x"], "Options": ["ndots:1"]},
        "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_CHOWN"], "OomScoreAdj": 5,
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}], "Sysctls": {"net.core.somaxconn": "512"},
        "Privileges": if random.random_ratio(1, 4) { json!({"NoNewPrivileges": true}) } else { Value::Null }, "Isolation": "default"});
    const PARTS: [&str; 16] = [
        "Secrets",
        "Configs",
        "Mounts",
        "Privileges",
        "Healthcheck",
        "Groups",
        "Hosts",
        "DNSConfig",
        "CapabilityAdd",
        "CapabilityDrop",
        "OomScoreAdj",
        "Ulimits",
        "Sysctls",
        "Isolation",
        "Dir",
        "Hostname",
    ];
    leave_out(&mut container, &PARTS, random);
    container
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use shoal_protocol::spec::ServiceSpec;

    use super::*;

    #[test]
    fn many_services_are_in_order_before_anything_is_changed() {
        const DRAWN: usize = 500;
        let mut random = StdRng::seed_from_u64(1);
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..DRAWN {
            let service = service("a", &mut random);
            if let Err(error) = ServiceSpec::parse(&service.to_string()) {
                *refused.entry(error.to_string()).or_default() += 1;
            }
        }
        let count: usize = refused.values().sum();
        assert!(count < DRAWN / 2, "{count} of {DRAWN} are refused: {refused:#?}");
    }
}
