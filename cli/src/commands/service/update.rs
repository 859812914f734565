//! `shoal service update` and `shoal service rollback`.

use serde_json::{Value, json};
use shoal_protocol::Kind;
use shoal_protocol::spec::PortConfig;

use crate::client::{Client, escape};
use crate::commands::service::{WaitArgs, warn};
use crate::error::CliError;
use crate::files::{self, FileFlag};
use crate::model::Updated;
use crate::mounts::{self, MountFlag};
use crate::networks::{self, NetworkFlag};
use crate::output::print;
use crate::placement::ChangedPlacementArgs;
use crate::ports::Publish;
use crate::progress::{self, Asked};
use crate::registry::{self, RegistryArgs};
use crate::settings::ChangedSettingArgs;
use crate::spec::{self, SpecArgs, set, slot};
use crate::words;

/// Flags of `service update`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    /// Service image tag
    #[arg(long)]
    image: Option<String>,
    /// Service command args
    #[arg(long, allow_hyphen_values = true, value_name = "COMMAND")]
    args: Option<String>,
    /// Add or update an environment variable
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Add or update a service label
    #[arg(long, value_name = "NAME=VALUE")]
    label_add: Vec<String>,
    /// Remove a label by its key
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Add or update a container label
    #[arg(long, value_name = "NAME=VALUE")]
    container_label_add: Vec<String>,
    /// Remove a container label by its key
    #[arg(long, value_name = "NAME")]
    container_label_rm: Vec<String>,
    /// Add or update a placement constraint
    #[arg(long, value_name = "EXPRESSION")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "EXPRESSION")]
    constraint_rm: Vec<String>,
    /// Add or update a published port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<Publish>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<Publish>,
    /// Add or update a mount on a service
    #[arg(long, value_name = "MOUNT")]
    mount_add: Vec<MountFlag>,
    /// Remove a mount by its target path
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Add or update a secret on a service
    #[arg(long, value_parser = files::secret, value_name = "SECRET")]
    secret_add: Vec<FileFlag>,
    /// Remove a secret
    #[arg(long, value_name = "NAME")]
    secret_rm: Vec<String>,
    /// Add or update a config file on a service
    #[arg(long, value_parser = files::config, value_name = "CONFIG")]
    config_add: Vec<FileFlag>,
    /// Remove a configuration file
    #[arg(long, value_name = "NAME")]
    config_rm: Vec<String>,
    /// Add a network
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<NetworkFlag>,
    /// Remove a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Force update even if no changes require it
    #[arg(long)]
    force: bool,
    /// Rollback to previous specification
    #[arg(long)]
    rollback: bool,
    #[command(flatten)]
    settings: ChangedSettingArgs,
    #[command(flatten)]
    placement: ChangedPlacementArgs,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// The service, by name or ID
    service: String,
}

/// Flags of `service rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// The service, by name or ID
    service: String,
}

/// Changes a service's spec and waits until it runs accordingly.
pub(crate) async fn run(client: &Client, args: UpdateArgs) -> Result<(), CliError> {
    let (mut object, mut spec) = read(client, &args.service).await?;
    let before = spec.clone();
    for (kind, remove, add) in
        [(Kind::Secret, &args.secret_rm, &args.secret_add), (Kind::Config, &args.config_rm, &args.config_add)]
    {
        files::change(&mut spec, kind, remove, files::resolve(client, kind, add).await?);
    }
    let mut gone = Vec::new();
    for name in &args.network_rm {
        gone.push(networks::find(client, name).await?.id);
    }
    networks::change(&mut spec, &gone, networks::resolve(client, &args.network_add).await?)?;
    if args.rollback {
        change(&mut spec, &args)?;
        if spec != before || !args.spec.is_empty() || args.registry.with_registry_auth {
            return Err(CliError::Misused("other flags may not be combined with --rollback".to_owned()));
        }
    } else {
        change(&mut spec, &args)?;
    }
    let auth = registry::header(&spec, args.registry).await?;
    let unpinned = match args.image {
        Some(_) => registry::pin(client, &mut spec, args.registry, auth.as_deref()).await?,
        None => None,
    };
    let sent = Sent { spec, rollback: args.rollback, auth, unpinned };
    send(client, &mut object, sent, &args.service, args.wait).await
}

/// Gives a service its previous spec back and waits until it runs accordingly.
pub(crate) async fn run_rollback(client: &Client, args: RollbackArgs) -> Result<(), CliError> {
    let (mut object, spec) = read(client, &args.service).await?;
    let sent = Sent { spec, rollback: true, auth: None, unpinned: None };
    send(client, &mut object, sent, &args.service, args.wait).await
}

async fn read(client: &Client, name: &str) -> Result<(Value, Value), CliError> {
    let mut object: Value = client.get(&format!("/services/{}", escape(name))).await?;
    let spec = object["Spec"].take();
    Ok((object, spec))
}

