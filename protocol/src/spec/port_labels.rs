//! What shoal knows of a published port beyond Docker's API, kept where that has room for it: in labels of the service,
//! `shoal.<setting>.<published port>` with the protocol behind it (`/udp`, and `/tcp` if one likes). Clients of Docker keep
//! and show them as any label.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use super::{PublishMode, PublishedPort, ServiceSpec, SpecError, Transport};

/// A version of the PROXY protocol. Source: HAProxy, `doc/proxy-protocol.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

impl FromStr for ProxyVersion {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(SpecError::Invalid(format!("'{text}' is not a version of the PROXY protocol: expected v1 or v2"))),
        }
    }
}

/// What a label sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Setting {
    Proxy,
    Address,
    Connections,
}

impl Setting {
    const ALL: [Self; 3] = [Self::Proxy, Self::Address, Self::Connections];

    fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "shoal.proxy.",
            Self::Address => "shoal.publish.",
            Self::Connections => "shoal.connections.",
        }
    }

    /// Returns the setting of a label and which port it is about, `None` if that is malformed.
    fn of(label: &str) -> Option<(Self, Option<PublishedPort>)> {
        let (setting, port) = Self::ALL.into_iter().find_map(|one| Some((one, label.strip_prefix(one.prefix())?)))?;
        Some((setting, read_port(port).filter(|port| setting.fits(port.transport))))
    }

    fn fits(self, transport: Transport) -> bool {
        match self {
            Self::Proxy | Self::Connections => transport == Transport::Tcp,
            Self::Address => transport != Transport::Other,
        }
    }

    fn label(self, port: PublishedPort) -> String {
        match port.transport {
            Transport::Tcp => format!("{}{}", self.prefix(), port.number),
            Transport::Udp | Transport::Other => format!("{}{port}", self.prefix()),
        }
    }
}

fn read_port(text: &str) -> Option<PublishedPort> {
    let (number, transport) = match text.split_once('/') {
        None => (text, Transport::Tcp),
        Some((number, "tcp")) => (number, Transport::Tcp),
        Some((number, "udp")) => (number, Transport::Udp),
        Some(_) => return None,
    };
    let number = number.parse().ok().filter(|number| *number != 0)?;
    Some(PublishedPort { number, transport })
}

/// What is set for a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// By which header tasks are told who their client is (TCP).
    pub proxy: Option<ProxyVersion>,
    /// On which address alone nodes open it.
    pub address: Option<IpAddr>,
    /// How many connections of clients each node forwards at once (TCP).
    pub connections: Option<NonZeroU32>,
}

impl PortSettings {
    /// Returns what well-formed labels of a service say, by port.
    pub fn of(labels: &BTreeMap<String, String>) -> BTreeMap<PublishedPort, Self> {
        let mut all: BTreeMap<PublishedPort, Self> = BTreeMap::new();
        for (label, value) in labels {
            if let Some((setting, Some(port))) = Setting::of(label) {
                // What was stored by a version that allowed more is as if it were not there.
                let _ = all.entry(port).or_default().set(setting, value);
            }
        }
        all
    }

    /// Returns the labels, names and values, that say this of `port`.
    pub fn labels(&self, port: PublishedPort) -> Vec<(String, String)> {
        let value = |setting| match setting {
            Setting::Proxy => self.proxy.map(|version| version.to_string()),
            Setting::Address => self.address.map(|address| address.to_string()),
            Setting::Connections => self.connections.map(|most| most.to_string()),
        };
        Setting::ALL.into_iter().filter_map(|setting| Some((setting.label(port), value(setting)?))).collect()
    }

    /// Returns the port that a label is about; `None` if it sets nothing of a port, or is malformed.
    pub fn port_of(label: &str) -> Option<PublishedPort> {
        Setting::of(label)?.1
    }

    fn set(&mut self, setting: Setting, value: &str) -> Result<(), SpecError> {
        match setting {
            Setting::Proxy => self.proxy = Some(value.parse()?),
            Setting::Address => self.address = Some(value.parse().map_err(|_| not(value, "an IP address"))?),
            Setting::Connections => {
                self.connections = Some(value.parse().map_err(|_| not(value, "a number of connections, 1 or more"))?);
            }
        }
        Ok(())
    }
}

fn not(value: &str, what: &str) -> SpecError {
    SpecError::Invalid(format!("'{value}' is not {what}"))
}

