//! `shoal secret rm` and `shoal config rm`.

use shoal_protocol::Kind;

use super::path;
use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::output::print;

/// Flags of `secret rm` and `config rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Which, by name or ID
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Removes secrets or configs.
pub(crate) async fn run(client: &Client, kind: Kind, args: RmArgs) -> Result<(), CliError> {
    for_each(&args.names, async |name| {
        client.delete(&path(kind, &format!("/{}", escape(name)))).await?;
        print(&format!("{name}\n"))
    })
    .await
}
