//! `shoal service create`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};
use shoal_protocol::Kind;
use shoal_protocol::spec::PortConfig;

use crate::client::Client;
use crate::commands::service::{WaitArgs, warn};
use crate::error::CliError;
use crate::files::{self, FileFlag};
use crate::model::Created;
use crate::mounts::{self, MountFlag};
use crate::networks::{self, NetworkFlag};
use crate::output::print;
use crate::placement::NewPlacementArgs;
use crate::ports::Publish;
use crate::progress::{self, Asked};
use crate::registry::{self, RegistryArgs};
use crate::settings::NewSettingArgs;
use crate::spec::{self, SpecArgs, set};

/// Flags of `service create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Service name
    #[arg(long)]
    name: Option<String>,
    /// Service mode
    #[arg(long, value_enum, default_value = "replicated")]
    mode: ModeName,
    /// Publish a port as a node port ([[ADDRESS:]PUBLISHED:]TARGET, or target=…,published=…,mode=ingress|host)
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<Publish>,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Service labels
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Container labels
    #[arg(long, value_name = "NAME=VALUE")]
    container_label: Vec<String>,
    /// Placement constraints (e.g. node.labels.zone==a)
    #[arg(long, value_name = "EXPRESSION")]
    constraint: Vec<String>,
    /// Mount something: type=bind|volume|tmpfs,source=…,target=…,readonly
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<MountFlag>,
    /// Specify secrets to expose to the service (NAME, or source=…,target=…,uid=…,gid=…,mode=…)
    #[arg(long, value_parser = files::secret, value_name = "SECRET")]
    secret: Vec<FileFlag>,
    /// Specify configurations to expose to the service (NAME, or source=…,target=…,uid=…,gid=…,mode=…)
    #[arg(long, value_parser = files::config, value_name = "CONFIG")]
    config: Vec<FileFlag>,
    /// Network attachments (NAME, or name=…,alias=…)
    #[arg(long, value_name = "NETWORK")]
    network: Vec<NetworkFlag>,
    #[command(flatten)]
    settings: NewSettingArgs,
    #[command(flatten)]
    placement: NewPlacementArgs,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Image to run
    image: String,
    /// Command and arguments in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    args: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    Replicated,
    Global,
    ReplicatedJob,
    GlobalJob,
}

/// Creates a service and waits until it runs.
pub(crate) async fn run(client: &Client, args: CreateArgs) -> Result<(), CliError> {
    let (wait, registry) = (args.wait, args.registry);
    let secrets = files::resolve(client, Kind::Secret, &args.secret).await?;
    let configs = files::resolve(client, Kind::Config, &args.config).await?;
    let attachments = networks::resolve(client, &args.network).await?;
    let mut spec = build(args)?;
    networks::change(&mut spec, &[], attachments)?;
    files::change(&mut spec, Kind::Secret, &[], secrets);
    files::change(&mut spec, Kind::Config, &[], configs);
    let auth = registry::header(&spec, registry).await?;
    let unpinned = registry::pin(client, &mut spec, registry, auth.as_deref()).await?;
    let created: Created = client.post_as(auth.as_deref(), "/services/create", &spec).await?;
    warn(&unpinned.into_iter().chain(created.warnings).collect::<Vec<_>>());
    print(&format!("{}\n", created.id))?;
    if wait.detach {
        return Ok(());
    }
    progress::wait(client, &created.id, &created.id, Asked::Forward, wait.quiet).await
}

