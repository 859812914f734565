//! `shoal service inspect`.

use std::fmt::Write;

use serde_json::Value;
use shoal_protocol::Kind;
use shoal_protocol::spec::settings::Ulimit;
use shoal_protocol::spec::{
    ContainerSpec, Healthcheck, LogDriver, ModeKind, PublishMode, Reservations, Resources, Settings, UpdateConfig,
};

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::inspect;
use crate::model::{Service, UpdateStatus};
use crate::networks;
use crate::output::print;
use crate::placement::generic;
use crate::time;
use crate::units::{bytes_size, cpus, go_duration};

/// Flags of `service inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// Format output: 'json' (one object a line), 'pretty', or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Services, by name or ID
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Prints everything about services; those that are found are printed even if others are not.
pub(crate) async fn run(client: &Client, args: InspectArgs) -> Result<(), CliError> {
    let pretty_wanted = args.pretty || args.format.as_deref() == Some(inspect::PRETTY);
    let mut found: Vec<Value> = Vec::new();
    let outcome = for_each(&args.services, async |name| {
        let path = format!("/services/{}?insertDefaults={}", escape(name), pretty_wanted);
        found.push(client.get(&path).await.map_err(|error| {
            if error.is_not_found() { CliError::Failed(format!("Error: no such service: {name}")) } else { error }
        })?);
        Ok(())
    })
    .await;
    if pretty_wanted {
        for value in found {
            let service: Service =
                serde_json::from_value(value).map_err(|error| CliError::Failed(error.to_string()))?;
            let mut names = Vec::new();
            for network in &service.spec.task_template.networks {
                let found = networks::find(client, &network.target).await;
                names.push(found.map_or_else(|_| network.target.clone(), |found| found.name));
            }
            let mut text = String::new();
            pretty(&mut text, &service, &names).map_err(|error| CliError::Failed(error.to_string()))?;
            print(&text)?;
        }
    } else {
        print(&inspect::render(&found, args.format.as_deref())?)?;
    }
    outcome
}

fn pretty(text: &mut String, service: &Service, networks: &[String]) -> std::fmt::Result {
    let spec = &service.spec;
    writeln!(text, "\nID:\t\t{}\nName:\t\t{}", service.id, spec.name)?;
    if !spec.labels.is_empty() {
        writeln!(text, "Labels:")?;
        for (name, value) in &spec.labels {
            writeln!(text, " {name}={value}")?;
        }
    }
    match spec.mode.kind() {
        ModeKind::Replicated { replicas } => writeln!(text, "Service Mode:\tReplicated\n Replicas:\t{replicas}")?,
        ModeKind::Global => writeln!(text, "Service Mode:\tGlobal")?,
        // Docker's client leaves the mode of a job empty.
        ModeKind::ReplicatedJob { completions, concurrent } => {
            writeln!(text, "Service Mode:\tReplicated Job\n Completions:\t{completions}\n Concurrent:\t{concurrent}")?;
        }
        ModeKind::GlobalJob => writeln!(text, "Service Mode:\tGlobal Job")?,
    }
    if let Some(status) = &service.update_status {
        update_status(text, status)?;
    }
    writeln!(text, "Placement:")?;
    let placement = &spec.task_template.placement;
    if !placement.constraints.is_empty() {
        writeln!(text, " Constraints:\t[{}]", placement.constraints.join(" "))?;
    }
    let spreads = placement.preferences.iter().filter_map(|preference| preference.spread.as_ref());
    let spreads: Vec<String> = spreads.map(|spread| format!("spread={}", spread.spread_descriptor)).collect();
    if !spreads.is_empty() {
        writeln!(text, " Preferences:   [{}]", spreads.join(" "))?;
    }
    if placement.max_replicas > 0 {
        writeln!(text, " Max Replicas Per Node:   {}", placement.max_replicas)?;
    }
    if let Some(config) = &spec.update_config {
        policy(text, "Update", config)?;
    }
    if let Some(config) = &spec.rollback_config {
        policy(text, "Rollback", config)?;
    }
    container(text, &spec.task_template.container_spec)?;
    if let Some(driver) = &spec.task_template.log_driver {
        log_driver(text, driver)?;
    }
    resources(text, &spec.task_template.resources)?;
    if !networks.is_empty() {
        writeln!(text, "Networks: {} ", networks.join(" "))?;
    }
    let mode = &spec.endpoint_spec.mode;
    writeln!(text, "Endpoint Mode:\t{}", if mode.is_empty() { "vip" } else { mode })?;
    if !service.endpoint.ports.is_empty() {
        writeln!(text, "Ports:")?;
    }
    for port in &service.endpoint.ports {
        let mode = match port.publish_mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        };
        writeln!(text, " PublishedPort = {}\n  Protocol = {}", port.published_port, port.protocol)?;
        writeln!(text, "  TargetPort = {}\n  PublishMode = {mode} ", port.target_port)?;
    }
    if let Some(check) = &spec.task_template.container_spec.healthcheck {
        healthcheck(text, check)?;
    }
    writeln!(text)
}

