//! Everything that can be set about a daemon: flags, their variables, their defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Parser, ValueEnum};
use shoal_protocol::endpoint::Endpoint;
use shoal_protocol::spec::{GenericResources, SpecError};
use shoal_protocol::subnet::Subnet;

use crate::api::listen::TlsFiles;
use crate::driver::registry::Insecure;

pub mod file;

/// The port between nodes when none is named. Source: Docker Swarm.
pub const PORT_DEFAULT: u16 = 2377;

/// The API's socket when none is named.
pub const HOST_DEFAULT: &str = "unix:///run/shoal/shoal.sock";

/// Where certificates and keys for the API over TCP are when no flags name them. Docker: `~/.docker`.
const TLSCACERT_DEFAULT: &str = "/etc/shoal/ca.pem";
const TLSCERT_DEFAULT: &str = "/etc/shoal/cert.pem";
const TLSKEY_DEFAULT: &str = "/etc/shoal/key.pem";

/// What help says of the ways to call the daemon that are no flags.
const AFTER_HELP: &str = "'shoald config' prints the configuration that these flags, variables and the file lead to.\n\
                          'shoald --version --verbose' lists what is inside, with versions and licences.";

/// Run a node of a shoal cluster
#[derive(Debug, Clone, Parser)]
#[command(name = "shoald", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Config {
    /// File that sets what no flag and no variable does [default: /etc/shoal/shoald.toml if it is there]
    #[arg(long = "config", id = "config", env = "SHOALD_CONFIG", value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Check the configuration and exit
    #[arg(long)]
    pub validate: bool,

    /// Directory of this node's identity, state, images and containers
    #[arg(long, env = "SHOALD_DATA_DIR", default_value = "/var/lib/shoal", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Socket or port of the API, as unix://PATH or tcp://HOST:PORT (may be repeated)
    #[arg(short = 'H', long = "host", env = "SHOALD_HOST", default_value = HOST_DEFAULT, value_name = "URL",
        value_delimiter = ',')]
    pub hosts: Vec<Endpoint>,

    /// Use TLS for the API over TCP; implied by --tlsverify
    #[arg(long, env = "SHOALD_TLS", value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub tls: bool,

    /// Use TLS and let nobody in without a certificate that --tlscacert has signed
    #[arg(long, env = "SHOALD_TLSVERIFY", value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub tlsverify: bool,

    /// Trust certificates of clients signed only by this CA [default: /etc/shoal/ca.pem]
    #[arg(long, env = "SHOALD_TLSCACERT", value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,

    /// Path to TLS certificate file [default: /etc/shoal/cert.pem]
    #[arg(long, env = "SHOALD_TLSCERT", value_name = "FILE")]
    pub tlscert: Option<PathBuf>,

    /// Path to TLS key file [default: /etc/shoal/key.pem]
    #[arg(long, env = "SHOALD_TLSKEY", value_name = "FILE")]
    pub tlskey: Option<PathBuf>,

    /// Address and port on which other nodes reach this one
    #[arg(long, env = "SHOALD_LISTEN_ADDR", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT_DEFAULT)),
        value_name = "IP:PORT")]
    pub listen_addr: SocketAddr,

    /// Address that other nodes are told [default: the listen address, or that of the default route]
    #[arg(long, env = "SHOALD_ADVERTISE_ADDR", value_name = "IP[:PORT]")]
    pub advertise_addr: Option<Address>,

    /// Address on which published ports listen [default: all, or the advertised one if that is a loopback address]
    #[arg(long, env = "SHOALD_PUBLISH_ADDR", value_name = "IP")]
    pub publish_addr: Option<IpAddr>,

    /// Find members whose addresses have changed by multicast on the local link (UDP port 2377)
    #[arg(long, env = "SHOALD_MULTICAST", value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub multicast: bool,

    /// What runs the containers; the choice of auto is kept
    #[arg(long, env = "SHOALD_DRIVER", default_value = "auto", value_enum)]
    pub driver: DriverChoice,

    /// Socket of the Docker Engine that the docker driver uses
    #[arg(long, env = "SHOALD_DOCKER_HOST", default_value = "unix:///var/run/docker.sock", value_name = "URL")]
    pub docker_host: String,

    /// Range from which the embedded driver takes a free /24 for this node's containers
    #[arg(long, env = "SHOALD_CONTAINER_POOL", default_value = "10.212.0.0/16", value_name = "CIDR")]
    pub container_pool: Subnet,

    /// Registry, as HOST or HOST:PORT, that the embedded driver asks without TLS or a certificate to be trusted (may be repeated)
    #[arg(
        long = "insecure-registry",
        env = "SHOALD_INSECURE_REGISTRY",
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    pub insecure_registries: Vec<Insecure>,

    /// Name of this node [default: the machine's host name]
    #[arg(long, env = "SHOALD_HOSTNAME", value_name = "NAME")]
    pub hostname: Option<String>,

    /// Label of this node for constraints on engine.labels, as KEY=VALUE (may be repeated)
    #[arg(long = "label", env = "SHOALD_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<Label>,

    /// Generic resource that this node offers to tasks, as KIND=NUMBER or KIND=NAME (may be repeated)
    #[arg(
        long = "generic-resource",
        alias = "node-generic-resource",
        env = "SHOALD_GENERIC_RESOURCE",
        value_name = "KIND=VALUE",
        value_delimiter = ','
    )]
    pub generic_resources: Vec<String>,

    /// Make a new cluster, unless this node is in one already
    #[arg(long, env = "SHOALD_INIT", conflicts_with = "join", value_parser = clap::builder::BoolishValueParser::new())]
    pub init: bool,

    /// Join the cluster of this seed, unless this node is in one already (may be repeated)
    #[arg(long, env = "SHOALD_JOIN", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub join: Vec<String>,

    /// Token to join with
    #[arg(long, env = "SHOALD_TOKEN", value_name = "TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    pub token: Option<String>,

    /// File that holds the token to join with
    #[arg(long, env = "SHOALD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// On SIGTERM, drain this node first: its tasks start on other nodes; the next start makes it active again
    #[arg(long, env = "SHOALD_DRAIN_ON_EXIT", value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub drain_on_exit: bool,

    /// How long --drain-on-exit waits until no task is left
    #[arg(long, env = "SHOALD_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub drain_timeout: u64,

    /// What is logged: error, warn, info, debug, trace, or a filter such as info,shoal_node::swarm=debug
    #[arg(long, env = "SHOALD_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,

    /// How it is logged
    #[arg(long, env = "SHOALD_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

