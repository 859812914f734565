//! Namespaces, cables and switches, through iproute2.
//!
//! Host *i* is the namespace `<prefix>-i`; its `eth0` is a cable to port `p<i>` of the namespace `<prefix>-sw`, in which two
//! bridges are the two switches.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::http::namespace_path;
use crate::shoal;

/// The network of shoal's nodes.
pub const SHOAL: Network = Network { prefix: "shoal", subnet: 78 };

/// The network of the hosts of a Docker Swarm, for comparison.
pub const SWARM: Network = Network { prefix: "swarm", subnet: 77 };

/// The number of the switch itself, from which clients ask.
const CLIENTS: usize = 254;

/// How long one call of `ip` may take; taking down a namespace waits for its last packets.
const IP_WAIT: Duration = Duration::from_secs(30);

/// The two switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where all hosts are at first, and clients.
    First,
    /// Where hosts are that are cut off together.
    Second,
}

impl Side {
    fn bridge(self) -> &'static str {
        match self {
            Self::First => "br0",
            Self::Second => "br1",
        }
    }
}

/// A network of hosts; there is one of each name on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    prefix: &'static str,
    /// The second byte of its addresses.
    subnet: u8,
}

impl Network {
    /// Returns the name of a host's namespace.
    pub fn namespace(self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// Returns the namespace of the switches, where clients are too.
    pub fn switch(self) -> String {
        format!("{}-sw", self.prefix)
    }

    /// Returns a host's address.
    pub fn address(self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet, 0, u8::try_from(index).unwrap_or(u8::MAX))
    }

    /// Returns a host's other address.
    pub fn address_v6(self, index: usize) -> Ipv6Addr {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        Ipv6Addr::new(0xfd00, self.subnet.into(), 0, 0, 0, 0, 0, index)
    }

    /// Makes switches and `hosts` namespaces, all plugged into the first switch.
    pub fn up(self, hosts: usize) -> Result<()> {
        self.down()?;
        ip(&["netns", "add", &self.switch()])?;
        self.ip_at_switch(&["link", "set", "lo", "up"])?;
        for side in [Side::First, Side::Second] {
            self.ip_at_switch(&["link", "add", side.bridge(), "type", "bridge"])?;
            self.ip_at_switch(&["link", "set", side.bridge(), "up"])?;
        }
        let address = format!("{}/24", self.address(CLIENTS));
        self.ip_at_switch(&["addr", "add", &address, "dev", Side::First.bridge()])?;
        let address = format!("{}/64", self.address_v6(CLIENTS));
        self.ip_at_switch(&["addr", "add", &address, "dev", Side::First.bridge(), "nodad"])?;
        (1..=hosts).try_for_each(|index| self.lay_cable(index))
    }

    fn lay_cable(self, index: usize) -> Result<()> {
        let (name, port) = (self.namespace(index), port(index));
        let mac = format!("02:{}:00:00:00:{index:02x}", self.subnet);
        let (address, gateway) = (format!("{}/24", self.address(index)), self.address(CLIENTS).to_string());
        ip(&["netns", "add", &name])?;
        self.ip_at_switch(&[
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", &name,
        ])?;
        self.plug(index, Side::First)?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
        let address = format!("{}/64", self.address_v6(index));
        ip(&["-n", &name, "addr", "add", &address, "dev", "eth0", "nodad"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "route", "add", "default", "via", &gateway])
    }

    /// Gives a host that lost its power a namespace as new: what lived in the old one's kernel is gone.
    pub fn renew(self, index: usize) -> Result<()> {
        ip(&["netns", "del", &self.namespace(index)])?;
        self.ip_at_switch(&["link", "del", &port(index)])?;
        self.lay_cable(index)
    }

    /// Plugs a host's cable into a switch.
    pub fn plug(self, index: usize, side: Side) -> Result<()> {
        self.ip_at_switch(&["link", "set", &port(index), "master", side.bridge(), "up"])
    }

    /// Pulls a host's cable.
    pub fn unplug(self, index: usize) -> Result<()> {
        self.ip_at_switch(&["link", "set", &port(index), "down"])
    }

    /// Removes every namespace that [`Network::up`] makes, whoever made it.
    pub fn down(self) -> Result<()> {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('-'));
            if rest.is_some_and(|rest| rest == "sw" || rest.parse::<u8>().is_ok()) {
                ip(&["netns", "del", &name])?;
            }
        }
        Ok(())
    }

    /// Returns where a host's namespace is, if it exists.
    pub fn path(self, index: usize) -> Option<PathBuf> {
        Some(namespace_path(&self.namespace(index))).filter(|path| path.exists())
    }

    fn ip_at_switch(self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.switch()], args].concat())
    }
}

fn port(index: usize) -> String {
    format!("p{index}")
}

fn ip(args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    let output = shoal::run(command, IP_WAIT)?;
    output.success().map(|_| ()).map_err(|error| error.context(format!("ip {}", args.join(" "))))
}
