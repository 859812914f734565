//! The account of a node's generic resources: what is taken, what is left, and which names a task is given.

use std::collections::BTreeMap;

use shoal_protocol::spec::GenericResources;
use shoal_protocol::spec::generic::Amount;

/// What tasks take of a node's generic resources, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenericUsage(BTreeMap<String, Taken>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Taken {
    /// By tasks that were given a number.
    count: u64,
    /// With how many tasks were given each: two holders may give one name away at the same time.
    names: BTreeMap<String, u64>,
}

impl GenericUsage {
    /// Counts what a task was given.
    pub fn add(&mut self, given: &GenericResources) {
        for (kind, amount) in &given.0 {
            let taken = self.0.entry(kind.clone()).or_default();
            match amount {
                Amount::Count(count) => taken.count = taken.count.saturating_add(*count),
                Amount::Names(names) => {
                    names.iter().for_each(|name| *taken.names.entry(name.clone()).or_default() += 1)
                }
            }
        }
    }

    /// Takes back what [`GenericUsage::add`] counted.
    pub fn remove(&mut self, given: &GenericResources) {
        for (kind, amount) in &given.0 {
            let Some(taken) = self.0.get_mut(kind) else { continue };
            match amount {
                Amount::Count(count) => taken.count = taken.count.saturating_sub(*count),
                Amount::Names(names) => {
                    for name in names {
                        if let Some(tasks) = taken.names.get_mut(name) {
                            *tasks = tasks.saturating_sub(1);
                        }
                    }
                    taken.names.retain(|_, tasks| *tasks > 0);
                }
            }
            if *taken == Taken::default() {
                self.0.remove(kind);
            }
        }
    }

    /// Returns whether a node that offers `offered` has so many of each kind left.
    pub fn leaves(&self, wanted: &BTreeMap<String, u64>, offered: &GenericResources) -> bool {
        wanted.iter().all(|(kind, &count)| count <= self.left(kind, offered))
    }

    fn left(&self, kind: &str, offered: &GenericResources) -> u64 {
        let Some(amount) = offered.0.get(kind) else { return 0 };
        let Some(taken) = self.0.get(kind) else { return amount.count() };
        // Names that a daemon does not offer any more, or numbers where it has names by now, are taken all the same.
        let names = match amount {
            Amount::Count(_) => taken.names.values().fold(0, |all: u64, tasks| all.saturating_add(*tasks)),
            Amount::Names(offered) => offered.iter().filter(|name| taken.names.contains_key(*name)).count() as u64,
        };
        amount.count().saturating_sub(taken.count).saturating_sub(names)
    }

    /// Chooses what a task gets: of what has names the first that are free. The caller has seen that there is enough.
    pub fn choose(&self, wanted: &BTreeMap<String, u64>, offered: &GenericResources) -> GenericResources {
        let choose = |(kind, &count): (&String, &u64)| {
            let amount = match offered.0.get(kind) {
                Some(Amount::Names(names)) => {
                    let is_free =
                        |name: &&String| self.0.get(kind).is_none_or(|taken| !taken.names.contains_key(*name));
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    Amount::Names(names.iter().filter(is_free).take(count).cloned().collect())
                }
                Some(Amount::Count(_)) | None => Amount::Count(count),
            };
            (kind.clone(), amount)
        };
        GenericResources(wanted.iter().map(choose).collect())
    }
}

/// Returns what is wrong with giving a task `given` beside what `held` says others have, on a node that offers `offered`: the
/// kind, and the name if it has one.
pub fn conflict<'a>(
    given: &'a GenericResources,
    held: &GenericUsage,
    offered: &GenericResources,
) -> Option<(&'a str, Option<&'a str>)> {
    for (kind, amount) in &given.0 {
        match amount {
            Amount::Count(count) if *count > held.left(kind, offered) => return Some((kind, None)),
            Amount::Count(_) => {}
            Amount::Names(names) => {
                let is_offered =
                    |name: &String| matches!(offered.0.get(kind), Some(Amount::Names(all)) if all.contains(name));
                let is_held = |name: &String| held.0.get(kind).is_some_and(|taken| taken.names.contains_key(name));
                if let Some(name) = names.iter().find(|name| !is_offered(name) || is_held(name)) {
                    return Some((kind, Some(name)));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(terms: &[&str]) -> GenericResources {
        GenericResources::parse(terms.iter().copied()).unwrap()
    }

    fn wanted(kind: &str, count: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(kind.to_owned(), count)])
    }

    #[test]
    fn names_are_given_once_and_the_first_that_are_free() {
        let offered = resources(&["gpu=c", "gpu=a", "gpu=b", "ssd=2"]);
        let mut usage = GenericUsage::default();
        let first = usage.choose(&wanted("gpu", 2), &offered);
        assert_eq!(first, resources(&["gpu=a", "gpu=b"]));
        usage.add(&first);
        assert!(usage.leaves(&wanted("gpu", 1), &offered) && !usage.leaves(&wanted("gpu", 2), &offered));
        let second = usage.choose(&wanted("gpu", 1), &offered);
        assert_eq!(second, resources(&["gpu=c"]));
        usage.add(&second);
        assert!(!usage.leaves(&wanted("gpu", 1), &offered));
        usage.remove(&first);
        assert_eq!(usage.choose(&wanted("gpu", 1), &offered), resources(&["gpu=a"]));
        usage.remove(&second);
        assert_eq!(usage, GenericUsage::default());
        assert!(usage.leaves(&wanted("ssd", 2), &offered) && !usage.leaves(&wanted("ssd", 3), &offered));
        assert!(!usage.leaves(&wanted("fpga", 1), &offered), "a kind that the node does not have");
    }

    #[test]
    fn a_node_that_changed_what_it_offers_gives_nothing_twice() {
        let mut usage = GenericUsage::default();
        usage.add(&resources(&["gpu=a", "gpu=gone"]));
        assert!(!usage.leaves(&wanted("gpu", 1), &resources(&["gpu=2"])), "names count where there are numbers now");
        assert!(usage.leaves(&wanted("gpu", 1), &resources(&["gpu=a", "gpu=b"])));
        let mut usage = GenericUsage::default();
        usage.add(&resources(&["gpu=1"]));
        assert!(!usage.leaves(&wanted("gpu", 1), &resources(&["gpu=a"])), "a number counts where there are names now");
    }

    #[test]
    fn what_two_holders_gave_away_is_seen() {
        let offered = resources(&["gpu=a", "gpu=b", "ssd=2"]);
        let mut held = GenericUsage::default();
        held.add(&resources(&["gpu=a", "ssd=1"]));
        for (given, want) in [
            (&["gpu=b", "ssd=1"][..], None),
            (&["gpu=a"], Some(("gpu", Some("a")))),
            (&["gpu=x"], Some(("gpu", Some("x")))),
            (&["ssd=2"], Some(("ssd", None))),
            (&["fpga=1"], Some(("fpga", None))),
        ] {
            assert_eq!(conflict(&resources(given), &held, &offered), want, "{given:?}");
        }
    }
}
