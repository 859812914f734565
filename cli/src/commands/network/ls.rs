//! `shoal network ls`.

use serde::Serialize;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::Network;
use crate::output::{ListArgs, Listing, print, short_id};
use crate::time::go_time;

/// Flags of `network ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
}

/// One line, under Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    created_at: String,
    driver: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "IPv4")]
    ipv4: String,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: String,
    name: String,
    scope: String,
}

const LISTING: Listing = Listing {
    table: r"{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

/// Lists networks.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let networks = client.get(&format!("/networks?{}", query(&args.list.filter))).await?;
    print(&render(networks, &args.list)?)
}

fn render(mut networks: Vec<Network>, args: &ListArgs) -> Result<String, CliError> {
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let id_of = |network: &Network| if args.no_trunc { network.id.clone() } else { short_id(&network.id).to_owned() };
    if args.is_quiet() {
        return Ok(networks.iter().map(|network| id_of(network) + "\n").collect());
    }
    let rows: Vec<Row> = networks
        .iter()
        .map(|network| Row {
            created_at: go_time(&network.created).replace(" utc", " UTC"),
            driver: network.driver.clone(),
            id: id_of(network),
            ipv4: network.enable_ipv4.to_string(),
            ipv6: network.enable_ipv6.to_string(),
            internal: network.internal.to_string(),
            labels: network.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(","),
            name: network.name.clone(),
            scope: network.scope.clone(),
        })
        .collect();
    LISTING.render(&rows, &args.format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn networks_are_listed_as_docker_lists_them() {
        let network = |id: &str, name: &str| {
            json!({"Name": name, "Id": id, "Created": "2026-11-23T01:52:30.218999042Z", "Scope": "swarm", "Driver": "overlay",
                "EnableIPv4": true, "EnableIPv6": false, "Internal": false, "Labels": {"a": "b"}})
        };
        let networks = || -> Vec<Network> {
            let list =
                json!([network("ye2o73vzk0816yrmw9zbll10q", "ov"), network("21rvwkc5dxi8myyphdj9y7ho5", "ingress")]);
            serde_json::from_value(list).unwrap()
        };
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: "table".to_owned() };
        let text = render(networks(), &args).unwrap();
        snapshot::check("output/network-ls.txt", &text);
        let want = [
            "NETWORK ID     NAME      DRIVER    SCOPE",
            "21rvwkc5dxi8   ingress   overlay   swarm",
            "ye2o73vzk081   ov        overlay   swarm",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
        let args =
            ListArgs { format: "{{.Name}} {{.IPv6}} {{.Internal}} {{.Labels}} {{.CreatedAt}}".to_owned(), ..args };
        let want = "ingress false false a=b 2026-11-23 01:52:30.218999042 +0000 UTC\n";
        assert!(render(networks(), &args).unwrap().starts_with(want));
    }
}
