//! Networks: what users write of them, and which addresses they have.
//!
//! They are kept and their addresses allocated; nothing carries traffic over them yet, and [`WARNING`] says so.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{read, read_labels};
use crate::id::{ClusterId, ObjectId};
use crate::spec::{SpecError, validate_name};
use crate::subnet::Subnet;

/// What whoever makes or uses a network is told.
pub const WARNING: &str = "overlay networks carry no traffic yet: tasks reach each other by published ports only";

/// The network of published ports, which is always there. Source: Docker.
pub const INGRESS: &str = "ingress";

/// Names that stand for networks of an engine's own.
const PREDEFINED: [&str; 4] = ["bridge", "default", "host", "none"];

/// Where networks get their addresses that are given none. Source: SwarmKit, the default address pool and its subnets' size.
pub const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 8);

/// Bits of the network part of what a network gets.
pub const POOL_PREFIX: u8 = 24;

/// Blocks of addresses of one network at most.
pub const BLOCKS_MAX: usize = 8;

/// Bits of the network part of a block of addresses at most: it needs room for a gateway and a task.
const PREFIX_MAX: u8 = 30;

/// What users write about a network. Source: Docker Engine API v1.50, `NetworkCreateRequest`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Unique among networks.
    pub name: String,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Whether it is to have no way out.
    pub internal: bool,
    /// Whether containers that belong to no service may be attached.
    pub attachable: bool,
    /// Options of the driver, kept for people: links between nodes are encrypted anyway.
    pub options: BTreeMap<String, String>,
    /// Blocks of addresses; empty lets the cluster choose one.
    pub blocks: Vec<Block>,
}

/// The addresses of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// At least one.
    pub blocks: Vec<Block>,
}

/// A block of addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// All of them.
    pub subnet: Subnet,
    /// Those that tasks get; `None` means all.
    pub range: Option<Subnet>,
    /// The way out.
    pub gateway: Ipv4Addr,
}

impl Block {
    /// Returns a block whose gateway is its first address.
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, range: None, gateway: subnet.host(1) }
    }
}

/// Returns the identifier of a cluster's [`INGRESS`].
pub fn ingress_id(cluster: ClusterId) -> ObjectId {
    let hash = Sha256::new().chain_update(b"shoal ingress network").chain_update(cluster.0.to_le_bytes()).finalize();
    ObjectId(u128::from_le_bytes(hash[..16].try_into().expect("SHA-256 has 32 bytes")))
}

impl NetworkSpec {
    /// Reads what a user sent and refuses what is malformed, invalid or not supported.
    pub fn parse(json: &str) -> Result<Self, SpecError> {
        let Value::Object(members) = read(json)? else { return invalid("spec is not a JSON object") };
        let mut spec = Self::default();
        let mut driver = String::new();
        for (name, value) in members {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("Name", Value::String(name)) => spec.name = name,
                ("Driver", Value::String(name)) => driver = name,
                ("Scope", Value::String(scope)) => check_scope(&scope)?,
                ("IPAM", Value::Object(ipam)) => spec.blocks = read_ipam(ipam)?,
                ("Internal", Value::Bool(internal)) => spec.internal = internal,
                ("Attachable", Value::Bool(attachable)) => spec.attachable = attachable,
                ("Options", options @ Value::Object(_)) => spec.options = read_labels(options)?,
                ("Labels", labels @ Value::Object(_)) => spec.labels = read_labels(labels)?,
                // Names are always unique here.
                ("CheckDuplicate", Value::Bool(_)) | ("EnableIPv4", Value::Bool(true)) => {}
                ("Ingress" | "ConfigOnly" | "EnableIPv6", Value::Bool(false)) => {}
                ("ConfigFrom", Value::Object(from)) if from.get("Network").is_none_or(is_empty) => {}
                ("Ingress", Value::Bool(true)) => return unsupported("ingress networks of one's own are"),
                ("EnableIPv6", Value::Bool(true)) => return unsupported("IPv6 in networks is"),
                ("EnableIPv4", Value::Bool(false)) => return unsupported("networks without IPv4 are"),
                ("ConfigOnly", Value::Bool(true)) | ("ConfigFrom", Value::Object(_)) => {
                    return unsupported("networks that are configurations of others are");
                }
                (
                    "Name" | "Driver" | "Scope" | "IPAM" | "Internal" | "Attachable" | "Options" | "Labels"
                    | "CheckDuplicate" | "EnableIPv4" | "EnableIPv6" | "Ingress" | "ConfigOnly" | "ConfigFrom",
                    _,
                ) => return invalid(format!("spec is malformed: {name}")),
                (other, _) => return unsupported(&format!("{other} is")),
            }
        }
        if driver != "overlay" {
            let driver = if driver.is_empty() { "bridge" } else { &driver };
            return unsupported(&format!("networks of the driver '{driver}' (other than overlay) are"));
        }
        validate_name(&spec.name)?;
        if PREDEFINED.contains(&spec.name.as_str()) {
            return invalid(format!("operation is not permitted on predefined {} network ", spec.name));
        }
        Ok(spec)
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Invalid(text.into()))
}

