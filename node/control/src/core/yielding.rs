//! When a worker gives up records that no manager takes from it.
//!
//! What a worker holds beside its own status comes from managers, so in time every manager has it, or something newer. One
//! that was a manager until a moment ago may have written what its peers, who heard of the demotion first, refused. If a
//! manager lists something else for as long as [`REFUSED_FOR`], unchanged on both sides, it is the manager's that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_protocol::Time;
use shoal_protocol::record::Key;

use crate::store::Excess;

/// How long a manager must have listed something else: many times what repair among managers takes.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Records watched at once; with more, the rest waits.
const WATCHED_MAX: usize = 4096;

/// The records that a worker would give up.
#[derive(Debug, Default)]
pub(super) struct Yielding {
    watched: BTreeMap<Key, (Excess, Time)>,
    /// What is to be replaced by what a manager sends.
    pub(super) given_up: BTreeSet<Key>,
}

impl Yielding {
    /// Takes in what a manager does not have of the keys in some buckets. Returns the keys of which it has nothing at all and
    /// that are to be forgotten; those of which it has something else are given up.
    pub(super) fn note(&mut self, buckets: &[u16], excess: &BTreeMap<Key, Excess>, now: Time) -> Vec<Key> {
        self.watched.retain(|key, _| excess.contains_key(key) || !buckets.contains(&key.bucket()));
        let mut forgotten = Vec::new();
        for (key, &seen) in excess {
            match self.watched.get(key) {
                Some((before, since)) if *before == seen => {
                    if now.since(*since) < REFUSED_FOR {
                        continue;
                    }
                    match seen {
                        (_, None) => forgotten.push(*key),
                        (_, Some(_)) => {
                            self.given_up.insert(*key);
                        }
                    }
                }
                Some(_) => {
                    self.watched.insert(*key, (seen, now));
                }
                None if self.watched.len() < WATCHED_MAX => {
                    self.watched.insert(*key, (seen, now));
                }
                None => {}
            }
        }
        forgotten
    }

    /// Forgets everything: this node is a manager now.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::ServiceId;

    const KEY: Key = Key::Service(ServiceId(7));

    fn note(yielding: &mut Yielding, seen: Excess, secs: u64) -> (bool, bool) {
        let forgotten = yielding.note(&[KEY.bucket()], &BTreeMap::from([(KEY, seen)]), Time(secs * 1000));
        (forgotten == [KEY], yielding.given_up.contains(&KEY))
    }

    #[test]
    fn only_what_is_refused_for_long_is_given_up() {
        let mut yielding = Yielding::default();
        assert_eq!(note(&mut yielding, (1, Some(2)), 0), (false, false));
        assert_eq!(note(&mut yielding, (1, Some(2)), 9), (false, false));
        assert_eq!(note(&mut yielding, (1, Some(3)), 10), (false, false), "they have moved on");
        assert_eq!(note(&mut yielding, (1, Some(3)), 19), (false, false));
        assert_eq!(note(&mut yielding, (1, Some(3)), 20), (false, true));
    }

    #[test]
    fn what_they_never_had_is_forgotten() {
        let mut yielding = Yielding::default();
        assert_eq!(note(&mut yielding, (1, None), 0), (false, false));
        yielding.note(&[KEY.bucket()], &BTreeMap::new(), Time(1_000)); // they have it now
        assert_eq!(note(&mut yielding, (1, None), 10), (false, false));
        assert_eq!(note(&mut yielding, (1, None), 20), (true, false));
    }
}
