//! `shoal network prune`.

use std::io::{self, BufRead, Write};

use serde::Deserialize;
use serde_json::json;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::{Filter, query};
use crate::output::print;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 1024;

/// Flags of `network prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Pruned {
    networks_deleted: Option<Vec<String>>,
}

/// Removes the networks that no service uses.
pub(crate) async fn run(client: &Client, args: PruneArgs) -> Result<(), CliError> {
    if !args.force && !is_confirmed(&mut io::stdin().lock())? {
        return Err(CliError::Failed("network prune has been cancelled".to_owned()));
    }
    let pruned: Pruned = client.post(&format!("/networks/prune?{}", query(&args.filter)), &json!({})).await?;
    let deleted = pruned.networks_deleted.unwrap_or_default();
    if deleted.is_empty() {
        return Ok(());
    }
    print(&format!("Deleted Networks:\n{}\n\n", deleted.join("\n")))
}

fn is_confirmed(input: &mut impl BufRead) -> Result<bool, CliError> {
    eprint!(
        "WARNING! This will remove all custom networks not used by at least one service.\n\
         Are you sure you want to continue? [y/N] "
    );
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::Read::take(input, ANSWER_BYTES_MAX).read_line(&mut answer);
    read.map_err(|error| CliError::Failed(format!("failed to read standard input: {error}")))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, want) in [("y\n", true), ("Y\n", true), ("yes\n", false), ("\n", false), ("", false)] {
            assert_eq!(is_confirmed(&mut answer.as_bytes()).unwrap(), want, "{answer:?}");
        }
    }
}
