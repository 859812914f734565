//! Asking for leases, counting grants, giving leases back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_protocol::lease::{Answer, Ask, Ending, LeaseId, LeaseMessage, Release};
use shoal_protocol::{NodeId, Time};

use super::rank::{favourite, rank};
use super::voter::valid_until;
use super::{ACQUIRE_TIMEOUT, Action, HOLD, Leases, QUORUM_WINDOW, RANK_DELAY, RENEW_EVERY};

/// Rounds whose answers are still counted; answers to older ones come too late to matter.
const ROUNDS_MAX: usize = 32;

/// How long a lease that was handed to a better placed node is left to it.
const HANDOVER_PAUSE: Duration = Duration::from_secs(2);

/// How long a lease that came back after a handover is kept before it is handed over again.
const HANDOVER_REPEAT: Duration = Duration::from_secs(60);

/// How soon voters that are not ready are asked again.
const NOT_READY_PAUSE: Duration = Duration::from_millis(200);

/// How the leases that this node holds were renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewals {
    /// Times that the voters were asked to renew a lease.
    pub asked: u64,
    /// Times that the one before had not been granted by a majority when the next was asked for.
    pub missed: u64,
}

/// A lease that this node asked for or holds.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) epoch: u64,
    /// When each voter that granted was last asked.
    granted: BTreeMap<NodeId, Time>,
    refused: BTreeSet<NodeId>,
    /// When it was first asked for.
    since: Time,
    /// Whether a majority granted it once, and until when it can be relied upon.
    pub(super) held_until: Option<Time>,
}

/// The candidate's side of all leases.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) claims: BTreeMap<LeaseId, Claim>,
    /// The highest epoch seen of each lease.
    epochs: BTreeMap<LeaseId, u64>,
    /// Holders as they said themselves.
    pub(super) holders: BTreeMap<LeaseId, (NodeId, u64)>,
    /// When each voter may grant which lease, from its last answer.
    open: BTreeMap<NodeId, BTreeMap<LeaseId, Time>>,
    /// When each voter that is ready last answered.
    answered: BTreeMap<NodeId, Time>,
    /// Leases not to be asked for before.
    pauses: BTreeMap<LeaseId, Time>,
    /// Leases that their holder gave back for this node to take.
    invited: BTreeSet<LeaseId>,
    handed_over: BTreeMap<LeaseId, Time>,
    rounds: VecDeque<(u64, Time)>,
    round: u64,
    /// What the next message gives back.
    releases: Vec<Release>,
    pub(super) renewals: Renewals,
    pub(super) eligible: Vec<NodeId>,
    pub(super) settled: Vec<NodeId>,
    pub(super) next_round: Time,
    pub(super) leaving: bool,
}

impl Candidate {
    pub(super) fn new(now: Time) -> Self {
        Self { next_round: now, ..Self::default() }
    }

    pub(super) fn know_epoch(&mut self, lease: LeaseId, epoch: u64) {
        let known = self.epochs.entry(lease).or_default();
        *known = epoch.max(*known);
    }

    /// Forgets what was counted under the previous voters. Held leases stay valid as long as they were: the next voters
    /// leave them to their holders for a whole lease time.
    pub(super) fn voters_changed(&mut self, now: Time) {
        for claim in self.claims.values_mut() {
            claim.granted.clear();
            claim.refused.clear();
        }
        self.open.clear();
        self.answered.clear();
        self.rounds.clear();
        self.next_round = now;
    }

    /// Forgets a voter's last word: it grants nothing under the present voters.
    pub(super) fn sealed(&mut self, voter: NodeId) {
        self.answered.remove(&voter);
        self.open.remove(&voter);
    }

    pub(super) fn granters(&self, lease: LeaseId) -> Vec<NodeId> {
        self.claims.get(&lease).map(|claim| claim.granted.keys().copied().collect()).unwrap_or_default()
    }
}

