//! Replacing the voters: one decision by Paxos among the present ones, then the next ones learn what those had granted.
//!
//! Accepting a successor seals a voter: it grants and acknowledges nothing under the old set any more. So once a majority
//! is sealed the old set is dead, and its grants, told by any majority of it, are complete. One of the next voters that
//! knows them brings in the others by itself: they need not be told by a majority that may be gone by then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_protocol::lease::{Ballot, Grant, LeaseId, LeaseMessage, VoterSet};
use shoal_protocol::{NodeId, Time};

use super::{Action, Leases};

/// How long a proposer waits for a majority before it tries again with a higher ballot.
const BALLOT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a proposer that was outbid leaves the other one alone, times one more than its place among the managers.
const OUTBID_PAUSE: Duration = Duration::from_millis(300);

/// How long a sealed voter waits for the decision before it completes it, and how much longer for each voter before it.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// How long a proposal without any vote is pursued; who proposed it will say so again if it is still wanted.
const PROPOSAL_MAX: Duration = Duration::from_secs(10);

/// How long the merge of the document may take before it is asked for again, from whoever answered meanwhile.
const CATCH_UP_REPEAT: Duration = Duration::from_secs(2);

/// An attempt to have the present voters replaced.
#[derive(Debug)]
struct Proposal {
    ballot: Ballot,
    value: VoterSet,
    phase: Phase,
    began: Time,
    /// When to try again with a higher ballot.
    retry_at: Time,
}

#[derive(Debug)]
enum Phase {
    Preparing(BTreeMap<NodeId, Option<(Ballot, VoterSet)>>),
    Accepting(BTreeSet<NodeId>),
}

/// A member of the present set that does not grant yet.
#[derive(Debug, Default)]
struct Joining {
    reports: BTreeMap<NodeId, Vec<Grant>>,
    /// A voter in place, which knows all that a majority of the previous ones does.
    sponsor: Option<NodeId>,
    is_adopted: bool,
    asked_to_catch_up: Option<Time>,
}

/// The change of voters as this node sees it.
#[derive(Debug, Default)]
pub(super) struct Change {
    proposal: Option<Proposal>,
    /// The highest round of any ballot seen.
    round: u64,
    /// Since when this voter has been sealed.
    sealed_since: Option<Time>,
    joining: Option<Joining>,
}

