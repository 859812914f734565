//! Whether there is room for one more task on this node.
//!
//! The scheduler has counted before; two holders may have counted the same memory at the same time, so the node counts again.

use shoal_protocol::TaskId;
use shoal_protocol::spec::{GenericResources, PortConfig, PublishMode, PublishedPort, Reservations};
use shoal_protocol::value::NodeStatus;

use crate::scheduler::{GenericUsage, conflict};

/// What a node can give to tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Billionths of a core.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Generic resources.
    pub generic: GenericResources,
}

impl Capacity {
    /// Returns what a node that says `status` of itself has.
    pub fn of(status: &NodeStatus) -> Self {
        Self { nano_cpus: status.nano_cpus, memory_bytes: status.memory_bytes, generic: status.generic.clone() }
    }
}

/// What a task takes from its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Processor time and memory.
    pub reservations: Reservations,
    /// Ports of the node itself (`mode=host`); those that the node is to choose (0) are not counted.
    pub host_ports: Vec<PublishedPort>,
    /// The generic resources that it was given.
    pub generic: GenericResources,
}

impl Claims {
    /// Returns what a task takes.
    pub fn new(reservations: &Reservations, ports: &[PortConfig], generic: &GenericResources) -> Self {
        let host_ports = ports
            .iter()
            .filter(|port| port.publish_mode == PublishMode::Host && port.published_port != 0)
            .map(PortConfig::published)
            .collect();
        Self { reservations: reservations.clone(), host_ports, generic: generic.clone() }
    }
}

/// A task that has been let in and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding<'a> {
    /// The task.
    pub task: TaskId,
    /// What it takes.
    pub claims: &'a Claims,
    /// Whether it is on its way out.
    pub leaving: bool,
}

/// What becomes of a task that asks to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// There is room.
    Admit,
    /// There will be room when tasks that are leaving have left.
    Wait(String),
    /// There is no room.
    Reject(String),
}

/// Decides whether a task with `claims` fits beside `holdings` on a node with `capacity`.
pub fn admit(claims: &Claims, holdings: &[Holding<'_>], capacity: &Capacity, hostname: &str) -> Admission {
    let staying = || holdings.iter().filter(|held| !held.leaving);
    if let Err(reason) = fit(claims, staying, capacity, hostname) {
        return Admission::Reject(reason);
    }
    match fit(claims, || holdings.iter(), capacity, hostname) {
        Ok(()) => Admission::Admit,
        Err(reason) => Admission::Wait(reason),
    }
}

fn fit<'a, I: Iterator<Item = &'a Holding<'a>>>(
    claims: &Claims,
    held: impl Fn() -> I,
    capacity: &Capacity,
    hostname: &str,
) -> Result<(), String> {
    let cpu_used = sum(held().map(|held| held.claims.reservations.nano_cpus));
    let memory_used = sum(held().map(|held| held.claims.reservations.memory_bytes));
    let Reservations { nano_cpus, memory_bytes, .. } = claims.reservations;
    for (what, unit, wanted, total, used) in [
        ("CPU", "billionths of a core", nano_cpus, capacity.nano_cpus, cpu_used),
        ("memory", "bytes", memory_bytes, capacity.memory_bytes, memory_used),
    ] {
        let free = total.saturating_sub(used);
        if wanted > free {
            return Err(format!(
                "insufficient {what} on {hostname}: {wanted} {unit} wanted, {free} of {total} not reserved"
            ));
        }
    }
    for port in &claims.host_ports {
        if let Some(held) = held().find(|held| held.claims.host_ports.contains(port)) {
            return Err(format!("host port {port} on {hostname} is in use by task {}", held.task));
        }
    }
    let mut taken = GenericUsage::default();
    held().for_each(|held| taken.add(&held.claims.generic));
    match conflict(&claims.generic, &taken, &capacity.generic) {
        None => Ok(()),
        Some((kind, None)) => Err(format!("insufficient generic resource {kind} on {hostname}")),
        Some((kind, Some(name))) => Err(format!("generic resource {kind}={name} is not free on {hostname}")),
    }
}