/// What an update sends.
struct Sent {
    spec: Value,
    rollback: bool,
    /// Credentials for the image's registry that replace those that the service has.
    auth: Option<String>,
    /// What to say of an image that could not be pinned.
    unpinned: Option<String>,
}

async fn send(client: &Client, object: &mut Value, sent: Sent, name: &str, wait: WaitArgs) -> Result<(), CliError> {
    let Sent { spec, rollback, auth, unpinned } = sent;
    let id = object["ID"].as_str().unwrap_or(name);
    let query = match (rollback, &auth) {
        (true, _) => "&rollback=previous",
        (false, None) => "&registryAuthFrom=spec",
        (false, Some(_)) => "",
    };
    let path = format!("/services/{}/update?version={}{query}", escape(id), object["Version"]["Index"]);
    let updated: Option<Updated> = client.post_as(auth.as_deref(), &path, &spec).await?;
    warn(&unpinned.into_iter().chain(updated.unwrap_or_default().warnings).collect::<Vec<_>>());
    print(&format!("{name}\n"))?;
    let asked = if rollback { Asked::Back } else { Asked::Forward };
    if wait.detach { Ok(()) } else { progress::wait(client, id, name, asked, wait.quiet).await }
}

fn change(spec: &mut Value, args: &UpdateArgs) -> Result<(), CliError> {
    let container = |name| ["TaskTemplate", "ContainerSpec", name];
    set(spec, &container("Image"), args.image.clone());
    if let Some(text) = &args.args {
        let words = words::split(text).map_err(|reason| CliError::Misused(format!("--args '{text}': {reason}")))?;
        set(spec, &container("Args"), Some(words));
    }
    spec::change_env(spec, &args.env_rm, &spec::env_from_flags(&args.env_add)?);
    spec::change_labels(spec, &["Labels"], &args.label_rm, &args.label_add);
    spec::change_labels(spec, &container("Labels"), &args.container_label_rm, &args.container_label_add);
    let constraints = ["TaskTemplate", "Placement", "Constraints"];
    spec::change_list(spec, &constraints, &args.constraint_rm, &args.constraint_add);
    let ports = |publish: &[Publish]| -> Vec<PortConfig> { publish.iter().flat_map(|one| one.0.clone()).collect() };
    spec::forget_ports(spec, &ports(&args.publish_rm));
    let labels: Vec<String> = args.publish_add.iter().flat_map(Publish::labels).collect();
    // A port that is published anew has what it is published with, and nothing of what was set before.
    spec::forget_settings(spec, &ports(&args.publish_add));
    spec::change_labels(spec, &["Labels"], &[], &labels);
    spec::change_ports(spec, &ports(&args.publish_rm), &ports(&args.publish_add))?;
    mounts::change(spec, &args.mount_rm, &args.mount_add)?;
    args.settings.apply(spec);
    args.placement.apply(spec)?;
    args.spec.apply(spec)?;
    if args.force {
        let count = slot(spec, &["TaskTemplate", "ForceUpdate"]);
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        args: UpdateArgs,
    }

    #[test]
    fn a_port_has_what_it_was_last_published_with() {
        let mut spec = json!({"Labels": {"a": "b"}});
        let labels = |spec: &mut Value, line: &[&str]| {
            change(spec, &Probe::try_parse_from([&["update"], line, &["web"]].concat()).unwrap().args).unwrap();
            spec["Labels"].clone()
        };
        let bound = json!({"a": "b", "shoal.publish.8080": "127.0.0.1"});
        assert_eq!(labels(&mut spec, &["--publish-add", "127.0.0.1:8080:80"]), bound);
        assert_eq!(labels(&mut spec, &["--publish-add", "8081:81"]), bound);
        assert_eq!(labels(&mut spec, &["--publish-add", "8080:80"]), json!({"a": "b"}));
        assert_eq!(labels(&mut spec, &["--publish-add", "[::1]:8080:80"])["shoal.publish.8080"], "::1");
        let limited = json!({"a": "b", "shoal.connections.8080": "5"});
        assert_eq!(labels(&mut spec, &["--publish-add", "published=8080,target=80,connections=5"]), limited);
        assert_eq!(labels(&mut spec, &["--publish-rm", "80"]), json!({"a": "b"}));
    }

    #[test]
    fn flags_change_only_what_they_name() {
        let mut spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "a:1", "Init": false},
            "ForceUpdate": 2}, "Mode": {"Replicated": {"Replicas": 3}}});
        let line = ["update", "--image", "a:2", "--args", "sleep 1", "--force", "--env-add", "A=1", "web"];
        change(&mut spec, &Probe::try_parse_from(line).unwrap().args).unwrap();
        assert_eq!(
            spec,
            json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "a:2", "Init": false, "Args": ["sleep", "1"],
            "Env": ["A=1"]}, "ForceUpdate": 3}, "Mode": {"Replicated": {"Replicas": 3}}})
        );
    }
}