fn healthcheck(text: &mut String, check: &Healthcheck) -> std::fmt::Result {
    writeln!(text, " Healthcheck:\n  Interval = {}\n  Retries = {}", go_duration(check.interval), check.retries)?;
    writeln!(text, "  StartPeriod =\t{}", go_duration(check.start_period))?;
    writeln!(text, "  Timeout =\t{}", go_duration(check.timeout))?;
    if !check.test.is_empty() {
        let tests: Vec<String> = check.test.iter().map(|test| format!("\t Test = {test}")).collect();
        writeln!(text, "  Tests:\n{} ", tests.join("\n"))?;
    }
    Ok(())
}

fn update_status(text: &mut String, status: &UpdateStatus) -> std::fmt::Result {
    let now = time::now_nanos();
    writeln!(text, "UpdateStatus:\n State:\t\t{}", status.state)?;
    for (name, moment) in [("Started", &status.started_at), ("Completed", &status.completed_at)] {
        if !moment.is_empty() {
            writeln!(text, " {name}:\t{}", time::ago(moment, now))?;
        }
    }
    writeln!(text, " Message:\t{}", status.message)
}

fn policy(text: &mut String, name: &str, config: &UpdateConfig) -> std::fmt::Result {
    writeln!(text, "{name}Config:\n Parallelism:\t{}", config.parallelism)?;
    if config.delay > 0 {
        writeln!(text, " Delay:\t\t{}", go_duration(config.delay))?;
    }
    writeln!(text, " On failure:\t{}", config.failure_action)?;
    writeln!(text, " Monitoring Period: {}", go_duration(config.monitor))?;
    writeln!(text, " Max failure ratio: {}", config.max_failure_ratio)?;
    let heading = format!("{name} order:");
    writeln!(text, " {heading:<18} {}", config.order)
}

fn container(text: &mut String, spec: &ContainerSpec) -> std::fmt::Result {
    writeln!(text, "ContainerSpec:\n Image:\t\t{}", spec.image)?;
    if !spec.command.is_empty() {
        writeln!(text, " Command:\t{} ", spec.command.join(" "))?;
    }
    if !spec.args.is_empty() {
        writeln!(text, " Args:\t\t{} ", spec.args.join(" "))?;
    }
    if !spec.env.is_empty() {
        writeln!(text, " Env:\t\t{} ", spec.env.join(" "))?;
    }
    if !spec.dir.is_empty() {
        writeln!(text, " Dir:\t\t{}", spec.dir)?;
    }
    if let Some(init) = spec.settings.init {
        writeln!(text, " Init:\t\t{init}")?;
    }
    if !spec.user.is_empty() {
        writeln!(text, " User: {}", spec.user)?;
    }
    settings(text, &spec.settings)?;
    if !spec.mounts.is_empty() {
        writeln!(text, "Mounts:")?;
    }
    for mount in &spec.mounts {
        writeln!(text, " Target:\t{}\n  Source:\t{}", mount.target, mount.source)?;
        writeln!(text, "  ReadOnly:\t{}\n  Type:\t\t{}", mount.read_only, mount.kind.name())?;
    }
    for (kind, heading) in [(Kind::Config, "Configs:"), (Kind::Secret, "Secrets:")] {
        let files: Vec<_> = spec.files().filter(|file| file.kind == kind).collect();
        if !files.is_empty() {
            writeln!(text, "{heading}")?;
        }
        for file in files {
            let target = file.file.map_or("", |file| &file.name);
            writeln!(text, " Target:\t{target}\n  Source:\t{}", file.name)?;
        }
    }
    Ok(())
}

