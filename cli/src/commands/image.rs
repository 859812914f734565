//! `shoal image …`.

mod load;
mod ls;
mod rm;

use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Load images from a tar archive or STDIN
    Load(load::LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

impl ImageCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Load(args) => load::run(client, args).await,
            Self::Ls(args) => ls::run(client, args).await,
            Self::Rm(args) => rm::run(client, args).await,
        }
    }
}
