//! Addresses of networks: which block one gets that names none, and whether others have what one names.
//!
//! Source: SwarmKit, the default address pool; Docker's own error for blocks that overlap.

use shoal_protocol::object::network::Block;
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
    #[error("no block of addresses is free in {}", pools.iter().map(Subnet::to_string).collect::<Vec<_>>().join(", "))]
    Exhausted {
        /// Where they would be.
        pools: Vec<Subnet>,
    },
}

/// Returns the blocks of a network: those that it names, or the first of the pools that is free, with so many leading bits.
/// `taken` are those of all other networks.
pub fn allocate_blocks(
    wanted: &[Block],
    (pools, prefix): (&[Subnet], u8),
    taken: &[Subnet],
) -> Result<Vec<Block>, BlockError> {
    check_blocks(wanted, taken)?;
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let mut free = pools.iter().filter_map(|pool| first_free(*pool, prefix, taken));
    let free = free.next().ok_or_else(|| BlockError::Exhausted { pools: pools.to_vec() })?;
    Ok(vec![Block::new(free)])
}

/// Returns the first block of a pool that overlaps with none of `taken`.
fn first_free(pool: Subnet, prefix: u8, taken: &[Subnet]) -> Option<Subnet> {
    let mut at = u64::from(pool.host(0).to_bits());
    let end = at + (1u64 << (32 - pool.prefix()));
    while at + (1u64 << (32 - prefix)) <= end {
        let candidate = Subnet::new(u32::try_from(at).ok()?.into(), prefix);
        match taken.iter().find(|taken| taken.overlaps(candidate)) {
            None => return Some(candidate),
            // Past whatever lies there, which may be larger: a pool has up to 2^29 blocks, and networks are few.
            Some(taken) => {
                let wider = Subnet::new(candidate.host(0), taken.prefix().min(prefix));
                at = u64::from(wider.host(0).to_bits()) + (1u64 << (32 - wider.prefix()));
            }
        }
    }
    None
}

/// Refuses blocks that another network has some of.
pub fn check_blocks(wanted: &[Block], taken: &[Subnet]) -> Result<(), BlockError> {
    for block in wanted {
        if let Some(taken) = taken.iter().find(|taken| taken.overlaps(block.subnet)) {
            return Err(BlockError::Overlap { wanted: block.subnet, taken: *taken });
        }
    }
    Ok(())
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
            let got = allocate_blocks(&wanted, (&[subnet("10.0.0.0/8")], 24), &taken);
            let got = got.map(|blocks| blocks[0].subnet.to_string()).map_err(|error| error.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
        }
    }

    #[test]
    fn pools_are_used_one_after_the_other() {
        let pools = [subnet("172.20.0.0/30"), subnet("255.255.255.0/24")];
        for (taken, want) in [
            (vec![], Ok("172.20.0.0/30")),
            (vec!["172.20.0.0/30"], Ok("255.255.255.0/30")),
            (vec!["172.20.0.0/16", "255.255.255.0/25"], Ok("255.255.255.128/30")),
            (vec!["172.0.0.0/8", "255.255.255.0/25", "255.255.255.192/26"], Ok("255.255.255.128/30")),
            (
                vec!["172.0.0.0/8", "255.255.0.0/16"],
                Err("no block of addresses is free in 172.20.0.0/30, 255.255.255.0/24"),
            ),
        ] {
            let taken: Vec<Subnet> = taken.into_iter().map(subnet).collect();
            let got = allocate_blocks(&[], (&pools, 30), &taken);
            let got = got.map(|blocks| blocks[0].subnet.to_string()).map_err(|error| error.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
        }
    }
}
