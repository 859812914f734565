//! Settings of a container that lie beyond what it runs: its users' groups, names, kernel parameters, capabilities and limits.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::null_as_default;
use super::validate::{SpecError, invalid};

/// The capabilities that Linux has, in its order. Source: capabilities(7), Linux 5.9.
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Names all capabilities at once.
pub const CAPABILITY_ALL: &str = "ALL";

/// What a process may be limited in. Source: docker/go-units, `ulimitNameMapping`.
pub const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Stands for the node's own address in host entries.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Settings of a container; part of [`super::ContainerSpec`], whose members they are. Source: Docker Engine API v1.50.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Settings {
    /// Whether an init process stands before the program, which passes on signals and collects orphans.
    pub init: Option<bool>,
    /// Whether it has a terminal.
    #[serde(rename = "TTY")]
    pub tty: bool,
    /// Names or numbers of groups that its user is in beside the user's own.
    #[serde(deserialize_with = "null_as_default")]
    pub groups: Vec<String>,
    /// `ADDRESS NAME [ALIAS…]` each, for its `/etc/hosts`.
    #[serde(deserialize_with = "null_as_default")]
    pub hosts: Vec<String>,
    /// How it resolves names.
    #[serde(rename = "DNSConfig", deserialize_with = "null_as_default")]
    pub dns: Dns,
    /// Kernel parameters of its namespaces.
    #[serde(deserialize_with = "null_as_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities beyond the default ones: names with or without `CAP_`, or [`CAPABILITY_ALL`].
    #[serde(deserialize_with = "null_as_default")]
    pub capability_add: Vec<String>,
    /// Capabilities it is not to have, of the same form. What is added all the same, it has.
    #[serde(deserialize_with = "null_as_default")]
    pub capability_drop: Vec<String>,
    /// Limits of each of its processes.
    #[serde(deserialize_with = "null_as_default")]
    pub ulimits: Vec<Ulimit>,
    /// How readily the kernel ends it when memory runs out, -1000 to 1000.
    pub oom_score_adj: i32,
}

/// How a container resolves names. What is empty is the node's own. Source: Docker Engine API v1.50, `DNSConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(deserialize_with = "null_as_default")]
    pub nameservers: Vec<String>,
    /// Domains in which names are searched.
    #[serde(deserialize_with = "null_as_default")]
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    #[serde(deserialize_with = "null_as_default")]
    pub options: Vec<String>,
}

/// A limit of each process. Source: Docker Engine API v1.50, `Ulimit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Ulimit {
    /// Of [`ULIMITS`].
    pub name: String,
    /// What holds; -1 is no limit.
    pub soft: i64,
    /// Up to which a process may raise it; -1 is no limit.
    pub hard: i64,
}

/// What becomes of a container's output. Source: Docker Engine API v1.50, `Driver`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogDriver {
    /// Such as `json-file` or `none`; empty means the node's default.
    pub name: String,
    /// The driver's own.
    #[serde(deserialize_with = "null_as_default")]
    pub options: BTreeMap<String, String>,
}

/// Returns a capability as Linux names it, or [`CAPABILITY_ALL`]; nothing if there is none of that name.
pub fn capability(text: &str) -> Option<&'static str> {
    let name = text.trim().to_ascii_uppercase();
    if name == CAPABILITY_ALL || name == "CAP_ALL" {
        return Some(CAPABILITY_ALL);
    }
    CAPABILITIES.into_iter().find(|known| *known == name || known.strip_prefix("CAP_") == Some(&name))
}