/// Print the configuration of a daemon that is started with the same flags, variables and file
#[derive(Debug, Clone, Parser)]
#[command(name = "shoald config", version, max_term_width = 100)]
pub struct ShowConfig {
    /// Check the configuration instead, as 'shoald --validate' does
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    config: Config,
}

impl ShowConfig {
    /// The word that asks for it.
    pub const SUBCOMMAND: &str = "config";
}

/// What runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// Docker Engine where one answers, else embedded
    Auto,
    /// Docker Engine
    Docker,
    /// shoal itself, without an engine
    Embedded,
    /// Nothing: tasks only seem to run (for tests of clusters)
    #[value(hide = true)]
    Fake,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

/// An address with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The port, if one was named.
    pub port: Option<u16>,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(ip), _) => Self { ip, port: None },
            (_, Ok(socket)) => Self { ip: socket.ip(), port: Some(socket.port()) },
            _ => return Err("expected IP or IP:PORT".to_owned()),
        };
        if address.ip.is_unspecified() {
            return Err("other nodes cannot reach an unspecified address".to_owned());
        }
        Ok(address)
    }
}

/// A label, written `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The key.
    pub key: String,
    /// The value, which may be empty.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.trim().is_empty() {
            return Err("expected KEY=VALUE".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl Config {
    /// Checks what no single flag can tell.
    pub fn validate(&self) -> Result<(), String> {
        if self.join.is_empty() && (self.token.is_some() || self.token_file.is_some()) {
            return Err("--token and --token-file need --join with the address of a member".to_owned());
        }
        if !self.join.is_empty() && self.token.is_none() && self.token_file.is_none() {
            return Err("--join needs --token or --token-file".to_owned());
        }
        self.generic_resources().map_err(|error| format!("--generic-resource: {error}"))?;
        self.validate_tls()
    }

    /// A flag that would change nothing is a mistake: whoever set it believes that it protects something.
    fn validate_tls(&self) -> Result<(), String> {
        let uses_tls = self.tls || self.tlsverify;
        if uses_tls && !self.hosts.iter().any(|host| matches!(host, Endpoint::Tcp(_))) {
            return Err("--tls and --tlsverify are for the API over TCP: --host names no tcp://HOST[:PORT]".to_owned());
        }
        if !uses_tls && (self.tlscert.is_some() || self.tlskey.is_some()) {
            return Err("--tlscert and --tlskey need --tlsverify (or --tls)".to_owned());
        }
        if !self.tlsverify && self.tlscacert.is_some() {
            return Err("--tlscacert needs --tlsverify: without it no certificate of a client is looked at".to_owned());
        }
        Ok(())
    }

    /// Returns the certificates and keys of the API over TCP; `None` without TLS.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        let or = |file: &Option<PathBuf>, default: &str| file.clone().unwrap_or_else(|| default.into());
        (self.tls || self.tlsverify).then(|| TlsFiles {
            cert: or(&self.tlscert, TLSCERT_DEFAULT),
            key: or(&self.tlskey, TLSKEY_DEFAULT),
            client_ca: self.tlsverify.then(|| or(&self.tlscacert, TLSCACERT_DEFAULT)),
        })
    }

    /// Returns the labels by key.
    pub fn engine_labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect()
    }

    /// Returns the generic resources that the node offers.
    pub fn generic_resources(&self) -> Result<GenericResources, SpecError> {
        GenericResources::parse(self.generic_resources.iter().map(String::as_str))
    }

    /// Returns what other nodes are told, given the address of the default route.
    pub fn advertised(&self, route: Option<IpAddr>) -> Option<SocketAddr> {
        let listens = self.listen_addr;
        match self.advertise_addr {
            Some(Address { ip, port }) => Some(SocketAddr::new(ip, port.unwrap_or(listens.port()))),
            None if !listens.ip().is_unspecified() => Some(listens),
            None => route.map(|ip| SocketAddr::new(ip, listens.port())),
        }
    }

    /// Returns where published ports listen; `None` means on all addresses.
    pub fn publishes(&self, advertised: SocketAddr) -> Option<IpAddr> {
        self.publish_addr.or_else(|| advertised.ip().is_loopback().then(|| advertised.ip()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, String> {
        let arguments = std::iter::once(&"shoald").chain(arguments);
        let config = Config::try_parse_from(arguments).map_err(|error| error.to_string())?;
        config.validate().map(|()| config)
    }

    #[test]
    fn addresses_follow_from_each_other() {
        let route = Some(IpAddr::from([192, 0, 2, 7]));
        for (arguments, advertised, publishes) in [
            (&[][..], "192.0.2.7:2377", None),
            (&["--listen-addr", "127.0.0.2:2377"], "127.0.0.2:2377", Some("127.0.0.2")),
            (&["--advertise-addr", "10.0.0.5"], "10.0.0.5:2377", None),
            (&["--advertise-addr", "10.0.0.5:99"], "10.0.0.5:99", None),
            (&["--listen-addr", "127.0.0.1:1", "--publish-addr", "0.0.0.0"], "127.0.0.1:1", Some("0.0.0.0")),
        ] {
            let config = parse(arguments).unwrap();
            let got = config.advertised(route).unwrap();
            assert_eq!(got.to_string(), advertised, "{arguments:?}");
            assert_eq!(config.publishes(got).map(|ip| ip.to_string()).as_deref(), publishes, "{arguments:?}");
        }
    }

    #[test]
    fn generic_resources_are_numbers_or_names() {
        for arguments in [
            &["--generic-resource", "gpu=UUID1,gpu=UUID2", "--generic-resource", "ssd=2"][..],
            &["--node-generic-resource=ssd=2", "--node-generic-resource=gpu=UUID2", "--generic-resource=gpu=UUID1"],
        ] {
            let got = parse(arguments).unwrap().generic_resources().unwrap();
            assert_eq!(got.variables(), ["DOCKER_RESOURCE_GPU=UUID1,UUID2", "DOCKER_RESOURCE_SSD=2"], "{arguments:?}");
        }
    }

    #[test]
    fn multicast_is_on_unless_it_is_switched_off() {
        for (arguments, want) in
            [(&[][..], true), (&["--multicast"], true), (&["--multicast=true"], true), (&["--multicast=false"], false)]
        {
            assert_eq!(parse(arguments).unwrap().multicast, want, "{arguments:?}");
        }
    }

    #[test]
    fn certificates_are_those_of_the_flags_or_in_the_usual_place() {
        let files = |arguments: &[&str]| parse(&[&["-H", "tcp://"], arguments].concat()).unwrap().tls_files();
        assert_eq!(files(&[]), None);
        assert_eq!(files(&["--tls=false"]), None);
        assert_eq!(files(&["--tls"]).unwrap().client_ca, None);
        let usual = files(&["--tlsverify"]).unwrap();
        assert_eq!(usual.cert, PathBuf::from("/etc/shoal/cert.pem"));
        assert_eq!(usual.client_ca, Some("/etc/shoal/ca.pem".into()));
        assert_eq!(files(&["--tlsverify", "--tlskey", "k"]).unwrap().key, PathBuf::from("k"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for arguments in [
            &["--join", "10.0.0.1"][..],
            &["--token", "x"],
            &["--init", "--join", "10.0.0.1", "--token", "x"],
            &["-H", "http://127.0.0.1:2375"],
            &["-H", "unix://relative"],
            &["--tlsverify"],
            &["--tls"],
            &["-H", "tcp://", "--tlscert", "x"],
            &["-H", "tcp://", "--tls", "--tlscacert", "x"],
            &["-H", "tcp://", "--tlsverify=maybe"],
            &["--advertise-addr", "0.0.0.0"],
            &["--advertise-addr", "host"],
            &["--label", "=x"],
            &["--generic-resource", "gpu"],
            &["--generic-resource", "gpu=1,gpu=UUID1"],
            &["--config"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
