//! The configuration file, and what wins where several places set the same: a flag, a variable, the file, the default.
//!
//! The file's keys are the long names of the flags. What it says is handed to the parser of the flags, so a value means the
//! same in both, and is refused by the same words; a refusal names the line.

use std::any::TypeId;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use toml::de::{DeTable, DeValue};

use super::Config;

/// The file that is read when it is there and none is named.
pub const FILE_DEFAULT: &str = "/etc/shoal/shoald.toml";

/// Bytes of a configuration file at most; a larger one is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags that are about this run and not about the daemon.
const NOT_IN_FILE: [&str; 5] = ["config", "validate", "check", "help", "version"];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The command line makes no sense, or asks for help.
    #[error(transparent)]
    CommandLine(clap::Error),
    /// The file could not be read.
    #[error("failed to read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that makes no sense.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// What was set cannot be set together.
    #[error("{0}")]
    Conflict(String),
}

/// A configuration, and where each part of it is from.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    command: Command,
    matches: ArgMatches,
    entries: Vec<Entry>,
    path: Option<PathBuf>,
}

/// What the file says of one flag.
#[derive(Debug)]
struct Entry {
    key: String,
    line: usize,
    /// As they would be written on the command line.
    arguments: Vec<String>,
    /// Whether nothing of higher precedence says something else.
    counts: bool,
}

/// Reads the command line, the variables and the file. `command` has the flags of [`Config`]; the first argument is the
/// program.
pub fn load(command: Command, arguments: Vec<OsString>) -> Result<Loaded, LoadError> {
    load_beside(command, arguments, Path::new(FILE_DEFAULT))
}

fn load_beside(command: Command, mut arguments: Vec<OsString>, default: &Path) -> Result<Loaded, LoadError> {
    let given = command.clone().try_get_matches_from(&arguments).map_err(LoadError::CommandLine)?;
    let named = given.get_one::<PathBuf>("config").cloned();
    let path = named.or_else(|| default.exists().then(|| default.to_owned()));
    let mut entries = match &path {
        Some(path) => read(&command, path)?,
        None => Vec::new(),
    };
    for entry in &mut entries {
        let source = given.value_source(&id_of(&command, &entry.key));
        entry.counts = !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if entry.counts {
            arguments.extend(entry.arguments.iter().map(OsString::from));
        }
    }
    let matches = command.clone().try_get_matches_from(&arguments).map_err(|error| {
        let text = error.to_string();
        let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c == '\'').collect();
        let is_meant = |entry: &&Entry| entry.counts && words.contains(&format!("--{}", entry.key).as_str());
        match (entries.iter().find(is_meant), &path) {
            (Some(entry), Some(path)) => {
                let (reason, key, line) = (first_line(&error), &entry.key, entry.line);
                LoadError::Conflict(format!("{reason}\n{key} is set in {}:{line}", path.display()))
            }
            _ => LoadError::CommandLine(error),
        }
    })?;
    let config = Config::from_arg_matches(&matches).map_err(LoadError::CommandLine)?;
    config.validate().map_err(LoadError::Conflict)?;
    Ok(Loaded { config, command, matches, entries, path })
}

