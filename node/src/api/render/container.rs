//! Containers and images, where no engine shows them. Source: Docker Engine API v1.50, as Docker Engine 20.10 answers.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shoal_control::task::health::HealthStatus;
use shoal_protocol::WallTime;
use shoal_protocol::spec::PortConfig;
use shoal_protocol::spec::mount::{Mount, MountKind};
use shoal_protocol::time::human_duration;

use crate::driver::ImageInfo;
use crate::driver::inventory::{CheckInfo, ContainerHealth, ContainerInfo, ContainerState, ImageDetails, VolumeInfo};

/// The moment that Docker writes where there was none.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Returns Docker's name of a state.
pub fn container_state(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited { .. } => "exited",
    }
}

/// Says where a container is in its life as `docker ps` shows it.
fn status(container: &ContainerInfo, now: WallTime) -> String {
    let since = |then: WallTime| human_duration(i128::from(now.0) - i128::from(then.0));
    let health = container.health.as_ref().map(|health| match health.status {
        HealthStatus::Starting => " (health: starting)",
        HealthStatus::Healthy => " (healthy)",
        HealthStatus::Unhealthy => " (unhealthy)",
    });
    match &container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running { started, .. } => format!("Up {}{}", since(*started), health.unwrap_or_default()),
        ContainerState::Exited { code, ended, .. } => format!("Exited ({code}) {} ago", since(*ended)),
    }
}

/// Renders a container for a listing.
pub fn container_summary(container: &ContainerInfo, now: WallTime) -> Value {
    let plan = &container.plan;
    let mut summary = json!({
        "Id": container.id,
        "Names": [format!("/{}", plan.name)],
        "Image": plan.image,
        "ImageID": container.image_id,
        "Command": command(&container.args),
        "Created": seconds(container.created),
        "Ports": port_summaries(container),
        "Labels": plan.labels,
        "State": container_state(&container.state),
        "Status": status(container, now),
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": networks(container)},
        "Mounts": mounts(container),
    });
    if let Some(sizes) = container.sizes {
        summary["SizeRw"] = json!(sizes.written_bytes);
        summary["SizeRootFs"] = json!(sizes.written_bytes + sizes.image_bytes);
    }
    summary
}

fn seconds(moment: WallTime) -> u64 {
    moment.0 / 1_000_000_000
}

