//! Who may write what, for how long: leases granted by a majority of the voters, and the voters' own succession.
//!
//! After PaxosLease (Trencséni, Gazsó, Reinhardt, "PaxosLease: Diskless Paxos for Leases", arXiv 1209.4187), with one phase
//! instead of two: a voter grants a lease under an epoch to one candidate, if the epoch is above all it has granted and
//! its last grant has run out, was given back, or was the same node's. Two majorities meet in one voter, so two nodes never
//! hold a lease at once, as long as clock *rates* differ by less than 1%; clocks need not agree otherwise.
//! A rise of the epoch is on disk before it is answered, so epochs never repeat. A voter that restarts counts every grant
//! that it finds on disk as just given.
//!
//! Assumes that messages are only lost, late, repeated or reordered, never forged: the caller believes managers alone.
//! Knows nothing of what is written under a lease; [`Leases::may_append`] is the fence in that path.

mod candidate;
mod change;
mod journal;
mod rank;
mod voter;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use shoal_protocol::lease::{Answer, Ask, Ending, LeaseId, LeaseMessage, Release, VoterSet};
use shoal_protocol::{NodeId, Time};

pub use candidate::Renewals;
pub use journal::Durable;
pub use rank::desired_voters;
pub use voter::{Granted, Holder};

use candidate::Candidate;
use change::Change;
use journal::Journal;
use voter::{Slot, Verdict};

/// For how long a voter grants a lease.
pub const LEASE: Duration = Duration::from_secs(3);

/// For how long a holder relies on a grant, from before it asked: shorter than [`LEASE`] by the rates that two clocks may
/// differ by (1%), as much again for rounding and good measure.
pub const HOLD: Duration = Duration::from_millis(2940);

/// How often what is held is renewed and all voters are heard.
pub const RENEW_EVERY: Duration = Duration::from_secs(1);

/// How long an attempt may take before it is given up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How much longer each candidate waits than the one that ranks before it.
const RANK_DELAY: Duration = Duration::from_millis(150);

/// How long a voter counts as there after it answered: two rounds and the time an answer may take.
const QUORUM_WINDOW: Duration = Duration::from_millis(2500);

/// What is left of a grant when its renewal is overdue and candidates are told when it ends.
const OVERDUE: Duration = Duration::from_millis(1500);

/// Asks, and releases, that are read of one message at most: every lease once, twice over. The rest is ignored.
const ITEMS_MAX: usize = 34;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed; due at [`Leases::poll_timeout`].
    Tick,
    /// A manager sent a message.
    Message {
        /// Who.
        from: NodeId,
        /// What.
        message: LeaseMessage,
    },
    /// An [`Action::Persist`] is on disk.
    Persisted(u64),
    /// An [`Action::Persist`] failed. It is asked for again at the next round.
    PersistFailed(u64),
    /// Who could hold leases.
    Candidates {
        /// Live managers, this node included if it is one.
        eligible: Vec<NodeId>,
        /// Those of them that were stable for long enough to be handed leases that others hold.
        settled: Vec<NodeId>,
    },
    /// The document says who holds a lease.
    ClaimSeen {
        /// Which.
        lease: LeaseId,
        /// Who.
        holder: NodeId,
        /// Under which epoch.
        epoch: u64,
    },
    /// The document names decided voters.
    VotersSeen(VoterSet),
    /// This node holds the registry lease and finds that other nodes should vote.
    ProposeVoters(Vec<NodeId>),
    /// An [`Action::CatchUp`] is done.
    CaughtUp {
        /// The version of the voters that it was for.
        version: u64,
    },
    /// This node is about to stop: it gives everything back and takes no more.
    Leave,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a message to another node, if it can be reached.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: LeaseMessage,
    },
    /// Replace the durable state and answer with [`Event::Persisted`]. One at a time.
    Persist {
        /// For the answer.
        token: u64,
        /// All of it.
        durable: Durable,
    },
    /// This node holds a lease from now on. The voters to merge from are [`Leases::granters`].
    Acquired {
        /// Which.
        lease: LeaseId,
        /// Under which epoch, higher than any before.
        epoch: u64,
    },
    /// This node holds a lease no longer.
    Lost {
        /// Which.
        lease: LeaseId,
        /// Under which epoch it was held.
        epoch: u64,
        /// Whether it ran out; if not, this node gave it back.
        expired: bool,
    },
    /// Newer voters are known.
    VotersChanged(VoterSet),
    /// This node is to vote: merge the whole document of some previous voters, then answer [`Event::CaughtUp`].
    /// Repeated while there is no answer, then perhaps with more nodes to choose from.
    CatchUp {
        /// The version of the voters.
        version: u64,
        /// From whom; all of them have stopped acknowledging under the previous voters.
        from: Vec<NodeId>,
        /// How many of them suffice.
        need: usize,
    },
}

