//! What the engine is told when a container is created. Source: Docker Engine API v1.41, `POST /containers/create`.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountTmpfsOptions, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, PortBinding,
};
use shoal_control::task::ContainerPlan;
use shoal_protocol::spec::mount::{self, MountKind, Propagation};

/// Size and number of the files in which a container's output is kept; the oldest is dropped.
const LOG_FILE_SIZE: &str = "10m";
const LOG_FILES: &str = "3";

/// Translates a plan.
pub(super) fn body(plan: &ContainerPlan) -> ContainerCreateBody {
    let ports: Vec<(String, String)> = plan
        .host_ports
        .iter()
        .map(|port| {
            let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
            // No number lets the engine choose one.
            let published = if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
            (format!("{}/{protocol}", port.target_port), published)
        })
        .collect();
    ContainerCreateBody {
        hostname: Some(if plan.hostname.is_empty() { plan.task.short() } else { plan.hostname.clone() }),
        user: text(&plan.user),
        env: Some(plan.env.clone()),
        cmd: list(&plan.args),
        entrypoint: list(&plan.command),
        image: Some(plan.image.clone()),
        working_dir: text(&plan.dir),
        labels: Some(plan.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
        stop_signal: text(&plan.stop_signal),
        stop_timeout: Some(i64::try_from(grace_secs(plan)).unwrap_or(i64::MAX)),
        healthcheck: plan.healthcheck.as_ref().map(super::health::config),
        exposed_ports: Some(ports.iter().map(|(target, _)| target.clone()).collect()),
        host_config: Some(host_config(plan, &ports)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(plan: &ContainerPlan, ports: &[(String, String)]) -> HostConfig {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for (target, published) in ports {
        let binding = PortBinding { host_ip: None, host_port: Some(published.clone()) };
        bindings.entry(target.clone()).or_default().get_or_insert_default().push(binding);
    }
    let log_options = [("max-size", LOG_FILE_SIZE), ("max-file", LOG_FILES)];
    HostConfig {
        nano_cpus: limit(plan.limits.nano_cpus),
        memory: limit(plan.limits.memory_bytes),
        pids_limit: limit(plan.limits.pids),
        readonly_rootfs: Some(plan.read_only),
        port_bindings: Some(bindings),
        mounts: Some(plan.mounts.iter().map(mount).collect()),
        network_mode: Some("bridge".to_owned()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log_options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        ..HostConfig::default()
    }
}

/// Translates a mount. The engine refuses the kinds that it does not know.
fn mount(mount: &mount::Mount) -> Mount {
    let kind = match mount.kind {
        MountKind::Unset => None,
        MountKind::Bind => Some(MountType::BIND),
        MountKind::Volume => Some(MountType::VOLUME),
        MountKind::Tmpfs => Some(MountType::TMPFS),
        MountKind::Npipe => Some(MountType::NPIPE),
        MountKind::Cluster => Some(MountType::CLUSTER),
        MountKind::Image => Some(MountType::IMAGE),
    };
    Mount {
        typ: kind,
        source: text(&mount.source),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        bind_options: mount.bind_options.as_ref().map(|options| MountBindOptions {
            propagation: propagation(options.propagation),
            non_recursive: Some(options.non_recursive),
            ..MountBindOptions::default()
        }),
        volume_options: mount.volume_options.as_ref().map(|options| MountVolumeOptions {
            no_copy: Some(options.no_copy),
            labels: Some(options.labels.clone().into_iter().collect()),
            driver_config: options
                .driver_config
                .as_ref()
                .map(|driver| MountVolumeOptionsDriverConfig { name: text(&driver.name), options: None }),
            subpath: None,
        }),
        tmpfs_options: mount.tmpfs_options.as_ref().map(|options| MountTmpfsOptions {
            size_bytes: limit(options.size_bytes),
            mode: limit(u64::from(options.mode)),
            options: None,
        }),
        ..Mount::default()
    }
}

fn propagation(propagation: Propagation) -> Option<MountBindOptionsPropagationEnum> {
    use MountBindOptionsPropagationEnum::{PRIVATE, RPRIVATE, RSHARED, RSLAVE, SHARED, SLAVE};
    match propagation {
        Propagation::Unset => None,
        Propagation::Private => Some(PRIVATE),
        Propagation::Rprivate => Some(RPRIVATE),
        Propagation::Slave => Some(SLAVE),
        Propagation::Rslave => Some(RSLAVE),
        Propagation::Shared => Some(SHARED),
        Propagation::Rshared => Some(RSHARED),
    }
}

/// Splits a reference for a pull: without a tag the engine would pull them all.
pub(super) fn name_and_tag(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (image, "latest"), // a colon before a slash is that of a registry's port
    }
}

/// The engine counts in seconds; a part of one is rounded up.
fn grace_secs(plan: &ContainerPlan) -> u64 {
    plan.stop_grace.as_secs() + u64::from(plan.stop_grace.subsec_nanos() > 0)
}

fn limit(value: u64) -> Option<i64> {
    (value > 0).then(|| i64::try_from(value).unwrap_or(i64::MAX))
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn list(values: &[String]) -> Option<Vec<String>> {
    (!values.is_empty()).then(|| values.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split_for_a_pull() {
        for (image, want) in [
            ("web", ("web", "latest")),
            ("shoal/web:1", ("shoal/web", "1")),
            ("registry:5000/web", ("registry:5000/web", "latest")),
            ("registry:5000/web:2", ("registry:5000/web", "2")),
            ("web@sha256:ab", ("web", "sha256:ab")),
        ] {
            assert_eq!(name_and_tag(image), want, "{image}");
        }
    }
}
