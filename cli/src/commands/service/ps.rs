//! `shoal service ps`.

use crate::client::{Client, escape};
use crate::commands::tasks;
use crate::error::CliError;
use crate::filter::Filter;
use crate::model::Service;
use crate::output::ListArgs;

/// Flags of `service ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Do not map IDs to Names
    #[arg(long)]
    no_resolve: bool,
    /// Services, by name or ID
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Lists the tasks of services; those that exist are listed even if others do not.
pub(crate) async fn run(client: &Client, args: PsArgs) -> Result<(), CliError> {
    let mut filters = Vec::new();
    let mut missing = Vec::new();
    for name in &args.services {
        match client.get::<Service>(&format!("/services/{}", escape(name))).await {
            Ok(service) => filters.push(Filter::new("service", &service.id)),
            Err(error) if error.is_not_found() => missing.push(format!("no such service: {name}")),
            Err(error) => return Err(error),
        }
    }
    if !filters.is_empty() {
        tasks::list(client, &args.list, args.no_resolve, &filters).await?;
    }
    if missing.is_empty() { Ok(()) } else { Err(CliError::Failed(missing.join("\n"))) }
}