/// Safety rules that a test may switch off, to prove that its checks notice. All are off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Start with no memory of what was granted.
    pub forget_grants_on_restart: bool,
    /// Count grants found on disk as ended.
    pub no_restart_wait: bool,
    /// Let voters acknowledge writes under any epoch.
    pub no_epoch_fence: bool,
}

/// All leases and the voters, as one node sees them.
#[derive(Debug)]
pub struct Leases {
    me: NodeId,
    faults: Faults,
    journal: Journal,
    slots: BTreeMap<LeaseId, Slot>,
    candidate: Candidate,
    change: Change,
    actions: VecDeque<Action>,
    /// Messages of this node to itself: the voter and the candidate in one node speak as two nodes do.
    inbox: VecDeque<LeaseMessage>,
    /// Sent after the messages that give the leases back.
    invitations: Vec<(NodeId, LeaseMessage)>,
    /// When the last event came.
    now: Time,
}

impl Leases {
    /// Returns the durable state of the first node of a new cluster.
    pub fn bootstrap(me: NodeId) -> Durable {
        Durable { voters: VoterSet::first(me), ready: 1, ..Durable::default() }
    }

    /// Starts with what is on disk; `restarted` unless that was made just now. The first action is to persist it anew.
    pub fn new(me: NodeId, durable: Durable, restarted: bool, now: Time) -> Self {
        Self::with_faults(me, durable, restarted, Faults::default(), now)
    }

    /// Starts with some rules switched off. For tests.
    pub fn with_faults(me: NodeId, mut durable: Durable, restarted: bool, faults: Faults, now: Time) -> Self {
        durable.incarnation += 1;
        if restarted && faults.forget_grants_on_restart {
            durable.grants.clear();
        }
        let locked = restarted && !faults.no_restart_wait;
        let as_slot = |(&lease, &granted): (&LeaseId, &Granted)| (lease, Slot::restarted(granted, locked, now));
        let mut leases = Self {
            me,
            faults,
            slots: durable.grants.iter().map(as_slot).collect(),
            journal: Journal::new(durable),
            candidate: Candidate::new(now),
            change: Change::default(),
            actions: VecDeque::new(),
            inbox: VecDeque::new(),
            invitations: Vec::new(),
            now,
        };
        for (&lease, slot) in &leases.slots {
            leases.candidate.know_epoch(lease, slot.epoch());
        }
        leases.resume_change(now);
        leases.settle(now);
        leases
    }

