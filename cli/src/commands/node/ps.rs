//! `shoal node ps`.

use crate::client::{Client, escape};
use crate::commands::{node, tasks};
use crate::error::CliError;
use crate::filter::Filter;
use crate::model::Node;
use crate::output::ListArgs;

/// Flags of `node ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Do not map IDs to Names
    #[arg(long)]
    no_resolve: bool,
    /// Nodes, by name, ID or 'self'
    #[arg(value_name = "NODE", default_value = "self")]
    nodes: Vec<String>,
}

/// Lists the tasks of nodes.
pub(crate) async fn run(client: &Client, args: PsArgs) -> Result<(), CliError> {
    let mut filters = Vec::new();
    let mut failed = None;
    for name in &args.nodes {
        let id = node::resolve(client, name).await?;
        match client.get::<Node>(&format!("/nodes/{}", escape(&id))).await {
            Ok(found) => filters.push(Filter::new("node", &found.id)),
            Err(error) if error.is_not_found() => failed = Some(error),
            Err(error) => return Err(error),
        }
    }
    if !filters.is_empty() {
        tasks::list(client, &args.list, args.no_resolve, &filters).await?;
    }
    failed.map_or(Ok(()), Err)
}
