//! `shoal init`.

use serde_json::json;

use crate::client::{Client, escape};
use crate::error::CliError;
use crate::model::{Node, Swarm};
use crate::output::print;

/// Flags of `init`.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Advertised address (default: what shoald was started with)
    #[arg(long, value_name = "IP[:PORT]")]
    advertise_addr: Option<String>,
}

/// Starts a cluster and prints how to join it.
pub(crate) async fn run(client: &Client, args: InitArgs) -> Result<(), CliError> {
    let body = json!({"ListenAddr": "", "AdvertiseAddr": args.advertise_addr.unwrap_or_default(), "Spec": {}});
    let id: String = client.post("/swarm/init", &body).await?;
    let node: Node = client.get(&format!("/nodes/{}", escape(&id))).await?;
    let swarm: Swarm = client.get("/swarm").await?;
    let address = manager_address(&node);
    print(&format!(
        "Swarm initialized: current node ({id}) is now a manager.\n\n\
         To add a worker to this swarm, run the following command:\n\n    \
         shoal join --token {} {address}\n\n\
         To add a manager to this swarm, run 'shoal join-token manager' and follow the instructions.\n",
        swarm.join_tokens.worker
    ))
}

/// Returns where a manager takes joiners.
pub(crate) fn manager_address(node: &Node) -> String {
    node.manager_status.as_ref().map_or_else(|| node.status.addr.clone(), |status| status.addr.clone())
}
