//! `shoal network rm`.

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::output::print;

/// Flags of `network rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    /// Networks, by name or ID
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Removes networks.
pub(crate) async fn run(client: &Client, args: RmArgs) -> Result<(), CliError> {
    for_each(&args.networks, async |name| match client.delete(&format!("/networks/{}", escape(name))).await {
        Err(error) if args.force && error.is_not_found() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => print(&format!("{name}\n")),
    })
    .await
}
