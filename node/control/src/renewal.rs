//! When a node asks for its next credential, and whom.
//!
//! Mostly because the present one ends; at once when it should say something else, because the node was promoted or demoted.
//! A credential is renewed long before it ends, so a cluster may be without managers for weeks. Time, the managers that can be
//! asked and randomness are arguments; how a credential is issued and kept is the shells' business.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_protocol::{NodeId, Now, Time, WallTime};

/// How long before its end a credential is renewed at most; a short one is in the last third of its life.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// Between two looks at the wall clock, which may be set and which stands for nothing else here.
const CHECK_EVERY: Duration = Duration::from_secs(600);

/// The pause after the first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// The longest pause, before a quarter of jitter.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The pause after the first failure to get a credential that says what it should; it doubles up to [`PAUSE_MIN`].
const OUTDATED_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The pause while there is nobody to ask, and at a start: links have to come up first.
const NOBODY_PAUSE: Duration = Duration::from_secs(10);

/// When a credential was made, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From when on.
    pub made: WallTime,
    /// Until when.
    pub expires: WallTime,
}

impl Validity {
    /// Returns when the next one is to be got.
    pub fn renewal(self) -> WallTime {
        let third = self.expires.0.saturating_sub(self.made.0) / 3;
        WallTime(self.expires.0.saturating_sub(third.min(nanos(RENEW_BEFORE))))
    }
}

/// Where the next credential comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This node signs it: it is a manager and has the root's key.
    Itself,
    /// A manager that is connected.
    Manager(NodeId),
}

/// Decides when to renew one node's credential.
#[derive(Debug)]
pub struct Renewal {
    random: StdRng,
    valid: Validity,
    next: Time,
    failures: u32,
    /// Whom was asked last, and whether the answer is awaited.
    asked: Option<Source>,
    under_way: bool,
    /// Whether the present credential says something else than it should.
    outdated: bool,
}

