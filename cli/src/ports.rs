//! Published ports: the short and long notation of `--publish`, and how listings show them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;

use shoal_protocol::spec::{PortConfig, PortSettings, PublishMode, SpecError, Transport};

/// Ports that one `--publish` may name at most.
const RANGE_MAX: usize = 1024;

/// The ports that one `--publish` names, and what it sets of them that Docker's API does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish(pub(crate) Vec<PortConfig>, PortSettings);

impl Publish {
    /// Returns the labels by which that is set.
    pub(crate) fn labels(&self) -> Vec<String> {
        let labels = self.0.iter().flat_map(|port| self.1.labels(port.published()));
        labels.map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') {
            long(text).map(|(port, settings)| Self(vec![port], settings))
        } else {
            let (ports, address) = short(text)?;
            Ok(Self(ports, PortSettings { address, ..PortSettings::default() }))
        }
    }
}

/// Reads `target=80,published=8080,protocol=tcp,mode=ingress`. Source: docker/cli, `opts.PortOpt`; `proxy` and
/// `connections` are shoal's own.
fn long(text: &str) -> Result<(PortConfig, PortSettings), String> {
    let mut settings = PortSettings::default();
    let mut port = PortConfig { protocol: "tcp".to_owned(), ..PortConfig::default() };
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("'{field}' is not KEY=VALUE"))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "target" => port.target_port = number(value)?,
            "published" => port.published_port = number(value)?,
            "protocol" => port.protocol = protocol(value)?,
            "proxy" => settings.proxy = Some(value.parse().map_err(|error: SpecError| error.to_string())?),
            "connections" => settings.connections = Some(connections(value)?),
            "mode" => {
                port.publish_mode = match value {
                    "ingress" => PublishMode::Ingress,
                    "host" => PublishMode::Host,
                    _ => return Err(format!("'{value}' is not a publish mode: expected ingress or host")),
                }
            }
            other => {
                return Err(format!(
                    "'{other}' is not a field of a port: expected target, published, protocol, mode, proxy or connections"
                ));
            }
        }
    }
    if port.target_port == 0 {
        return Err("missing mandatory field target".to_owned());
    }
    let is_ingress_tcp = port.transport() == Transport::Tcp && port.publish_mode == PublishMode::Ingress;
    if settings != PortSettings::default() && !(is_ingress_tcp && port.published_port != 0) {
        return Err("proxy and connections need a published TCP port in mode ingress".to_owned());
    }
    Ok((port, settings))
}

fn connections(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number of connections: expected 1 or more"))
}

/// Reads `[[address:]published:]target[/protocol]`, where both ports may be ranges of one length. The address is shoal's own:
/// Docker's client refuses it for services.
fn short(text: &str) -> Result<(Vec<PortConfig>, Option<IpAddr>), String> {
    let (ports, protocol_name) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol(protocol_name)?;
    let mut address = None;
    let (published, target) = match ports.rsplit_once(':') {
        None => (None, ports),
        Some((published, target)) => match published.rsplit_once(':') {
            None => (Some(range(published)?), target),
            Some((host, published)) => {
                address = Some(read_address(host)?);
                (Some(range(published)?), target)
            }
        },
    };
    let targets = range(target)?;
    let count = targets.clone().count();
    if count > RANGE_MAX || published.as_ref().is_some_and(|published| published.clone().count() != count) {
        return Err(format!("ranges must be equally long and of at most {RANGE_MAX} ports"));
    }
    let mut published = published.map(RangeInclusive::into_iter);
    let ports = targets
        .map(|target_port| PortConfig {
            protocol: protocol.clone(),
            target_port,
            published_port: published.as_mut().and_then(Iterator::next).unwrap_or(0),
            ..PortConfig::default()
        })
        .collect();
    Ok((ports, address))
}

fn read_address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    };
    address.ok_or_else(|| format!("'{text}' is not an address to publish on: expected such as 127.0.0.1 or [::1]"))
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err(format!("'{text}' is not a range of ports")) } else { Ok(first..=last) }
}

