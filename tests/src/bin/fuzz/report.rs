//! What came of all requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::endpoints::{ENDPOINTS, Whose};

/// What an answer says of an endpoint that does not exist, or has no such method.
const NOT_THERE: [u16; 2] = [404, 405];

/// Requests to endpoints below which a run is too short to say that one was missed.
const ENOUGH: u64 = 15 * ENDPOINTS.len() as u64;

/// Counts.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many, by kind and outcome.
    pub outcomes: BTreeMap<(&'static str, String), u64>,
    /// How many of each status, by endpoint.
    pub endpoints: BTreeMap<usize, BTreeMap<u16, u64>>,
    /// After how long connections with half a head were given up.
    pub half_heads: Vec<Duration>,
    /// The longest time that an exchange took.
    pub slowest: Duration,
    /// What must not be.
    pub faults: Vec<String>,
}

impl Tally {
    /// Prints everything.
    pub fn report(&self, took: Duration, before: u64, peak: u64) {
        let all: u64 = self.outcomes.values().sum();
        println!("{all} requests in {:.0} s, slowest {} ms", took.as_secs_f64(), self.slowest.as_millis());
        println!("memory: {} kB at first, {} kB at most", before >> 10, peak >> 10);
        for ((kind, outcome), count) in &self.outcomes {
            println!("  {kind:<12} {outcome:<24} {count}");
        }
        let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
        println!("{} of {} endpoints, with statuses:", self.endpoints.len(), ENDPOINTS.len());
        for (place, counts) in &self.endpoints {
            let endpoint = &ENDPOINTS[*place];
            let counts = counts.iter().inspect(|(status, count)| *statuses.entry(**status).or_default() += **count);
            let counts: Vec<String> = counts.map(|(status, count)| format!("{status}: {count}")).collect();
            println!("  {:<6} {:<30} {}", endpoint.method, endpoint.path, counts.join(", "));
        }
        let statuses: Vec<String> = statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        println!("  {:<6} {:<30} {}", "all", "", statuses.join(", "));
        if let (Some(least), Some(most)) = (self.half_heads.iter().min(), self.half_heads.iter().max()) {
            let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
            println!(
                "half a head was given up after {least:.1} to {most:.1} s, on {} connections",
                self.half_heads.len()
            );
        }
    }

    /// Returns the places of endpoints that answered nothing but that they do not exist, if the run was long enough to tell.
    ///
    /// What an engine answers is not counted: it knows endpoints and nothing of what they are asked about here.
    pub fn missed(&self) -> Vec<usize> {
        let asked: u64 = self.endpoints.values().flat_map(BTreeMap::values).sum();
        if asked < ENOUGH {
            return Vec::new();
        }
        let is_there = |place: usize| {
            self.endpoints.get(&place).is_some_and(|counts| counts.keys().any(|status| !NOT_THERE.contains(status)))
        };
        let own = ENDPOINTS.iter().enumerate().filter(|(_, endpoint)| endpoint.whose == Whose::Node);
        own.map(|(place, _)| place).filter(|place| !is_there(*place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_never_there_is_missed() {
        let mut tally = Tally::default();
        assert!(tally.missed().is_empty(), "nothing was asked yet");
        for place in 0..ENDPOINTS.len() {
            tally.endpoints.insert(place, BTreeMap::from([(200, 100), (404, 1)]));
        }
        assert!(tally.missed().is_empty());
        let place = |path: &str| ENDPOINTS.iter().position(|endpoint| endpoint.path == path).unwrap();
        let info = place("/info");
        tally.endpoints.insert(info, BTreeMap::from([(404, 100), (405, 3)]));
        tally.endpoints.insert(place("/shoal/self/{what}"), BTreeMap::from([(404, 100)]));
        tally.endpoints.insert(place("/auth"), BTreeMap::from([(404, 100)]));
        assert_eq!(tally.missed(), [info]);
    }
}