fn build(args: CreateArgs) -> Result<Value, CliError> {
    let mode = match args.mode {
        ModeName::Replicated => json!({"Replicated": {}}),
        ModeName::Global => json!({"Global": {}}),
        ModeName::ReplicatedJob => json!({"ReplicatedJob": {}}),
        ModeName::GlobalJob => json!({"GlobalJob": {}}),
    };
    let mut spec = json!({
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": args.image},
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": mode,
        "EndpointSpec": {"Mode": "vip"},
    });
    set(&mut spec, &["Name"], args.name);
    let container = |name| ["TaskTemplate", "ContainerSpec", name];
    set(&mut spec, &container("Args"), Some(args.args).filter(|args| !args.is_empty()));
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(spec::env_from_file(file)?);
    }
    env.extend(spec::env_from_flags(&args.env)?);
    spec::change_env(&mut spec, &[], &env);
    spec::change_labels(&mut spec, &["Labels"], &[], &args.label);
    let labels: Vec<String> = args.publish.iter().flat_map(Publish::labels).collect();
    spec::change_labels(&mut spec, &["Labels"], &[], &labels);
    spec::change_labels(&mut spec, &container("Labels"), &[], &args.container_label);
    spec::change_list(&mut spec, &["TaskTemplate", "Placement", "Constraints"], &[], &args.constraint);
    let ports: Vec<PortConfig> = args.publish.into_iter().flat_map(|publish| publish.0).collect();
    spec::change_ports(&mut spec, &[], &ports)?;
    mounts::change(&mut spec, &[], &args.mount)?;
    args.settings.apply(&mut spec);
    args.placement.apply(&mut spec)?;
    args.spec.apply(&mut spec)?;
    if let Some(job) = spec["Mode"].get_mut("ReplicatedJob")
        && job["MaxConcurrent"].is_null()
        && !job["TotalCompletions"].is_null()
    {
        job["MaxConcurrent"] = job["TotalCompletions"].clone();
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(line: &[&str]) -> Value {
        build(Probe::try_parse_from([&["create"], line].concat()).unwrap().args).unwrap()
    }

    #[test]
    fn the_spec_is_what_dockers_client_sends() {
        let got = spec(&["--name", "web", "--replicas", "3", "-p", "8080:8080", "lab/web:1"]);
        let want = json!({"Name": "web", "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1"},
            "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0},
            "Mode": {"Replicated": {"Replicas": 3}}, "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp",
            "TargetPort": 8080, "PublishedPort": 8080, "PublishMode": "ingress"}]}});
        assert_eq!(got, want);
    }

    #[test]
    fn everything_behind_the_image_is_the_command() {
        let got = spec(&["-d", "--mode", "global", "-e", "A=1", "lab/web:1", "sh", "-c", "--name"]);
        assert_eq!(got["TaskTemplate"]["ContainerSpec"]["Args"], json!(["sh", "-c", "--name"]));
        assert_eq!(got["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=1"]));
        assert_eq!(got["Mode"], json!({"Global": {}}));
    }

    #[test]
    fn jobs_are_what_dockers_client_sends() {
        let mode = |line: &[&str]| spec(&[line, &["lab/web:1"]].concat())["Mode"].clone();
        let job = ["--mode", "replicated-job"];
        assert_eq!(mode(&job), json!({"ReplicatedJob": {}}));
        let both = json!({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}});
        assert_eq!(mode(&[&job[..], &["--replicas", "2", "--max-concurrent", "1"]].concat()), both);
        let all = json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 2}});
        assert_eq!(mode(&[&job[..], &["--replicas", "2"]].concat()), all);
        assert_eq!(mode(&["--mode", "global-job"]), json!({"GlobalJob": {}}));
        let policy = &spec(&["--mode", "global-job", "--restart-delay", "1s", "x"])["TaskTemplate"]["RestartPolicy"];
        assert_eq!(policy["Condition"], "on-failure");
    }

    #[test]
    fn what_does_not_go_with_a_mode_is_refused() {
        for (line, want) in [
            ("--mode global-job --replicas 2", "replicas can only be used with replicated or replicated-job mode"),
            ("--mode global --replicas 2", "replicas can only be used with replicated or replicated-job mode"),
            (
                "--mode global-job --replicas-max-per-node 2",
                "replicas-max-per-node can only be used with replicated or replicated-job mode",
            ),
            ("--max-concurrent 2", "max-concurrent can only be used with replicated-job mode"),
            ("--mode global-job --max-concurrent 2", "max-concurrent can only be used with replicated-job mode"),
            (
                "--mode replicated-job --update-parallelism 2",
                "update and rollback configuration is not supported for jobs",
            ),
            ("--mode global-job --rollback-delay 2s", "update and rollback configuration is not supported for jobs"),
            (
                "--mode replicated-job --restart-condition any",
                "restart-condition any cannot be used with jobs: a task that completed has done its work",
            ),
        ] {
            let line: Vec<&str> = ["create"].into_iter().chain(line.split(' ')).chain(["image"]).collect();
            let error = build(Probe::try_parse_from(line).unwrap().args).unwrap_err();
            assert!(matches!(&error, CliError::Misused(text) if text == want), "{error:?}");
        }
    }

    #[test]
    fn flags_that_are_not_supported_are_refused_by_name() {
        for flag in ["--credential-spec", "--isolation"] {
            let error = Probe::try_parse_from(["create", flag, "x", "image"]).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flag), "{error}");
        }
    }
}
