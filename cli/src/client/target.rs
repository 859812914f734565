//! Which daemon is meant, by flags and by variables. Source: Docker's client, `cli/flags/options.go`.

use std::fmt;
use std::path::PathBuf;

use clap::ArgAction;
use clap::builder::BoolishValueParser;
use shoal_protocol::endpoint::{Endpoint, TcpEndpoint};

use crate::error::CliError;

/// Where the daemon listens when neither flag nor variable say otherwise.
const HOST_DEFAULT: &str = "unix:///run/shoal/shoal.sock";
/// Name the daemon's socket or port where no flag does, the first one first.
const HOST_VARIABLES: [&str; 2] = ["SHOAL_HOST", "DOCKER_HOST"];

/// Flags of all commands that say how to reach the daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TargetArgs {
    /// Daemon socket to connect to [env: SHOAL_HOST, DOCKER_HOST] [default: unix:///run/shoal/shoal.sock]
    #[arg(short = 'H', long, value_name = "URL")]
    pub(crate) host: Option<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    tls: Option<bool>,
    /// Trust certs signed only by this CA [default: ~/.docker/ca.pem, or that of DOCKER_CERT_PATH]
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file [default: ~/.docker/cert.pem]
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Path to TLS key file [default: ~/.docker/key.pem]
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Use TLS and verify the remote [env: DOCKER_TLS_VERIFY]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    tlsverify: Option<bool>,
}

/// Which daemon is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The one at a socket of this machine.
    Unix(PathBuf),
    /// The one behind a TCP port.
    Tcp(TcpEndpoint, Option<TlsFiles>),
}

/// What to secure a connection with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Who has to have signed the daemon's certificate; `None` takes any.
    pub(crate) ca: Option<PathBuf>,
    /// This client's certificate and its key.
    pub(crate) pair: Pair,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) cert: PathBuf,
    /// The key.
    pub(crate) key: PathBuf,
    /// Whether somebody named one of them: then they must be there.
    pub(crate) named: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(..) => write!(f, "tcp://{}", self.authority()),
        }
    }
}

impl Target {
    /// Returns what a request names as its host; a word that means nothing where there is none.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "shoal".to_owned(),
            Self::Tcp(tcp, tls) => TcpEndpoint { port: Some(tcp.port(tls.is_some())), ..tcp.clone() }.to_string(),
        }
    }
}

impl TargetArgs {
    /// Tells which daemon is meant. Nothing is read but variables.
    pub(crate) fn target(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Target, CliError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let host = self.host.clone().or_else(|| HOST_VARIABLES.iter().find_map(|name| variable(name)));
        let host = host.unwrap_or_else(|| HOST_DEFAULT.to_owned());
        let endpoint = host
            .parse::<Endpoint>()
            .map_err(|error| CliError::Misused(format!("'{host}' is not the address of a daemon: {error}")))?;
        match endpoint {
            Endpoint::Unix(path) => match self.flag_for_tcp() {
                None => Ok(Target::Unix(path)),
                Some(flag) => {
                    Err(CliError::Misused(format!("{flag} is for a daemon at tcp://HOST[:PORT], not for '{host}'")))
                }
            },
            Endpoint::Tcp(tcp) => Ok(Target::Tcp(tcp, self.tls(variable)?)),
        }
    }

