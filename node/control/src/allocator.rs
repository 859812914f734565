//! Published ports: which one a service gets, and whether another service has it already.
//!
//! Decides for the whole cluster, so only the holder of the registry lease may ask. Swarm's rules: an ingress port is a promise
//! of every node and excludes any other service's use of that number in its transport; two services may publish the same host-mode port, as
//! their tasks then simply never share a node. Source: SwarmKit, `controlapi.checkPortConflicts` and `cnmallocator`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use shoal_protocol::ServiceId;
use shoal_protocol::spec::{PortConfig, PublishMode, PublishedPort};

mod blocks;

pub use blocks::{BlockError, allocate_blocks, check_blocks};

/// Ports that the cluster chooses from. Source: SwarmKit, `dynamicPortStart` and `dynamicPortEnd`.
pub const DYNAMIC_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Why a service cannot have its ports. Nothing was allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// Another service publishes the port on every node.
    #[error("port '{port}' is already in use by service '{name}' ({service}) as an ingress port")]
    Ingress {
        /// The port.
        port: u16,
        /// The other service's name.
        name: String,
        /// The other service.
        service: ServiceId,
    },
    /// Another service publishes the port on the nodes of its tasks.
    #[error("port '{port}' is already in use by service '{name}' ({service}) as a host-published port")]
    Host {
        /// The port.
        port: u16,
        /// The other service's name.
        name: String,
        /// The other service.
        service: ServiceId,
    },
    /// The cluster has none left to choose.
    #[error("no port is free from {} to {}", DYNAMIC_PORTS.start(), DYNAMIC_PORTS.end())]
    Exhausted,
}

/// Returns `ports` with those filled in that the cluster is to choose.
///
/// What was chosen `before` for the same target port and protocol is kept. `others` are all other services with their names
/// and allocated ports. Host-mode ports that name none stay so: the node of each task finds one.
pub fn allocate(
    ports: &[PortConfig],
    before: &[PortConfig],
    others: &BTreeMap<ServiceId, (&str, &[PortConfig])>,
) -> Result<Vec<PortConfig>, AllocateError> {
    for port in ports.iter().filter(|port| port.published_port != 0) {
        check(port, others)?;
    }
    let mut taken: BTreeSet<PublishedPort> =
        others.values().flat_map(|(_, theirs)| theirs.iter()).map(PortConfig::published).collect();
    taken.extend(ports.iter().map(PortConfig::published));
    let mut allocated = ports.to_vec();
    let is_open = |port: &PortConfig| port.publish_mode == PublishMode::Ingress && port.published_port == 0;
    // First what is kept, so that no other port of the service takes it.
    for port in allocated.iter_mut().filter(|port| is_open(port)) {
        let kept = before.iter().find(|old| {
            old.publish_mode == PublishMode::Ingress
                && old.target_port == port.target_port
                && old.transport() == port.transport()
                && DYNAMIC_PORTS.contains(&old.published_port)
                && !taken.contains(&old.published())
        });
        if let Some(old) = kept {
            port.published_port = old.published_port;
            taken.insert(old.published());
        }
    }
    for port in allocated.iter_mut().filter(|port| is_open(port)) {
        let transport = port.transport();
        let is_free = |number: &u16| !taken.contains(&PublishedPort { transport, number: *number });
        port.published_port = DYNAMIC_PORTS.clone().find(is_free).ok_or(AllocateError::Exhausted)?;
        taken.insert(port.published());
    }
    Ok(allocated)
}

