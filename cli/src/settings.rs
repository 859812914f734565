//! Flags about the settings of a container: what `service create` sets as a whole, `service update` changes item by item.
//!
//! Source: docker/cli, `service/opts.go` and `service/update.go`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use shoal_protocol::spec::settings::{CAPABILITY_ALL, HOST_GATEWAY};

use crate::spec::{set, slot, texts};

/// Makes `service update` forget what was added or dropped before. Source: docker/cli, `opts.ResetCapabilities`.
const CAPABILITY_RESET: &str = "RESET";

/// The flags that `service create` and `service update` share.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct SettingArgs {
    /// Use an init inside each service container to forward signals and reap processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    init: Option<bool>,
    /// Allocate a pseudo-TTY
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tty: Option<bool>,
    /// Add Linux capabilities
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    oom_score_adj: Option<i64>,
    /// Logging driver for service
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Logging driver options
    #[arg(long, value_name = "NAME=VALUE", requires = "log_driver")]
    log_opt: Vec<Pair>,
}

/// What `service create` sets as a whole.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct NewSettingArgs {
    /// Set one or more supplementary user groups for the container
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    host: Vec<HostEntry>,
    /// Set custom DNS servers
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Set DNS options
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<Pair>,
    /// Ulimit options (name=soft[:hard])
    #[arg(long, value_name = "ULIMIT")]
    ulimit: Vec<UlimitFlag>,
}

/// What `service update` changes item by item.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ChangedSettingArgs {
    /// Add an additional supplementary user group to the container
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a previously added supplementary user group from the container
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    host_add: Vec<HostEntry>,
    /// Remove a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST[:IP]")]
    host_rm: Vec<String>,
    /// Add or update a custom DNS server
    #[arg(long, value_name = "IP")]
    dns_add: Vec<IpAddr>,
    /// Remove a custom DNS server
    #[arg(long, value_name = "IP")]
    dns_rm: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Add or update a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add or update a Sysctl option
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl_add: Vec<Pair>,
    /// Remove a Sysctl option
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    /// Add or update a ulimit option (name=soft[:hard])
    #[arg(long, value_name = "ULIMIT")]
    ulimit_add: Vec<UlimitFlag>,
    /// Remove a ulimit option
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
}

/// `NAME=VALUE`; a name alone has an empty value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair(String, String);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            Err("expected NAME=VALUE".to_owned())
        } else {
            Ok(Self(name.to_owned(), value.to_owned()))
        }
    }
}

/// A name and its address. Source: docker/cli, `opts.ValidateExtraHost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    name: String,
    address: String,
}

impl FromStr for HostEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An address of IPv6 has colons of its own, and may stand in brackets.
        let split = text.split_once('=').or_else(|| text.split_once(':'));
        let Some((name, address)) = split.filter(|(name, _)| !name.is_empty()) else {
            return Err(format!("bad format for add-host: \"{text}\""));
        };
        let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        if address != HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
            return Err(format!("invalid IP address in add-host: \"{address}\""));
        }
        Ok(Self { name: name.to_owned(), address: address.to_owned() })
    }
}

/// A limit of each process. Source: docker/go-units, `ParseUlimit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UlimitFlag {
    name: String,
    soft: i64,
    hard: i64,
}

impl FromStr for UlimitFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid ulimit argument: {text}");
        let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| text.parse::<i64>().map_err(|_| invalid());
        let (soft, hard) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

fn container(name: &str) -> [&str; 3] {
    ["TaskTemplate", "ContainerSpec", name]
}