/// Writes program and arguments as `docker ps` does: what has blanks is quoted.
fn command(args: &[String]) -> String {
    let quoted = |(place, arg): (usize, &String)| {
        if place > 0 && arg.contains(' ') { format!("'{arg}'") } else { arg.clone() }
    };
    args.iter().enumerate().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Ports that are open on the node under a number that is known.
fn published(ports: &[PortConfig]) -> impl Iterator<Item = &PortConfig> {
    ports.iter().filter(|port| port.published_port != 0)
}

fn protocol(port: &PortConfig) -> &str {
    if port.protocol.is_empty() { "tcp" } else { &port.protocol }
}

fn port_summary(port: &PortConfig) -> Value {
    json!({"IP": "0.0.0.0", "PrivatePort": port.target_port, "PublicPort": port.published_port, "Type": protocol(port)})
}

/// Lists published ports, and what the image says it listens on beside those, where it runs.
fn port_summaries(container: &ContainerInfo) -> Vec<Value> {
    let published: Vec<&PortConfig> = published(&container.plan.host_ports).collect();
    let is_on = matches!(container.state, ContainerState::Running { .. });
    let inside = exposed(container).filter(|(number, kind)| {
        is_on && !published.iter().any(|port| port.target_port == *number && protocol(port) == *kind)
    });
    let inside = inside.map(|(number, kind)| json!({"PrivatePort": number, "Type": kind}));
    published.iter().map(|port| port_summary(port)).chain(inside).collect()
}

/// Reads what the image says it listens on; a port without a protocol is one of TCP.
fn exposed(container: &ContainerInfo) -> impl Iterator<Item = (u16, &str)> {
    container.exposed.iter().filter_map(|port| {
        let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
        Some((number.parse().ok()?, kind))
    })
}

fn networks(container: &ContainerInfo) -> Value {
    let is_on = matches!(container.state, ContainerState::Running { .. });
    let text = |address: String| if is_on { address } else { String::new() };
    json!({"bridge": {
        "IPAMConfig": null, "Links": null, "Aliases": null, "NetworkID": "", "EndpointID": "",
        "Gateway": text(container.gateway.to_string()),
        "IPAddress": text(container.address.to_string()),
        "IPPrefixLen": if is_on { container.prefix } else { 0 },
        "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "", "DriverOpts": null,
    }})
}

fn mounts(container: &ContainerInfo) -> Vec<Value> {
    let path = |mount: &Mount| {
        container.volumes.get(&mount.target).map_or_else(String::new, |path| path.display().to_string())
    };
    let render = |mount: &Mount| {
        let mut shown = json!({"Destination": mount.target, "Mode": "", "RW": !mount.read_only, "Propagation": ""});
        match mount.kind {
            MountKind::Bind => {
                shown["Type"] = json!("bind");
                shown["Source"] = json!(mount.source);
                shown["Propagation"] = json!("rprivate");
            }
            MountKind::Volume => {
                shown["Type"] = json!("volume");
                shown["Name"] = json!(mount.source);
                shown["Source"] = json!(path(mount));
                shown["Driver"] = json!("local");
            }
            MountKind::Tmpfs => {
                shown["Type"] = json!("tmpfs");
                shown["Source"] = json!("");
            }
            // The driver runs nothing that has one of these.
            MountKind::Unset | MountKind::Npipe | MountKind::Cluster | MountKind::Image => {}
        }
        shown
    };
    container.plan.mounts.iter().map(render).collect()
}

/// Renders a container whole.
pub fn container(container: &ContainerInfo) -> Value {
    let plan = &container.plan;
    let mut shown = json!({
        "Id": container.id,
        "Created": container.created.to_string(),
        "Path": container.args.first(),
        "Args": container.args.iter().skip(1).collect::<Vec<_>>(),
        "State": state(container),
        "Image": container.image_id,
        "Name": format!("/{}", plan.name),
        "RestartCount": 0,
        "Driver": "overlay",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(container),
        "Mounts": mounts(container),
        "Config": config(container),
        "NetworkSettings": {
            "Ports": ports(container),
            "Networks": networks(container),
        },
    });
    if let Some(sizes) = container.sizes {
        shown["SizeRw"] = json!(sizes.written_bytes);
        shown["SizeRootFs"] = json!(sizes.written_bytes + sizes.image_bytes);
    }
    for name in ["Gateway", "IPAddress", "IPPrefixLen", "MacAddress"] {
        shown["NetworkSettings"][name] = shown["NetworkSettings"]["Networks"]["bridge"][name].clone();
    }
    shown
}

fn state(container: &ContainerInfo) -> Value {
    let state = &container.state;
    let (pid, code, error, started, finished) = match state {
        ContainerState::Created => (0, 0, "", None, None),
        ContainerState::Running { pid, started } => (*pid, 0, "", Some(*started), None),
        ContainerState::Exited { code, error, started, ended } => (0, *code, error.as_str(), *started, Some(*ended)),
    };
    let moment = |moment: Option<WallTime>| moment.map_or_else(|| NEVER.to_owned(), |moment| moment.to_string());
    let mut shown = json!({
        "Status": container_state(state),
        "Running": matches!(state, ContainerState::Running { .. }),
        "Paused": false,
        "Restarting": false,
        "OOMKilled": error == crate::driver::embedded::bundle::OUT_OF_MEMORY,
        "Dead": false,
        "Pid": pid,
        "ExitCode": code,
        "Error": error,
        "StartedAt": moment(started),
        "FinishedAt": moment(finished),
    });
    if let Some(health) = &container.health {
        shown["Health"] = self::health(health);
    }
    shown
}

fn health(health: &ContainerHealth) -> Value {
    let check = |check: &CheckInfo| {
        json!({
            "Start": check.began.to_string(),
            "End": check.ended.to_string(),
            "ExitCode": check.code,
            "Output": check.output,
        })
    };
    json!({
        "Status": health.status,
        "FailingStreak": health.failures,
        "Log": health.checks.iter().map(check).collect::<Vec<_>>(),
    })
}

/// Returns which ports lead to the container, those that are open inside alone included.
fn ports(container: &ContainerInfo) -> Value {
    let mut shown = bindings(&container.plan.host_ports);
    if matches!(container.state, ContainerState::Running { .. }) {
        for (number, kind) in exposed(container) {
            let name = format!("{number}/{kind}");
            if shown.get(&name).is_none() {
                shown[name] = Value::Null;
            }
        }
    }
    shown
}

fn host_config(container: &ContainerInfo) -> Value {
    let plan = &container.plan;
    json!({
        "NetworkMode": "default",
        "PortBindings": bindings(&plan.host_ports),
        "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
        "AutoRemove": false,
        "Privileged": false,
        "ReadonlyRootfs": plan.read_only,
        "NanoCpus": plan.limits.nano_cpus,
        "Memory": plan.limits.memory_bytes,
        "PidsLimit": plan.limits.pids,
        "Mounts": plan.mounts,
        "LogConfig": {"Type": "json-file", "Config": {}},
    })
}

fn config(container: &ContainerInfo) -> Value {
    let plan = &container.plan;
    let list = |texts: &[String]| if texts.is_empty() { Value::Null } else { json!(texts) };
    let mut config = json!({
        "Hostname": container.hostname,
        "Domainname": "",
        "User": container.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": container.env,
        "Entrypoint": list(&plan.command),
        "Cmd": list(&plan.args),
        "Image": plan.image,
        "Volumes": null,
        "WorkingDir": container.dir,
        "Labels": plan.labels,
        "StopTimeout": plan.stop_grace.as_secs(),
    });
    if !container.exposed.is_empty() {
        let ports = exposed(container).map(|(number, kind)| (format!("{number}/{kind}"), json!({})));
        config["ExposedPorts"] = ports.collect::<serde_json::Map<_, _>>().into();
    }
    if let Some(check) = &plan.healthcheck {
        config["Healthcheck"] = json!(check);
    }
    if !plan.stop_signal.is_empty() {
        config["StopSignal"] = json!(plan.stop_signal);
    }
    config
}

fn bindings(ports: &[PortConfig]) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in published(ports) {
        let binding = json!({"HostIp": "", "HostPort": port.published_port.to_string()});
        bindings.entry(format!("{}/{}", port.target_port, protocol(port))).or_default().push(binding);
    }
    json!(bindings)
}

