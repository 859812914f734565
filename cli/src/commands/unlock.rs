//! `shoal unlock` and `shoal swarm unlock`.

use std::io::{BufRead, IsTerminal, Read, stdin};
use std::os::fd::AsFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::CliError;
use crate::model::Info;

/// Characters of an unlock key that are read at most.
const KEY_BYTES_MAX: u64 = 1024;

/// Flags of `unlock`: there are none.
#[derive(Debug, clap::Args)]
pub(crate) struct UnlockArgs {}

/// Opens the keys of a manager, which are sealed on its disk.
pub(crate) async fn run(client: &Client, _: UnlockArgs) -> Result<(), CliError> {
    let info: Info = client.get("/info").await?;
    // Docker's client puts "Error: " before these, too.
    match info.swarm.local_node_state.as_str() {
        "locked" => {}
        "inactive" => return Err(CliError::Failed("Error: This node is not part of a swarm".to_owned())),
        _ => return Err(CliError::Failed("Error: swarm is not locked".to_owned())),
    }
    let key = read_key().map_err(|error| CliError::Failed(format!("failed to read the unlock key: {error}")))?;
    client.post::<_, Value>("/swarm/unlock", &json!({"UnlockKey": key})).await.map(|_| ())
}

/// Reads a line; on a terminal it asks first and does not show what is typed.
fn read_key() -> std::io::Result<String> {
    let input = stdin();
    let mut line = String::new();
    let _hidden = if input.is_terminal() {
        eprint!("Enter unlock key: ");
        Some(Hidden::start()?)
    } else {
        None
    };
    input.lock().take(KEY_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden {
    before: Termios,
}

impl Hidden {
    fn start() -> std::io::Result<Self> {
        let before = tcgetattr(stdin().as_fd())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(stdin().as_fd(), OptionalActions::Now, &hidden)?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}