fn settings(text: &mut String, settings: &Settings) -> std::fmt::Result {
    let (add, drop) = (&settings.capability_add, &settings.capability_drop);
    if !add.is_empty() || !drop.is_empty() {
        writeln!(text, "Capabilities:")?;
    }
    for (name, list) in [("Add", add), ("Drop", drop)] {
        if !list.is_empty() {
            writeln!(text, " {name}: {}", list.join(", "))?;
        }
    }
    if !settings.sysctls.is_empty() {
        writeln!(text, "SysCtls:")?;
    }
    for (name, value) in &settings.sysctls {
        writeln!(text, " {name}{}{value}", if value.is_empty() { "" } else { ": " })?;
    }
    if !settings.ulimits.is_empty() {
        writeln!(text, "Ulimits:")?;
    }
    for Ulimit { name, soft, hard } in &settings.ulimits {
        writeln!(text, " {name}: {soft}:{hard}")?;
    }
    Ok(())
}

fn log_driver(text: &mut String, driver: &LogDriver) -> std::fmt::Result {
    writeln!(text, "Log Driver:")?;
    if !driver.name.is_empty() {
        writeln!(text, " Name:\t\t{}", driver.name)?;
    }
    if !driver.options.is_empty() {
        writeln!(text, " LogOpts:")?;
    }
    for (name, value) in &driver.options {
        writeln!(text, "  {name}{}{value}", if value.is_empty() { "" } else { ":       " })?;
    }
    writeln!(text)
}

fn resources(text: &mut String, resources: &Resources) -> std::fmt::Result {
    writeln!(text, "Resources:")?;
    let reserved = &resources.reservations;
    if *reserved != Reservations::default() {
        writeln!(text, " Reservations:")?;
        amounts(text, reserved.nano_cpus, reserved.memory_bytes)?;
    }
    if !reserved.generic_resources.is_empty() {
        // Docker's client leaves them out.
        writeln!(text, "  Generic:\t{}", generic(&reserved.generic_resources))?;
    }
    let limits = &resources.limits;
    if limits.nano_cpus > 0 || limits.memory_bytes > 0 || limits.pids > 0 {
        writeln!(text, " Limits:")?;
        amounts(text, limits.nano_cpus, limits.memory_bytes)?;
        if limits.pids > 0 {
            writeln!(text, "  PIDs:\t\t{}", limits.pids)?;
        }
    }
    Ok(())
}