impl Leases {
    /// Returns how many voters answered lately.
    pub(super) fn voters_answering(&self, now: Time) -> usize {
        self.candidate.answered.keys().filter(|&&voter| self.is_answering(voter, now)).count()
    }

    fn is_answering(&self, voter: NodeId, now: Time) -> bool {
        self.candidate.answered.get(&voter).is_some_and(|&at| now.since(at) <= QUORUM_WINDOW)
    }

    fn may_hold(&self) -> bool {
        !self.candidate.leaving && self.candidate.eligible.binary_search(&self.me).is_ok()
    }

    /// Returns when to ask for a lease that this node has no claim on, if it should.
    ///
    /// Whoever ranks first asks as soon as a majority of the voters may grant it, the others a little later each: the
    /// first live node wins without a duel, and nobody raises epochs without a majority in reach.
    pub(super) fn ask_at(&self, lease: LeaseId, now: Time) -> Option<Time> {
        let candidate = &self.candidate;
        if !self.may_hold() || !self.journal.started || candidate.claims.contains_key(&lease) {
            return None;
        }
        let pause = candidate.pauses.get(&lease).copied().unwrap_or_default();
        if candidate.invited.contains(&lease) {
            return Some(pause);
        }
        let mut open: Vec<Time> = Vec::new();
        for (&voter, leases) in &candidate.open {
            open.extend(leases.get(&lease).filter(|_| self.is_answering(voter, now)));
        }
        open.sort_unstable();
        let free_at = *open.get(self.voters().majority() - 1)?;
        let delay = RANK_DELAY * u32::try_from(rank(lease, self.me, &candidate.eligible)).unwrap_or(u32::MAX);
        Some(free_at.max(pause) + delay)
    }

    /// Returns when the next claim ends or is given up.
    pub(super) fn claims_end_at(&self) -> Option<Time> {
        let end = |claim: &Claim| claim.held_until.unwrap_or(claim.since + ACQUIRE_TIMEOUT);
        self.candidate.claims.values().map(end).min()
    }

    /// Ends leases that were not renewed and attempts that found no majority.
    pub(super) fn expire_claims(&mut self, now: Time) {
        let is_over = |claim: &Claim| match claim.held_until {
            Some(until) => until <= now,
            None => claim.since + ACQUIRE_TIMEOUT <= now,
        };
        let claims = &self.candidate.claims;
        let over: Vec<LeaseId> = claims.iter().filter(|(_, claim)| is_over(claim)).map(|(&lease, _)| lease).collect();
        for lease in over {
            self.give_up(lease, true, now);
        }
    }

    /// Asks for what may be had, renews what is held, and gives back what is to be given back.
    pub(super) fn ask_voters(&mut self, now: Time) {
        let whole_round = self.candidate.next_round <= now;
        if whole_round {
            self.candidate.next_round = now + RENEW_EVERY;
            if self.may_hold() {
                self.hand_over_one(now);
            } else {
                self.give_up_all(now);
            }
        }
        let mut asks = Vec::new();
        for lease in LeaseId::all() {
            if self.ask_at(lease, now).is_some_and(|at| at <= now) {
                asks.push(self.begin_claim(lease, now));
            } else if let Some(claim) = self.candidate.claims.get(&lease).filter(|_| whole_round) {
                asks.push(Ask { lease, epoch: claim.epoch });
                if let Some(until) = claim.held_until {
                    self.candidate.renewals.asked += 1;
                    // What was asked for a round ago would leave more than this.
                    self.candidate.renewals.missed += u64::from(until.since(now) < HOLD - RENEW_EVERY * 3 / 2);
                }
            }
        }
        let probes = whole_round && self.journal.started && (self.may_hold() || self.voters().contains(self.me));
        if asks.is_empty() && self.candidate.releases.is_empty() && !probes {
            return;
        }
        self.send_round(asks, now);
    }

