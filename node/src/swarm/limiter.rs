//! How often one address may try to join. Pure: time is an argument.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Attempts that an address may make at once.
const BURST: u32 = 20;

/// An address gets one more attempt in this time.
const REFILL: Duration = Duration::from_secs(1);

/// Addresses remembered; while as many are, others are refused. Forgotten once they have their whole burst again.
const ADDRESSES_MAX: usize = 1024;

/// Counts attempts by source address. Source: the token bucket, as virtual scheduling (ITU-T I.371).
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// When the address will have its whole burst again.
    full_at: BTreeMap<IpAddr, Instant>,
}

impl Limiter {
    /// Counts an attempt and returns whether it is allowed.
    pub(super) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.full_at.len() >= ADDRESSES_MAX {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() >= ADDRESSES_MAX && !self.full_at.contains_key(&source) {
            return false;
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let next = (*full_at).max(now) + REFILL;
        let allowed = next <= now + REFILL * BURST;
        if allowed {
            *full_at = next;
        }
        allowed
    }

    /// Gives an attempt back: it was an honest one.
    pub(super) fn refund(&mut self, source: IpAddr) {
        if let Some(full_at) = self.full_at.get_mut(&source) {
            *full_at = full_at.checked_sub(REFILL).unwrap_or(*full_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_a_second() {
        let (source, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let start = Instant::now();
        let mut limiter = Limiter::default();
        let allowed = (0..100).filter(|_| limiter.allow(source, start)).count();
        assert_eq!(allowed, BURST as usize);
        assert!(limiter.allow(other, start));
        assert!(!limiter.allow(source, start + REFILL / 2));
        assert!(limiter.allow(source, start + REFILL));
        assert!(!limiter.allow(source, start + REFILL));
        limiter.refund(source);
        assert!(limiter.allow(source, start + REFILL));
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut limiter = Limiter::default();
        for address in 0..5000u32 {
            limiter.allow(IpAddr::V4(address.into()), start);
        }
        assert_eq!(limiter.full_at.len(), ADDRESSES_MAX);
        assert!(limiter.allow([10, 0, 0, 1].into(), start + REFILL * 2), "old ones are forgotten");
    }
}
