//! Blocks of IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A block of addresses, such as `10.212.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a block of IPv4 addresses such as 10.212.0.0/16")]
pub struct InvalidSubnet(String);

impl Subnet {
    /// Returns the block of this many leading bits around an address.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// Returns its bits of network part.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Returns its `index`-th address, counted from 0.
    pub fn host(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | (index & !mask(self.prefix)))
    }

    /// Returns whether an address lies in it.
    pub fn holds(self, address: Ipv4Addr) -> bool {
        Self::new(address, self.prefix) == self
    }

    /// Returns whether one of the two lies in the other.
    pub fn overlaps(self, other: Self) -> bool {
        let common = mask(self.prefix.min(other.prefix));
        self.address.to_bits() & common == other.address.to_bits() & common
    }

    /// Returns whether all of this block lies in the other.
    pub fn is_within(self, other: Self) -> bool {
        self.prefix >= other.prefix && self.overlaps(other)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;
    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let invalid = || InvalidSubnet(text.chars().take(64).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(invalid)?;
        let subnet = Self::new(address, prefix);
        // An address inside the block instead of its first one is more likely a mistake than meant.
        if subnet.address == address { Ok(subnet) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;
    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_read_strictly() {
        for text in ["10.212.0.0", "10.212.0.1/16", "10.212.0.0/33", "10.212.0.0/", "::/8", "x/24"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        assert_eq!(subnet("0.0.0.0/0").to_string(), "0.0.0.0/0");
        assert!(subnet("10.0.0.0/8").overlaps(subnet("10.212.3.0/24")));
        assert!(
            subnet("10.0.0.0/24").holds(Ipv4Addr::new(10, 0, 0, 9))
                && !subnet("10.0.0.0/24").holds(Ipv4Addr::new(10, 0, 1, 9))
        );
        assert!(!subnet("10.212.2.0/24").overlaps(subnet("10.212.3.0/24")));
    }
}
