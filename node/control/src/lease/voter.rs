//! What one voter has promised for one lease, and when it may promise it to another.
//!
//! Assumes that every rise of the epoch is on disk before its answer is sent. Knows neither messages nor majorities.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_protocol::lease::{Grant, LeaseId};
use shoal_protocol::{NodeId, Time};

use super::{HOLD, LEASE};

/// One start of one node: what an earlier start of the same node was granted is not its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Holder {
    /// The node; zero stands for nobody.
    pub node: NodeId,
    /// Grows with every start of the node.
    pub incarnation: u64,
}

/// The highest grant of one lease by one voter, durable before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Granted {
    /// Under which epoch.
    pub epoch: u64,
    /// To whom; nobody if the voter took it over from others who disagreed.
    pub holder: Holder,
}

/// What a voter decides about one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Granted; `rose` if that has to be on disk before it is answered.
    Granted { rose: bool },
    /// Not granted.
    Refused { granted: Granted, remaining: Duration },
}

/// One lease at one voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Slot {
    granted: Option<Granted>,
    until: Time,
    /// What stood before the last grant, to return to if that is never used. None if this voter did not see it granted.
    before: Option<Option<Granted>>,
}

impl Slot {
    /// Takes up what was on disk. The voter cannot know when it was granted, so it counts as just granted.
    pub(super) fn restarted(granted: Granted, locked: bool, now: Time) -> Self {
        Self { granted: Some(granted), until: if locked { now + LEASE } else { Time(0) }, before: None }
    }

    pub(super) fn granted(&self) -> Option<Granted> {
        self.granted
    }

    pub(super) fn epoch(&self) -> u64 {
        self.granted.map_or(0, |granted| granted.epoch)
    }

    pub(super) fn remaining(&self, now: Time) -> Duration {
        self.until.since(now)
    }

    /// Answers one question: a renewal by the very holder, or a higher epoch once the last grant has ended.
    ///
    /// A later start of the same node, or the node itself, need not wait: it knows that it does not use the old grant.
    pub(super) fn ask(&mut self, asker: Holder, epoch: u64, now: Time) -> Verdict {
        let wanted = Granted { epoch, holder: asker };
        if self.granted == Some(wanted) {
            self.until = now + LEASE;
            return Verdict::Granted { rose: false };
        }
        let remaining = self.remaining(now);
        if let Some(granted) = self.granted {
            let same_node = granted.holder.node == asker.node;
            let from_the_past = same_node && granted.holder.incarnation > asker.incarnation;
            let is_free = remaining.is_zero() || same_node;
            if epoch <= granted.epoch || from_the_past || !is_free {
                let remaining = if is_free { Duration::ZERO } else { remaining };
                return Verdict::Refused { granted, remaining };
            }
        }
        *self = Self { granted: Some(wanted), until: now + LEASE, before: Some(self.granted) };
        Verdict::Granted { rose: true }
    }

    /// Takes a grant back; returns whether what has to be on disk changed (which nobody needs to wait for).
    ///
    /// An epoch under which nobody ever held the lease is forgotten, or it would shut out the real holder, whose epoch
    /// may be lower.
    pub(super) fn release(&mut self, asker: Holder, epoch: u64, used: bool) -> bool {
        if self.granted != Some(Granted { epoch, holder: asker }) {
            return false;
        }
        self.until = Time(0);
        match self.before.take() {
            Some(before) if !used => {
                self.granted = before;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn report(&self, lease: LeaseId, now: Time) -> Option<Grant> {
        self.granted.map(|granted| Grant {
            lease,
            epoch: granted.epoch,
            holder: granted.holder.node,
            incarnation: granted.holder.incarnation,
            remaining_ms: u64::try_from(self.remaining(now).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Takes over what a majority of the previous voters knows, all of whom grant nothing any more.
    ///
    /// Whoever held the lease last was granted it by a majority, so one of the reports names it, with time left if it still
    /// does. If all that have time left agree, and all that have the highest epoch, that holder may go on. If they do not,
    /// one of them is a failed attempt and there is no telling which: then nobody may go on under that epoch, and others
    /// wait until one lease time has passed if anyone has time left.
    pub(super) fn adopt(&mut self, reports: &[Grant], now: Time) {
        let as_granted = |grant: &Grant| Granted {
            epoch: grant.epoch,
            holder: Holder { node: grant.holder, incarnation: grant.incarnation },
        };
        let known = || reports.iter().map(as_granted).chain(self.granted);
        let Some(highest) = known().max() else { return };
        let live = || reports.iter().filter(|grant| grant.remaining_ms > 0).map(as_granted);
        let agreed = known().all(|other| other == highest || other.epoch < highest.epoch)
            && live().all(|other| other == highest);
        let holder = if agreed { highest.holder } else { Holder::default() };
        let until = if live().next().is_some() { now + LEASE } else { Time(0) };
        *self = Self { granted: Some(Granted { holder, ..highest }), until, before: None };
    }
}

/// Returns until when a lease certainly is its holder's: voters' locks last at least [`LEASE`] from when each was asked,
/// so as long as a majority of them was asked within [`HOLD`], no other majority can be free.
pub(super) fn valid_until(asked: &BTreeMap<NodeId, Time>, majority: usize) -> Option<Time> {
    let mut times: Vec<Time> = asked.values().copied().collect();
    times.sort_unstable_by(|a, b| b.cmp(a));
    times.get(majority.checked_sub(1)?).map(|&time| time + HOLD)
}
