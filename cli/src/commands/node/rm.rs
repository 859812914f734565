//! `shoal node rm`.

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::output::print;

/// Flags of `node rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Force remove a node from the swarm
    #[arg(short, long)]
    force: bool,
    /// Nodes, by name or ID
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Removes nodes for good.
pub(crate) async fn run(client: &Client, args: RmArgs) -> Result<(), CliError> {
    let query = if args.force { "?force=1" } else { "" };
    for_each(&args.nodes, async |name| {
        client.delete(&format!("/nodes/{}{query}", escape(name))).await?;
        print(&format!("{name}\n"))
    })
    .await
}