impl SettingArgs {
    /// Writes what the flags say into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) {
        set(spec, &container("Init"), self.init);
        put(spec, &container("TTY"), self.tty.map(|tty| json!(tty)));
        put(spec, &container("OomScoreAdj"), self.oom_score_adj.map(|score| json!(score)));
        self.apply_capabilities(spec);
        if let Some(name) = self.log_driver.as_ref().filter(|name| !name.is_empty()) {
            let options: Map<String, Value> =
                self.log_opt.iter().map(|Pair(name, value)| (name.clone(), json!(value))).collect();
            let driver =
                if options.is_empty() { json!({"Name": name}) } else { json!({"Name": name, "Options": options}) };
            set(spec, &["TaskTemplate", "LogDriver"], Some(driver));
        }
    }

    /// What is added undoes what was dropped, and the other way round; adding wins.
    fn apply_capabilities(&self, spec: &mut Value) {
        if self.cap_add.is_empty() && self.cap_drop.is_empty() {
            return;
        }
        let (mut to_add, mut to_drop) = (capabilities(&self.cap_add), capabilities(&self.cap_drop));
        let mut list = |name| capabilities(&texts(slot(spec, &container(name))));
        let (mut added, mut dropped) = (list("CapabilityAdd"), list("CapabilityDrop"));
        if to_add.remove(CAPABILITY_RESET) {
            added.clear();
        }
        if to_drop.remove(CAPABILITY_RESET) {
            dropped.clear();
        }
        for name in to_drop.difference(&to_add) {
            if !added.remove(name) {
                dropped.insert(name.clone());
            }
        }
        for name in to_add {
            if !dropped.remove(&name) {
                added.insert(name);
            }
        }
        for (field, mut names) in [("CapabilityAdd", added), ("CapabilityDrop", dropped)] {
            if names.contains(CAPABILITY_ALL) {
                names = [CAPABILITY_ALL.to_owned()].into();
            }
            put(spec, &container(field), Some(json!(names)));
        }
    }
}

/// Source: docker/cli, `opts.CapabilitiesMap`.
fn capabilities(names: &[String]) -> BTreeSet<String> {
    let normal = |name: &String| {
        let name = name.trim().to_ascii_uppercase();
        let is_whole = [CAPABILITY_ALL, CAPABILITY_RESET].contains(&name.as_str()) || name.starts_with("CAP_");
        if is_whole { name } else { format!("CAP_{name}") }
    };
    names.iter().map(normal).collect()
}

impl NewSettingArgs {
    /// Writes what the flags say into a spec.
    pub(crate) fn apply(self, spec: &mut Value) {
        put(spec, &container("Groups"), Some(json!(self.group)));
        put_dns(spec, "Nameservers", json!(self.dns));
        put_dns(spec, "Search", json!(self.dns_search));
        put_dns(spec, "Options", json!(self.dns_option));
        let rest = ChangedSettingArgs {
            host_add: self.host,
            sysctl_add: self.sysctl,
            ulimit_add: self.ulimit,
            ..ChangedSettingArgs::default()
        };
        rest.apply(spec);
    }
}

impl ChangedSettingArgs {
    /// Writes what the flags say into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) {
        change_sorted(spec, &container("Groups"), &self.group_rm, &self.group_add);
        let servers: Vec<String> = self.dns_add.iter().map(ToString::to_string).collect();
        for (name, remove, add) in [
            ("Nameservers", &self.dns_rm, &servers),
            ("Search", &self.dns_search_rm, &self.dns_search_add),
            ("Options", &self.dns_option_rm, &self.dns_option_add),
        ] {
            change_sorted(spec, &["TaskTemplate", "ContainerSpec", "DNSConfig", name], remove, add);
        }
        self.apply_hosts(spec);
        if !self.sysctl_add.is_empty() || !self.sysctl_rm.is_empty() {
            let mut sysctls = slot(spec, &container("Sysctls")).as_object().cloned().unwrap_or_default();
            sysctls.extend(self.sysctl_add.iter().map(|Pair(name, value)| (name.clone(), json!(value))));
            sysctls.retain(|name, _| !self.sysctl_rm.contains(name));
            put(spec, &container("Sysctls"), Some(Value::Object(sysctls)));
        }
        self.apply_ulimits(spec);
    }

    fn apply_hosts(&self, spec: &mut Value) {
        if self.host_add.is_empty() && self.host_rm.is_empty() {
            return;
        }
        let mut hosts = texts(slot(spec, &container("Hosts")));
        let is_removed = |entry: &String| {
            let mut words = entry.split_whitespace();
            let (address, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            self.host_rm.iter().any(|gone| {
                let (gone, of) = gone.split_once(':').unwrap_or((gone, ""));
                gone == name && (of.is_empty() || of == address)
            })
        };
        hosts.retain(|entry| !is_removed(entry));
        for HostEntry { name, address } in &self.host_add {
            let entry = format!("{address} {name}");
            if !hosts.contains(&entry) {
                hosts.push(entry);
            }
        }
        put(spec, &container("Hosts"), Some(json!(hosts)));
    }

    fn apply_ulimits(&self, spec: &mut Value) {
        if self.ulimit_add.is_empty() && self.ulimit_rm.is_empty() {
            return;
        }
        let mut limits: Vec<Value> = slot(spec, &container("Ulimits")).as_array().cloned().unwrap_or_default();
        let name_of = |limit: &Value| limit["Name"].as_str().unwrap_or_default().to_owned();
        let is_new = |name: &String| self.ulimit_add.iter().any(|limit| limit.name == *name);
        limits.retain(|limit| !self.ulimit_rm.contains(&name_of(limit)) && !is_new(&name_of(limit)));
        for (position, limit) in self.ulimit_add.iter().enumerate() {
            let UlimitFlag { name, soft, hard } = limit;
            if self.ulimit_add[position + 1..].iter().any(|later| later.name == *name) {
                continue; // the last one holds
            }
            limits.push(json!({"Name": name, "Hard": hard, "Soft": soft}));
        }
        limits.sort_by_key(name_of);
        put(spec, &container("Ulimits"), Some(json!(limits)));
    }
}