fn amounts(text: &mut String, nano_cpus: u64, memory_bytes: u64) -> std::fmt::Result {
    if nano_cpus > 0 {
        writeln!(text, "  CPU:\t\t{}", cpus(nano_cpus))?;
    }
    if memory_bytes > 0 {
        writeln!(text, "  Memory:\t{}", bytes_size(memory_bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn a_service_is_printed_for_people_as_docker_does() {
        let policy = json!({"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000u64,
            "MaxFailureRatio": 0, "Order": "stop-first"});
        let service: Service =
            serde_json::from_value(json!({"ID": "zw28l6ocpszcx94qkcx0wpr9u", "Spec": {"Name": "web",
            "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1", "Init": false,
            "Mounts": [{"Type": "bind", "Source": "/src", "Target": "/a", "ReadOnly": true}, {"Type": "tmpfs",
            "Target": "/t"}]}, "Resources":
            {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}, "Reservations": {}}, "Placement": {}},
            "Mode": {"Replicated": {"Replicas": 3}}, "UpdateConfig": policy, "RollbackConfig": policy,
            "EndpointSpec": {"Mode": "vip"}}, "Endpoint": {"Ports": [{"Protocol": "tcp", "TargetPort": 8080,
            "PublishedPort": 8080, "PublishMode": "ingress"}]}}))
            .unwrap();
        let mut text = String::new();
        pretty(&mut text, &service, &[]).unwrap();
        let want = "\nID:\t\tzw28l6ocpszcx94qkcx0wpr9u\nName:\t\tweb\nService Mode:\tReplicated\n Replicas:\t3\nPlacement:\n\
            UpdateConfig:\n Parallelism:\t1\n On failure:\tpause\n Monitoring Period: 5s\n Max failure ratio: 0\n \
            Update order:      stop-first\nRollbackConfig:\n Parallelism:\t1\n On failure:\tpause\n Monitoring Period: 5s\n \
            Max failure ratio: 0\n Rollback order:    stop-first\nContainerSpec:\n Image:\t\tlab/web:1\n Init:\t\tfalse\nMounts:\n \
            Target:\t/a\n  Source:\t/src\n  ReadOnly:\ttrue\n  Type:\t\tbind\n Target:\t/t\n  Source:\t\n  \
            ReadOnly:\tfalse\n  Type:\t\ttmpfs\nResources:\n \
            Limits:\n  CPU:\t\t0.5\n  Memory:\t64MiB\nEndpoint Mode:\tvip\nPorts:\n PublishedPort = 8080\n  Protocol = tcp\n  \
            TargetPort = 8080\n  PublishMode = ingress \n\n";
        assert_eq!(text, want);
    }

    #[test]
    fn everything_that_a_service_can_have_is_printed() {
        let service: Service = serde_json::from_value(json!({"ID": "zw28l6ocpszcx94qkcx0wpr9u", "Spec": {"Name": "web",
            "Labels": {"team": "shop"}, "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1", "Command": ["web"],
            "Args": ["-p", "80"], "Env": ["A=1", "B=2"], "Dir": "/srv", "User": "web",
            "Secrets": [{"File": {"Name": "sec1"}, "SecretID": "a", "SecretName": "sec1"}, {"File": {"Name": "/run/s"},
            "SecretID": "a", "SecretName": "sec1"}], "Configs": [{"File": {"Name": "/c.txt"}, "ConfigID": "b",
            "ConfigName": "con1"}], "Healthcheck": {"Test": ["CMD-SHELL", "wget -q localhost"], "Interval":
            90_000_000_000u64, "Retries": 2}, "Init": true, "CapabilityAdd": ["CAP_NET_ADMIN", "CAP_SYS_TIME"],
            "CapabilityDrop": ["ALL"], "Sysctls": {"net.core.somaxconn": "7"}, "Ulimits": [{"Name": "nofile", "Soft": 1,
            "Hard": 2}]}, "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}}, "Resources":
            {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 100}, "Reservations":
            {"NanoCPUs": 250_000_000, "MemoryBytes": 33_554_432, "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]}}, "Placement": {"Constraints": ["node.role==worker",
            "node.labels.zone==a"], "MaxReplicas": 2, "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}},
            {"Spread": {"SpreadDescriptor": "engine.labels.rack"}}]}}, "Mode": {"Global": {}}, "UpdateConfig": {"Parallelism": 2,
            "Delay": 10_000_000_000u64, "FailureAction": "continue", "Monitor": 5_000_000_000u64, "MaxFailureRatio": 0.25,
            "Order": "start-first"}, "EndpointSpec": {"Mode": "dnsrr"}}, "UpdateStatus": {"State": "completed",
            "StartedAt": "1970-01-01T00:00:00Z", "Message": "update completed"}, "Endpoint": {"Ports": [{"Protocol": "tcp",
            "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}}))
        .unwrap();
        let mut text = String::new();
        pretty(&mut text, &service, &["ov".to_owned()]).unwrap();
        let text = text.replace(&time::ago("1970-01-01T00:00:00Z", time::now_nanos()), "AGO");
        snapshot::check("output/service-inspect-pretty.txt", &text);
    }
}