fn check(port: &PortConfig, others: &BTreeMap<ServiceId, (&str, &[PortConfig])>) -> Result<(), AllocateError> {
    for (&service, (name, theirs)) in others {
        for other in theirs.iter().filter(|other| other.published() == port.published()) {
            let (port, ours, name) = (port.published_port, port.publish_mode, (*name).to_owned());
            match (ours, other.publish_mode) {
                (_, PublishMode::Ingress) => return Err(AllocateError::Ingress { port, name, service }),
                (PublishMode::Ingress, PublishMode::Host) => return Err(AllocateError::Host { port, name, service }),
                (PublishMode::Host, PublishMode::Host) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(publish_mode: PublishMode, published_port: u16, target_port: u16) -> PortConfig {
        PortConfig { published_port, target_port, publish_mode, ..PortConfig::default() }
    }

    fn udp(port: PortConfig) -> PortConfig {
        PortConfig { protocol: "udp".to_owned(), ..port }
    }

    const WEB: ServiceId = ServiceId(1);

    #[test]
    fn ports_of_two_services_conflict_as_in_swarm() {
        use PublishMode::{Host, Ingress};
        let id = "0000000000000000000000001";
        let ingress = format!("port '8080' is already in use by service 'web' ({id}) as an ingress port");
        let host = format!("port '8080' is already in use by service 'web' ({id}) as a host-published port");
        for (name, ours, theirs, want) in [
            ("both ingress", port(Ingress, 8080, 80), port(Ingress, 8080, 90), Some(&ingress)),
            ("host on ingress", port(Host, 8080, 80), port(Ingress, 8080, 90), Some(&ingress)),
            ("ingress on host", port(Ingress, 8080, 80), port(Host, 8080, 90), Some(&host)),
            ("both host", port(Host, 8080, 80), port(Host, 8080, 90), None),
            ("another port", port(Ingress, 8081, 80), port(Ingress, 8080, 80), None),
            ("another transport", udp(port(Ingress, 8080, 80)), port(Ingress, 8080, 80), None),
            (
                "spelled out",
                PortConfig { protocol: "tcp".to_owned(), ..port(Ingress, 8080, 80) },
                port(Ingress, 8080, 80),
                Some(&ingress),
            ),
        ] {
            let theirs = [theirs];
            let others = BTreeMap::from([(WEB, ("web", theirs.as_slice()))]);
            let got = allocate(&[ours], &[], &others).err().map(|error| error.to_string());
            assert_eq!(got.as_ref(), want, "{name}");
        }
    }

    #[test]
    fn open_ports_are_filled_in_and_kept() {
        use PublishMode::{Host, Ingress};
        let theirs = [port(Ingress, 30_000, 80), port(Host, 30_001, 80)];
        let others = BTreeMap::from([(WEB, ("web", theirs.as_slice()))]);
        let published = |ports: &[PortConfig], before: &[PortConfig]| -> Vec<u16> {
            allocate(ports, before, &others).unwrap().iter().map(|port| port.published_port).collect()
        };
        let open = |target| port(Ingress, 0, target);
        for (name, ports, before, want) in [
            ("the lowest free ones", vec![open(80), open(81)], vec![], vec![30_002, 30_003]),
            ("host ports stay open", vec![port(Host, 0, 80)], vec![], vec![0]),
            ("what it had is kept", vec![open(81), open(80)], vec![port(Ingress, 30_002, 80)], vec![30_003, 30_002]),
            ("unless another has it", vec![open(80)], vec![port(Ingress, 30_000, 80)], vec![30_002]),
            ("an explicit port is no dynamic one", vec![open(80)], vec![port(Ingress, 8080, 80)], vec![30_002]),
            ("transports count apart", vec![udp(open(53)), open(53)], vec![], vec![30_000, 30_002]),
            (
                "what another transport had is not its own",
                vec![udp(open(80))],
                vec![port(Ingress, 30_002, 80)],
                vec![30_000],
            ),
            (
                "nor is one of its own taken twice",
                vec![open(80), port(Ingress, 30_002, 81)],
                vec![],
                vec![30_003, 30_002],
            ),
        ] {
            assert_eq!(published(&ports, &before), want, "{name}");
        }
    }

    #[test]
    fn an_exhausted_range_is_said() {
        let theirs: Vec<PortConfig> = DYNAMIC_PORTS.map(|number| port(PublishMode::Ingress, number, 80)).collect();
        let others = BTreeMap::from([(WEB, ("web", theirs.as_slice()))]);
        let error = allocate(&[port(PublishMode::Ingress, 0, 80)], &[], &others).unwrap_err();
        assert_eq!(error.to_string(), "no port is free from 30000 to 32767");
    }
}
