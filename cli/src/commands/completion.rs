//! `shoal completion`.

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};

use crate::Cli;
use crate::error::CliError;
use crate::output::print;

/// Flags of `completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionArgs {
    /// Shell that reads the script
    shell: ShellName,
}

/// The shells that Docker's client knows, but PowerShell.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script; no daemon is asked.
pub(crate) fn run(args: &CompletionArgs) -> Result<(), CliError> {
    print(&script(args.shell)?)
}

fn script(shell: ShellName) -> Result<String, CliError> {
    let shell = match shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut visible(&Cli::command()), "shoal", &mut script);
    String::from_utf8(script).map_err(|error| CliError::Failed(error.to_string()))
}

/// Copies a command without what is hidden, which the generators would offer.
fn visible(command: &Command) -> Command {
    let copy = Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .visible_aliases(command.get_visible_aliases().map(str::to_owned).collect::<Vec<_>>())
        .version(command.get_version().unwrap_or_default().to_owned())
        .disable_version_flag(command.get_version().is_none())
        .disable_help_subcommand(true)
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()));
    copy.subcommands(command.get_subcommands().filter(|one| !one.is_hide_set()).map(visible))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_commands_and_flags_but_not_what_is_hidden() {
        for (shell, begin) in
            [(ShellName::Bash, "_shoal()"), (ShellName::Zsh, "#compdef shoal"), (ShellName::Fish, "# Print")]
        {
            let script = script(shell).unwrap();
            assert!(script.starts_with(begin), "{shell:?}: {}", &script[..100]);
            for word in ["join-token", "replicas-max-per-node", "availability"] {
                assert!(script.contains(word), "{shell:?}: {word}");
            }
            for word in ["Write the manual pages", "Not supported"] {
                assert!(!script.contains(word), "{shell:?}: {word}");
            }
        }
    }
}
