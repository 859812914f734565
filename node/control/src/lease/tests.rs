//! Tables for the parts, then simulated clusters and a model for the whole.

mod cluster;

use cluster::{Counts, chaos};

use super::Faults;

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..60,
    }
}

#[test]
fn no_lease_has_two_holders_whatever_goes_wrong() {
    let mut total = Counts::default();
    for seed in seeds() {
        let counts = chaos(seed, Faults::default()).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        total.acquired += counts.acquired;
        total.lost += counts.lost;
        total.crashes += counts.crashes;
        total.stalls += counts.stalls;
        total.cuts += counts.cuts;
        total.dropped += counts.dropped;
        total.voter_changes += counts.voter_changes;
        total.failed_writes += counts.failed_writes;
    }
    println!("{total:?}");
}
