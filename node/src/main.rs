//! `shoald`, the daemon.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use shoal_node::api::listen::Tls;
use shoal_node::config::file::{LoadError, Loaded, load};
use shoal_node::config::{Config, LogFormat, ShowConfig};
use tracing_subscriber::EnvFilter;

/// Worker threads of the daemon: it waits more than it computes, and each thread costs memory.
const THREADS: usize = 2;

fn main() -> ExitCode {
    // What forks containers must never have had a second thread: it is dispatched before anything else exists.
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    match arguments.next().as_deref() {
        Some(shoal_node::supervisor::SUBCOMMAND) => return shoal_node::supervisor::main(arguments),
        Some(shoal_node::supervisor::check::SUBCOMMAND) => return shoal_node::supervisor::check::main(arguments),
        Some("man") => return write_man(arguments.next()),
        Some(_) | None => {}
    }
    if asks_for_contents(std::env::args_os().skip(1)) {
        print(contents());
        return ExitCode::SUCCESS;
    }
    let shows = std::env::args_os().nth(1).is_some_and(|first| first == ShowConfig::SUBCOMMAND);
    let loaded = if shows {
        // What follows are the daemon's flags.
        let program = std::iter::once("shoald config".into());
        load(ShowConfig::command(), program.chain(std::env::args_os().skip(2)).collect())
    } else {
        load(Config::command(), std::env::args_os().collect())
    };
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(LoadError::CommandLine(error)) => error.exit(),
        Err(error) => {
            eprintln!("shoald: {error}");
            return ExitCode::from(2);
        }
    };
    if loaded.config.validate || shows {
        return show(&loaded, shows);
    }
    run(loaded.config)
}

/// What the binaries of this version are made of: a line for each package with version and licence. A test compares it with
/// what cargo says.
const LICENCES: &str = include_str!("../licences.txt");

/// Whether `--verbose` stands beside `--version`.
fn asks_for_contents(arguments: impl Iterator<Item = OsString>) -> bool {
    let arguments: Vec<_> = arguments.collect();
    let is = |names: &[&str]| arguments.iter().any(|argument| names.iter().any(|name| argument == name));
    arguments.len() == 2 && is(&["--version", "-V"]) && is(&["--verbose"])
}

fn contents() -> String {
    let command = Config::command();
    format!(
        "{}\nApache-2.0. Inside shoald and shoal, with versions and licences:\n\n{LICENCES}",
        command.render_version().trim()
    )
}

fn print(text: String) {
    // Whoever closes the pipe has read enough.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
}

/// Writes the manual page, which packages are built with.
fn write_man(directory: Option<String>) -> ExitCode {
    let Some(directory) = directory else {
        eprintln!("shoald: man needs a directory to write to, which must exist");
        return ExitCode::from(2);
    };
    let page = clap_mangen::Man::new(Config::command()).section("8");
    match page.generate_to(&directory) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoald: failed to write to {directory}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Checks a configuration and prints it, or that it is well.
fn show(loaded: &Loaded, wants_text: bool) -> ExitCode {
    let config = &loaded.config;
    if let Err(error) =
        filter(config).and_then(|_| Ok(config.tls_files().map(|files| Tls::read(&files)).transpose()?))
    {
        eprintln!("shoald: {error:#}");
        return ExitCode::from(2);
    }
    if wants_text && !loaded.is_check() {
        print(loaded.effective());
    } else {
        eprintln!("configuration OK");
    }
    ExitCode::SUCCESS
}

fn run(config: Config) -> ExitCode {
    if let Err(error) = log_to_stderr(&config) {
        eprintln!("shoald: {error:#}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            // In a worker: this thread would have to be woken for every event, which costs an idle daemon most.
            let ended = runtime.block_on(runtime.spawn(shoal_node::runtime::run(config)));
            let result = ended.unwrap_or_else(|error| Err(anyhow::Error::new(error).context("the daemon broke off")));
            // What still runs in the background are reads and transfers of others; none of them keeps a promise.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("failed to start the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads what is to be logged.
fn filter(config: &Config) -> anyhow::Result<EnvFilter> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|error| anyhow::anyhow!("--log-level {}: {error}", config.log_level))?;
    // It warns of every cgroup controller that a machine lacks, for every container.
    Ok(filter.add_directive("libcgroups=error".parse()?))
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = filter(config)?;
    let ansi = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    match config.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_is_listed_for_whoever_asks_for_the_version_at_length() {
        let asks = |line: &str| asks_for_contents(line.split_whitespace().map(OsString::from));
        assert!(asks("--version --verbose") && asks("--verbose -V"));
        assert!(!asks("--version") && !asks("--verbose") && !asks("--version --verbose --init"));
        let contents = contents();
        let first = contents.lines().next().unwrap();
        assert_eq!(first, concat!("shoald ", env!("CARGO_PKG_VERSION")));
        let is_listed = |name: &str| {
            let mut words = contents.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            words.any(|words| words.len() >= 3 && words[0] == name)
        };
        assert!(is_listed("libp2p") && is_listed("redb"), "{contents}");
    }
}
