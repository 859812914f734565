//! `shoal node ls`.

use serde::Serialize;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::{Info, Node};
use crate::output::{Format, ListArgs, capital, json_lines, print};
use crate::table;

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
}

/// Lists nodes.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let nodes: Vec<Node> = client.get(&format!("/nodes?{}", query(&args.list.filter))).await?;
    let this = if args.list.quiet { String::new() } else { client.get::<Info>("/info").await?.swarm.node_id };
    print(&render(nodes, &this, &args.list)?)
}

fn render(mut nodes: Vec<Node>, this: &str, args: &ListArgs) -> Result<String, CliError> {
    nodes.sort_by(|a, b| (&a.description.hostname, &a.id).cmp(&(&b.description.hostname, &b.id)));
    if args.quiet {
        return Ok(nodes.into_iter().map(|node| node.id + "\n").collect());
    }
    let rows: Vec<Row> = nodes.into_iter().map(|node| row(node, this)).collect();
    if args.format == Format::Json {
        return json_lines(&rows);
    }
    let headings = ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"];
    let cells: Vec<[String; 6]> = rows
        .into_iter()
        .map(|row| {
            let mark = if row.is_self { "*" } else { " " };
            let id = format!("{} {mark}", row.id);
            [id, row.hostname, row.status, row.availability, row.manager_status, row.engine_version]
        })
        .collect();
    Ok(table::render(headings, &cells))
}

fn row(node: Node, this: &str) -> Row {
    let manager_status = match &node.manager_status {
        Some(status) if status.leader => "Leader".to_owned(),
        Some(status) => capital(&status.reachability),
        None => String::new(),
    };
    Row {
        availability: capital(availability(&node)),
        engine_version: node.description.engine.engine_version,
        hostname: node.description.hostname,
        is_self: node.id == this,
        id: node.id,
        manager_status,
        status: capital(&node.status.state),
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
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: Format::Table };
        let text = render(nodes, "dikudt41jnh24m67n37plsnsp", &args).unwrap();
        let want = [
            "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION",
            "dikudt41jnh24m67n37plsnsp *   n1         Ready     Active         Leader           20.10.24+dfsg1",
            "ltmmwmn7dcd1lu9w64lxg7b9y     n2         Down      Drain                           20.10.24+dfsg1",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
    }
}
