//! Namespaces, cables and switches, through iproute2.
//!
//! Node *i* is the namespace `shoal-i`; its `eth0` is a cable to port `p<i>` of the namespace `shoal-sw`, in which two
//! bridges are the two switches.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::http::namespace_path;
use crate::shoal;

/// The namespace of the switches, where clients are too.
pub(crate) const SWITCH: &str = "shoal-sw";

/// How long one call of `ip` may take; taking down a namespace waits for its last packets.
const IP_WAIT: Duration = Duration::from_secs(30);

/// The two switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    First,
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

/// Returns the name of a node's namespace.
pub(crate) fn namespace(index: usize) -> String {
    format!("shoal-{index}")
}

/// Makes switches and `nodes` namespaces, all plugged into the first switch.
pub(crate) fn up(nodes: usize) -> Result<()> {
    down()?;
    ip(&["netns", "add", SWITCH])?;
    ip(&["-n", SWITCH, "link", "set", "lo", "up"])?;
    for side in [Side::First, Side::Second] {
        ip(&["-n", SWITCH, "link", "add", side.bridge(), "type", "bridge"])?;
        ip(&["-n", SWITCH, "link", "set", side.bridge(), "up"])?;
    }
    ip(&["-n", SWITCH, "addr", "add", "10.78.0.254/24", "dev", Side::First.bridge()])?;
    (1..=nodes).try_for_each(lay_cable)
}

fn lay_cable(index: usize) -> Result<()> {
    let (name, port) = (namespace(index), port(index));
    let (mac, address) = (format!("02:78:00:00:00:{index:02x}"), format!("10.78.0.{index}/24"));
    ip(&["netns", "add", &name])?;
    ip(&["-n", SWITCH, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", &name])?;
    plug(index, Side::First)?;
    ip(&["-n", &name, "link", "set", "lo", "up"])?;
    ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
    ip(&["-n", &name, "link", "set", "eth0", "up"])?;
    ip(&["-n", &name, "route", "add", "default", "via", "10.78.0.254"])
}

/// Plugs a node's cable into a switch.
pub(crate) fn plug(index: usize, side: Side) -> Result<()> {
    ip(&["-n", SWITCH, "link", "set", &port(index), "master", side.bridge(), "up"])
}

/// Pulls a node's cable.
pub(crate) fn unplug(index: usize) -> Result<()> {
    ip(&["-n", SWITCH, "link", "set", &port(index), "down"])
}

/// Removes every namespace that [`up`] makes, whoever made it.
pub(crate) fn down() -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix("shoal-").is_some_and(|rest| rest == "sw" || rest.parse::<u8>().is_ok());
        if ours {
            ip(&["netns", "del", &name])?;
        }
    }
    Ok(())
}

/// Returns whether a node's namespace exists.
pub(crate) fn exists(index: usize) -> bool {
    Path::new(&namespace_path(&namespace(index))).exists()
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