fn unsupported<T>(what: &str) -> Result<T, SpecError> {
    Err(SpecError::Unsupported(what.to_owned()))
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

fn check_scope(scope: &str) -> Result<(), SpecError> {
    match scope {
        "" | "swarm" => Ok(()),
        other => unsupported(&format!("networks of the scope '{other}' are")),
    }
}

fn read_ipam(ipam: Map<String, Value>) -> Result<Vec<Block>, SpecError> {
    let mut blocks: Vec<Block> = Vec::new();
    for (name, value) in ipam {
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("Driver", Value::String(driver)) if driver.is_empty() || driver == "default" => {}
            ("Driver", Value::String(driver)) => {
                return unsupported(&format!("IPAM drivers other than 'default' ('{driver}') are"));
            }
            ("Options", Value::Object(options)) if options.is_empty() => {}
            ("Options", _) => return unsupported("options of the IPAM driver are"),
            ("Config", Value::Array(list)) => {
                blocks = list.iter().map(read_block).collect::<Result<_, _>>()?;
            }
            (other, _) => return invalid(format!("spec is malformed: IPAM.{other}")),
        }
    }
    if blocks.len() > BLOCKS_MAX {
        return invalid(format!("{} subnets are more than the limit of {BLOCKS_MAX}", blocks.len()));
    }
    for (number, block) in blocks.iter().enumerate() {
        if blocks[..number].iter().any(|other| other.subnet.overlaps(block.subnet)) {
            return invalid("multiple overlapping subnet configuration is not supported");
        }
    }
    Ok(blocks)
}