fn sum(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn claims(cores: u64, memory_bytes: u64, ports: &[u16]) -> Claims {
        Claims {
            reservations: Reservations { nano_cpus: cores * 1_000_000_000, memory_bytes, ..Reservations::default() },
            generic: GenericResources::default(),
            host_ports: ports.iter().copied().map(PublishedPort::tcp).collect(),
        }
    }

    fn given(terms: &[&str]) -> GenericResources {
        GenericResources::parse(terms.iter().copied()).unwrap()
    }

    fn generic(terms: &[&str]) -> Claims {
        Claims { generic: given(terms), ..Claims::default() }
    }

    #[test]
    fn a_task_is_let_in_only_where_there_is_room() {
        let offered = given(&["gpu=a", "gpu=b", "ssd=2"]);
        let capacity = Capacity { nano_cpus: 4_000_000_000, memory_bytes: 4 * GIB, generic: offered };
        let holding = |claims: Claims, leaving: bool| (claims, leaving);
        for (name, holdings, asks, want) in [
            ("an empty node", vec![], claims(4, 4 * GIB, &[80]), "admit"),
            ("a task that reserves nothing", vec![holding(claims(4, 4 * GIB, &[]), false)], claims(0, 0, &[]), "admit"),
            ("memory is gone", vec![holding(claims(0, 3 * GIB, &[]), false)], claims(0, 2 * GIB, &[]), "reject"),
            ("CPU is gone", vec![holding(claims(3, 0, &[]), false)], claims(2, 0, &[]), "reject"),
            ("memory is leaving", vec![holding(claims(0, 3 * GIB, &[]), true)], claims(0, 2 * GIB, &[]), "wait"),
            ("the port is taken", vec![holding(claims(0, 0, &[80]), false)], claims(0, 0, &[80]), "reject"),
            ("another port", vec![holding(claims(0, 0, &[80]), false)], claims(0, 0, &[81]), "admit"),
            ("the port is leaving", vec![holding(claims(0, 0, &[80]), true)], claims(0, 0, &[80]), "wait"),
            ("more than the node has", vec![], claims(5, 0, &[]), "reject"),
            (
                "a generic resource",
                vec![holding(generic(&["gpu=a", "ssd=1"]), false)],
                generic(&["gpu=b", "ssd=1"]),
                "admit",
            ),
            (
                "one that another holder gave away too",
                vec![holding(generic(&["gpu=a"]), false)],
                generic(&["gpu=a"]),
                "reject",
            ),
            ("one that is leaving", vec![holding(generic(&["gpu=a"]), true)], generic(&["gpu=a"]), "wait"),
            ("one that is not offered any more", vec![], generic(&["gpu=c"]), "reject"),
            ("more of them than there are", vec![holding(generic(&["ssd=1"]), false)], generic(&["ssd=2"]), "reject"),
            (
                "what overflows is too much",
                vec![holding(claims(0, u64::MAX, &[]), false), holding(claims(0, u64::MAX, &[]), false)],
                claims(0, 1, &[]),
                "reject",
            ),
        ] {
            let holdings: Vec<Holding<'_>> = holdings
                .iter()
                .map(|(claims, leaving)| Holding { task: TaskId(1), claims, leaving: *leaving })
                .collect();
            let got = match admit(&asks, &holdings, &capacity, "n1") {
                Admission::Admit => "admit",
                Admission::Wait(_) => "wait",
                Admission::Reject(_) => "reject",
            };
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn only_fixed_ports_of_the_host_are_claimed() {
        let port = |published_port, publish_mode| PortConfig { published_port, publish_mode, ..PortConfig::default() };
        let udp = PortConfig { protocol: "udp".to_owned(), ..port(80, PublishMode::Host) };
        let ports = [port(80, PublishMode::Host), udp, port(81, PublishMode::Ingress), port(0, PublishMode::Host)];
        let got = Claims::new(&Reservations::default(), &ports, &GenericResources::default()).host_ports;
        assert_eq!(got, [PublishedPort::tcp(80), PublishedPort::udp(80)]);
    }
}
