//! A node that gives its tasks up before its daemon ends, and takes its place again after.
//!
//! That a node was drained by itself is noted in its record, as a label with what it was before and the index of that very
//! write. So a manager can tell it from what an operator wants: whatever the operator writes has another index, and stays.

use std::time::Duration;

use serde_json::Value;
use shoal_protocol::Time;
use shoal_protocol::spec::{Availability, NodeSpec};

/// The label of a node that drained itself: what it was before, and the index of the write, such as `active@7`.
pub const LABEL: &str = "shoal.drained";

/// Between two attempts to have the record changed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a manager is asked to do for the node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Drain it.
    Drain,
    /// Make it again what it was before that.
    Resume,
}

/// What a node sees of itself and of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// What its record says; `None` without a record.
    pub availability: Option<Availability>,
    /// Whether the record has the label.
    pub is_marked: bool,
    /// Its tasks that run or are wanted here. Counts only once the daemon was told to end, as does the next one.
    pub tasks: usize,
    /// Whether another node takes tasks.
    pub others: bool,
}

/// Why a daemon may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No task is left here.
    Empty,
    /// There is no other node for its tasks: they are better off here, where they go on without a daemon.
    Alone,
    /// So many tasks are left, and it was waited long enough.
    Late(usize),
}

/// The decisions of one node about its own record.
#[derive(Debug)]
pub struct Departure {
    /// Until when to wait, once the daemon was told to end.
    deadline: Option<Time>,
    /// Nothing is asked before.
    next_ask: Time,
    /// Whether an answer is waited for.
    is_asking: bool,
}

impl Departure {
    /// Begins with a node that stays.
    pub fn new(now: Time) -> Self {
        Self { deadline: None, next_ask: now, is_asking: false }
    }

    /// Notes that the daemon was told to end. It waits for its tasks to move, but no longer than this.
    pub fn leave(&mut self, wait: Duration, now: Time) {
        self.deadline = Some(now + wait);
        self.next_ask = now;
    }

    /// Returns whether the daemon was told to end.
    pub fn is_leaving(&self) -> bool {
        self.deadline.is_some()
    }

    /// Returns what to ask a manager for, if it is time to.
    pub fn poll(&mut self, sight: Sight, now: Time) -> Option<Ask> {
        let ask = self.wish(sight).filter(|_| !self.is_asking && now >= self.next_ask)?;
        self.is_asking = true;
        Some(ask)
    }

    fn wish(&self, sight: Sight) -> Option<Ask> {
        match (self.is_leaving(), sight.availability?) {
            (true, Availability::Active | Availability::Pause) => sight.others.then_some(Ask::Drain),
            (true, Availability::Drain) => None,
            (false, _) => sight.is_marked.then_some(Ask::Resume),
        }
    }

    /// Notes that what was asked for was answered, one way or the other: what came of it shows in the record.
    pub fn answered(&mut self, now: Time) {
        self.is_asking = false;
        self.next_ask = now + ASK_AGAIN;
    }

    /// Returns whether the daemon may end, once it was told to.
    pub fn end(&self, sight: Sight, now: Time) -> Option<End> {
        let deadline = self.deadline?;
        match sight.availability {
            _ if sight.tasks == 0 => Some(End::Empty),
            // Whom an operator has drained has no say in it.
            Some(Availability::Active | Availability::Pause) | None if !sight.others => Some(End::Alone),
            _ if now >= deadline => Some(End::Late(sight.tasks)),
            _ => None,
        }
    }

    /// Returns when to look again at the latest, if there is something to wait for.
    pub fn poll_timeout(&self, sight: Sight) -> Option<Time> {
        let asks = self.wish(sight).filter(|_| !self.is_asking).map(|_| self.next_ask);
        [self.deadline, asks].into_iter().flatten().min()
    }
}

/// Returns the spec with which a manager writes a node's record for the node itself; `None` if nothing is to be changed.
///
/// `json` and `index` are those of the present record. What else is in it stays.
pub fn rewritten(ask: Ask, json: &str, index: u64) -> Option<String> {
    let spec: NodeSpec = serde_json::from_str(json).ok()?;
    let mut value: Value = serde_json::from_str(json).ok()?;
    let object = value.as_object_mut()?;
    match ask {
        Ask::Drain if spec.availability == Availability::Drain => return None,
        Ask::Drain => {
            let mark = format!("{}@{}", word(spec.availability), index + 1);
            object.insert("Availability".to_owned(), word(Availability::Drain).into());
            let labels = object.entry("Labels").or_insert_with(|| Value::Object(Default::default()));
            if labels.is_null() {
                *labels = Value::Object(Default::default());
            }
            labels.as_object_mut()?.insert(LABEL.to_owned(), mark.into());
        }
        Ask::Resume => {
            let mark = spec.labels.get(LABEL)?;
            let before = mark.strip_suffix(&format!("@{index}"));
            object.get_mut("Labels")?.as_object_mut()?.remove(LABEL);
            if let Some(before) = before.filter(|_| spec.availability == Availability::Drain) {
                let before: Availability = serde_json::from_value(before.into()).unwrap_or_default();
                object.insert("Availability".to_owned(), word(before).into());
            }
        }
    }
    Some(value.to_string())
}

