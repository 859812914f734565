//! Every order in which asks, releases, restarts and the passing of time can interleave, for one lease in a small cluster,
//! over the voter's own code and the holder's own count.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::{NodeId, Time};
use stateright::{Checker, Model, Property};

use crate::lease::voter::{Holder, Slot, Verdict, valid_until};

const VOTERS: usize = 3;
const CANDIDATES: usize = 2;
const EPOCH_MAX: u64 = 3;
const MESSAGES_MAX: usize = 2;

/// Half a lease.
const STEP_MS: u64 = 1500;
const TIME_MAX: u64 = 4 * STEP_MS;

/// What the model does that the real thing must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    NoRestartWait,
    ForgetfulVoter,
}

struct OneLease {
    broken: Broken,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Candidate {
    incarnation: u64,
    epoch: Option<u64>,
    tried: u64,
    granted: BTreeMap<usize, Time>,
    was_held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Message {
    candidate: usize,
    holder: Holder,
    voter: usize,
    epoch: u64,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Content {
    Ask { at: Time },
    Release { used: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now: Time,
    slots: Vec<Slot>,
    candidates: Vec<Candidate>,
    messages: BTreeSet<Message>,
    voter_restarts: u8,
    candidate_restarts: u8,
    /// The highest epoch under which the lease was held, and by whom.
    highest: Option<(u64, Holder)>,
    went_back: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Wait,
    Ask {
        candidate: usize,
        voter: usize,
    },
    GiveUp {
        candidate: usize,
    },
    /// The voter handles a message; its answer arrives or not.
    Deliver {
        message: Message,
        is_answered: bool,
    },
    RestartVoter(usize),
    RestartCandidate(usize),
}

impl State {
    fn holder(&self, candidate: usize) -> Holder {
        Holder { node: NodeId(candidate as u128 + 1), incarnation: self.candidates[candidate].incarnation }
    }

    fn holds(&self, candidate: &Candidate) -> bool {
        let granted = candidate.granted.iter().map(|(&voter, &at)| (NodeId(voter as u128), at)).collect();
        valid_until(&granted, VOTERS / 2 + 1).is_some_and(|until| self.now < until)
    }

    fn holders(&self) -> usize {
        self.candidates.iter().filter(|candidate| self.holds(candidate)).count()
    }

    fn note_held(&mut self, candidate: usize) {
        if self.candidates[candidate].was_held || !self.holds(&self.candidates[candidate]) {
            return;
        }
        self.candidates[candidate].was_held = true;
        let epoch = self.candidates[candidate].epoch.unwrap_or_default();
        self.went_back |= self.highest.is_some_and(|(highest, _)| highest >= epoch);
        self.highest = Some((epoch, self.holder(candidate)));
    }

    fn deliver(&mut self, message: Message, is_answered: bool) {
        self.messages.remove(&message);
        let slot = &mut self.slots[message.voter];
        match message.content {
            Content::Release { used } => drop(slot.release(message.holder, message.epoch, used)),
            Content::Ask { at } => {
                let verdict = slot.ask(message.holder, message.epoch, self.now);
                let is_current = self.holder(message.candidate) == message.holder;
                let candidate = &mut self.candidates[message.candidate];
                if !is_answered || !is_current || candidate.epoch != Some(message.epoch) {
                    return;
                }
                if matches!(verdict, Verdict::Granted { .. }) {
                    let last = candidate.granted.entry(message.voter).or_default();
                    *last = at.max(*last);
                    self.note_held(message.candidate);
                }
            }
        }
    }
}

impl Model for OneLease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: Time(0),
            slots: vec![Slot::default(); VOTERS],
            candidates: vec![Candidate::default(); CANDIDATES],
            messages: BTreeSet::new(),
            voter_restarts: 0,
            candidate_restarts: 0,
            highest: None,
            went_back: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now.0 < TIME_MAX {
            steps.push(Step::Wait);
        }
        for candidate in 0..CANDIDATES {
            let has_room = state.messages.len() < MESSAGES_MAX;
            let may_ask = state.candidates[candidate].epoch.is_some() || state.candidates[candidate].tried < EPOCH_MAX;
            if has_room && may_ask {
                steps.extend((0..VOTERS).map(|voter| Step::Ask { candidate, voter }));
            }
            if state.candidates[candidate].epoch.is_some() {
                steps.push(Step::GiveUp { candidate });
            }
            if state.candidate_restarts == 0 {
                steps.push(Step::RestartCandidate(candidate));
            }
        }
        for message in &state.messages {
            steps.push(Step::Deliver { message: message.clone(), is_answered: true });
            if matches!(message.content, Content::Ask { .. }) {
                steps.push(Step::Deliver { message: message.clone(), is_answered: false });
            }
        }
        if state.voter_restarts == 0 {
            steps.extend((0..VOTERS).map(Step::RestartVoter));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Wait => state.now = Time(state.now.0 + STEP_MS),
            Step::Ask { candidate, voter } => {
                // An epoch is above all that a voter told; the model lets every candidate know all of them.
                let known = state.slots.iter().map(Slot::epoch).max().unwrap_or_default();
                let chosen = &mut state.candidates[candidate];
                let epoch = *chosen.epoch.get_or_insert(chosen.tried.max(known) + 1);
                if epoch > EPOCH_MAX {
                    return None;
                }
                chosen.tried = epoch;
                let holder = state.holder(candidate);
                let content = Content::Ask { at: state.now };
                state.messages.insert(Message { candidate, holder, voter, epoch, content });
            }
            Step::GiveUp { candidate } => {
                let holder = state.holder(candidate);
                let chosen = &mut state.candidates[candidate];
                let epoch = chosen.epoch.take()?;
                let content = Content::Release { used: chosen.was_held };
                (chosen.was_held, chosen.granted) = (false, BTreeMap::new());
                for voter in 0..VOTERS {
                    let content = content.clone();
                    state.messages.insert(Message { candidate, holder, voter, epoch, content });
                }
            }
            Step::Deliver { message, is_answered } => state.deliver(message, is_answered),
            Step::RestartVoter(voter) => {
                state.voter_restarts += 1;
                let locked = self.broken != Broken::NoRestartWait;
                let granted = state.slots[voter].granted().filter(|_| self.broken != Broken::ForgetfulVoter);
                state.slots[voter] =
                    granted.map_or_else(Slot::default, |granted| Slot::restarted(granted, locked, state.now));
            }
            Step::RestartCandidate(candidate) => {
                state.candidate_restarts += 1;
                let incarnation = state.candidates[candidate].incarnation + 1;
                state.candidates[candidate] = Candidate { incarnation, ..Candidate::default() };
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one holder at most", |_, state: &State| state.holders() <= 1),
            Property::always("epochs only grow", |_, state: &State| !state.went_back),
            Property::sometimes("it changes hands", |_, state: &State| {
                state.highest.is_some_and(|(epoch, _)| epoch >= 2) && state.holders() == 1
            }),
        ]
    }
}

#[test]
fn no_interleaving_gives_a_lease_to_two() {
    let checker = OneLease { broken: Broken::Nothing }.checker().threads(1).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn without_the_wait_after_a_restart_two_hold_the_lease() {
    let checker = OneLease { broken: Broken::NoRestartWait }.checker().threads(1).spawn_bfs().join();
    assert!(checker.discovery("one holder at most").is_some());
}

#[test]
fn with_voters_that_forget_two_hold_the_lease() {
    let checker = OneLease { broken: Broken::ForgetfulVoter }.checker().threads(1).spawn_bfs().join();
    assert!(checker.discovery("one holder at most").is_some());
}
