//! `shoal join`.

use serde_json::{Value, json};

use crate::client::Client;
use crate::error::CliError;
use crate::model::Info;
use crate::output::print;

/// The port between nodes where an address names none.
const PORT_DEFAULT: u16 = 2377;

/// Flags of `join`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// Token for entry into the swarm
    #[arg(long)]
    token: String,
    /// Advertised address (default: what shoald was started with)
    #[arg(long, value_name = "IP[:PORT]")]
    advertise_addr: Option<String>,
    /// Availability of the node
    #[arg(long, value_parser = ["active", "pause", "drain"], default_value = "active")]
    availability: String,
    /// Listen address, which has to be the one that shoald was started with
    #[arg(long, value_name = "IP:PORT")]
    listen_addr: Option<String>,
    /// Nodes of the cluster; any one that answers is enough
    #[arg(required = true, value_name = "ADDR[:PORT]")]
    addresses: Vec<String>,
}

/// Joins the node to a cluster.
pub(crate) async fn run(client: &Client, args: JoinArgs) -> Result<(), CliError> {
    let addresses: Vec<String> = args.addresses.iter().map(|address| with_port(address)).collect();
    let body = json!({
        "ListenAddr": args.listen_addr.unwrap_or_default(),
        "AdvertiseAddr": args.advertise_addr.unwrap_or_default(),
        "Availability": args.availability,
        "RemoteAddrs": addresses,
        "JoinToken": args.token,
    });
    client.post::<_, Value>("/swarm/join", &body).await?;
    let info: Info = client.get("/info").await?;
    let role = if info.swarm.control_available { "manager" } else { "worker" };
    print(&format!("This node joined a swarm as a {role}.\n"))
}

fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        // An IPv6 address has colons of its own; only behind its bracket there is a port.
        Some((host, _)) => !host.contains(':') || host.ends_with(']'),
        None => false,
    };
    match address.parse::<std::net::Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{PORT_DEFAULT}"),
        Err(_) if has_port => address.to_owned(),
        Err(_) => format!("{address}:{PORT_DEFAULT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        for (given, want) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("host", "host:2377"),
            ("::1", "[::1]:2377"),
            ("[::1]:99", "[::1]:99"),
            ("[::1]", "[::1]:2377"),
        ] {
            assert_eq!(with_port(given), want);
        }
    }
}
