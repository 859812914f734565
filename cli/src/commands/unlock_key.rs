//! `shoal unlock-key` and `shoal swarm unlock-key`.

use serde::Deserialize;
use serde_json::Value;

use crate::client::Client;
use crate::error::CliError;
use crate::output::print;

/// Flags of `unlock-key`.
#[derive(Debug, clap::Args)]
pub(crate) struct UnlockKeyArgs {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate unlock key
    #[arg(long)]
    rotate: bool,
}

/// What `GET /swarm/unlockkey` answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnlockKey {
    unlock_key: String,
}

/// Prints the unlock key, after making a new one if asked to.
pub(crate) async fn run(client: &Client, args: UnlockKeyArgs) -> Result<(), CliError> {
    if args.rotate {
        let current: Value = client.get("/swarm").await?;
        if current["Spec"]["EncryptionConfig"]["AutoLockManagers"] != true {
            return Err(CliError::Failed("cannot rotate because autolock is not turned on".to_owned()));
        }
        let path = format!("/swarm/update?version={}&rotateManagerUnlockKey=true", current["Version"]["Index"]);
        client.post::<_, Value>(&path, &current["Spec"]).await?;
        if !args.quiet {
            print("Successfully rotated manager unlock key.\n\n")?;
        }
    }
    let key = fetch(client).await?;
    if args.quiet {
        return print(&format!("{key}\n"));
    }
    show(&key)
}

/// Asks for the unlock key.
async fn fetch(client: &Client) -> Result<String, CliError> {
    let UnlockKey { unlock_key } = client
        .get("/swarm/unlockkey")
        .await
        .map_err(|error| CliError::Failed(format!("could not fetch unlock key: {error}")))?;
    if unlock_key.is_empty() {
        return Err(CliError::Failed("no unlock key is set".to_owned()));
    }
    Ok(unlock_key)
}

/// Says what the key of a cluster is for that is to be locked from now on.
pub(crate) async fn tell(client: &Client) -> Result<(), CliError> {
    show(&fetch(client).await?)
}

fn show(key: &str) -> Result<(), CliError> {
    print(&format!(
        "To unlock a swarm manager after it restarts, run the `shoal swarm unlock`\ncommand and provide the following \
         key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able to \
         restart the manager.\n"
    ))
}
