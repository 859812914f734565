//! `shoal network …`.

mod create;
mod inspect;
mod ls;
mod prune;
mod rm;

use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;

/// What can be done with networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network
    Create(create::CreateArgs),
    /// Display detailed information on one or more networks
    Inspect(inspect::InspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove all unused networks
    Prune(prune::PruneArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

impl NetworkCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create::run(client, args).await,
            Self::Inspect(args) => inspect::run(client, args).await,
            Self::Ls(args) => ls::run(client, args).await,
            Self::Prune(args) => prune::run(client, args).await,
            Self::Rm(args) => rm::run(client, args).await,
        }
    }
}
