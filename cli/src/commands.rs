//! The commands: one module each, which holds its flags and the function that carries it out.

mod ca;
mod completion;
mod events;
mod image;
mod init;
mod join;
mod join_token;
mod leave;
mod man;
mod network;
pub(crate) mod node;
mod object;
mod service;
mod status;
mod swarm_update;
pub(crate) mod tasks;
mod top;
mod unlock;
mod unlock_key;

use clap::Subcommand;

use crate::client::Client;
use crate::error::CliError;

/// What `shoal` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Initialize a swarm
    Init(init::InitArgs),
    /// Join a swarm as a node and/or manager
    Join(join::JoinArgs),
    /// Leave the swarm
    Leave(leave::LeaveArgs),
    /// Manage join tokens
    JoinToken(join_token::JoinTokenArgs),
    /// Display and rotate the root CA
    Ca(ca::CaArgs),
    /// Unlock swarm
    Unlock(unlock::UnlockArgs),
    /// Manage the unlock key
    UnlockKey(unlock_key::UnlockKeyArgs),
    /// Manage the swarm, under Docker's names
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Manage nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Manage services
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Manage Swarm secrets
    #[command(subcommand)]
    Secret(object::SecretCommand),
    /// Manage Swarm configs
    #[command(subcommand)]
    Config(object::ConfigCommand),
    /// Manage images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Get real time events from the server
    Events(events::EventsArgs),
    /// Display whether the cluster is well
    Status(status::StatusArgs),
    /// Display nodes, services, tasks, leases, traffic and events, live
    Top(top::TopArgs),
    /// Generate the autocompletion script for the specified shell
    Completion(completion::CompletionArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// The cluster's commands under Docker's names.
#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Initialize a swarm
    Init(init::InitArgs),
    /// Join a swarm as a node and/or manager
    Join(join::JoinArgs),
    /// Leave the swarm
    Leave(leave::LeaveArgs),
    /// Manage join tokens
    JoinToken(join_token::JoinTokenArgs),
    /// Display and rotate the root CA
    Ca(ca::CaArgs),
    /// Unlock swarm
    Unlock(unlock::UnlockArgs),
    /// Manage the unlock key
    UnlockKey(unlock_key::UnlockKeyArgs),
    /// Update the swarm
    Update(swarm_update::UpdateArgs),
}

impl Command {
    /// Carries the command out.
    pub(crate) async fn run(self, client: &Client) -> Result<(), CliError> {
        match self {
            Self::Init(args) | Self::Swarm(SwarmCommand::Init(args)) => init::run(client, args).await,
            Self::Join(args) | Self::Swarm(SwarmCommand::Join(args)) => join::run(client, args).await,
            Self::Leave(args) | Self::Swarm(SwarmCommand::Leave(args)) => leave::run(client, args).await,
            Self::JoinToken(args) | Self::Swarm(SwarmCommand::JoinToken(args)) => join_token::run(client, args).await,
            Self::Ca(args) | Self::Swarm(SwarmCommand::Ca(args)) => ca::run(client, args).await,
            Self::Unlock(args) | Self::Swarm(SwarmCommand::Unlock(args)) => unlock::run(client, args).await,
            Self::UnlockKey(args) | Self::Swarm(SwarmCommand::UnlockKey(args)) => unlock_key::run(client, args).await,
            Self::Swarm(SwarmCommand::Update(args)) => swarm_update::run(client, args).await,
            Self::Node(command) => command.run(client).await,
            Self::Service(command) => command.run(client).await,
            Self::Network(command) => command.run(client).await,
            Self::Secret(command) => command.run(client).await,
            Self::Config(command) => command.run(client).await,
            Self::Image(command) => command.run(client).await,
            Self::Events(args) => events::run(client, args).await,
            Self::Status(args) => status::run(client, args).await,
            Self::Top(args) => top::run(client, args).await,
            Self::Completion(args) => completion::run(&args),
            Self::Man(args) => man::run(&args),
        }
    }
}

/// Does something to each of several objects; goes on after a failure and fails at the end if one failed.
pub(crate) async fn for_each<F>(names: &[String], mut action: F) -> Result<(), CliError>
where
    F: AsyncFnMut(&str) -> Result<(), CliError>,
{
    let mut failed = None;
    for name in names {
        if let Err(error) = action(name).await {
            if matches!(error, CliError::Unreachable { .. }) {
                return Err(error);
            }
            if let Some(previous) = failed.replace(error) {
                eprintln!("{previous}");
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
