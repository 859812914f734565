//! `shoal secret …` and `shoal config …`, which differ in whether their data come back.

mod create;
mod inspect;
mod ls;
mod rm;

use clap::Subcommand;
use shoal_protocol::Kind;

use crate::client::Client;
use crate::error::CliError;

/// What can be done with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Create a secret from a file or STDIN as content
    Create(create::CreateArgs),
    /// Display detailed information on one or more secrets
    Inspect(inspect::InspectArgs),
    /// List secrets
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove one or more secrets
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

/// What can be done with configs.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Create a config from a file or STDIN
    Create(create::CreateArgs),
    /// Display detailed information on one or more configs
    Inspect(inspect::InspectArgs),
    /// List configs
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove one or more configs
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

impl SecretCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create::run(client, Kind::Secret, args).await,
            Self::Inspect(args) => inspect::run(client, Kind::Secret, args).await,
            Self::Ls(args) => ls::run(client, Kind::Secret, args).await,
            Self::Rm(args) => rm::run(client, Kind::Secret, args).await,
        }
    }
}

impl ConfigCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create::run(client, Kind::Config, args).await,
            Self::Inspect(args) => inspect::run(client, Kind::Config, args).await,
            Self::Ls(args) => ls::run(client, Kind::Config, args).await,
            Self::Rm(args) => rm::run(client, Kind::Config, args).await,
        }
    }
}

/// Returns the path of the API of a kind.
fn path(kind: Kind, rest: &str) -> String {
    format!("/{}s{rest}", kind.name())
}