fn read(command: &Command, path: &Path) -> Result<Vec<Entry>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other(format!("it has {length} bytes, more than {FILE_BYTES_MAX}"))));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let line_of = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let at = |at: usize, reason: String| LoadError::Line { path: path.to_owned(), line: line_of(at), reason };
    let table = DeTable::parse(&text)
        .map_err(|error| at(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let begin = key.span().start;
        let argument = find(command, key.get_ref()).map_err(|reason| at(begin, reason))?;
        let arguments = arguments(argument, value.get_ref()).map_err(|reason| at(begin, reason))?;
        check(command, &arguments).map_err(|reason| at(begin, reason))?;
        entries.push(Entry { key: key.get_ref().to_string(), line: line_of(begin), arguments, counts: false });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

/// Flags that a file may set.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| argument.get_long().is_some_and(|long| !NOT_IN_FILE.contains(&long)))
}

fn find<'a>(command: &'a Command, key: &str) -> Result<&'a Arg, String> {
    let named = |name: &str| settings(command).find(|argument| argument.get_long() == Some(name));
    named(key).ok_or_else(|| {
        let dashed = key.to_lowercase().replace('_', "-");
        let other = |name: &str| {
            let is_alias = |argument: &&Arg| argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name));
            named(name).or_else(|| settings(command).find(is_alias))
        };
        // Docker's name for several of something has an s.
        match other(&dashed).or_else(|| other(dashed.trim_end_matches('s'))).and_then(Arg::get_long) {
            Some(meant) => format!("unknown key '{key}': did you mean '{meant}'?"),
            None => format!("unknown key '{key}': keys are the long names of shoald's flags"),
        }
    })
}

fn id_of(command: &Command, key: &str) -> String {
    find(command, key).map_or_else(|_| key.to_owned(), |argument| argument.get_id().to_string())
}

fn is_boolean(argument: &Arg) -> bool {
    argument.get_value_parser().type_id() == TypeId::of::<bool>()
}

fn is_number(argument: &Arg) -> bool {
    argument.get_value_parser().type_id() == TypeId::of::<u64>()
}

