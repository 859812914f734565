//! `shoal network inspect`.

use serde_json::Value;

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::inspect;
use crate::output::print;

/// Flags of `network inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Format output: 'json' (one object a line), or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Verbose output for diagnostics
    #[arg(short, long)]
    verbose: bool,
    /// Networks, by name or ID
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Prints everything about networks; those that are found are printed even if others are not.
pub(crate) async fn run(client: &Client, args: InspectArgs) -> Result<(), CliError> {
    let query = if args.verbose { "?verbose=true" } else { "" };
    let mut found: Vec<Value> = Vec::new();
    let outcome = for_each(&args.networks, async |name| {
        found.push(client.get(&format!("/networks/{}{query}", escape(name))).await?);
        Ok(())
    })
    .await;
    print(&inspect::render(&found, args.format.as_deref())?)?;
    outcome
}
