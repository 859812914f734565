//! `shoal join-token`.

use clap::ValueEnum;
use serde_json::Value;

use crate::client::{Client, escape};
use crate::commands::init::manager_address;
use crate::error::CliError;
use crate::model::{Info, JoinTokens, Node, Swarm};
use crate::output::print;

/// Flags of `join-token`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinTokenArgs {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate join token
    #[arg(long)]
    rotate: bool,
    /// What a node that joins with it becomes
    role: Role,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Worker,
    Manager,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }

    fn token(self, tokens: &JoinTokens) -> &str {
        match self {
            Self::Worker => &tokens.worker,
            Self::Manager => &tokens.manager,
        }
    }
}

/// Prints a join token, after making a new one if asked to.
pub(crate) async fn run(client: &Client, args: JoinTokenArgs) -> Result<(), CliError> {
    let role = args.role.name();
    if args.rotate {
        let current: Value = client.get("/swarm").await?;
        let flag = match args.role {
            Role::Worker => "rotateWorkerToken",
            Role::Manager => "rotateManagerToken",
        };
        let path = format!("/swarm/update?version={}&{flag}=true", current["Version"]["Index"]);
        client.post::<_, Value>(&path, &current["Spec"]).await?;
        if !args.quiet {
            print(&format!("Successfully rotated {role} join token.\n\n"))?;
        }
    }
    let swarm: Swarm = client.get("/swarm").await?;
    let token = args.role.token(&swarm.join_tokens);
    if args.quiet {
        return print(&format!("{token}\n"));
    }
    let info: Info = client.get("/info").await?;
    let node: Node = client.get(&format!("/nodes/{}", escape(&info.swarm.node_id))).await?;
    let address = manager_address(&node);
    print(&format!(
        "To add a {role} to this swarm, run the following command:\n\n    shoal join --token {token} {address}\n\n"
    ))
}