fn is_list(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

/// Writes what a file says as it would be written on the command line.
fn arguments(argument: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let key = argument.get_long().unwrap_or_default();
    let wrong = |wants: &str, value: &DeValue<'_>| format!("'{key}' takes {wants}, not {}", article(value.type_str()));
    match value {
        DeValue::Boolean(on) if is_boolean(argument) => Ok(match argument.get_action() {
            ArgAction::SetTrue if *on => vec![format!("--{key}")],
            ArgAction::SetTrue => Vec::new(),
            _ => vec![format!("--{key}={on}")],
        }),
        other if is_boolean(argument) => Err(wrong("true or false", other)),
        DeValue::Integer(number) if is_number(argument) => match number.as_str().parse::<u64>() {
            Ok(whole) if number.radix() == 10 => Ok(vec![format!("--{key}={whole}")]),
            _ => Err(wrong("a whole number", value)),
        },
        other if is_number(argument) => Err(wrong("a whole number", other)),
        DeValue::Array(values) if is_list(argument) => values
            .iter()
            .map(|value| match value.get_ref() {
                DeValue::String(text) if argument.get_value_delimiter().is_some_and(|mark| text.contains(mark)) => {
                    Err(format!("'{text}' has a comma, which separates values of '{key}'"))
                }
                DeValue::String(text) => Ok(format!("--{key}={text}")),
                other => Err(wrong("strings", other)),
            })
            .collect(),
        DeValue::String(text) => Ok(vec![format!("--{key}={text}")]),
        other if is_list(argument) => Err(wrong("a string or an array of strings", other)),
        other => Err(wrong("a string", other)),
    }
}

fn article(kind: &str) -> String {
    format!("{} {kind}", if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}

/// Has one flag parsed alone, so that a refusal is about this one.
fn check(command: &Command, arguments: &[String]) -> Result<(), String> {
    let alone = command.clone().mut_args(|argument| argument.env(None::<&str>));
    let program = std::iter::once("shoald".to_owned());
    alone.try_get_matches_from(program.chain(arguments.iter().cloned())).map(drop).map_err(|error| first_line(&error))
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl Loaded {
    /// Returns whether the configuration is only to be checked.
    pub fn is_check(&self) -> bool {
        self.config.validate || self.matches.try_get_one::<bool>("check").ok().flatten().is_some_and(|check| *check)
    }

    /// Writes the configuration as a file that would lead to it, with where each line is from.
    pub fn effective(&self) -> String {
        let mut text = String::new();
        for argument in settings(&self.command) {
            let (id, key) = (argument.get_id().as_str(), argument.get_long().unwrap_or_default());
            let origin = self.origin(argument, key);
            let values: Vec<String> = if is_boolean(argument) {
                self.matches.get_one::<bool>(id).map(bool::to_string).into_iter().collect()
            } else if is_number(argument) {
                self.matches.get_one::<u64>(id).map(u64::to_string).into_iter().collect()
            } else {
                let raw = self.matches.get_raw(id).into_iter().flatten();
                raw.map(|value| quoted(&value.to_string_lossy())).collect()
            };
            let value = match values.as_slice() {
                [] => None,
                values if is_list(argument) => Some(format!("[{}]", values.join(", "))),
                values => values.first().cloned(),
            };
            // Writing to a string cannot fail.
            let _ = match value {
                None => writeln!(text, "# {key} is not set"),
                Some(_) if argument.is_hide_env_values_set() => {
                    writeln!(text, "# {key} is set and not shown ({origin})")
                }
                Some(value) => writeln!(text, "{key} = {value} # {origin}"),
            };
        }
        text
    }

    fn origin(&self, argument: &Arg, key: &str) -> String {
        let entry = self.entries.iter().find(|entry| entry.counts && entry.key == key);
        if let (Some(entry), Some(path)) = (entry, &self.path) {
            return format!("{}:{}", path.display(), entry.line);
        }
        match self.matches.value_source(argument.get_id().as_str()) {
            Some(ValueSource::CommandLine) => "flag".to_owned(),
            Some(ValueSource::EnvVariable) => {
                argument.get_env().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
            }
            _ => "default".to_owned(),
        }
    }
}

/// Quotes a string for TOML, whose basic strings know all escapes of JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Loads with a file of this text; of the variables none counts but those that are named, each for a flag.
    fn loaded(text: &str, flags: &[&str], variables: &[(&str, &str)]) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f.toml");
        fs::write(&path, text).unwrap();
        let command = Config::command().mut_args(|argument| argument.env(None::<&str>));
        let command = variables
            .iter()
            .fold(command, |command, (id, name)| command.mut_arg(id, |argument| argument.env((*name).to_owned())));
        let arguments = ["shoald", "--config"].map(OsString::from).into_iter();
        let arguments = arguments.chain([path.clone().into_os_string()]).chain(flags.iter().map(OsString::from));
        let shown = |error: LoadError| error.to_string().replace(&path.display().to_string(), "f.toml");
        load_beside(command, arguments.collect(), Path::new("/nowhere")).map_err(shown)
    }

    #[test]
    fn flags_win_over_variables_over_the_file() {
        let text = "hostname = 'file'\ndriver = \"fake\"\nlog-level = 'debug'\nmulticast = false\ninit = true\n\
                    host = ['unix:///a', 'tcp://127.0.0.1']\nlabel = 'zone=a'\n";
        // A variable that is there wherever this runs.
        let variables = [("log_level", "CARGO_PKG_NAME"), ("hostname", "CARGO_PKG_NAME")];
        let loaded = loaded(text, &["--hostname", "flag"], &variables).unwrap();
        let config = &loaded.config;
        assert_eq!(config.hostname.as_deref(), Some("flag"));
        assert_eq!(config.log_level, "shoal-node");
        assert_eq!(config.driver, super::super::DriverChoice::Fake);
        assert_eq!((config.multicast, config.init, config.hosts.len()), (false, true, 2));
        assert_eq!(config.engine_labels()["zone"], "a");
        let effective = loaded.effective().replace(&loaded.path.as_ref().unwrap().display().to_string(), "f.toml");
        for line in [
            "hostname = \"flag\" # flag",
            "log-level = \"shoal-node\" # CARGO_PKG_NAME",
            "driver = \"fake\" # f.toml:2",
            "multicast = false # f.toml:4",
            "host = [\"unix:///a\", \"tcp://127.0.0.1\"] # f.toml:6",
            "log-format = \"text\" # default",
            "# publish-addr is not set",
        ] {
            assert!(effective.lines().any(|one| one == line), "{line}\n{effective}");
        }
    }

    #[test]
    fn what_is_printed_leads_to_the_same() {
        let flags = [
            "--drain-timeout=7",
            "--label",
            "a=\u{7f}\"q\\,b=",
            "--driver=embedded",
            "--tls",
            "-H",
            "tcp://,unix:///s",
        ];
        let first = loaded("", &flags, &[]).unwrap();
        let second = loaded(&first.effective(), &[], &[]).unwrap();
        assert_eq!(format!("{:?}", second.config.labels), format!("{:?}", first.config.labels));
        assert_eq!(second.config.hosts, first.config.hosts);
        assert_eq!(second.config.drain_timeout, 7);
        assert_eq!((second.config.tls, second.config.driver), (true, first.config.driver));
    }

    #[test]
    fn a_secret_is_not_printed() {
        let loaded = loaded("token = 'SWMTKN-1-secret'\njoin = 'a'", &[], &[]).unwrap();
        assert!(!loaded.effective().contains("secret"));
        assert!(loaded.effective().contains("# token is set and not shown"));
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        for (text, flags, want) in [
            ("x = 1", &[][..], "f.toml:1: unknown key 'x': keys are the long names"),
            ("\ndata_dir = '/a'", &[], "f.toml:2: unknown key 'data_dir': did you mean 'data-dir'?"),
            ("hosts = []", &[], "f.toml:1: unknown key 'hosts': did you mean 'host'?"),
            ("config = 'a'", &[], "f.toml:1: unknown key 'config'"),
            ("[tls]\nverify = true", &[], "f.toml:1: 'tls' takes true or false, not a table"),
            ("multicast = 'no'", &[], "f.toml:1: 'multicast' takes true or false, not a string"),
            ("#\n#\nhostname = 7", &[], "f.toml:3: 'hostname' takes a string, not an integer"),
            ("drain-timeout = '60s'", &[], "f.toml:1: 'drain-timeout' takes a whole number, not a string"),
            ("drain-timeout = 0", &[], "f.toml:1: invalid value '0' for '--drain-timeout <SECONDS>'"),
            ("hostname = ['a']", &[], "f.toml:1: 'hostname' takes a string, not an array"),
            ("host = ['unix:///a', 1]", &[], "f.toml:1: 'host' takes strings, not an integer"),
            ("label = ['a=b,c']", &[], "f.toml:1: 'a=b,c' has a comma"),
            ("driver = 'podman'", &[], "f.toml:1: invalid value 'podman' for '--driver <DRIVER>'"),
            ("\nlisten-addr = 'x'", &[], "f.toml:2: invalid value 'x' for '--listen-addr <IP:PORT>'"),
            ("a = 1\na = 2", &[], "f.toml:2: duplicate key"),
            ("hostname =", &[], "f.toml:1: "),
            ("init = true", &["--join", "a", "--token", "b"], "init is set in f.toml:1"),
            ("token-file = 'a'", &["--join", "a", "--token", "b"], "token-file is set in f.toml:1"),
            ("tlsverify = true", &[], "--host names no tcp://HOST[:PORT]"),
        ] {
            let error = loaded(text, flags, &[]).err().unwrap_or_default();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_was_named_has_to_be_there() {
        let load = |flags: &[&str], default: &str| {
            let arguments = std::iter::once("shoald").chain(flags.iter().copied()).map(OsString::from).collect();
            load_beside(Config::command(), arguments, Path::new(default))
        };
        let error = load(&["--config", "/nowhere/f.toml"], "/nowhere").err().unwrap();
        assert!(error.to_string().contains("failed to read /nowhere/f.toml: No such file"), "{error}");
        assert!(load(&[], "/nowhere").unwrap().entries.is_empty());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f.toml");
        fs::write(&path, "hostname = 'usual'").unwrap();
        assert_eq!(load(&[], path.to_str().unwrap()).unwrap().config.hostname.as_deref(), Some("usual"));
    }
}
