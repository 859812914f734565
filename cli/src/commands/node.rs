//! `shoal node …`.

mod inspect;
pub(crate) mod ls;
mod ps;
mod rm;
mod role;
mod update;

use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;
use crate::model::Info;

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes in the swarm
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// List tasks running on one or more nodes, defaults to current node
    Ps(ps::PsArgs),
    /// Display detailed information on one or more nodes
    Inspect(inspect::InspectArgs),
    /// Promote one or more nodes to manager in the swarm
    Promote(role::RoleArgs),
    /// Demote one or more nodes from manager in the swarm
    Demote(role::RoleArgs),
    /// Update a node
    Update(update::UpdateArgs),
    /// Remove one or more nodes from the swarm
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

impl NodeCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Ls(args) => ls::run(client, args).await,
            Self::Ps(args) => ps::run(client, args).await,
            Self::Inspect(args) => inspect::run(client, args).await,
            Self::Promote(args) => role::run(client, args, role::Role::Manager).await,
            Self::Demote(args) => role::run(client, args, role::Role::Worker).await,
            Self::Update(args) => update::run(client, args).await,
            Self::Rm(args) => rm::run(client, args).await,
        }
    }
}

/// Replaces `self` by the identifier of the node that the daemon is.
async fn resolve(client: &Client, name: &str) -> Result<String, CliError> {
    if name != "self" {
        return Ok(name.to_owned());
    }
    let info: Info = client.get("/info").await?;
    if info.swarm.node_id.is_empty() {
        return Err(CliError::Failed("node ID not found in /info: this node is not part of a swarm".to_owned()));
    }
    Ok(info.swarm.node_id)
}
