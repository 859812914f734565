//! `shoal man`, which packages are built with.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::Cli;
use crate::error::CliError;

/// Flags of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Directory to write to, which must exist
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes one page for each command; no daemon is asked.
pub(crate) fn run(args: &ManArgs) -> Result<(), CliError> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .map_err(|error| CliError::Failed(format!("failed to write to {}: {error}", args.directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_but_hidden_ones() {
        let directory = tempfile::tempdir().unwrap();
        run(&ManArgs { directory: directory.path().to_owned() }).unwrap();
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name));
        assert!(page("shoal.1").unwrap().contains("SHOAL_HOST"));
        assert!(page("shoal-service-create.1").unwrap().contains("replicas"));
        assert!(page("shoal-man.1").is_err());
    }
}