    /// Advances by one event.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        self.now = now;
        // What has run out is over before anything else is heard: a renewal that comes too late renews nothing.
        self.expire_claims(now);
        match event {
            Event::Tick => {}
            Event::Message { from, message } => self.on_message(from, message, now),
            Event::Persisted(token) => {
                let is_first = !self.journal.started;
                for (to, message) in self.journal.written(token) {
                    self.send(to, message);
                }
                if is_first && self.journal.started {
                    self.candidate.next_round = now;
                }
            }
            Event::PersistFailed(token) => self.journal.failed(token),
            Event::Candidates { mut eligible, settled } => {
                eligible.sort_unstable();
                eligible.dedup();
                if self.candidate.eligible.is_empty() {
                    self.candidate.next_round = now;
                }
                (self.candidate.eligible, self.candidate.settled) = (eligible, settled);
            }
            Event::ClaimSeen { lease, holder, epoch } => self.on_claim_seen(lease, holder, epoch),
            Event::VotersSeen(set) => self.learn_voters(set, now),
            Event::ProposeVoters(members) => self.propose(members, now),
            Event::CaughtUp { version } => self.on_caught_up(version),
            Event::Leave => {
                self.candidate.leaving = true;
                self.give_up_all(now);
            }
        }
        self.settle(now);
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Event::Tick`] is due. It may lie in the past.
    pub fn poll_timeout(&self) -> Option<Time> {
        let asks = LeaseId::all().filter_map(|lease| self.ask_at(lease, self.now));
        asks.chain(self.claims_end_at()).chain([self.candidate.next_round]).min()
    }

    /// Returns the epoch under which this node certainly holds a lease at this moment.
    pub fn held(&self, lease: LeaseId, now: Time) -> Option<u64> {
        let claim = self.candidate.claims.get(&lease)?;
        claim.held_until.filter(|&until| now < until).map(|_| claim.epoch)
    }

    /// Returns who holds a lease, as far as this node has heard, and under which epoch. It may be out of date.
    pub fn holder(&self, lease: LeaseId) -> Option<(NodeId, u64)> {
        self.candidate.holders.get(&lease).copied()
    }

    /// Returns for how long the known holder of a lease holds it if it does not renew. Only the holder and voters know.
    pub fn expires_in(&self, lease: LeaseId, now: Time) -> Option<Duration> {
        if let Some(until) = self.candidate.claims.get(&lease).and_then(|claim| claim.held_until) {
            return Some(until.since(now));
        }
        let (holder, epoch) = self.holder(lease)?;
        let slot = self.slots.get(&lease).filter(|_| self.voters().contains(self.me) && self.is_ready())?;
        let is_same = slot.granted().is_some_and(|granted| granted.holder.node == holder && granted.epoch == epoch);
        is_same.then(|| slot.remaining(now))
    }

    /// Returns the newest voters known to be decided.
    pub fn voters(&self) -> &VoterSet {
        &self.journal.state.voters
    }

    /// Returns whether a majority of the voters answered lately. Only managers and voters ask.
    pub fn has_quorum(&self, now: Time) -> bool {
        self.voters().version > 0 && self.voters_answering(now) >= self.voters().majority()
    }

    /// Returns whether this voter may acknowledge a write that was made under this lease and voter set.
    ///
    /// Whoever asks has to apply the write in the same step: later grants, and the next voters, merge what was applied.
    pub fn may_append(&self, voters: u64, lease: LeaseId, epoch: u64) -> bool {
        let granted = self.slots.get(&lease).map_or(0, Slot::epoch);
        let is_fenced = granted > epoch && !self.faults.no_epoch_fence;
        lease.is_valid() && voters == self.voters().version && self.is_ready() && !self.is_sealed() && !is_fenced
    }

    /// Returns the voters that granted the lease which this node holds: a majority, from which it has to merge first.
    pub fn granters(&self, lease: LeaseId) -> Vec<NodeId> {
        self.candidate.granters(lease)
    }

    /// Returns how leases were renewed since this was last asked.
    pub fn take_renewals(&mut self) -> Renewals {
        std::mem::take(&mut self.candidate.renewals)
    }

    /// Returns whether this node votes under the present set and has caught up with the previous one.
    pub fn is_ready(&self) -> bool {
        let voters = self.voters();
        voters.contains(self.me) && self.journal.ready() == voters.version
    }

    /// Returns whether this node is listed as a voter and does not count as one yet.
    pub fn is_catching_up(&self) -> bool {
        self.voters().contains(self.me) && !self.is_ready()
    }

    /// Does what is due, until nothing more follows.
    fn settle(&mut self, now: Time) {
        self.drain_inbox(now);
        let is_round = self.candidate.next_round <= now;
        self.ask_voters(now);
        for (to, message) in std::mem::take(&mut self.invitations) {
            self.send(to, message);
        }
        if is_round {
            self.tick_change(now);
        }
        self.drain_inbox(now);
        if let Some((token, durable)) = self.journal.poll_write(is_round) {
            self.act(Action::Persist { token, durable });
        }
    }

    fn drain_inbox(&mut self, now: Time) {
        while let Some(message) = self.inbox.pop_front() {
            self.on_message(self.me, message, now);
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn send(&mut self, to: NodeId, message: LeaseMessage) {
        if to == self.me {
            self.inbox.push_back(message);
        } else {
            self.act(Action::Send { to, message });
        }
    }

    /// Sends a message once everything that this node knows now is on disk.
    fn send_durably(&mut self, to: NodeId, message: LeaseMessage) {
        if let Some(message) = self.journal.promise(to, message) {
            self.send(to, message);
        }
    }

    fn on_message(&mut self, from: NodeId, message: LeaseMessage, now: Time) {
        match message {
            LeaseMessage::Ask { voters, round, incarnation, asks, releases } => {
                if voters != self.voters().version || self.is_sealed() {
                    self.on_release(Holder { node: from, incarnation }, &releases);
                    self.show_voters(from);
                } else if self.voters().contains(self.me) {
                    self.on_release(Holder { node: from, incarnation }, &releases);
                    self.on_ask(Holder { node: from, incarnation }, round, &asks, now);
                }
            }
            LeaseMessage::Answers { voters, round, ready, answers, ending } => {
                if voters != self.voters().version || !self.voters().contains(from) {
                    return;
                }
                if ready {
                    self.on_answers(from, round, &answers, &ending, now);
                } else {
                    self.on_not_ready(from, now);
                }
            }
            LeaseMessage::Handover { lease, epoch } => self.on_handover(lease, epoch),
            LeaseMessage::StaleVoters { current } => self.on_stale_voters(from, current, now),
            LeaseMessage::Prepare { version, ballot } => self.on_prepare(from, version, ballot),
            LeaseMessage::Promise { version, ballot, accepted } => {
                self.on_promise(from, version, ballot, accepted, now)
            }
            LeaseMessage::Accept { version, ballot, next } => self.on_accept(from, version, ballot, next, now),
            LeaseMessage::Accepted { version, ballot } => self.on_accepted(from, version, ballot, now),
            LeaseMessage::Outbid { version, ballot } => self.on_outbid(version, ballot, now),
            LeaseMessage::Decided(set) => self.learn_voters(set, now),
            LeaseMessage::GrantsWanted { version } => self.on_grants_wanted(from, version, now),
            LeaseMessage::Grants { version, is_complete, grants } => {
                self.on_grants(from, (version, is_complete), grants, now);
            }
        }
    }

    /// Answers a candidate: renewals at once, whatever has to be on disk first when it is.
    fn on_ask(&mut self, asker: Holder, round: u64, asks: &[Ask], now: Time) {
        let voters = self.voters().version;
        if !self.is_ready() {
            let (answers, ending) = (Vec::new(), Vec::new());
            self.send(asker.node, LeaseMessage::Answers { voters, round, ready: false, answers, ending });
            return;
        }
        let (mut at_once, mut later) = (Vec::new(), Vec::new());
        for &ask in asks.iter().filter(|ask| ask.lease.is_valid() && ask.epoch > 0).take(ITEMS_MAX) {
            let slot = self.slots.entry(ask.lease).or_default();
            match slot.ask(asker, ask.epoch, now) {
                Verdict::Granted { rose: false } if self.journal.is_saved(ask.lease) => {
                    at_once.push(Answer::Granted(ask))
                }
                Verdict::Granted { rose } => {
                    later.push(Answer::Granted(ask));
                    if rose {
                        self.journal.grant(ask.lease, slot.granted());
                    }
                }
                Verdict::Refused { granted, remaining } => at_once.push(Answer::Refused {
                    ask,
                    epoch: granted.epoch,
                    holder: granted.holder.node,
                    remaining_ms: as_millis(remaining),
                }),
            }
        }
        let ending = self.ending(now);
        let ready = true;
        self.send(asker.node, LeaseMessage::Answers { voters, round, ready, answers: at_once, ending: ending.clone() });
        if !later.is_empty() {
            self.send_durably(asker.node, LeaseMessage::Answers { voters, round, ready, answers: later, ending });
        }
    }

    fn on_release(&mut self, asker: Holder, releases: &[Release]) {
        for release in releases.iter().take(ITEMS_MAX) {
            let Some(slot) = self.slots.get_mut(&release.lease) else { continue };
            if slot.release(asker, release.epoch, release.used) {
                self.journal.grant(release.lease, slot.granted());
            }
        }
    }

    fn ending(&self, now: Time) -> Vec<Ending> {
        let unknown = Slot::default();
        let slots = LeaseId::all().map(|lease| (lease, self.slots.get(&lease).unwrap_or(&unknown)));
        let ending = slots.filter(|(_, slot)| slot.remaining(now) < OVERDUE);
        ending
            .map(|(lease, slot)| Ending { lease, epoch: slot.epoch(), remaining_ms: as_millis(slot.remaining(now)) })
            .collect()
    }
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