impl Renewal {
    /// Starts with a credential, which may have ended.
    pub fn new(valid: Validity, seed: u64, now: Time) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, valid, next: now, failures: 0, asked: None, under_way: false, outdated: false }
    }

    /// Notes whether the present credential says something else than it should.
    pub fn set_outdated(&mut self, outdated: bool, now: Time) {
        if outdated && !self.outdated {
            (self.next, self.failures) = (now, 0);
        }
        self.outdated = outdated;
    }

    /// Returns whom to ask if it is time to. [`Renewal::renewed`] or [`Renewal::failed`] has to follow. `signs` tells whether
    /// this node can and may sign what it needs itself: another role is for others to give.
    pub fn poll(&mut self, managers: &BTreeSet<NodeId>, signs: bool, now: Now) -> Option<Source> {
        if self.under_way || now.time < self.next {
            return None;
        }
        if !self.outdated && now.wall < self.valid.renewal() {
            self.next = now.time + CHECK_EVERY;
            return None;
        }
        let source = self.choose(managers, signs);
        match source {
            Some(_) => (self.asked, self.under_way) = (source, true),
            None => self.next = now.time + if self.outdated { OUTDATED_PAUSE_MIN } else { NOBODY_PAUSE },
        }
        source
    }

    /// Notes the new credential, which is in use. Whether it says what it should by now is to be told anew.
    pub fn renewed(&mut self, valid: Validity, now: Time) {
        (self.valid, self.failures, self.asked, self.under_way) = (valid, 0, None, false);
        self.outdated = false;
        self.next = now + CHECK_EVERY;
    }

    /// Notes that the last attempt led to nothing. Another source is asked next time, if there is one.
    pub fn failed(&mut self, now: Time) {
        let (least, most) = if self.outdated { (OUTDATED_PAUSE_MIN, PAUSE_MIN) } else { (PAUSE_MIN, PAUSE_MAX) };
        let pause = least.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.under_way = false;
        self.next = now + pause + (pause / 4).mul_f64(self.random.random());
    }

    /// Returns when [`Renewal::poll`] is due; `None` while an answer is awaited.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.under_way).then_some(self.next)
    }

    fn choose(&mut self, managers: &BTreeSet<NodeId>, signs: bool) -> Option<Source> {
        if signs && self.asked != Some(Source::Itself) {
            return Some(Source::Itself);
        }
        let others: Vec<Source> = managers.iter().copied().map(Source::Manager).collect();
        let fresh: Vec<Source> = others.iter().copied().filter(|source| Some(*source) != self.asked).collect();
        let pool = if fresh.is_empty() { others } else { fresh };
        match pool.len() {
            0 => signs.then_some(Source::Itself),
            count => pool.get(self.random.random_range(0..count)).copied(),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Source::{Itself, Manager};

    const DAY: u64 = 86_400;
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    /// Days and seconds since the start, on both clocks.
    fn at(days: u64, secs: u64) -> Now {
        let secs = days * DAY + secs;
        Now { time: Time(secs * 1000), wall: WallTime(secs * 1_000_000_000) }
    }

    fn renewal() -> Renewal {
        Renewal::new(valid(0, 90), 7, Time(0))
    }

    fn valid(made: u64, expires: u64) -> Validity {
        Validity { made: at(made, 0).wall, expires: at(expires, 0).wall }
    }

    #[test]
    fn a_short_one_is_renewed_in_the_last_third_of_its_life() {
        let valid = |secs: u64| Validity { made: at(1, 0).wall, expires: at(1, secs).wall };
        for (lasts, renewed_after) in [(3600, 2400), (90 * DAY, 60 * DAY), (3650 * DAY, 3620 * DAY), (0, 0)] {
            assert_eq!(valid(lasts).renewal(), at(1, renewed_after).wall);
        }
        assert!(CHECK_EVERY * 2 <= Duration::from_secs(1200), "the shortest are looked at twice in that time");
    }

    #[test]
    fn it_is_asked_for_in_the_last_thirty_days() {
        for (name, managers, signs, now, want) in [
            ("too early", &[A][..], false, at(59, DAY - 1), None),
            ("due", &[A], false, at(60, 0), Some(Manager(A))),
            ("nobody there", &[], false, at(60, 0), None),
            ("a manager asks itself", &[A], true, at(60, 0), Some(Itself)),
            ("over, but a manager needs nobody", &[], true, at(200, 0), Some(Itself)),
        ] {
            let managers = managers.iter().copied().collect();
            assert_eq!(renewal().poll(&managers, signs, now), want, "{name}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed() {
        let mut renewal = renewal();
        let managers = BTreeSet::from([A]);
        assert_eq!(renewal.poll(&managers, false, at(0, 0)), None);
        let due = renewal.poll_timeout().unwrap();
        assert!(due <= Time(600_000));
        assert_eq!(renewal.poll(&managers, false, Now { time: due, wall: at(70, 0).wall }), Some(Manager(A)));
    }

    #[test]
    fn failures_are_followed_by_others_and_by_pauses_with_jitter() {
        let mut renewal = renewal();
        let managers = BTreeSet::from([A, B]);
        let mut now = at(60, 0);
        let (mut last, mut pauses) = (None, Vec::new());
        for _ in 0..20 {
            let source = renewal.poll(&managers, false, now).unwrap();
            assert_ne!(Some(source), last, "another one each time");
            assert_eq!(renewal.poll(&managers, false, now), None, "one attempt at a time");
            assert_eq!(renewal.poll_timeout(), None);
            renewal.failed(now.time);
            let next = renewal.poll_timeout().unwrap();
            pauses.push(next.since(now.time));
            now = Now { time: next, ..now };
            last = Some(source);
        }
        assert!(pauses[0] >= PAUSE_MIN && pauses[0] <= PAUSE_MIN * 5 / 4);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX * 5 / 4));
        assert!(pauses[18] != pauses[19], "jitter: {pauses:?}");
        assert!(pauses.iter().sum::<Duration>() < RENEW_BEFORE, "many attempts fit in");
        renewal.renewed(valid(60, 150), now.time);
        assert_eq!(renewal.poll(&managers, false, at(119, 0)), None);
        assert!(renewal.poll(&managers, false, at(120, 0)).is_some());
    }

    #[test]
    fn a_manager_that_cannot_sign_asks_others() {
        let mut renewal = renewal();
        let managers = BTreeSet::from([A]);
        assert_eq!(renewal.poll(&managers, true, at(60, 0)), Some(Itself));
        renewal.failed(at(60, 0).time);
        assert_eq!(renewal.poll(&managers, true, at(60, 120)), Some(Manager(A)));
        renewal.failed(at(60, 120).time);
        assert_eq!(renewal.poll(&managers, true, at(61, 0)), Some(Itself));
    }

    #[test]
    fn one_that_says_the_wrong_thing_is_replaced_at_once() {
        let mut renewal = renewal();
        let managers = BTreeSet::from([A]);
        assert_eq!(renewal.poll(&managers, true, at(1, 0)), None);
        renewal.set_outdated(true, at(1, 1).time);
        assert_eq!(renewal.poll(&managers, false, at(1, 1)), Some(Manager(A)));
        renewal.failed(at(1, 1).time);
        assert_eq!(renewal.poll(&managers, false, at(1, 1)), None);
        assert_eq!(renewal.poll(&managers, false, at(1, 3)), Some(Manager(A)), "and soon again");
        renewal.renewed(valid(1, 91), at(1, 3).time);
        renewal.set_outdated(false, at(1, 3).time);
        assert_eq!(renewal.poll(&managers, true, at(1, 60)), None);
    }

    #[test]
    fn one_that_says_the_wrong_thing_again_is_replaced_at_once() {
        let mut renewal = renewal();
        let managers = BTreeSet::from([A]);
        renewal.set_outdated(true, at(1, 0).time);
        assert!(renewal.poll(&managers, true, at(1, 0)).is_some());
        // What it should say has changed while it was asked for.
        renewal.renewed(valid(1, 91), at(1, 1).time);
        renewal.set_outdated(true, at(1, 1).time);
        assert!(renewal.poll(&managers, true, at(1, 1)).is_some());
    }
}