/// Removes texts from a list and adds others, sorted and each once.
fn change_sorted(spec: &mut Value, path: &[&str], remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let mut list: BTreeSet<String> = texts(slot(spec, path)).into_iter().chain(add.iter().cloned()).collect();
    list.retain(|item| !remove.contains(item));
    put(spec, path, Some(json!(list)));
}

/// Writes a value, if one is given; one that says nothing is left out, as Docker's client does.
fn put(spec: &mut Value, path: &[&str], value: Option<Value>) {
    let (Some(value), Some((name, parents))) = (value, path.split_last()) else { return };
    let says_nothing = match &value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    };
    if !says_nothing {
        *slot(spec, path) = value;
    } else if let Some(members) = slot(spec, parents).as_object_mut() {
        members.remove(*name);
    }
}

fn put_dns(spec: &mut Value, name: &str, value: Value) {
    if value.as_array().is_some_and(|items| !items.is_empty()) {
        *slot(spec, &["TaskTemplate", "ContainerSpec", "DNSConfig", name]) = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Create {
        #[command(flatten)]
        shared: SettingArgs,
        #[command(flatten)]
        new: NewSettingArgs,
    }

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        shared: SettingArgs,
        #[command(flatten)]
        changed: ChangedSettingArgs,
    }

    fn update(before: Value, line: &[&str]) -> Value {
        let args = Update::try_parse_from([&["update"], line].concat()).unwrap();
        let mut spec = json!({"TaskTemplate": {"ContainerSpec": before}});
        args.changed.apply(&mut spec);
        args.shared.apply(&mut spec);
        spec["TaskTemplate"]["ContainerSpec"].take()
    }

    #[test]
    fn what_is_created_is_what_dockers_client_sends() {
        let line = "create --init --tty --group 5 --group 12 --host h:1.2.3.4 --host six=::1 --host gate:host-gateway --dns 8.8.8.8 \
                    --dns 1.1.1.1 --dns-search a.b --dns-option ndots:1 --sysctl net.core.somaxconn=7 --cap-add net_admin \
                    --cap-drop CAP_MKNOD --ulimit nofile=1024:2048 --ulimit core=-1 --oom-score-adj -5 --log-driver json-file \
                    --log-opt max-size=1m";
        let args = Create::try_parse_from(line.split_whitespace()).unwrap();
        let mut spec = json!({});
        args.new.apply(&mut spec);
        args.shared.apply(&mut spec);
        let want = json!({"TaskTemplate": {"LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}}, "ContainerSpec":
            {"Init": true, "TTY": true, "Groups": ["5", "12"], "Hosts": ["1.2.3.4 h", "::1 six", "host-gateway gate"],
            "DNSConfig": {"Nameservers": ["8.8.8.8", "1.1.1.1"], "Search": ["a.b"], "Options": ["ndots:1"]},
            "Sysctls": {"net.core.somaxconn": "7"}, "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_MKNOD"],
            "Ulimits": [{"Name": "core", "Hard": -1, "Soft": -1}, {"Name": "nofile", "Hard": 2048, "Soft": 1024}],
            "OomScoreAdj": -5}}});
        assert_eq!(spec, want);
    }

    #[test]
    fn an_update_changes_items() {
        for (before, line, want) in [
            (json!({"Init": true}), "--init=false", json!({"Init": false})),
            (json!({"Groups": ["b", "c"]}), "--group-rm c --group-add a", json!({"Groups": ["a", "b"]})),
            (json!({"Groups": ["c"]}), "--group-rm c", json!({})),
            (
                json!({"Hosts": ["1.1.1.1 a", "2.2.2.2 a", "3.3.3.3 b"]}),
                "--host-rm a:2.2.2.2 --host-rm b --host-add c:4.4.4.4",
                json!({"Hosts": ["1.1.1.1 a", "4.4.4.4 c"]}),
            ),
            (json!({"Hosts": ["1.1.1.1 a", "2.2.2.2 a"]}), "--host-rm a", json!({})),
            (
                json!({"DNSConfig": {"Nameservers": ["1.1.1.1"], "Search": ["x"]}}),
                "--dns-add 2.2.2.2 --dns-rm 1.1.1.1 --dns-search-rm x --dns-option-add rotate",
                json!({"DNSConfig": {"Nameservers": ["2.2.2.2"], "Options": ["rotate"]}}),
            ),
            (
                json!({"Sysctls": {"a.b": "1", "c.d": "2"}}),
                "--sysctl-rm a.b --sysctl-add c.d=3",
                json!({"Sysctls": {"c.d": "3"}}),
            ),
            (
                json!({"Ulimits": [{"Name": "core", "Soft": 1, "Hard": 1}, {"Name": "nofile", "Soft": 1, "Hard": 1}]}),
                "--ulimit-rm core --ulimit-add nofile=2 --ulimit-add nofile=3",
                json!({"Ulimits": [{"Name": "nofile", "Soft": 3, "Hard": 3}]}),
            ),
        ] {
            assert_eq!(update(before, &line.split(' ').collect::<Vec<_>>()), want, "{line}");
        }
    }

    #[test]
    fn capabilities_that_are_added_and_dropped_undo_each_other() {
        let lists = |add: &[&str], drop: &[&str]| {
            let mut lists = Map::new();
            for (name, list) in [("CapabilityAdd", add), ("CapabilityDrop", drop)] {
                if !list.is_empty() {
                    lists.insert(name.to_owned(), json!(list));
                }
            }
            Value::Object(lists)
        };
        for (before, line, want) in [
            (lists(&["CAP_A"], &["CAP_B"]), "--cap-drop a --cap-add b", lists(&[], &[])),
            (lists(&[], &[]), "--cap-add A --cap-drop CAP_A --cap-drop c", lists(&["CAP_A"], &["CAP_C"])),
            (lists(&["CAP_A"], &["CAP_B"]), "--cap-add reset --cap-add d", lists(&["CAP_D"], &["CAP_B"])),
            (lists(&["CAP_A"], &["CAP_B"]), "--cap-drop RESET --cap-drop ALL", lists(&["CAP_A"], &["ALL"])),
            (lists(&["CAP_A"], &[]), "--cap-add all", lists(&["ALL"], &[])),
        ] {
            assert_eq!(update(before, &line.split(' ').collect::<Vec<_>>()), want, "{line}");
        }
    }

    #[test]
    fn what_dockers_client_refuses_is_refused() {
        for (flag, value) in [
            ("--host", "h"),
            ("--host", ":1.2.3.4"),
            ("--host", "h:1.2.3"),
            ("--dns", "dns.example"),
            ("--ulimit", "nofile"),
            ("--ulimit", "nofile=2:1"),
            ("--ulimit", "nofile=x"),
            ("--sysctl", "=1"),
            ("--log-opt", "a=b"),
        ] {
            assert!(Create::try_parse_from(["create", flag, value]).is_err(), "{flag} {value}");
        }
    }
}