/// Refuses labels that would have no effect, or two that speak of one port.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    for (label, value) in &spec.labels {
        let Some((setting, port)) = Setting::of(label) else { continue };
        let invalid = |reason: &str| Err(SpecError::Invalid(format!("label {label}: {reason}")));
        let Some(port) = port else {
            return match setting.fits(Transport::Udp) {
                true => invalid("expected a published port, such as shoal.publish.80 or shoal.publish.53/udp"),
                false => invalid(&format!("expected a published TCP port, such as {}80", setting.prefix())),
            };
        };
        if let Err(SpecError::Invalid(reason)) = PortSettings::default().set(setting, value) {
            return invalid(&reason);
        }
        if !seen.insert((setting, port)) {
            return invalid("another label speaks of the same port");
        }
        let mut ports = spec.endpoint_spec.ports.iter();
        if !ports.any(|one| one.published() == port && one.publish_mode == PublishMode::Ingress) {
            return invalid(&format!("the service names no port {port} that is published on every node"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PortConfig;

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_are_about_ports_that_are_published_on_every_node() {
        let port = |published_port, protocol: &str, publish_mode| PortConfig {
            published_port,
            publish_mode,
            protocol: protocol.to_owned(),
            target_port: 80,
            ..PortConfig::default()
        };
        let mut spec = ServiceSpec::default();
        spec.endpoint_spec.ports = vec![
            port(80, "", PublishMode::Ingress),
            port(53, "udp", PublishMode::Ingress),
            port(90, "tcp", PublishMode::Host),
        ];
        for (said, want) in [
            (&[("shoal.proxy.80", "v1"), ("shoal.connections.80", "100"), ("shoal.publish.80", "::1")][..], None),
            (&[("shoal.publish.80/tcp", "127.0.0.1"), ("shoal.publish.53/udp", "0.0.0.0"), ("other", "x")], None),
            (&[("shoal.proxy.80", "v3")], Some("expected v1 or v2")),
            (&[("shoal.publish.80", "localhost")], Some("'localhost' is not an IP address")),
            (&[("shoal.connections.80", "0")], Some("'0' is not a number of connections")),
            (&[("shoal.connections.80", "many")], Some("'many' is not a number of connections")),
            (&[("shoal.proxy.80", "v1"), ("shoal.proxy.80/tcp", "v1")], Some("another label")),
            (&[("shoal.publish.80", "::1"), ("shoal.publish.80/tcp", "::1")], Some("another label")),
            (&[("shoal.proxy.81", "v1")], Some("no port 81/tcp")),
            (&[("shoal.publish.53", "::1")], Some("no port 53/tcp")),
            (&[("shoal.publish.90", "::1")], Some("no port 90/tcp")),
            (&[("shoal.proxy.53/udp", "v2")], Some("expected a published TCP port, such as shoal.proxy.80")),
            (&[("shoal.connections.53/udp", "2")], Some("expected a published TCP port, such as shoal.connections.80")),
            (&[("shoal.publish.80/sctp", "::1")], Some("expected a published port")),
            (&[("shoal.proxy.0", "v2")], Some("expected a published TCP port")),
            (&[("shoal.publish.", "::1")], Some("expected a published port")),
        ] {
            spec.labels = labels(said);
            let got = validate(&spec).err().map(|error| error.to_string());
            match want {
                None => assert_eq!(got, None, "{said:?}"),
                Some(want) => assert!(got.as_ref().is_some_and(|got| got.contains(want)), "{said:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn labels_say_what_was_set_and_back() {
        let all = PortSettings {
            proxy: Some(ProxyVersion::V2),
            address: Some([127, 0, 0, 1].into()),
            connections: NonZeroU32::new(7),
        };
        let bound = PortSettings { address: Some([0; 16].into()), ..PortSettings::default() };
        let want = BTreeMap::from([(PublishedPort::tcp(80), all), (PublishedPort::udp(53), bound)]);
        let mut said = BTreeMap::from_iter(want.iter().flat_map(|(port, settings)| settings.labels(*port)));
        assert_eq!(PortSettings::of(&said), want);
        assert!(
            said.keys().all(|label| want.keys().any(|port| PortSettings::port_of(label) == Some(*port))),
            "{said:?}"
        );
        said.extend(labels(&[("shoal.publish.x", "::1"), ("a", "b"), ("shoal.proxy.53/udp", "v1")]));
        assert_eq!(PortSettings::of(&said), want, "what is malformed says nothing");
    }
}
