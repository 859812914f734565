//! `shoal status`.

use serde_json::Value;

use crate::client::Client;
use crate::error::CliError;
use crate::inspect;
use crate::output::{TABLE, print};
use crate::status::Status;
use crate::table;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Format output: 'table', 'json', or a Go template
    #[arg(long, default_value = TABLE, value_name = "FORMAT")]
    format: String,
}

/// Prints how the cluster is; fails if it is not well.
pub(crate) async fn run(client: &Client, args: StatusArgs) -> Result<(), CliError> {
    let value: Value = client.get("/shoal/status").await?;
    let text = match args.format.as_str() {
        TABLE => String::new(),
        format => inspect::render(std::slice::from_ref(&value), Some(format))?,
    };
    let status: Status = serde_json::from_value(value)
        .map_err(|error| CliError::Failed(format!("the daemon's answer makes no sense: {error}")))?;
    if text.is_empty() {
        print(&render(&status))?
    } else {
        print(&text)?
    }
    // What is wrong was printed; the exit status says that something is.
    if status.is_well() { Ok(()) } else { Err(CliError::Failed(String::new())) }
}

fn render(status: &Status) -> String {
    let hostname = |id: &str| {
        let node = status.nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| id.to_owned(), |node| node.hostname.clone())
    };
    let voters: Vec<String> = status.voters.iter().map(|id| hostname(id)).collect();
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let mut text = format!(
        "Cluster:   {}\nNode:      {}\nQuorum:    {}\nVoters:    {}\nAgree:     {}\n\n",
        status.cluster,
        hostname(&status.node),
        yes_no(status.quorum),
        voters.join(", "),
        yes_no(status.agree)
    );
    let rows: Vec<[String; 5]> = status
        .nodes
        .iter()
        .map(|node| {
            [node.id.clone(), node.hostname.clone(), node.state.clone(), node.digest.clone(), status.held_by(&node.id)]
        })
        .collect();
    text.push_str(&table::render(["ID", "HOSTNAME", "STATE", "DIGEST", "LEASES"], &rows));
    let free = status.leases.iter().filter(|lease| lease.holder.is_empty()).count();
    if free > 0 {
        let have = if free == 1 { "lease has" } else { "leases have" };
        text.push_str(&format!("\n{free} {have} no holder.\n"));
    }
    if let Some(epoch) = status.leases.iter().map(|lease| lease.epoch).max() {
        text.push_str(&format!("\nHighest epoch: {epoch}\n"));
    }
    for warning in &status.warnings {
        text.push_str(&format!("WARNING: {warning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn a_cluster_is_well_only_without_warnings() {
        let mut status: Status =
            serde_json::from_value(json!({"Cluster": "c", "Node": "n", "Quorum": true, "Voters": ["n"],
            "Leases": [{"Lease": "registry", "Holder": "n", "Epoch": 3, "ExpiresInMs": 10},
            {"Lease": "shard-0", "Holder": "", "Epoch": 0, "ExpiresInMs": 0}],
            "Nodes": [{"ID": "n", "Hostname": "n1", "State": "ready", "Digest": "ab"}], "Agree": true, "Warnings": []}))
            .unwrap();
        assert!(status.is_well());
        let text = render(&status);
        assert!(text.contains("\nn         n1         ready     ab        registry\n"), "{text}");
        assert!(text.contains("1 lease has no holder"));
        snapshot::check("output/status.txt", &text);
        status.warnings.push("node n2 is down".to_owned());
        assert!(!status.is_well());
    }
}