    fn begin_claim(&mut self, lease: LeaseId, now: Time) -> Ask {
        let candidate = &mut self.candidate;
        let epoch = candidate.epochs.get(&lease).copied().unwrap_or(0).saturating_add(1);
        candidate.know_epoch(lease, epoch);
        candidate.invited.remove(&lease);
        candidate.pauses.remove(&lease);
        let (granted, refused) = (BTreeMap::new(), BTreeSet::new());
        candidate.claims.insert(lease, Claim { epoch, granted, refused, since: now, held_until: None });
        Ask { lease, epoch }
    }

    fn send_round(&mut self, asks: Vec<Ask>, now: Time) {
        let candidate = &mut self.candidate;
        candidate.round += 1;
        candidate.rounds.push_back((candidate.round, now));
        if candidate.rounds.len() > ROUNDS_MAX {
            candidate.rounds.pop_front();
        }
        let message = LeaseMessage::Ask {
            voters: self.journal.state.voters.version,
            round: candidate.round,
            incarnation: self.journal.state.incarnation,
            asks,
            releases: std::mem::take(&mut candidate.releases),
        };
        for voter in self.voters().members.clone() {
            self.send(voter, message.clone());
        }
    }

    /// Counts a voter's answers.
    pub(super) fn on_answers(&mut self, from: NodeId, round: u64, answers: &[Answer], ending: &[Ending], now: Time) {
        let Some(&(_, asked)) = self.candidate.rounds.iter().find(|(known, _)| *known == round) else { return };
        self.candidate.answered.insert(from, now);
        let mut open = BTreeMap::new();
        for ending in ending.iter().filter(|ending| ending.lease.is_valid()) {
            self.candidate.know_epoch(ending.lease, ending.epoch);
            open.insert(ending.lease, now + Duration::from_millis(ending.remaining_ms));
        }
        self.candidate.open.insert(from, open);
        for answer in answers {
            match *answer {
                Answer::Granted(ask) => self.on_granted(from, ask, asked, now),
                Answer::Refused { ask, epoch, remaining_ms, .. } if ask.lease.is_valid() => {
                    self.candidate.know_epoch(ask.lease, epoch);
                    let free_at = now + Duration::from_millis(remaining_ms);
                    self.candidate.open.entry(from).or_default().insert(ask.lease, free_at);
                    self.on_refused(from, ask, now);
                }
                Answer::Refused { .. } => {}
            }
        }
    }

    /// Asks again soon: the voters are catching up, and what is held must be renewed with them before it ends.
    pub(super) fn on_not_ready(&mut self, from: NodeId, now: Time) {
        self.candidate.sealed(from);
        self.candidate.next_round = self.candidate.next_round.min(now + NOT_READY_PAUSE);
    }

    fn on_granted(&mut self, from: NodeId, ask: Ask, asked: Time, now: Time) {
        let majority = self.voters().majority();
        let Some(claim) = self.candidate.claims.get_mut(&ask.lease).filter(|claim| claim.epoch == ask.epoch) else {
            return;
        };
        claim.refused.remove(&from);
        let last = claim.granted.entry(from).or_default();
        *last = asked.max(*last);
        let Some(until) = valid_until(&claim.granted, majority).filter(|&until| now < until) else { return };
        let was_held = claim.held_until.is_some();
        claim.held_until = claim.held_until.max(Some(until));
        if !was_held {
            self.candidate.holders.insert(ask.lease, (self.me, ask.epoch));
            self.act(Action::Acquired { lease: ask.lease, epoch: ask.epoch });
        }
    }