impl Leases {
    /// Takes up where the last run of this node stopped.
    pub(super) fn resume_change(&mut self, now: Time) {
        self.change.round = self.journal.state.promised.round;
        self.change.sealed_since = self.is_sealed().then_some(now);
        if self.voters().contains(self.me) && !self.is_ready() {
            self.join(now);
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.journal.state.accepted.is_some()
    }

    /// Proposes `members` as the next voters.
    pub(super) fn propose(&mut self, members: Vec<NodeId>, now: Time) {
        let value = self.voters().successor(members);
        if self.voters().version == 0
            || !value.is_valid()
            || value.members == self.voters().members
            || self.change.proposal.is_some()
        {
            return;
        }
        self.start_ballot(value, now, now);
    }

    fn start_ballot(&mut self, value: VoterSet, began: Time, now: Time) {
        self.change.round = self.change.round.saturating_add(1);
        let ballot = Ballot { round: self.change.round, node: self.me };
        let phase = Phase::Preparing(BTreeMap::new());
        self.change.proposal = Some(Proposal { ballot, value, phase, began, retry_at: now + BALLOT_TIMEOUT });
        self.pursue_proposal();
    }

    /// Sends the present step to every voter that has not answered it.
    fn pursue_proposal(&mut self) {
        let Some(proposal) = &self.change.proposal else { return };
        let (version, ballot) = (self.voters().version, proposal.ballot);
        let (message, missing): (_, Vec<NodeId>) = match &proposal.phase {
            Phase::Preparing(promises) => {
                let missing = self.voters().members.iter().filter(|voter| !promises.contains_key(voter));
                (LeaseMessage::Prepare { version, ballot }, missing.copied().collect())
            }
            Phase::Accepting(accepted) => {
                let missing = self.voters().members.iter().filter(|voter| !accepted.contains(voter));
                let next = proposal.value.clone();
                (LeaseMessage::Accept { version, ballot, next }, missing.copied().collect())
            }
        };
        for voter in missing {
            self.send(voter, message.clone());
        }
    }

    /// Repeats what was not answered, completes what another has left half done.
    pub(super) fn tick_change(&mut self, now: Time) {
        self.want_grants(now);
        let Some(proposal) = &self.change.proposal else {
            self.complete_if_stuck(now);
            return;
        };
        let has_votes = matches!(proposal.phase, Phase::Accepting(_)) || self.is_sealed();
        if !has_votes && now.since(proposal.began) >= PROPOSAL_MAX {
            self.change.proposal = None;
        } else if proposal.retry_at <= now {
            let (value, began) = (proposal.value.clone(), proposal.began);
            self.start_ballot(value, began, now);
        } else {
            self.pursue_proposal();
        }
    }

    fn complete_if_stuck(&mut self, now: Time) {
        let Some((_, value)) = self.journal.state.accepted.clone() else { return };
        let place = self.voters().members.iter().position(|&voter| voter == self.me).unwrap_or_default();
        let patience = STUCK_AFTER * u32::try_from(place + 1).unwrap_or(u32::MAX);
        if self.change.sealed_since.is_some_and(|since| now.since(since) >= patience) {
            self.start_ballot(value, now, now);
        }
    }

    /// Whether this node may take part in choosing the successor of `version`: it has to know every grant under it, or
    /// the next voters would ask a majority that does not.
    fn is_acceptor(&mut self, from: NodeId, version: u64) -> bool {
        if version != self.voters().version {
            self.show_voters(from);
            return false;
        }
        self.is_ready()
    }

    fn outbid(&mut self, from: NodeId, version: u64, ballot: Ballot) -> bool {
        let promised = self.journal.state.promised;
        if ballot >= promised {
            return false;
        }
        self.send_durably(from, LeaseMessage::Outbid { version, ballot: promised });
        true
    }

    pub(super) fn on_prepare(&mut self, from: NodeId, version: u64, ballot: Ballot) {
        if !self.is_acceptor(from, version) || self.outbid(from, version, ballot) {
            return;
        }
        self.promise_ballot(ballot);
        let accepted = self.journal.state.accepted.clone();
        self.send_durably(from, LeaseMessage::Promise { version, ballot, accepted });
    }

    pub(super) fn on_accept(&mut self, from: NodeId, version: u64, ballot: Ballot, next: VoterSet, now: Time) {
        let is_successor = next.is_valid() && next.version == version.saturating_add(1);
        if !self.is_acceptor(from, version) || !is_successor || next.previous != self.voters().members {
            return;
        }
        if self.outbid(from, version, ballot) {
            return;
        }
        self.promise_ballot(ballot);
        let accepted = Some((ballot, next));
        if self.journal.state.accepted != accepted {
            self.journal.state.accepted = accepted;
            self.journal.touch();
        }
        self.change.sealed_since.get_or_insert(now);
        self.send_durably(from, LeaseMessage::Accepted { version, ballot });
    }

    fn promise_ballot(&mut self, ballot: Ballot) {
        self.change.round = self.change.round.max(ballot.round);
        if self.journal.state.promised != ballot {
            self.journal.state.promised = ballot;
            self.journal.touch();
        }
    }

    pub(super) fn on_promise(
        &mut self,
        from: NodeId,
        version: u64,
        ballot: Ballot,
        accepted: Option<(Ballot, VoterSet)>,
        now: Time,
    ) {
        let voters = &self.journal.state.voters;
        let is_valid =
            accepted.as_ref().is_none_or(|(_, set)| set.is_valid() && set.version == version.saturating_add(1));
        if version != voters.version || !voters.contains(from) || !is_valid {
            return;
        }
        let Some(proposal) = self.change.proposal.as_mut().filter(|proposal| proposal.ballot == ballot) else { return };
        let Phase::Preparing(promises) = &mut proposal.phase else { return };
        promises.insert(from, accepted);
        if promises.len() < voters.majority() {
            return;
        }
        // What may have been chosen already has to be proposed again.
        if let Some((_, value)) = promises.values().flatten().max_by_key(|(ballot, _)| *ballot) {
            proposal.value = value.clone();
        }
        proposal.phase = Phase::Accepting(BTreeSet::new());
        proposal.retry_at = now + BALLOT_TIMEOUT;
        self.pursue_proposal();
    }

    pub(super) fn on_accepted(&mut self, from: NodeId, version: u64, ballot: Ballot, now: Time) {
        let voters = &self.journal.state.voters;
        if version != voters.version || !voters.contains(from) {
            return;
        }
        let Some(proposal) = self.change.proposal.as_mut().filter(|proposal| proposal.ballot == ballot) else { return };
        let Phase::Accepting(accepted) = &mut proposal.phase else { return };
        accepted.insert(from);
        if accepted.len() < voters.majority() {
            return;
        }
        let decided = proposal.value.clone();
        let concerned: BTreeSet<NodeId> =
            decided.members.iter().chain(&decided.previous).chain(&self.candidate.eligible).copied().collect();
        self.learn_voters(decided.clone(), now);
        let me = self.me;
        for node in concerned.into_iter().filter(|&node| node != me) {
            self.send(node, LeaseMessage::Decided(decided.clone()));
        }
    }

    pub(super) fn on_outbid(&mut self, version: u64, ballot: Ballot, now: Time) {
        if version != self.voters().version {
            return;
        }
        self.change.round = self.change.round.max(ballot.round);
        let place = self.candidate.eligible.iter().position(|&node| node == self.me).unwrap_or_default();
        let pause = OUTBID_PAUSE * u32::try_from(place + 1).unwrap_or(u32::MAX);
        if let Some(proposal) = self.change.proposal.as_mut().filter(|proposal| proposal.ballot < ballot) {
            proposal.retry_at = proposal.retry_at.min(now + pause);
        }
    }

    /// Brings this node and the one that sent `theirs` to the same set.
    pub(super) fn on_stale_voters(&mut self, from: NodeId, theirs: VoterSet, now: Time) {
        if theirs.version < self.voters().version {
            self.send(from, LeaseMessage::Decided(self.voters().clone()));
            self.change_grants_wanted_from(from);
        } else if theirs.version == self.voters().version {
            self.candidate.sealed(from);
        } else {
            self.learn_voters(theirs, now);
        }
    }

    pub(super) fn show_voters(&mut self, to: NodeId) {
        let current = self.voters().clone();
        self.send(to, LeaseMessage::StaleVoters { current });
    }

    /// Takes note of a decided set.
    pub(super) fn learn_voters(&mut self, set: VoterSet, now: Time) {
        if !set.is_valid() || set.version <= self.voters().version {
            return;
        }
        let state = &mut self.journal.state;
        state.voters = set.clone();
        (state.promised, state.accepted) = (Ballot::default(), None);
        self.journal.touch();
        self.change = Change { round: 0, ..Change::default() };
        self.candidate.voters_changed(now);
        self.act(Action::VotersChanged(set.clone()));
        if set.contains(self.me) {
            self.join(now);
        }
    }

    fn join(&mut self, now: Time) {
        self.change.joining = Some(Joining::default());
        self.want_grants(now);
    }

    fn want_grants(&mut self, now: Time) {
        let Some(joining) = &mut self.change.joining else { return };
        let is_over = |at: Time| now.since(at) >= CATCH_UP_REPEAT;
        if joining.sponsor.is_some() && joining.asked_to_catch_up.is_some_and(is_over) {
            // It may be gone by now, so all are asked once more, it among them. What was adopted is complete all the same.
            *joining = Joining { is_adopted: joining.is_adopted, ..Joining::default() };
        }
        let Some(joining) = &self.change.joining else { return };
        let voters = self.voters();
        let known: BTreeSet<NodeId> = voters.previous.iter().chain(&voters.members).copied().collect();
        let missing = |node: &NodeId| joining.sponsor.is_none() && !joining.reports.contains_key(node);
        for node in known.into_iter().filter(missing).collect::<Vec<_>>() {
            self.change_grants_wanted_from(node);
        }
        self.catch_up(now);
    }

    fn change_grants_wanted_from(&mut self, node: NodeId) {
        let voters = self.voters();
        let may_know = voters.previous.contains(&node) || (voters.contains(node) && node != self.me);
        if self.change.joining.is_some() && may_know {
            let version = voters.version - 1;
            self.send(node, LeaseMessage::GrantsWanted { version });
        }
    }

    /// Tells the next voters what this one granted, once it will grant nothing more under the old set, not even after a
    /// crash.
    pub(super) fn on_grants_wanted(&mut self, from: NodeId, version: u64, now: Time) {
        let current = self.voters().version;
        if current < version || (current == version && !self.is_sealed()) {
            self.show_voters(from);
        } else if self.journal.ready() >= version {
            let grants = self.slots.iter().filter_map(|(&lease, slot)| slot.report(lease, now)).collect();
            let is_complete = self.journal.ready() > version;
            self.send_durably(from, LeaseMessage::Grants { version, is_complete, grants });
        }
    }

    pub(super) fn on_grants(
        &mut self,
        from: NodeId,
        (version, is_complete): (u64, bool),
        grants: Vec<Grant>,
        now: Time,
    ) {
        let voters = self.journal.state.voters.clone();
        let may_know = voters.previous.contains(&from) || (is_complete && voters.contains(from));
        if version.saturating_add(1) != voters.version || !may_know {
            return;
        }
        let Some(joining) = self.change.joining.as_mut().filter(|joining| joining.sponsor.is_none()) else { return };
        if is_complete {
            // What it granted since is not this node's to know: those grants have a majority without this node.
            (joining.sponsor, joining.asked_to_catch_up) = (Some(from), None);
            joining.reports = BTreeMap::from([(from, grants)]);
        } else {
            joining.reports.entry(from).or_insert(grants);
        }
        let is_enough = is_complete || joining.reports.len() >= voters.previous_majority();
        if !is_enough || joining.is_adopted {
            self.catch_up(now);
            return;
        }
        joining.is_adopted = true;
        let reports: Vec<Grant> = joining.reports.values().flatten().copied().collect();
        for lease in LeaseId::all() {
            let of_lease: Vec<Grant> = reports.iter().filter(|grant| grant.lease == lease).copied().collect();
            let slot = self.slots.entry(lease).or_default();
            slot.adopt(&of_lease, now);
            if let Some(granted) = slot.granted() {
                self.journal.grant(lease, Some(granted));
                self.candidate.know_epoch(lease, granted.epoch);
            }
        }
        self.journal.touch();
        self.catch_up(now);
    }

    /// Has the document merged from a majority of the previous voters, this node's own copy counts if it was one, or from
    /// a voter that has done so.
    fn catch_up(&mut self, now: Time) {
        let majority = self.voters().previous_majority();
        let (me, version) = (self.me, self.voters().version);
        let Some(joining) = self.change.joining.as_mut().filter(|joining| joining.is_adopted) else { return };
        if joining.asked_to_catch_up.is_some_and(|at| now.since(at) < CATCH_UP_REPEAT) {
            return;
        }
        if joining.reports.is_empty() {
            return; // those that were asked have not answered
        }
        joining.asked_to_catch_up = Some(now);
        let reported = || joining.reports.keys().copied().filter(|&node| node != me).collect();
        let (from, need) = match joining.sponsor {
            Some(sponsor) => (vec![sponsor], 1),
            None => (reported(), majority - usize::from(joining.reports.contains_key(&me))),
        };
        if need == 0 {
            self.on_caught_up(version);
        } else {
            self.act(Action::CatchUp { version, from, need });
        }
    }

    /// Becomes ready once that is on disk.
    pub(super) fn on_caught_up(&mut self, version: u64) {
        let is_adopted = self.change.joining.as_ref().is_some_and(|joining| joining.is_adopted);
        if is_adopted && version == self.voters().version {
            self.change.joining = None;
            self.journal.state.ready = version;
            self.journal.touch();
        }
    }
}
