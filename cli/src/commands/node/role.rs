//! `shoal node promote` and `shoal node demote`.

use serde_json::Value;

use crate::client::{Client, escape};
use crate::error::CliError;
use crate::output::print;
use crate::spec::set;

/// Flags of `node promote` and `node demote`.
#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    /// The nodes, by name, ID or 'self'
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// A role, as a node's spec says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Takes part in managing the cluster.
    Manager,
    /// Runs tasks only.
    Worker,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// Gives nodes a role. The first that fails ends it.
pub(crate) async fn run(client: &Client, args: RoleArgs, role: Role) -> Result<(), CliError> {
    for name in &args.nodes {
        let id = super::resolve(client, name).await?;
        let mut object: Value = client.get(&format!("/nodes/{}", escape(&id))).await?;
        let mut spec = object["Spec"].take();
        if spec["Role"] == role.name() {
            print(&format!("Node {name} is already a {}.\n", role.name()))?;
            continue;
        }
        set(&mut spec, &["Role"], Some(role.name()));
        let id = object["ID"].as_str().unwrap_or(&id);
        let path = format!("/nodes/{}/update?version={}", escape(id), object["Version"]["Index"]);
        client.post::<_, Value>(&path, &spec).await?;
        print(&match role {
            Role::Manager => format!("Node {name} promoted to a manager in the swarm.\n"),
            Role::Worker => format!("Manager {name} demoted in the swarm.\n"),
        })?;
        if role == Role::Worker {
            eprintln!("Its keys are being replaced: join tokens that were given out are void, see `shoal join-token`.");
        }
    }
    Ok(())
}
