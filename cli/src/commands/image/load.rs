//! `shoal image load`.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::Value;

use crate::client::Client;
use crate::error::CliError;
use crate::output::print;

/// Flags of `image load`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN ('-' is STDIN)
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Store on every ready node, not only on this one
    #[arg(long)]
    all: bool,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

/// Sends an archive to the daemon and prints what was stored.
pub(crate) async fn run(client: &Client, args: LoadArgs) -> Result<(), CliError> {
    let path = if args.all { "/images/load?all=1" } else { "/images/load" };
    let answer = match args.input.filter(|path| path.as_os_str() != "-") {
        Some(file) => {
            let failed = |error: io::Error| CliError::Failed(format!("open {}: {error}", file.display()));
            let reader = tokio::fs::File::open(&file).await.map_err(failed)?;
            client.upload(path, reader).await?
        }
        None if io::stdin().is_terminal() => {
            return Err(CliError::Misused(
                "requested load from stdin, but stdin is a terminal: use -i FILE".to_owned(),
            ));
        }
        None => {
            let failed = |error: io::Error| CliError::Failed(format!("failed to read standard input: {error}"));
            let stdin = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
            client.upload(path, tokio::fs::File::from_std(stdin)).await?
        }
    };
    report(&answer, args.quiet)
}

/// Prints the lines of the answer, which says of each image or node either `stream` or `error`.
fn report(answer: &[u8], quiet: bool) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for message in serde_json::Deserializer::from_slice(answer).into_iter::<Value>() {
        let message =
            message.map_err(|error| CliError::Failed(format!("the daemon's answer makes no sense: {error}")))?;
        if let Some(error) = message["error"].as_str() {
            errors.push(error.to_owned());
        } else if let Some(text) = message["stream"].as_str().filter(|_| !quiet) {
            print(text)?;
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(CliError::Failed(errors.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_the_answer_is_a_failure() {
        assert!(report(br#"{"stream":""}"#, true).is_ok());
        let error = report(b"{\"stream\":\"\"}\n{\"error\":\"n2: no space\"}\n", true).unwrap_err();
        assert_eq!(error.to_string(), "n2: no space");
        assert!(report(b"oops", true).is_err());
    }
}
