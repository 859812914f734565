//! `shoal leave`.

use serde_json::{Value, json};

use crate::client::Client;
use crate::error::CliError;
use crate::output::print;

/// Flags of `leave`.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaveArgs {
    /// Force this node to leave the swarm, ignoring warnings
    #[arg(short, long)]
    force: bool,
}

/// Takes the node out of its cluster.
pub(crate) async fn run(client: &Client, args: LeaveArgs) -> Result<(), CliError> {
    let path = if args.force { "/swarm/leave?force=1" } else { "/swarm/leave" };
    client.post::<_, Value>(path, &json!(null)).await?;
    print("Node left the swarm.\n")
}