    /// Returns the first flag that means nothing for a socket.
    fn flag_for_tcp(&self) -> Option<&'static str> {
        let flags = [
            ("--tlsverify", self.tlsverify == Some(true)),
            ("--tls", self.tls == Some(true)),
            ("--tlscacert", self.tlscacert.is_some()),
            ("--tlscert", self.tlscert.is_some()),
            ("--tlskey", self.tlskey.is_some()),
        ];
        flags.into_iter().find_map(|(flag, set)| set.then_some(flag))
    }

    fn tls(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<TlsFiles>, CliError> {
        // Any value of the variables counts, as with Docker's client; so does --tlsverify=false, which means TLS with whoever.
        let verify = self.tlsverify.unwrap_or_else(|| variable("DOCKER_TLS_VERIFY").is_some());
        let uses_tls =
            verify || self.tlsverify.is_some() || self.tls.unwrap_or_else(|| variable("DOCKER_TLS").is_some());
        if !uses_tls {
            return match self.flag_for_tcp() {
                None => Ok(None),
                Some(flag) => Err(CliError::Misused(format!("{flag} needs --tlsverify (or --tls)"))),
            };
        }
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let directory = variable("DOCKER_CERT_PATH").or_else(|| variable("DOCKER_CONFIG")).map(PathBuf::from);
        let directory = directory.or_else(home).unwrap_or_default();
        let or = |file: &Option<PathBuf>, name: &str| file.clone().unwrap_or_else(|| directory.join(name));
        Ok(Some(TlsFiles {
            ca: verify.then(|| or(&self.tlscacert, "ca.pem")),
            pair: Pair {
                cert: or(&self.tlscert, "cert.pem"),
                key: or(&self.tlskey, "key.pem"),
                named: self.tlscert.is_some() || self.tlskey.is_some(),
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn target(flags: &[&str], variables: &[(&str, &str)]) -> Result<Target, CliError> {
        let flags = Flags::try_parse_from([&["shoal"], flags].concat()).unwrap();
        let all = [variables, &[("HOME", "/root")]].concat();
        flags.target.target(|name| all.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_daemon_is_named_by_flag_or_variable() {
        for (flags, variables, want) in [
            (&[][..], &[][..], "unix:///run/shoal/shoal.sock"),
            (&[], &[("DOCKER_HOST", "unix:///d.sock")], "unix:///d.sock"),
            (&[], &[("DOCKER_HOST", "unix:///d.sock"), ("SHOAL_HOST", "unix:///s.sock")], "unix:///s.sock"),
            (&[], &[("SHOAL_HOST", ""), ("DOCKER_TLS_VERIFY", "1")], "unix:///run/shoal/shoal.sock"),
            (&["-H", "tcp://"], &[("SHOAL_HOST", "unix:///s.sock")], "tcp://localhost:2375"),
            (&["-H", "tcp://[::1]", "--tls"], &[], "tcp://[::1]:2376"),
            (&[], &[("DOCKER_HOST", "tcp://h"), ("DOCKER_TLS_VERIFY", "0")], "tcp://h:2376"),
            (&["--tlsverify=false"], &[("DOCKER_HOST", "tcp://h:9")], "tcp://h:9"),
        ] {
            assert_eq!(target(flags, variables).unwrap().to_string(), want, "{flags:?} {variables:?}");
        }
    }

    #[test]
    fn certificates_are_where_docker_has_them() {
        let files =
            |flags: &[&str], variables: &[(&str, &str)]| match target(&[&["-H", "tcp://h"], flags].concat(), variables)
                .unwrap()
            {
                Target::Tcp(_, tls) => tls,
                Target::Unix(_) => panic!("no socket was asked for"),
            };
        assert_eq!(files(&[], &[]), None);
        assert_eq!(files(&["--tls=false"], &[("DOCKER_TLS", "1")]), None);
        let usual = files(&["--tlsverify"], &[]).unwrap();
        assert_eq!(usual.ca, Some("/root/.docker/ca.pem".into()));
        assert_eq!((usual.pair.cert, usual.pair.named), ("/root/.docker/cert.pem".into(), false));
        let other = files(&["--tlskey", "k"], &[("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/certs")]).unwrap();
        assert_eq!(other.ca, Some("/certs/ca.pem".into()));
        assert_eq!((other.pair.key, other.pair.named), ("k".into(), true));
        for flags in [&["--tls"][..], &["--tlsverify=false"]] {
            assert_eq!(files(flags, &[("DOCKER_TLS_VERIFY", "")]).unwrap().ca, None, "{flags:?}");
        }
    }

    #[test]
    fn what_would_change_nothing_is_refused() {
        for (flags, want) in [
            (&["--tlsverify"][..], "--tlsverify is for a daemon at tcp://"),
            (&["-H", "tcp://h", "--tlscert", "c"], "--tlscert needs --tlsverify"),
            (&["-H", "/run/x.sock"], "did you mean 'unix:///run/x.sock'?"),
            (&["-H", "unix://relative"], "must be absolute"),
            (&["-H", "ssh://h"], "ssh:// is not supported"),
        ] {
            let error = target(flags, &[]).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{flags:?}");
            assert!(error.to_string().contains(want), "{flags:?}: {error}");
        }
    }
}
