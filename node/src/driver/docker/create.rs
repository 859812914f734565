//! What the engine is told when a container is created. Source: Docker Engine API v1.41, `POST /containers/create`.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountTmpfsOptions, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, PortBinding, ResourcesUlimits,
};
use shoal_control::task::ContainerPlan;
use shoal_protocol::spec::LogDriver;
use shoal_protocol::spec::mount::{self, MountKind, Propagation};
use shoal_protocol::spec::settings::Ulimit;

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
        tty: Some(plan.settings.tty),
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
    let settings = &plan.settings;
    HostConfig {
        nano_cpus: limit(plan.limits.nano_cpus),
        memory: limit(plan.limits.memory_bytes),
        pids_limit: limit(plan.limits.pids),
        readonly_rootfs: Some(plan.read_only),
        port_bindings: Some(bindings),
        mounts: Some(plan.mounts.iter().map(mount).collect()),
        network_mode: Some("bridge".to_owned()),
        log_config: Some(log_config(plan.log_driver.as_ref())),
        init: settings.init,
        group_add: list(&settings.groups),
        extra_hosts: list(&settings.hosts.iter().flat_map(|entry| extra_hosts(entry)).collect::<Vec<_>>()),
        dns: list(&settings.dns.nameservers),
        dns_search: list(&settings.dns.search),
        dns_options: list(&settings.dns.options),
        sysctls: Some(settings.sysctls.clone().into_iter().collect()),
        cap_add: list(&settings.capability_add),
        cap_drop: list(&settings.capability_drop),
        ulimits: Some(settings.ulimits.iter().map(ulimit).collect()),
        oom_score_adj: Some(settings.oom_score_adj.into()),
        ..HostConfig::default()
    }
}

/// Without a driver's name its options are those of the default one.
fn log_config(driver: Option<&LogDriver>) -> HostConfigLogConfig {
    let named = driver.filter(|driver| !driver.name.is_empty());
    let mut options: HashMap<String, String> = HashMap::new();
    if named.is_none() {
        options
            .extend([("max-size", LOG_FILE_SIZE), ("max-file", LOG_FILES)].map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
    options.extend(driver.iter().flat_map(|driver| driver.options.clone()));
    let name = named.map_or("json-file", |driver| &driver.name);
    HostConfigLogConfig { typ: Some(name.to_owned()), config: Some(options) }
}

/// Returns `NAME:ADDRESS` for each name of an entry of the form of hosts(5).
fn extra_hosts(entry: &str) -> Vec<String> {
    let mut words = entry.split_whitespace();
    let address = words.next().unwrap_or_default();
    words.map(|name| format!("{name}:{address}")).collect()
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(limit.name.clone()), soft: Some(limit.soft), hard: Some(limit.hard) }
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
    fn host_entries_and_log_drivers_are_translated() {
        assert_eq!(extra_hosts("10.0.0.1  a b"), ["a:10.0.0.1", "b:10.0.0.1"]);
        let config = |name: &str, option: &str| {
            let options = [(option.to_owned(), "1".to_owned())].into();
            let config = log_config(Some(&LogDriver { name: name.to_owned(), options }));
            let mut options: Vec<_> = config.config.unwrap_or_default().into_iter().collect();
            options.sort();
            (config.typ.unwrap_or_default(), options.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
        };
        assert_eq!(config("syslog", "tag"), ("syslog".to_owned(), vec!["tag=1".to_owned()]));
        let want = vec!["max-file=1".to_owned(), format!("max-size={LOG_FILE_SIZE}")];
        assert_eq!(config("", "max-file"), ("json-file".to_owned(), want));
    }

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
