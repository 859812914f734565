//! Which backend of a published port gets the next connection, and which ones rest after failing.
//!
//! One [`Balancer`] serves one port. It assumes that its caller reports every connection it opens, ends or cannot open; it
//! does not know how backends are reached, and it never judges a node: that a node is suspect comes with the route.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{Rng, RngExt};
use shoal_protocol::{NodeId, TaskId, Time};

use crate::routes::{Backend, Route};

/// How long a backend rests after its first failure; each further one doubles it.
pub const EJECTION_MIN: Duration = Duration::from_secs(1);

/// How long a backend rests at most.
pub const EJECTION_MAX: Duration = Duration::from_secs(10);

/// What is known of the backends of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balancer {
    backends: BTreeMap<TaskId, Standing>,
}

/// What is known of one backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    /// Connections open or being opened.
    open: u32,
    /// Ejections since the last success.
    ejections: u32,
    /// Until when it rests.
    resting_until: Option<Time>,
}

/// How willingly a backend is used; lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Good,
    Resting,
    Suspect,
    SuspectAndResting,
}

impl Balancer {
    /// Chooses a backend of `route` that is not in `tried`, or `None` if there is none.
    ///
    /// Two are drawn among the most usable ones, with replacement, and the one with fewer connections wins; on a tie a
    /// backend on `here` wins, and between equals the first drawn, so that equals share equally. Drawing with replacement lets an idle port use its remote backends too. Suspect backends come
    /// last, and a resting one is used before a suspect one: an ejection never leaves a port without backends.
    pub fn choose(
        &self,
        route: &Route,
        here: NodeId,
        tried: &BTreeSet<TaskId>,
        rng: &mut impl Rng,
        now: Time,
    ) -> Option<TaskId> {
        let candidates = || {
            let untried = route.backends.iter().filter(|(task, _)| !tried.contains(task));
            untried.map(|(task, backend)| (self.tier(*task, backend, now), *task, backend))
        };
        let best = candidates().map(|(tier, ..)| tier).min()?;
        let usable: Vec<_> = candidates().filter(|(tier, ..)| *tier == best).map(|(_, task, b)| (task, b)).collect();
        let mut draw = || usable[rng.random_range(0..usable.len())];
        let rank = |(task, backend): (TaskId, &Backend)| (self.open(task), backend.node != here);
        let (first, second) = (draw(), draw());
        Some(if rank(second) < rank(first) { second.0 } else { first.0 })
    }

    /// Counts a connection that is being opened to `task`.
    pub fn opening(&mut self, task: TaskId) {
        let standing = self.backends.entry(task).or_default();
        standing.open = standing.open.saturating_add(1);
    }

    /// Takes back what [`Balancer::opening`] counted: the connection ended or never came to be.
    pub fn closed(&mut self, task: TaskId) {
        if let Some(standing) = self.backends.get_mut(&task) {
            standing.open = standing.open.saturating_sub(1);
        }
    }

    /// Notes that `task` accepted a connection: its failures are forgotten.
    pub fn connected(&mut self, task: TaskId) {
        if let Some(standing) = self.backends.get_mut(&task) {
            standing.ejections = 0;
            standing.resting_until = None;
        }
    }

    /// Ejects `task` because a connection to it failed or took too long. Returns whether it was not resting already:
    /// failures during a rest belong to the one that caused it.
    pub fn failed(&mut self, task: TaskId, now: Time) -> bool {
        let standing = self.backends.entry(task).or_default();
        if standing.resting_until.is_some_and(|until| now < until) {
            return false;
        }
        standing.resting_until = Some(now + rest_after(standing.ejections));
        standing.ejections = standing.ejections.saturating_add(1);
        true
    }

    /// Forgets backends that are no longer in `route` and have no connection left.
    pub fn retain(&mut self, route: &Route) {
        self.backends.retain(|task, standing| standing.open > 0 || route.backends.contains_key(task));
    }

    /// Returns the connections that are open or being opened to `task`.
    pub fn open(&self, task: TaskId) -> u32 {
        self.backends.get(&task).map_or(0, |standing| standing.open)
    }

    /// Returns whether `task` rests after a failure.
    pub fn is_resting(&self, task: TaskId, now: Time) -> bool {
        let until = self.backends.get(&task).and_then(|standing| standing.resting_until);
        until.is_some_and(|until| now < until)
    }

    fn tier(&self, task: TaskId, backend: &Backend, now: Time) -> Tier {
        match (backend.suspect, self.is_resting(task, now)) {
            (false, false) => Tier::Good,
            (false, true) => Tier::Resting,
            (true, false) => Tier::Suspect,
            (true, true) => Tier::SuspectAndResting,
        }
    }
}

fn rest_after(ejections: u32) -> Duration {
    EJECTION_MIN.saturating_mul(1u32.checked_shl(ejections).unwrap_or(u32::MAX)).min(EJECTION_MAX)
}

#[cfg(test)]
mod tests;
