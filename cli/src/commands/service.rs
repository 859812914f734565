//! `shoal service …`.

mod create;
mod inspect;
mod logs;
mod ls;
mod ps;
mod rm;
mod scale;
mod update;

use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;

/// What can be done with services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service
    Create(Box<create::CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// List the tasks of services
    Ps(ps::PsArgs),
    /// Show everything about services
    Inspect(inspect::InspectArgs),
    /// Change a service
    Update(Box<update::UpdateArgs>),
    /// Give a service back the spec it had before
    Rollback(update::RollbackArgs),
    /// Change the number of tasks of services
    Scale(scale::ScaleArgs),
    /// Remove services and their tasks
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    /// Print what the tasks of a service, or one task, have written
    Logs(logs::LogsArgs),
}

impl ServiceCommand {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create::run(client, *args).await,
            Self::Ls(args) => ls::run(client, args).await,
            Self::Ps(args) => ps::run(client, args).await,
            Self::Inspect(args) => inspect::run(client, args).await,
            Self::Update(args) => update::run(client, *args).await,
            Self::Rollback(args) => update::run_rollback(client, args).await,
            Self::Scale(args) => scale::run(client, args).await,
            Self::Rm(args) => rm::run(client, args).await,
            Self::Logs(args) => logs::run(client, args).await,
        }
    }
}

/// Flags of the commands that wait until a service has converged.
#[derive(Debug, Clone, Copy, clap::Args)]
struct WaitArgs {
    /// Return at once, without waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    detach: bool,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("{warning}");
    }
}
