//! `shoal`, the command line of a cluster: a client of the daemon's HTTP API, one module per command.
//!
//! Data goes to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 misused.

mod client;
mod commands;
mod error;
mod files;
mod filter;
mod health;
mod hint;
mod inspect;
mod lines;
mod model;
mod mounts;
mod networks;
mod output;
mod placement;
mod ports;
mod progress;
mod registry;
mod settings;
#[cfg(test)]
mod snapshot;
mod spec;
mod status;
mod table;
mod time;
mod top;
mod units;
mod words;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::client::{Client, TargetArgs};
use crate::commands::Command;
use crate::error::CliError;

/// Drive a shoal cluster
#[derive(Debug, Parser)]
#[command(name = "shoal", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    target: TargetArgs,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| explain(error).exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(error.exit_status())
        }
    }
}

/// Replaces clap's advice on a flag that does not exist, to give it as a value, by where Docker's flags are listed.
fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    error.remove(ContextKind::Suggested);
    if error.get(ContextKind::SuggestedArg).is_none() {
        let advice = "what docker has and shoal has not yet is listed in docs/compatibility.md";
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    error
}

fn run(cli: Cli) -> Result<(), CliError> {
    let client = Client::new(cli.target.target(|name| std::env::var(name).ok())?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("failed to start: {error}")))?;
    let result = runtime.block_on(async {
        let result = cli.command.run(&client).await;
        if let Err(error) = result {
            return Err(match hint::find(&client, &error).await {
                Some(hint) => error.with(&hint),
                None => error,
            });
        }
        Ok(())
    });
    // Reading standard input blocks a thread that nothing can wake; the process must not wait for it.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn unknown_flags_are_answered_with_what_helps() {
        for (flag, want) in [
            ("--credential-spec", "is listed in docs/compatibility.md"),
            ("--replica", "a similar argument exists: '--replicas'"),
        ] {
            let error = super::Cli::try_parse_from(["shoal", "service", "create", flag, "x", "image"]).unwrap_err();
            let text = super::explain(error).to_string();
            assert!(text.contains(&format!("unexpected argument '{flag}' found")) && text.contains(want), "{text}");
            assert!(!text.contains("as a value"), "{text}");
        }
    }
}
