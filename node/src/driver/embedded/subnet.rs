//! Which addresses containers get: a /24 of the pool that nothing on this machine uses, and one of its addresses each.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use shoal_protocol::subnet::Subnet;

/// Bits of the network part of what one node takes from the pool.
pub const NODE_PREFIX: u8 = 24;

/// Chooses the node's block: the one it had before, else the first free one from a place that differs between nodes.
///
/// `taken` is what interfaces and routes of this machine use, but for the node's own bridge. A route that is wider than
/// the pool (a private network behind a tunnel, say) is respected only while there is a choice.
pub fn choose(pool: Subnet, before: Option<Subnet>, seed: u32, taken: &[Subnet]) -> Option<Subnet> {
    let count = 1u32 << u32::from(NODE_PREFIX.saturating_sub(pool.prefix()));
    let block = |index: u32| Subnet::new(Ipv4Addr::from_bits(pool.host(0).to_bits() | (index << 8)), NODE_PREFIX);
    let candidates: Vec<Subnet> = before
        .filter(|before| before.is_within(pool) && before.prefix() == NODE_PREFIX)
        .into_iter()
        .chain((0..count).map(|step| block(seed.wrapping_add(step) % count)))
        .collect();
    let free = |candidate: &Subnet, respected: &dyn Fn(Subnet) -> bool| {
        !taken.iter().any(|other| respected(*other) && other.overlaps(*candidate))
    };
    let any = candidates.iter().find(|candidate| free(candidate, &|_| true));
    any.or_else(|| candidates.iter().find(|candidate| free(candidate, &|other| other.is_within(pool)))).copied()
}

/// The addresses of a node's block that containers have.
#[derive(Debug)]
pub struct Addresses {
    subnet: Subnet,
    used: BTreeSet<Ipv4Addr>,
    last: u32,
}

impl Addresses {
    /// Index of the bridge's own address, the containers' gateway.
    pub const GATEWAY: u32 = 1;

    /// Starts from what containers have already.
    pub fn new(subnet: Subnet, used: BTreeSet<Ipv4Addr>) -> Self {
        Self { subnet, used, last: Self::GATEWAY }
    }

    /// Takes an address, the one that was free for longest; `None` if all are used.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let last_host = (1u32 << (32 - u32::from(self.subnet.prefix()))) - 2;
        let count = last_host - Self::GATEWAY;
        let index = (1..=count)
            .map(|step| Self::GATEWAY + 1 + (self.last + count + step - Self::GATEWAY - 1) % count)
            .find(|index| !self.used.contains(&self.subnet.host(*index)))?;
        self.last = index;
        let address = self.subnet.host(index);
        self.used.insert(address);
        Some(address)
    }

    /// Gives an address back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_free_block_is_chosen() {
        let pool = subnet("10.212.0.0/16");
        for (name, pool, before, seed, taken, want) in [
            ("a node keeps its block", pool, Some("10.212.9.0/24"), 4, vec![], Some("10.212.9.0/24")),
            ("a new node starts at its seed", pool, None, 4, vec![], Some("10.212.4.0/24")),
            (
                "taken ones are passed over",
                pool,
                None,
                255,
                vec!["10.212.255.0/24", "10.212.0.0/23"],
                Some("10.212.2.0/24"),
            ),
            ("a lost block is replaced", pool, Some("10.212.9.0/24"), 1, vec!["10.212.9.7/32"], Some("10.212.1.0/24")),
            ("of another pool, too", pool, Some("10.9.9.0/24"), 1, vec![], Some("10.212.1.0/24")),
            (
                "a wider route does not forbid all",
                pool,
                None,
                1,
                vec!["10.0.0.0/8", "10.212.1.0/24"],
                Some("10.212.2.0/24"),
            ),
            ("all are taken", pool, None, 1, vec!["10.212.0.0/16"], None),
            ("a pool of one", subnet("10.212.7.0/24"), None, 1000, vec![], Some("10.212.7.0/24")),
        ] {
            let taken: Vec<Subnet> = taken.into_iter().map(subnet).collect();
            assert_eq!(choose(pool, before.map(subnet), seed, &taken), want.map(subnet), "{name}");
        }
    }

    #[test]
    fn addresses_go_round_and_come_back() {
        let block = subnet("10.212.7.0/24");
        let mut addresses = Addresses::new(block, BTreeSet::from([block.host(3)]));
        assert_eq!(addresses.take(), Some(block.host(2)));
        assert_eq!(addresses.take(), Some(block.host(4)));
        addresses.give_back(block.host(2));
        assert_eq!(addresses.take(), Some(block.host(5)), "a freed one comes last");
        let rest = std::iter::from_fn(|| addresses.take()).count();
        assert_eq!(rest, 253 - 4 + 1);
        addresses.give_back(block.host(254));
        assert_eq!(addresses.take(), Some(block.host(254)));
    }
}
