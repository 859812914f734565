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
    /// Create a new service
    Create(Box<create::CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// List the tasks of one or more services
    Ps(ps::PsArgs),
    /// Display detailed information on one or more services
    Inspect(inspect::InspectArgs),
    /// Update a service
    Update(Box<update::UpdateArgs>),
    /// Revert changes to a service's configuration
    Rollback(update::RollbackArgs),
    /// Scale one or multiple replicated services
    Scale(scale::ScaleArgs),
    /// Remove one or more services
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    /// Fetch the logs of a service or task
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
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("{warning}");
    }
}
