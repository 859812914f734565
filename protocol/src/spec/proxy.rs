//! Which published ports tell their tasks who the client is, by HAProxy's PROXY protocol.
//!
//! Docker's JSON has no place for it, so a label of the service says it: `shoal.proxy.<published port>` or, spelled out,
//! `shoal.proxy.<published port>/tcp`, with the value `v1` or `v2`. Clients of Docker keep and show it as any label.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::{PublishMode, PublishedPort, ServiceSpec, SpecError};

/// What the labels' names begin with.
pub const PROXY_LABEL_PREFIX: &str = "shoal.proxy.";

/// A version of the PROXY protocol. Source: HAProxy, `doc/proxy-protocol.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyVersion {
    /// Returns the value of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
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

/// Returns the name of the label for a published TCP port.
pub fn proxy_label(port: u16) -> String {
    format!("{PROXY_LABEL_PREFIX}{port}")
}

/// Returns the published TCP port that a label is about; `None` if it is none of these labels or malformed.
pub fn proxy_port(label: &str) -> Option<u16> {
    let port = label.strip_prefix(PROXY_LABEL_PREFIX)?;
    port.strip_suffix("/tcp").unwrap_or(port).parse().ok().filter(|port| *port != 0)
}

/// Returns what well-formed labels say.
pub fn proxies(labels: &BTreeMap<String, String>) -> BTreeMap<u16, ProxyVersion> {
    let said = labels.iter().map(|(label, version)| Some((proxy_port(label)?, version.parse().ok()?)));
    said.flatten().collect()
}

/// Refuses labels that would have no effect, or two that speak of one port.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeMap::new();
    for (label, version) in spec.labels.iter().filter(|(label, _)| label.starts_with(PROXY_LABEL_PREFIX)) {
        let invalid = |reason: &str| Err(SpecError::Invalid(format!("label {label}: {reason}")));
        let Some(number) = proxy_port(label) else {
            return invalid("expected a published TCP port, such as shoal.proxy.80");
        };
        version.parse::<ProxyVersion>()?;
        if seen.insert(number, label).is_some() {
            return invalid("another label speaks of the same port");
        }
        let is_meant =
            |published: PublishedPort, mode| published == PublishedPort::tcp(number) && mode == PublishMode::Ingress;
        if !spec.endpoint_spec.ports.iter().any(|port| is_meant(port.published(), port.publish_mode)) {
            return invalid("the service names no such TCP port that is published on every node");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PortConfig;

    #[test]
    fn labels_are_about_published_tcp_ports() {
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
        for (labels, want) in [
            (&[("shoal.proxy.80", "v1")][..], None),
            (&[("shoal.proxy.80/tcp", "v2"), ("other", "x")], None),
            (&[("shoal.proxy.80", "v3")], Some("expected v1 or v2")),
            (&[("shoal.proxy.80", "v1"), ("shoal.proxy.80/tcp", "v1")], Some("another label")),
            (&[("shoal.proxy.81", "v1")], Some("no such TCP port")),
            (&[("shoal.proxy.53", "v1")], Some("no such TCP port")),
            (&[("shoal.proxy.90", "v1")], Some("no such TCP port")),
            (&[("shoal.proxy.53/udp", "v2")], Some("expected a published TCP port")),
            (&[("shoal.proxy.0", "v2")], Some("expected a published TCP port")),
            (&[("shoal.proxy.", "v2")], Some("expected a published TCP port")),
        ] {
            spec.labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let got = validate(&spec).err().map(|error| error.to_string());
            match want {
                None => assert_eq!(got, None, "{labels:?}"),
                Some(want) => assert!(got.as_ref().is_some_and(|got| got.contains(want)), "{labels:?}: {got:?}"),
            }
        }
        spec.labels = [("shoal.proxy.80/tcp", "v2"), ("shoal.proxy.x", "v1"), ("shoal.proxy.81", "v9")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(proxies(&spec.labels), BTreeMap::from([(80, ProxyVersion::V2)]));
    }
}
