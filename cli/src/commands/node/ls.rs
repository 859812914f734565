//! `shoal node ls`.

use serde::Serialize;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::{Info, Node};
use crate::output::{ListArgs, Listing, capital, print};

/// Flags of `node ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
}

/// One line, under Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    availability: String,
    engine_version: String,
    hostname: String,
    #[serde(rename = "ID")]
    id: String,
    manager_status: String,
    #[serde(rename = "Self")]
    is_self: bool,
    status: String,
    #[serde(rename = "TLSStatus")]
    tls_status: &'static str,
}

const LISTING: Listing = Listing {
    table: r"{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    headings: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
    ],
};

/// Lists nodes.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let nodes: Vec<Node> = client.get(&format!("/nodes?{}", query(&args.list.filter))).await?;
    let info = if args.list.is_quiet() { Info::default() } else { client.get("/info").await? };
    print(&render(nodes, &info, &args.list)?)
}

fn render(mut nodes: Vec<Node>, info: &Info, args: &ListArgs) -> Result<String, CliError> {
    nodes.sort_by(|a, b| (&a.description.hostname, &a.id).cmp(&(&b.description.hostname, &b.id)));
    if args.is_quiet() {
        return Ok(nodes.into_iter().map(|node| node.id + "\n").collect());
    }
    let rows: Vec<Row> = nodes.into_iter().map(|node| row(node, info)).collect();
    LISTING.render(&rows, &args.format)
}

fn row(node: Node, info: &Info) -> Row {
    let manager_status = match &node.manager_status {
        Some(status) if status.leader => "Leader".to_owned(),
        Some(status) => capital(&status.reachability),
        None => String::new(),
    };
    let tls_status = tls_status(&node, info);
    Row {
        tls_status,
        availability: capital(availability(&node)),
        engine_version: node.description.engine.engine_version,
        hostname: node.description.hostname,
        is_self: node.id == info.swarm.node_id,
        id: node.id,
        manager_status,
        status: capital(&node.status.state),
    }
}

/// Says whether a node trusts what the cluster trusts. Source: docker/cli 28, `node.nodeContext.TLSStatus`.
fn tls_status(node: &Node, info: &Info) -> &'static str {
    let wanted = info.swarm.cluster.as_ref().map_or("", |cluster| &cluster.tls_info.trust_root);
    match node.description.tls_info.trust_root.as_str() {
        "" => "Unknown",
        _ if wanted.is_empty() => "Unknown",
        root if root == wanted => "Ready",
        _ => "Needs Rotation",
    }
}

/// Returns the name of a node's availability.
pub(crate) fn availability(node: &Node) -> &'static str {
    use shoal_protocol::spec::Availability::{Active, Drain, Pause};
    match node.spec.availability {
        Active => "active",
        Pause => "pause",
        Drain => "drain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn nodes_are_listed_as_docker_lists_them() {
        let nodes: Vec<Node> = serde_json::from_value(json!([
            {"ID": "ltmmwmn7dcd1lu9w64lxg7b9y", "Spec": {"Labels": {}, "Role": "worker", "Availability": "drain"},
             "Description": {"Hostname": "n2", "Engine": {"EngineVersion": "20.10.24+dfsg1"}}, "Status": {"State": "down"}},
            {"ID": "dikudt41jnh24m67n37plsnsp", "Spec": {"Labels": {}, "Role": "manager", "Availability": "active"},
             "Description": {"Hostname": "n1", "Engine": {"EngineVersion": "20.10.24+dfsg1"}}, "Status": {"State": "ready"},
             "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "10.77.0.1:2377"}}]))
        .unwrap();
        let info = json!({"Swarm": {"NodeID": "dikudt41jnh24m67n37plsnsp"}});
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: "table".to_owned() };
        let text = render(nodes, &serde_json::from_value(info).unwrap(), &args).unwrap();
        snapshot::check("output/node-ls.txt", &text);
        let want = [
            "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION",
            "dikudt41jnh24m67n37plsnsp *   n1         Ready     Active         Leader           20.10.24+dfsg1",
            "ltmmwmn7dcd1lu9w64lxg7b9y     n2         Down      Drain                           20.10.24+dfsg1",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_node_that_trusts_another_root_needs_rotation() {
        for (mine, cluster, want) in [
            ("a", json!({"TLSInfo": {"TrustRoot": "a"}}), "Ready"),
            ("b", json!({"TLSInfo": {"TrustRoot": "a"}}), "Needs Rotation"),
            ("", json!({"TLSInfo": {"TrustRoot": "a"}}), "Unknown"),
            ("a", json!(null), "Unknown"),
        ] {
            let node = json!({"Description": {"TLSInfo": {"TrustRoot": mine}}});
            let info = json!({"Swarm": {"Cluster": cluster}});
            let (node, info) = (serde_json::from_value(node).unwrap(), serde_json::from_value(info).unwrap());
            assert_eq!(tls_status(&node, &info), want);
        }
    }
}