fn word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn sight(availability: Availability, tasks: usize) -> Sight {
        Sight { availability: Some(availability), is_marked: false, tasks, others: true }
    }

    fn at(secs: u64) -> Time {
        Time::default() + Duration::from_secs(secs)
    }

    #[test]
    fn a_node_drains_itself_and_ends_when_it_is_empty() {
        let mut departure = Departure::new(at(0));
        let active = sight(Availability::Active, 2);
        assert_eq!((departure.poll(active, at(1)), departure.end(active, at(1))), (None, None));
        departure.leave(WAIT, at(1));
        assert_eq!(departure.poll(active, at(1)), Some(Ask::Drain));
        assert_eq!(departure.poll(active, at(9)), None, "one question at a time");
        departure.answered(at(9));
        assert_eq!(departure.poll(active, at(9)), None, "not at once again");
        assert_eq!(departure.poll_timeout(active), Some(at(10)));
        assert_eq!(departure.poll(active, at(10)), Some(Ask::Drain));
        departure.answered(at(10));
        let drained = sight(Availability::Drain, 1);
        assert_eq!((departure.poll(drained, at(20)), departure.end(drained, at(20))), (None, None));
        assert_eq!(departure.poll_timeout(drained), Some(at(61)), "there is nothing to be done before");
        assert_eq!(departure.end(sight(Availability::Drain, 0), at(20)), Some(End::Empty));
        assert_eq!(departure.end(drained, at(61)), Some(End::Late(1)));
    }

    #[test]
    fn a_node_without_others_keeps_its_tasks() {
        let mut departure = Departure::new(at(0));
        departure.leave(WAIT, at(0));
        let alone = Sight { others: false, ..sight(Availability::Active, 2) };
        assert_eq!((departure.poll(alone, at(0)), departure.end(alone, at(0))), (None, Some(End::Alone)));
        let drained = Sight { others: false, ..sight(Availability::Drain, 2) };
        assert_eq!(departure.end(drained, at(0)), None, "an operator's drain is waited for");
        let unlisted = Sight { availability: None, ..alone };
        assert_eq!((departure.poll(unlisted, at(0)), departure.end(unlisted, at(0))), (None, Some(End::Alone)));
    }

    #[test]
    fn a_node_that_is_back_asks_until_its_mark_is_gone() {
        let mut departure = Departure::new(at(0));
        let marked = Sight { is_marked: true, ..sight(Availability::Drain, 0) };
        assert_eq!(departure.poll(marked, at(0)), Some(Ask::Resume));
        departure.answered(at(5));
        assert_eq!(departure.poll_timeout(marked), Some(at(6)));
        assert_eq!(departure.poll(marked, at(6)), Some(Ask::Resume));
        departure.answered(at(6));
        assert_eq!(departure.poll(sight(Availability::Active, 0), at(9)), None);
        assert_eq!(departure.poll_timeout(sight(Availability::Active, 0)), None);
    }

    #[test]
    fn what_a_node_does_to_its_record_is_undone_and_nothing_else_is() {
        for before in [
            r#"{"Role":"worker","Availability":"active","Labels":{"zone":"a"},"Unknown":7}"#,
            r#"{"Role":"manager","Availability":"pause","Labels":{}}"#,
        ] {
            let drained = rewritten(Ask::Drain, before, 7).unwrap();
            let spec: NodeSpec = serde_json::from_str(&drained).unwrap();
            assert_eq!(spec.availability, Availability::Drain);
            assert!(spec.labels[LABEL].ends_with("@8"), "{drained}");
            assert_eq!(rewritten(Ask::Drain, &drained, 8), None);
            let resumed: Value = serde_json::from_str(&rewritten(Ask::Resume, &drained, 8).unwrap()).unwrap();
            assert_eq!(resumed, serde_json::from_str::<Value>(before).unwrap());
        }
        let unlabelled = r#"{"Role":"worker","Labels":null}"#;
        let drained = rewritten(Ask::Drain, unlabelled, 1).unwrap();
        assert!(rewritten(Ask::Resume, &drained, 2).unwrap().contains(r#""Availability":"active""#));
    }

    #[test]
    fn an_operators_word_stays() {
        let by_operator = r#"{"Role":"worker","Availability":"drain","Labels":{}}"#;
        assert_eq!(rewritten(Ask::Drain, by_operator, 3), None, "it is not marked as the node's own");
        assert_eq!(rewritten(Ask::Resume, by_operator, 3), None);
        // It drained itself with index 8, and was then drained by an operator as well.
        let drained = rewritten(Ask::Drain, r#"{"Role":"worker","Availability":"active","Labels":{}}"#, 7).unwrap();
        let resumed: NodeSpec = serde_json::from_str(&rewritten(Ask::Resume, &drained, 9).unwrap()).unwrap();
        assert_eq!((resumed.availability, resumed.labels.len()), (Availability::Drain, 0));
        // Or was made active already.
        let active = drained.replace(r#""drain""#, r#""active""#);
        let resumed: NodeSpec = serde_json::from_str(&rewritten(Ask::Resume, &active, 9).unwrap()).unwrap();
        assert_eq!((resumed.availability, resumed.labels.len()), (Availability::Active, 0));
        assert_eq!(rewritten(Ask::Drain, "no JSON", 1), None);
    }
}
