//! Addresses of networks: which block one gets that names none, and whether others have what one names.
//!
//! Source: SwarmKit, the default address pool; Docker's own error for blocks that overlap.

use std::net::Ipv4Addr;

use shoal_protocol::object::network::{Block, POOL, POOL_PREFIX};
use shoal_protocol::subnet::Subnet;

/// Why a network cannot have its addresses. Nothing was allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Another network has some of them.
    #[error("invalid pool request: Pool overlaps with other one on this address space: {wanted} and {taken}")]
    Overlap {
        /// What was asked for.
        wanted: Subnet,
        /// What is taken.
        taken: Subnet,
    },
    /// The cluster has none left to choose.
    #[error("no block of addresses is free in {}/{}", POOL.0, POOL.1)]
    Exhausted,
}

/// Returns the blocks of a network: those that it names, or the first of the pool that is free. `taken` are those of all other
/// networks.
pub fn allocate_blocks(wanted: &[Block], taken: &[Subnet]) -> Result<Vec<Block>, BlockError> {
    for block in wanted {
        if let Some(taken) = taken.iter().find(|taken| taken.overlaps(block.subnet)) {
            return Err(BlockError::Overlap { wanted: block.subnet, taken: *taken });
        }
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let (first, prefix) = POOL;
    let count = 1u32 << (POOL_PREFIX - prefix);
    let size = 1u32 << (32 - POOL_PREFIX);
    let candidates =
        (0..count).map(|index| Subnet::new(Ipv4Addr::from_bits(first.to_bits() + index * size), POOL_PREFIX));
    let mut free = candidates.filter(|candidate| !taken.iter().any(|taken| taken.overlaps(*candidate)));
    free.next().map(|subnet| vec![Block::new(subnet)]).ok_or(BlockError::Exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn networks_do_not_share_addresses() {
        for (wanted, taken, want) in [
            (vec![], vec!["10.0.0.0/24"], Ok("10.0.1.0/24")),
            (vec![], vec!["10.0.0.0/24", "10.0.2.0/24"], Ok("10.0.1.0/24")),
            (vec![], vec!["10.0.0.0/23", "10.0.2.128/25"], Ok("10.0.3.0/24")),
            (vec![], vec!["10.0.0.0/9"], Ok("10.128.0.0/24")),
            (vec![], vec!["10.0.0.0/8"], Err("no block of addresses is free in 10.0.0.0/8")),
            (vec!["10.50.0.0/24"], vec!["10.0.0.0/24"], Ok("10.50.0.0/24")),
            (
                vec!["10.0.0.0/16"],
                vec!["10.0.7.0/24"],
                Err(
                    "invalid pool request: Pool overlaps with other one on this address space: 10.0.0.0/16 and 10.0.7.0/24",
                ),
            ),
        ] {
            let wanted: Vec<Block> = wanted.into_iter().map(|text| Block::new(subnet(text))).collect();
            let taken: Vec<Subnet> = taken.into_iter().map(subnet).collect();
            let got = allocate_blocks(&wanted, &taken);
            let got = got.map(|blocks| blocks[0].subnet.to_string()).map_err(|error| error.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
        }
    }
}
