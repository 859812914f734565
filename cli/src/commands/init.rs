//! `shoal init`.

use serde_json::json;

use super::swarm_update::SettingsArgs;
use super::unlock_key;
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
    /// Listen address, which has to be the one that shoald was started with
    #[arg(long, value_name = "IP:PORT")]
    listen_addr: Option<String>,
    /// Enable manager autolocking (requiring an unlock key to start a stopped manager)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new())]
    autolock: bool,
    /// Availability of the node
    #[arg(long, value_parser = ["active", "pause", "drain"], default_value = "active")]
    availability: String,
    /// Default address pool in CIDR format (may be repeated)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Default address pool subnet mask length
    #[arg(long, value_name = "BITS", default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Starts a cluster and prints how to join it.
pub(crate) async fn run(client: &Client, args: InitArgs) -> Result<(), CliError> {
    let mut spec = json!({"EncryptionConfig": {"AutoLockManagers": args.autolock}});
    args.settings.apply(&mut spec);
    let body = json!({
        "ListenAddr": args.listen_addr.unwrap_or_default(),
        "AdvertiseAddr": args.advertise_addr.unwrap_or_default(),
        "AutoLockManagers": args.autolock,
        "Availability": args.availability,
        "DefaultAddrPool": args.default_addr_pool,
        "SubnetSize": args.default_addr_pool_mask_length,
        "Spec": spec,
    });
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
    ))?;
    if args.autolock {
        unlock_key::tell(client).await?;
    }
    Ok(())
}

/// Returns where a manager takes joiners.
pub(crate) fn manager_address(node: &Node) -> String {
    node.manager_status.as_ref().map_or_else(|| node.status.addr.clone(), |status| status.addr.clone())
}
