//! What a port number belongs to: TCP and UDP count their ports apart, so a number may be free in one and taken in the other.

use std::fmt;

use super::PortConfig;

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// `tcp`, and what is empty.
    Tcp,
    /// `udp`.
    Udp,
    /// `sctp`, and what is not known; nothing is forwarded for it.
    Other,
}

/// A port as clients know it. Ordered by transport, then by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    /// What it is a port of.
    pub transport: Transport,
    /// Its number; 0 where the cluster or the node has not chosen one yet.
    pub number: u16,
}

impl Transport {
    /// Returns what a port's `Protocol` means.
    pub fn of(protocol: &str) -> Self {
        match protocol {
            "" | "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            _ => Self::Other,
        }
    }

    /// Returns its name in Docker's words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        }
    }
}

impl PublishedPort {
    /// Returns a port of TCP.
    pub fn tcp(number: u16) -> Self {
        Self { transport: Transport::Tcp, number }
    }

    /// Returns a port of UDP.
    pub fn udp(number: u16) -> Self {
        Self { transport: Transport::Udp, number }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.transport.name())
    }
}

impl PortConfig {
    /// Returns the transport.
    pub fn transport(&self) -> Transport {
        Transport::of(&self.protocol)
    }

    /// Returns the port that clients use.
    pub fn published(&self) -> PublishedPort {
        PublishedPort { transport: self.transport(), number: self.published_port }
    }
}