/// Renders an image for a listing.
pub fn image_summary(image: &ImageInfo) -> Value {
    json!({
        "Containers": -1,
        "Created": seconds(image.created),
        "Id": image.id,
        "Labels": null,
        "ParentId": "",
        "RepoDigests": null,
        "RepoTags": image.tags,
        "SharedSize": -1,
        "Size": image.size,
        "VirtualSize": image.size,
    })
}

/// Renders an image whole.
pub fn image(image: &ImageDetails) -> Value {
    let stored: Value = serde_json::from_str(&image.config).unwrap_or_default();
    let or_empty = |name: &str| stored[name].as_str().unwrap_or_default().to_owned();
    let layers: Vec<&String> = image.layers.iter().map(|(digest, _)| digest).collect();
    json!({
        "Id": image.info.id,
        "RepoTags": image.info.tags,
        "RepoDigests": [],
        "Parent": "",
        "Comment": "",
        "Created": or_empty("created"),
        "DockerVersion": "",
        "Author": or_empty("author"),
        "Config": stored["config"],
        "Architecture": or_empty("architecture"),
        "Variant": or_empty("variant"),
        "Os": or_empty("os"),
        "Size": image.info.size,
        "VirtualSize": image.info.size,
        "GraphDriver": {"Name": "overlay", "Data": null},
        "RootFS": {"Type": "layers", "Layers": layers},
        "Metadata": {"LastTagTime": NEVER},
    })
}

/// Renders a volume; `users` are the containers that mount it, if they were counted.
pub fn volume(volume: &VolumeInfo, users: Option<usize>) -> Value {
    let mut shown = json!({
        "CreatedAt": volume.created.to_string(),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.path.display().to_string(),
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    });
    if let (Some(users), Some(bytes)) = (users, volume.bytes) {
        shown["UsageData"] = json!({"RefCount": users, "Size": bytes});
    }
    shown
}