/// Checks the settings of a spec. Texts follow Docker's where it has them.
pub(super) fn validate(settings: &Settings) -> Result<(), SpecError> {
    for name in settings.capability_add.iter().chain(&settings.capability_drop) {
        if capability(name).is_none() {
            return invalid(format!("invalid capability: {name:?}"));
        }
    }
    for Ulimit { name, soft, hard } in &settings.ulimits {
        if !ULIMITS.contains(&name.as_str()) {
            return invalid(format!("invalid ulimit type: {name}"));
        }
        let is_above = *hard != -1 && (*soft == -1 || soft > hard);
        if *soft < -1 || *hard < -1 || is_above {
            return invalid(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
        }
    }
    if !(-1000..=1000).contains(&settings.oom_score_adj) {
        let score = settings.oom_score_adj;
        return invalid(format!("Invalid value {score}, range for oom score adj is [-1000, 1000]"));
    }
    if settings.groups.iter().any(|group| group.is_empty() || group.contains([':', '\n'])) {
        return invalid(format!("invalid supplementary groups: {:?}", settings.groups));
    }
    for entry in &settings.hosts {
        let mut words = entry.split_whitespace();
        let address = words.next().unwrap_or_default();
        if words.next().is_none() || entry.contains('\n') {
            return invalid(format!("bad format for add-host: {entry:?}"));
        }
        if address != HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
            return invalid(format!("invalid IP address in add-host: {address:?}"));
        }
    }
    for server in &settings.dns.nameservers {
        if server.parse::<IpAddr>().is_err() {
            return invalid(format!("bad nameserver address: {server:?}"));
        }
    }
    let words = settings.dns.search.iter().chain(&settings.dns.options);
    if let Some(bad) = words.into_iter().find(|word| word.is_empty() || word.chars().any(char::is_whitespace)) {
        return invalid(format!("{bad:?} is not a valid search domain or DNS option"));
    }
    let is_name = |name: &str| {
        name.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        }) && name.contains('.')
    };
    match settings.sysctls.keys().find(|name| !is_name(name)) {
        Some(name) => invalid(format!("invalid sysctl: {name:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_docker_cli_sends_is_read_and_nonsense_refused() {
        let read = |json: &str| serde_json::from_str::<Settings>(json).unwrap();
        let settings = read(
            r#"{"Init":true,"TTY":true,"Groups":["12"],"Hosts":["1.2.3.4 h"],"DNSConfig":{"Nameservers":["1.1.1.1"],
            "Search":["a.b"],"Options":["ndots:1"]},"Sysctls":{"net.core.somaxconn":"7"},"CapabilityAdd":["CAP_NET_ADMIN"],
            "CapabilityDrop":["ALL"],"Ulimits":[{"Name":"nofile","Hard":2,"Soft":1}],"OomScoreAdj":-5}"#,
        );
        assert_eq!(validate(&settings), Ok(()));
        assert_eq!((settings.init, settings.tty, settings.ulimits[0].soft), (Some(true), true, 1));
        for json in [
            r#"{"CapabilityAdd":["FLY"]}"#,
            r#"{"CapabilityDrop":["CAP_"]}"#,
            r#"{"Ulimits":[{"Name":"wings","Soft":1,"Hard":1}]}"#,
            r#"{"Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]}"#,
            r#"{"Ulimits":[{"Name":"nofile","Soft":-1,"Hard":1}]}"#,
            r#"{"OomScoreAdj":1001}"#,
            r#"{"Groups":[""]}"#,
            r#"{"Hosts":["1.2.3.4"]}"#,
            r#"{"Hosts":["h 1.2.3.4"]}"#,
            r#"{"Hosts":["1.2.3.4 h\n5.6.7.8 i"]}"#,
            r#"{"DNSConfig":{"Nameservers":["dns"]}}"#,
            r#"{"DNSConfig":{"Search":["a b"]}}"#,
            r#"{"DNSConfig":{"Options":["x\nnameserver 1.1.1.1"]}}"#,
            r#"{"Sysctls":{"net..x":"1"}}"#,
            r#"{"Sysctls":{"../x.y":"1"}}"#,
            r#"{"Sysctls":{"/etc.x":"1"}}"#,
        ] {
            assert!(validate(&read(json)).is_err(), "{json}");
        }
        assert_eq!(
            validate(&read(r#"{"Hosts":["host-gateway h"],"Ulimits":[{"Name":"core","Soft":-1,"Hard":-1}]}"#)),
            Ok(())
        );
    }

    #[test]
    fn capabilities_have_many_names() {
        for (text, want) in [
            ("net_admin", Some("CAP_NET_ADMIN")),
            ("CAP_NET_ADMIN", Some("CAP_NET_ADMIN")),
            ("all", Some("ALL")),
            ("cap_all", Some("ALL")),
            ("", None),
            ("CAP_", None),
        ] {
            assert_eq!(capability(text), want, "{text}");
        }
    }
}
