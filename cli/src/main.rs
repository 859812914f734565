//! `shoal`, the command line of a cluster: a client of the daemon's HTTP API, one module per command.
//!
//! Data goes to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 misused.

mod client;
mod commands;
mod error;
mod filter;
mod model;
mod mounts;
mod output;
mod ports;
mod progress;
mod spec;
mod table;
mod time;
mod units;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::client::Client;
use crate::commands::Command;
use crate::error::CliError;

/// Where the daemon listens when neither flag nor variable say otherwise.
const HOST_DEFAULT: &str = "unix:///run/shoal/shoal.sock";
/// Names the daemon's socket where no flag does.
const HOST_VARIABLE: &str = "SHOAL_HOST";

/// Drive a shoal cluster
#[derive(Debug, Parser)]
#[command(name = "shoal", version, disable_help_subcommand = true)]
struct Cli {
    /// Socket of the daemon to talk to
    #[arg(short = 'H', long, env = HOST_VARIABLE, default_value = HOST_DEFAULT, value_name = "unix://PATH")]
    host: String,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
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

fn run(cli: Cli) -> Result<(), CliError> {
    let client = Client::new(&cli.host)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("failed to start: {error}")))?;
    let result = runtime.block_on(cli.command.run(&client));
    // Reading standard input blocks a thread that nothing can wake; the process must not wait for it.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
