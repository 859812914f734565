//! One suspicion: the probes that have to confirm it, and what they add up to.
//!
//! Knows nothing of who suspects whom for what reason, nor whether the judge may be trusted at the moment.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_protocol::{NodeId, Time};

/// How long the probes of one round may take. Who has not answered by then counts as: no answer on a fresh connection, if
/// it is the suspect; no information, if it is a helper.
pub const PROBE_WAIT: Duration = Duration::from_millis(650);

/// Nodes that are asked to probe the suspect as well.
pub(super) const HELPERS: usize = 2;

/// Rounds that a node must stay silent for, when nobody else can say anything about it.
const ROUNDS_ALONE: u32 = 2;

/// What a finished round says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Some probes have not answered, and still may.
    Waiting,
    /// It answers this node.
    Reachable,
    /// It answers others but not this node.
    ReachableByOthers,
    /// Nothing follows yet; another round may tell.
    Unclear,
    /// It answers nobody.
    Dead,
}

/// A node that is suspected, and the present round of probes.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    pub(super) since: Time,
    /// Names the present round.
    pub(super) request: u64,
    /// When the present round ends.
    pub(super) deadline: Time,
    /// When the next round begins, if this one led to nothing and another would be too early.
    pub(super) rests_until: Option<Time>,
    /// Rounds in which this node's own probe failed, this one included once it has.
    failures: u32,
    own: Option<bool>,
    helpers: BTreeMap<NodeId, Option<bool>>,
}

impl Suspicion {
    pub(super) fn new(now: Time) -> Self {
        Self {
            since: now,
            request: 0,
            deadline: now,
            rests_until: None,
            failures: 0,
            own: None,
            helpers: BTreeMap::new(),
        }
    }

    pub(super) fn begin_round(&mut self, request: u64, helpers: impl IntoIterator<Item = NodeId>, now: Time) {
        self.request = request;
        self.deadline = now + PROBE_WAIT;
        (self.own, self.rests_until) = (None, None);
        self.helpers = helpers.into_iter().map(|helper| (helper, None)).collect();
    }

    /// Returns when something is due, whatever the answers: a verdict is not given before `verdict_min` has passed.
    pub(super) fn next_step(&self, verdict_min: Duration) -> Time {
        self.rests_until.unwrap_or(if self.own.is_some() { self.since + verdict_min } else { self.deadline })
    }

    pub(super) fn helpers(&self) -> impl Iterator<Item = NodeId> {
        self.helpers.keys().copied()
    }

    /// Notes the outcome of this node's own probe.
    pub(super) fn note_own(&mut self, alive: bool) {
        if self.own.is_none() {
            self.own = Some(alive);
            self.failures += u32::from(!alive);
        }
    }

    /// Notes what a helper saw. Helpers that were not asked in this round are ignored.
    pub(super) fn note_helper(&mut self, helper: NodeId, alive: bool) {
        if let Some(answer) = self.helpers.get_mut(&helper) {
            *answer = Some(alive);
        }
    }

    /// Adds up the answers. A node is dead only if this node's own probe failed, no helper reaches it, and at least one
    /// helper says that it does not; with fewer than two helpers to ask, two own probes in a row may stand for that.
    pub(super) fn finding(&mut self, now: Time) -> Finding {
        let is_over = self.deadline <= now;
        if is_over {
            self.note_own(false);
        }
        let said = |wanted: Option<bool>| self.helpers.values().filter(|&&answer| answer == wanted).count();
        match self.own {
            None => Finding::Waiting,
            Some(true) => Finding::Reachable,
            Some(false) if said(Some(true)) > 0 => Finding::ReachableByOthers,
            Some(false) if said(None) > 0 && !is_over => Finding::Waiting,
            Some(false) if said(Some(false)) > 0 => Finding::Dead,
            Some(false) if self.helpers.len() < HELPERS && self.failures >= ROUNDS_ALONE => Finding::Dead,
            Some(false) => Finding::Unclear,
        }
    }
}
