//! `shoal service rm`.

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::output::print;

/// Flags of `service rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Services, by name or ID
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Removes services.
pub(crate) async fn run(client: &Client, args: RmArgs) -> Result<(), CliError> {
    for_each(&args.services, async |name| {
        client.delete(&format!("/services/{}", escape(name))).await?;
        print(&format!("{name}\n"))
    })
    .await
}
