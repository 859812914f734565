//! What users set for a cluster as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::object::network::{POOL, POOL_PREFIX};
use crate::subnet::Subnet;

/// Past tasks that a slot remembers unless users want another number. Source: Docker, `--task-history-limit`.
pub const TASK_HISTORY_DEFAULT: u64 = 5;

/// Past tasks that a slot can remember: its record has to hold them.
pub const TASK_HISTORY_MAX: u64 = 20;

/// How long a credential lasts unless users want it otherwise. Source: Docker, `--cert-expiry`.
pub const CREDENTIAL_DEFAULT: Duration = Duration::from_secs(90 * 86_400);

/// The shortest life of a credential. Source: SwarmKit, `MinNodeCertExpiration`.
pub const CREDENTIAL_MIN: Duration = Duration::from_secs(3600);

/// The longest life of a credential: half that of a root.
pub const CREDENTIAL_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Pools of addresses that a cluster can have; more are refused.
pub const POOLS_MAX: usize = 32;

/// The smallest block of a network has so many leading bits. Source: Docker, which refuses smaller ones likewise.
pub const POOL_PREFIX_MAX: u8 = 29;

/// The settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// Past tasks that a slot remembers: at most [`TASK_HISTORY_MAX`]. Of the last one it is known in any case.
    pub task_history: u64,
    /// Nanoseconds that a credential lasts which is issued from now on: [`CREDENTIAL_MIN`] to [`CREDENTIAL_MAX`].
    pub credential_ns: u64,
    /// Whether managers' keys are sealed on their disks, with a key that people keep.
    pub auto_lock: bool,
    /// Whence networks get their addresses, in this order; none stands for 10.0.0.0/8. Set once, when the cluster is made.
    pub pools: Vec<Subnet>,
    /// Leading bits of the block that a network gets of them.
    pub pool_prefix: u8,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            task_history: TASK_HISTORY_DEFAULT,
            credential_ns: nanos(CREDENTIAL_DEFAULT),
            auto_lock: false,
            pools: Vec::new(),
            pool_prefix: POOL_PREFIX,
        }
    }
}

impl ClusterSettings {
    /// Returns how long a credential lasts.
    pub fn credential(&self) -> Duration {
        Duration::from_nanos(self.credential_ns)
    }

    /// Returns whence networks get their addresses.
    pub fn pools(&self) -> Vec<Subnet> {
        if self.pools.is_empty() { vec![Subnet::new(POOL.0, POOL.1)] } else { self.pools.clone() }
    }

    /// Returns the block of the network `ingress`: the first one of the first pool.
    pub fn ingress(&self) -> Subnet {
        let first = self.pools.first().map_or(POOL.0, |pool| pool.host(0));
        Subnet::new(first, self.pool_prefix)
    }

    /// Checks what users want; says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.task_history > TASK_HISTORY_MAX {
            return Err(format!(
                "a task history of {} is larger than the limit of {TASK_HISTORY_MAX}",
                self.task_history
            ));
        }
        if self.credential() < CREDENTIAL_MIN {
            return Err("minimum certificate expiry time is: 1h0m0s".to_owned()); // SwarmKit's words
        }
        if self.credential() > CREDENTIAL_MAX {
            return Err("maximum certificate expiry time is: 87600h0m0s".to_owned());
        }
        self.check_pools()
    }

    fn check_pools(&self) -> Result<(), String> {
        if self.pools.len() > POOLS_MAX {
            return Err(format!("{} address pools are more than the limit of {POOLS_MAX}", self.pools.len()));
        }
        if !(1..=POOL_PREFIX_MAX).contains(&self.pool_prefix) {
            return Err(format!("subnet size {} is out of range: 1 to {POOL_PREFIX_MAX}", self.pool_prefix));
        }
        let pools = self.pools();
        for (at, pool) in pools.iter().enumerate() {
            if pool.prefix() > self.pool_prefix {
                return Err(format!("address pool {pool} is smaller than one network of /{}", self.pool_prefix));
            }
            if let Some(other) = pools[..at].iter().find(|other| other.overlaps(*pool)) {
                return Err(format!("address pools overlap: {other} and {pool}"));
            }
        }
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let with = |change: fn(&mut ClusterSettings)| {
            let mut settings = ClusterSettings::default();
            change(&mut settings);
            settings.check().map_err(|error| error.split(' ').next().unwrap_or_default().to_owned())
        };
        let refused = |word: &str| Err(word.to_owned());
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|settings| settings.task_history = 0), Ok(()));
        assert_eq!(with(|settings| settings.task_history = 21), refused("a"));
        assert_eq!(with(|settings| settings.credential_ns = nanos(CREDENTIAL_MIN)), Ok(()));
        assert_eq!(with(|settings| settings.credential_ns = nanos(CREDENTIAL_MIN) - 1), refused("minimum"));
        assert_eq!(with(|settings| settings.credential_ns = u64::MAX), refused("maximum"));
        let pools = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Subnet>>();
        let with = |texts: &[&str], pool_prefix| {
            ClusterSettings { pools: pools(texts), pool_prefix, ..Default::default() }.check().is_ok()
        };
        assert!(with(&["10.1.0.0/16", "10.2.0.0/16"], 24));
        assert!(with(&["10.1.0.0/24"], 24));
        assert!(!with(&["10.1.0.0/25"], 24), "a pool smaller than a network");
        assert!(!with(&["10.1.0.0/16", "10.1.2.0/24"], 24), "pools that overlap");
        assert!(!with(&[], 30) && !with(&[], 0));
        assert!(with(&[], 8) && !with(&[], 7), "nor is the pool that nobody named");
    }

    #[test]
    fn ingress_has_the_first_block() {
        assert_eq!(ClusterSettings::default().ingress().to_string(), "10.0.0.0/24");
        let pools = vec!["172.20.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
        let settings = ClusterSettings { pools, pool_prefix: 26, ..Default::default() };
        assert_eq!(settings.ingress().to_string(), "172.20.0.0/26");
    }
}
