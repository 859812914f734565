//! Every order in which asks, releases, restarts and the passing of time can interleave, for one lease in a small cluster,
//! over the voter's own code and the holder's own count.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::{NodeId, Time};
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::lease::HOLD;
use crate::lease::voter::{Holder, Slot, Verdict, valid_until};

const CANDIDATES: usize = 2;
const EPOCH_MAX: u64 = 2;

/// A lease: what was asked for in one step has run out in the next.
const STEP_MS: u64 = 3000;

/// What the model does that the real thing must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    NoRestartWait,
    ForgetfulVoter,
}

/// How much of it is explored. All of it at once would be too much.
struct OneLease {
    broken: Broken,
    voters: usize,
    /// Messages under way at a time; 0 if all arrive at once or never.
    delayed_max: usize,
    steps_max: u64,
    restarts_max: u8,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Delayed,
    /// The answer is lost if there is one and `is_answered` is false.
    Arrives {
        is_answered: bool,
    },
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
    restarts: u8,
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
        fate: Fate,
    },
    /// The lease is given back; one voter may hear of it, the other messages are lost.
    GiveUp {
        candidate: usize,
        voter: usize,
        fate: Fate,
    },
    /// A delayed message arrives.
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
        valid_until(&granted, self.slots.len() / 2 + 1).is_some_and(|until| self.now < until)
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

    /// Keeps states few: grants that have run out are alike.
    fn forget_what_cannot_matter(&mut self) {
        let now = self.now;
        for candidate in &mut self.candidates {
            candidate.granted.retain(|_, &mut at| now < at + HOLD);
        }
    }

    fn send(&mut self, message: Message, fate: Fate) {
        match fate {
            Fate::Delayed => drop(self.messages.insert(message)),
            Fate::Arrives { is_answered } => self.deliver(message, is_answered),
        }
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

impl OneLease {
    fn fates(&self, state: &State) -> impl Iterator<Item = Fate> + use<> {
        let delayed = (state.messages.len() < self.delayed_max).then_some(Fate::Delayed);
        let at_once = (self.delayed_max == 0).then_some([true, false]).into_iter().flatten();
        delayed.into_iter().chain(at_once.map(|is_answered| Fate::Arrives { is_answered }))
    }
}

impl Model for OneLease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: Time(0),
            slots: vec![Slot::default(); self.voters],
            candidates: vec![Candidate::default(); CANDIDATES],
            messages: BTreeSet::new(),
            restarts: 0,
            highest: None,
            went_back: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now.0 < self.steps_max * STEP_MS {
            steps.push(Step::Wait);
        }
        for candidate in 0..CANDIDATES {
            let may_ask = state.candidates[candidate].epoch.is_some() || state.candidates[candidate].tried < EPOCH_MAX;
            for (voter, fate) in (0..self.voters).flat_map(|voter| self.fates(state).map(move |fate| (voter, fate))) {
                if may_ask {
                    steps.push(Step::Ask { candidate, voter, fate });
                }
                if state.candidates[candidate].epoch.is_some() && fate != (Fate::Arrives { is_answered: false }) {
                    steps.push(Step::GiveUp { candidate, voter, fate });
                }
            }
            if state.restarts < self.restarts_max {
                steps.push(Step::RestartCandidate(candidate));
            }
        }
        for message in &state.messages {
            steps.push(Step::Deliver { message: message.clone(), is_answered: true });
            if matches!(message.content, Content::Ask { .. }) {
                steps.push(Step::Deliver { message: message.clone(), is_answered: false });
            }
        }
        if state.restarts < self.restarts_max {
            steps.extend((0..self.voters).map(Step::RestartVoter));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Wait => state.now = Time(state.now.0 + STEP_MS),
            Step::Ask { candidate, voter, fate } => {
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
                state.send(Message { candidate, holder, voter, epoch, content }, fate);
            }
            Step::GiveUp { candidate, voter, fate } => {
                let holder = state.holder(candidate);
                let chosen = &mut state.candidates[candidate];
                let epoch = chosen.epoch.take()?;
                let content = Content::Release { used: chosen.was_held };
                (chosen.was_held, chosen.granted) = (false, BTreeMap::new());
                state.send(Message { candidate, holder, voter, epoch, content }, fate);
            }
            Step::Deliver { message, is_answered } => state.deliver(message, is_answered),
            Step::RestartVoter(voter) => {
                state.restarts += 1;
                let locked = self.broken != Broken::NoRestartWait;
                let granted = state.slots[voter].granted().filter(|_| self.broken != Broken::ForgetfulVoter);
                state.slots[voter] =
                    granted.map_or_else(Slot::default, |granted| Slot::restarted(granted, locked, state.now));
            }
            Step::RestartCandidate(candidate) => {
                state.restarts += 1;
                let incarnation = state.candidates[candidate].incarnation + 1;
                state.candidates[candidate] = Candidate { incarnation, ..Candidate::default() };
            }
        }
        state.forget_what_cannot_matter();
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

/// Messages that are late and cross each other, in a cluster where nothing else goes wrong.
const DELAYS: OneLease = OneLease { broken: Broken::Nothing, voters: 3, delayed_max: 1, steps_max: 1, restarts_max: 0 };

/// A restart at any moment, of a voter or a candidate.
const RESTARTS: OneLease =
    OneLease { broken: Broken::Nothing, voters: 3, delayed_max: 0, steps_max: 1, restarts_max: 1 };

/// Late messages and restarts, with the fewest voters of which a majority is more than one.
const BOTH: OneLease = OneLease { broken: Broken::Nothing, voters: 2, delayed_max: 1, steps_max: 2, restarts_max: 1 };

#[test]
fn no_interleaving_gives_a_lease_to_two() {
    for model in [DELAYS, RESTARTS, BOTH] {
        let checker = model.checker().spawn_bfs().join();
        println!("{} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn without_the_wait_after_a_restart_two_hold_the_lease() {
    assert!(fails(Broken::NoRestartWait));
}

#[test]
fn with_voters_that_forget_two_hold_the_lease() {
    assert!(fails(Broken::ForgetfulVoter));
}

fn fails(broken: Broken) -> bool {
    let model = OneLease { broken, ..RESTARTS };
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    checker.discovery("one holder at most").is_some()
}