fn read_block(config: &Value) -> Result<Block, SpecError> {
    let Some(members) = config.as_object() else { return invalid("spec is malformed: IPAM.Config") };
    let text = |name: &str| match members.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => invalid(format!("spec is malformed: IPAM.Config.{name}")),
    };
    for (name, value) in members {
        let known = ["Subnet", "IPRange", "Gateway"].contains(&name.as_str());
        let is_nothing = is_empty(value) || value.as_object().is_some_and(Map::is_empty);
        if !known && !is_nothing {
            return unsupported(&format!("{name} of a subnet is"));
        }
    }
    let (subnet, range, gateway) = (text("Subnet")?, text("IPRange")?, text("Gateway")?);
    if subnet.contains(':') || range.contains(':') || gateway.contains(':') {
        return unsupported("IPv6 in networks is");
    }
    let block = |what: &str, text: &str| {
        text.parse::<Subnet>().map_err(|error| SpecError::Invalid(format!("invalid {what}: {error}")))
    };
    if subnet.is_empty() {
        return invalid("every ip-range or gateway must have a corresponding subnet");
    }
    let subnet = block("subnet", subnet)?;
    if subnet.prefix() > PREFIX_MAX {
        return invalid(format!("invalid subnet: {subnet} has no room for a gateway and a task"));
    }
    let range = if range.is_empty() { None } else { Some(block("ip-range", range)?) };
    if let Some(range) = range.filter(|range| !range.is_within(subnet)) {
        return invalid(format!("no matching subnet for range {range}"));
    }
    let gateway = match gateway {
        "" => subnet.host(1),
        text => {
            text.parse().map_err(|_| SpecError::Invalid(format!("invalid gateway: '{text}' is not an IPv4 address")))?
        }
    };
    if !subnet.holds(gateway) {
        return invalid(format!("no matching subnet for gateway {gateway}"));
    }
    Ok(Block { subnet, range, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn parse(more: &str) -> Result<NetworkSpec, String> {
        let json = format!(r#"{{"Name":"ov","Driver":"overlay"{more}}}"#);
        NetworkSpec::parse(&json).map_err(|error| error.to_string())
    }

    #[test]
    fn golden_bytes() {
        let block = Block {
            range: Some(Subnet::new(Ipv4Addr::new(10, 0, 1, 128), 25)),
            ..Block::new(Subnet::new(POOL.0, POOL_PREFIX))
        };
        let mut want = vec![codec::VERSION, 1, 11];
        want.extend(b"10.0.0.0/24");
        want.extend([1, 13]);
        want.extend(b"10.0.1.128/25");
        want.extend([10, 0, 0, 1]);
        let state = NetworkState { blocks: vec![block] };
        assert_eq!(codec::encode(&state).unwrap(), want);
        assert_eq!(codec::decode::<NetworkState>(&want).unwrap(), state);
    }

    #[test]
    fn what_dockers_client_sends_is_read() {
        let plain = r#","Scope":"","IPAM":{"Driver":"default","Options":{},"Config":[]},"Internal":false,"Attachable":false,
            "Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{},"Labels":{},"CheckDuplicate":true,"EnableIPv6":false"#;
        assert_eq!(parse(plain).unwrap(), NetworkSpec { name: "ov".to_owned(), ..NetworkSpec::default() });
        assert_eq!(parse(r#","IPAM":null,"Options":null"#).unwrap().blocks, []);
        let full = parse(
            r#","IPAM":{"Config":[{"Subnet":"10.50.0.0/24","Gateway":"10.50.0.9","IPRange":"10.50.0.128/25"}]},
            "Attachable":true,"Internal":true,"Options":{"encrypted":""},"Labels":{"a":"b"}"#,
        )
        .unwrap();
        assert!(full.internal && full.attachable && full.options.contains_key("encrypted"));
        let shown = &full.blocks[0];
        assert_eq!((shown.subnet.to_string(), shown.gateway), ("10.50.0.0/24".to_owned(), Ipv4Addr::new(10, 50, 0, 9)));
        assert_eq!(shown.range.map(|range| range.to_string()), Some("10.50.0.128/25".to_owned()));
    }

    #[test]
    fn what_is_not_acted_on_is_refused() {
        for (more, want) in [
            (r#","Driver":"bridge""#, "networks of the driver 'bridge' (other than overlay) are not supported yet"),
            (r#","Scope":"local""#, "networks of the scope 'local' are not supported yet"),
            (r#","EnableIPv6":true"#, "IPv6 in networks is not supported yet"),
            (r#","Ingress":true"#, "ingress networks of one's own are not supported yet"),
            (r#","ConfigFrom":{"Network":"x"}"#, "networks that are configurations of others are not supported yet"),
            (r#","Novelty":1"#, "Novelty is not supported yet"),
            (r#","Name":"a b""#, "name must be valid as a DNS name component"),
            (r#","Name":"host""#, "operation is not permitted on predefined host network "),
            (r#","IPAM":{"Driver":"x"}"#, "IPAM drivers other than 'default' ('x') are not supported yet"),
            (r#","IPAM":{"Config":[{"Subnet":"fd00::/64"}]}"#, "IPv6 in networks is not supported yet"),
            (
                r#","IPAM":{"Config":[{"Gateway":"10.0.0.1"}]}"#,
                "every ip-range or gateway must have a corresponding subnet",
            ),
            (
                r#","IPAM":{"Config":[{"Subnet":"10.0.0.0/31"}]}"#,
                "invalid subnet: 10.0.0.0/31 has no room for a gateway and a task",
            ),
            (
                r#","IPAM":{"Config":[{"Subnet":"10.5.0.0/24","Gateway":"10.6.0.1"}]}"#,
                "no matching subnet for gateway 10.6.0.1",
            ),
            (
                r#","IPAM":{"Config":[{"Subnet":"10.5.0.0/24","IPRange":"10.6.0.0/25"}]}"#,
                "no matching subnet for range 10.6.0.0/25",
            ),
            (
                r#","IPAM":{"Config":[{"Subnet":"10.5.0.0/24"},{"Subnet":"10.5.0.0/25"}]}"#,
                "multiple overlapping subnet configuration is not supported",
            ),
            (
                r#","IPAM":{"Config":[{"Subnet":"10.5.0.0/24","AuxiliaryAddresses":{"a":"10.5.0.9"}}]}"#,
                "AuxiliaryAddresses of a subnet is not supported yet",
            ),
        ] {
            assert_eq!(parse(more).unwrap_err(), want, "{more}");
        }
    }
}
