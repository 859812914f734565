//! `shoal image rm`.

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::output::print;

/// Flags of `image rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Images, by reference or ID
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Removes images from this node.
pub(crate) async fn run(client: &Client, args: RmArgs) -> Result<(), CliError> {
    for_each(&args.images, async |name| {
        client.delete(&format!("/images/{}", escape(name))).await?;
        print(&format!("Untagged: {name}\n"))
    })
    .await
}
