//! On which address nodes open a published port: a setting of shoal's own, kept where Docker's API has room for it.
//!
//! Docker's API has no field for it, so a label of the service says it: `shoal.publish.<published port>`, for UDP
//! `shoal.publish.<published port>/udp`, with an IP address as value. Clients of Docker keep and show it as any label.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{PublishMode, PublishedPort, ServiceSpec, SpecError, Transport};

/// What the labels' names begin with.
pub const PUBLISH_LABEL_PREFIX: &str = "shoal.publish.";

/// Returns the name of the label for a published port.
pub fn publish_label(port: PublishedPort) -> String {
    match port.transport {
        Transport::Tcp => format!("{PUBLISH_LABEL_PREFIX}{}", port.number),
        Transport::Udp | Transport::Other => format!("{PUBLISH_LABEL_PREFIX}{port}"),
    }
}

/// Returns all names of the label for a published port.
pub fn publish_labels(port: PublishedPort) -> Vec<String> {
    let spelled_out = format!("{PUBLISH_LABEL_PREFIX}{}/{}", port.number, port.transport.name());
    [publish_label(port), spelled_out].into_iter().collect()
}

/// Returns the published port that a label is about; `None` if it is none of these labels or malformed.
pub fn publish_port(label: &str) -> Option<PublishedPort> {
    let port = label.strip_prefix(PUBLISH_LABEL_PREFIX)?;
    let (number, transport) = match port.split_once('/') {
        None | Some((_, "tcp")) => (port.trim_end_matches("/tcp"), Transport::Tcp),
        Some((number, "udp")) => (number, Transport::Udp),
        Some(_) => return None,
    };
    let number = number.parse().ok().filter(|number| *number != 0)?;
    Some(PublishedPort { number, transport })
}

/// Returns what well-formed labels say.
pub fn publish_addresses(labels: &BTreeMap<String, String>) -> BTreeMap<PublishedPort, IpAddr> {
    let said = labels.iter().map(|(label, address)| Some((publish_port(label)?, address.parse().ok()?)));
    said.flatten().collect()
}

/// Refuses labels that would have no effect, or two that speak of one port.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeMap::new();
    for (label, address) in spec.labels.iter().filter(|(label, _)| label.starts_with(PUBLISH_LABEL_PREFIX)) {
        let invalid = |reason: &str| Err(SpecError::Invalid(format!("label {label}: {reason}")));
        let Some(published) = publish_port(label) else {
            return invalid("expected a published port, such as shoal.publish.80 or shoal.publish.53/udp");
        };
        if address.parse::<IpAddr>().is_err() {
            return invalid(&format!("'{address}' is not an IP address"));
        }
        if seen.insert(published, label).is_some() {
            return invalid("another label speaks of the same port");
        }
        let is_meant =
            |port: &super::PortConfig| port.published() == published && port.publish_mode == PublishMode::Ingress;
        if !spec.endpoint_spec.ports.iter().any(is_meant) {
            return invalid("the service names no such port that is published on every node");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PortConfig;

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
        for (labels, want) in [
            (&[("shoal.publish.80", "127.0.0.1")][..], None),
            (&[("shoal.publish.80/tcp", "::1"), ("shoal.publish.53/udp", "0.0.0.0"), ("other", "x")], None),
            (&[("shoal.publish.80", "localhost")], Some("'localhost' is not an IP address")),
            (&[("shoal.publish.80", "::1"), ("shoal.publish.80/tcp", "::1")], Some("another label")),
            (&[("shoal.publish.81", "::1")], Some("no such port")),
            (&[("shoal.publish.53", "::1")], Some("no such port")),
            (&[("shoal.publish.90", "::1")], Some("no such port")),
            (&[("shoal.publish.80/sctp", "::1")], Some("expected a published port")),
            (&[("shoal.publish.0", "::1")], Some("expected a published port")),
            (&[("shoal.publish.", "::1")], Some("expected a published port")),
        ] {
            spec.labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let got = validate(&spec).err().map(|error| error.to_string());
            match want {
                None => assert_eq!(got, None, "{labels:?}"),
                Some(want) => assert!(got.as_ref().is_some_and(|got| got.contains(want)), "{labels:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_label_names_its_port_and_back() {
        for port in [PublishedPort::tcp(80), PublishedPort::udp(53)] {
            assert!(publish_labels(port).iter().all(|label| publish_port(label) == Some(port)));
        }
        let labels = [("shoal.publish.80", "127.0.0.1"), ("shoal.publish.x", "::1"), ("shoal.publish.81", "nowhere")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let want = BTreeMap::from([(PublishedPort::tcp(80), IpAddr::from([127, 0, 0, 1]))]);
        assert_eq!(publish_addresses(&labels.into()), want);
    }
}