fn number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("'{text}' is not a port: expected 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

fn protocol(text: &str) -> Result<String, String> {
    let protocol = text.to_ascii_lowercase();
    match protocol.as_str() {
        "tcp" | "udp" => Ok(protocol),
        "sctp" => Err("sctp ports are not supported yet".to_owned()),
        _ => Err(format!("'{text}' is not a protocol: expected tcp or udp")),
    }
}

/// Shows published ports as `service ls` and `service ps` do.
pub(crate) fn show<'a>(ports: impl IntoIterator<Item = &'a PortConfig>, mode: PublishMode) -> String {
    let mut shown: Vec<&PortConfig> = ports.into_iter().filter(|port| port.publish_mode == mode).collect();
    shown.sort_by_key(|port| (port.published_port, port.target_port, port.transport()));
    let texts: Vec<String> = shown
        .into_iter()
        .map(|port| format!("*:{}->{}/{}", port.published_port, port.target_port, port.protocol))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(u16, u16, PublishMode)> {
        let ports = text.parse::<Publish>().unwrap().0;
        ports.iter().map(|port| (port.published_port, port.target_port, port.publish_mode)).collect()
    }

    #[test]
    fn both_notations_are_read() {
        use PublishMode::{Host, Ingress};
        assert_eq!(read("8080:80"), [(8080, 80, Ingress)]);
        assert_eq!(read("80"), [(0, 80, Ingress)]);
        assert_eq!(read("80/tcp"), [(0, 80, Ingress)]);
        assert_eq!(read("8000-8001:80-81"), [(8000, 80, Ingress), (8001, 81, Ingress)]);
        assert_eq!(read("mode=host,published=9090,target=8080"), [(9090, 8080, Host)]);
        assert_eq!(read("target=80"), [(0, 80, Ingress)]);
    }

    #[test]
    fn protocols_are_told_apart() {
        for (text, want) in [
            ("53:53/udp", "*:53->53/udp"),
            ("53:53/UDP", "*:53->53/udp"),
            ("published=53,target=5353,protocol=udp", "*:53->5353/udp"),
            ("53:53", "*:53->53/tcp"),
        ] {
            let ports = text.parse::<Publish>().unwrap().0;
            assert_eq!(show(&ports, PublishMode::Ingress), want, "{text}");
        }
    }

    #[test]
    fn what_docker_does_not_know_is_set_by_labels() {
        let labels = |text: &str| text.parse::<Publish>().unwrap().labels();
        assert_eq!(labels("published=8080,target=80,proxy=v2"), ["shoal.proxy.8080=v2"]);
        assert_eq!(
            labels("published=80,target=80,connections=9,proxy=v1"),
            ["shoal.proxy.80=v1", "shoal.connections.80=9"]
        );
        assert_eq!(labels("published=8080,target=80"), [""; 0]);
        assert_eq!(labels("127.0.0.1:8080:80"), ["shoal.publish.8080=127.0.0.1"]);
        assert_eq!(labels("[::1]:53-54:53-54/udp"), ["shoal.publish.53/udp=::1", "shoal.publish.54/udp=::1"]);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for (text, reason) in [
            ("", "not a port"),
            ("0:80", "not a port"),
            ("80:70000", "not a port"),
            ("localhost:80:80", "'localhost' is not an address to publish on"),
            ("::1:80:80", "'::1' is not an address to publish on"),
            ("[127.0.0.1]:80:80", "is not an address to publish on"),
            ("127.0.0.1::80", "not a port"),
            ("53:53/sctp", "not supported yet"),
            ("80/xyz", "not a protocol"),
            ("1-3:1-2", "equally long"),
            ("3-1", "not a range"),
            ("published=80", "missing mandatory field target"),
            ("target=80,mode=x", "not a publish mode"),
            ("target=80,published=80,proxy=v3", "expected v1 or v2"),
            ("target=80,published=80,connections=0", "'0' is not a number of connections"),
            ("target=80,published=80,mode=host,connections=1", "need a published TCP port"),
            ("target=80,proxy=v2", "need a published TCP port"),
            ("target=53,published=53,protocol=udp,proxy=v2", "need a published TCP port"),
            ("target=80,published=80,mode=host,proxy=v1", "need a published TCP port"),
            ("target=80,colour=x", "not a field"),
        ] {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