    fn on_refused(&mut self, from: NodeId, ask: Ask, now: Time) {
        let voters = self.voters().clone();
        let Some(claim) = self.candidate.claims.get_mut(&ask.lease).filter(|claim| claim.epoch == ask.epoch) else {
            return;
        };
        claim.granted.remove(&from);
        claim.refused.insert(from);
        let (is_attempt, refused) = (claim.held_until.is_none(), claim.refused.clone());
        let may_grant = |voter: &&NodeId| !refused.contains(*voter) && self.is_answering(**voter, now);
        if is_attempt && voters.members.iter().filter(may_grant).count() < voters.majority() {
            self.give_up(ask.lease, false, now);
        }
    }

    /// Gives a claim back at once, so that nobody has to wait for the grants to run out.
    fn give_up(&mut self, lease: LeaseId, expired: bool, now: Time) {
        let Some(claim) = self.candidate.claims.remove(&lease) else { return };
        let used = claim.held_until.is_some();
        self.candidate.releases.push(Release { lease, epoch: claim.epoch, used });
        let rank = u32::try_from(rank(lease, self.me, &self.candidate.eligible)).unwrap_or(u32::MAX);
        self.candidate.pauses.insert(lease, now + RANK_DELAY * rank.saturating_add(1));
        if used {
            self.act(Action::Lost { lease, epoch: claim.epoch, expired });
        }
    }

    /// Gives everything back, each lease for the node that should have it next.
    pub(super) fn give_up_all(&mut self, now: Time) {
        for lease in LeaseId::all() {
            let Some(claim) = self.candidate.claims.get(&lease) else { continue };
            let (epoch, held) = (claim.epoch, claim.held_until.is_some());
            self.give_up(lease, false, now);
            let others = self.candidate.eligible.iter().copied().filter(|&node| node != self.me);
            if let Some(heir) = favourite(lease, others).filter(|_| held) {
                self.invitations.push((heir, LeaseMessage::Handover { lease, epoch }));
            }
        }
    }

    /// Gives one lease to a settled node that should have it, if there is one: one a round, so that work goes on.
    fn hand_over_one(&mut self, now: Time) {
        let candidate = &self.candidate;
        let settled = candidate.settled.iter().copied().filter(|node| candidate.eligible.contains(node));
        let settled: Vec<NodeId> = settled.chain([self.me]).collect();
        let rests =
            |lease: &LeaseId| candidate.handed_over.get(lease).is_none_or(|&at| now.since(at) >= HANDOVER_REPEAT);
        let held = candidate.claims.iter().filter(|(_, claim)| claim.held_until.is_some());
        let wanted = held.map(|(&lease, claim)| (lease, claim.epoch)).filter(|(lease, _)| rests(lease));
        let mut moves = wanted.filter_map(|(lease, epoch)| {
            favourite(lease, settled.iter().copied()).filter(|&heir| heir != self.me).map(|heir| (lease, epoch, heir))
        });
        let Some((lease, epoch, heir)) = moves.next() else { return };
        if !self.has_quorum(now) {
            return;
        }
        self.give_up(lease, false, now);
        self.candidate.pauses.insert(lease, now + HANDOVER_PAUSE);
        self.candidate.handed_over.insert(lease, now);
        self.invitations.push((heir, LeaseMessage::Handover { lease, epoch }));
    }

    /// Asks at once for a lease that its holder gave back for this node.
    pub(super) fn on_handover(&mut self, lease: LeaseId, epoch: u64) {
        if lease.is_valid() && self.may_hold() {
            self.candidate.know_epoch(lease, epoch);
            self.candidate.pauses.remove(&lease);
            self.candidate.invited.insert(lease);
        }
    }

    /// Learns from a claim in the document who holds a lease.
    pub(super) fn on_claim_seen(&mut self, lease: LeaseId, holder: NodeId, epoch: u64) {
        if !lease.is_valid() {
            return;
        }
        self.candidate.know_epoch(lease, epoch);
        let known = self.candidate.holders.entry(lease).or_insert((holder, epoch));
        if epoch > known.1 {
            *known = (holder, epoch);
            for leases in self.candidate.open.values_mut() {
                leases.remove(&lease);
            }
        }
    }
}
