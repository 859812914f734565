//! The laws of merging: commutative, associative, idempotent. Three broken merges show that the checker sees a violation.

use std::collections::BTreeMap;

use crdts::mvreg::Op;
use crdts::{CmRDT, CvRDT, Dot, LWWReg, MVReg};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// What the laws are about: a state that takes records and gives them back.
trait Document: Clone + Default {
    fn take(&mut self, record: &Record);
    fn give(&self) -> Vec<Record>;

    fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        other.give().iter().for_each(|record| joined.take(record));
        joined
    }

    fn of(records: &[Record]) -> Self {
        let mut document = Self::default();
        records.iter().for_each(|record| document.take(record));
        document
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.give().iter().map(|record| codec::encode(record).unwrap()).collect()
    }
}

impl Document for Store {
    fn take(&mut self, record: &Record) {
        assert!(!matches!(self.merge(record), Merged::Refused(_)), "{record:?}");
    }

    fn give(&self) -> Vec<Record> {
        self.keys().flat_map(|key| self.records(key)).collect()
    }
}

/// Returns the law that three documents break, if any; what the documents hold is compared as bytes.
fn broken_law<D: Document>(a: &D, b: &D, c: &D) -> Option<&'static str> {
    let laws = [
        ("commutative", a.joined(b), b.joined(a)),
        ("associative", a.joined(b).joined(c), a.joined(&b.joined(c))),
        ("idempotent", a.joined(b), a.joined(b).joined(b).joined(a)),
    ];
    laws.iter().find(|(_, left, right)| left.bytes() != right.bytes()).map(|(law, ..)| *law)
}

fn histories() -> impl Strategy<Value = [Vec<Record>; 3]> {
    let history = || proptest::collection::vec(records(), 0..8);
    [history(), history(), history()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_store_obeys_the_laws([a, b, c] in histories()) {
        let (a, b, c) = (Store::of(&a), Store::of(&b), Store::of(&c));
        prop_assert_eq!(broken_law(&a, &b, &c), None);
    }

    #[test]
    fn any_order_of_arrival_gives_the_same_document(
        (there, elsewhere) in proptest::collection::vec(records(), 0..24)
            .prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle()))
    ) {
        let (there, elsewhere) = (Store::of(&there), Store::of(&elsewhere));
        prop_assert_eq!(bytes(&there), bytes(&elsewhere));
        prop_assert_eq!(there.digest(), elsewhere.digest());
        prop_assert_eq!(there.buckets(), elsewhere.buckets());
        prop_assert_eq!(&there.assigned, &elsewhere.assigned);
        prop_assert_eq!(&there.quarantined, &elsewhere.quarantined);
    }

    #[test]
    fn digests_kept_up_to_date_equal_digests_made_anew(
        records in proptest::collection::vec(records(), 0..40), prune: bool
    ) {
        let mut store = Store::of(&records);
        if prune {
            for _ in 0..2 {
                store.prune_reports(NodeId(1));
                store.collect();
            }
        }
        let fresh = rebuilt(&store);
        prop_assert_eq!(store.digest(), fresh.digest());
        prop_assert_eq!(store.buckets(), fresh.buckets());
        prop_assert_eq!(counted(&store), counted(&Store::of(&records)));
    }
}

/// Whatever came last wins.
#[derive(Clone, Default)]
struct LastArrived(BTreeMap<Key, Record>);

impl Document for LastArrived {
    fn take(&mut self, record: &Record) {
        self.0.insert(record.key, record.clone());
    }

    fn give(&self) -> Vec<Record> {
        self.0.values().cloned().collect()
    }
}

/// The greater stamp wins, and nothing decides between equal ones.
#[derive(Clone, Default)]
struct StampAlone(BTreeMap<Key, LWWReg<Record, Stamp>>);

impl Document for StampAlone {
    fn take(&mut self, record: &Record) {
        let theirs = LWWReg { val: record.clone(), marker: record.stamp };
        self.0.entry(record.key).and_modify(|ours| ours.merge(theirs.clone())).or_insert(theirs);
    }

    fn give(&self) -> Vec<Record> {
        self.0.values().map(|register| register.val.clone()).collect()
    }
}

/// `MVReg` as it comes, which keeps the first of two values with one clock.
#[derive(Clone, Default)]
struct FirstOfTwins(BTreeMap<Key, MVReg<Record, u64>>);

impl Document for FirstOfTwins {
    fn take(&mut self, record: &Record) {
        let Layer::Overlay { clock, .. } = &record.layer else {
            return;
        };
        let clock = clock.iter().map(|(actor, counter)| Dot::new(*actor, *counter)).collect();
        let mut single = MVReg::new();
        single.apply(Op::Put { clock, val: record.clone() });
        self.0.entry(record.key).or_default().merge(single);
    }

    fn give(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.0.values().flat_map(|register| register.read().val).collect();
        records.sort_by_key(Record::hash);
        records
    }
}

#[test]
fn the_checker_finds_what_broken_merges_break() {
    fn finds<D: Document>() -> bool {
        let mut runner = TestRunner::deterministic();
        (0..5000).any(|_| {
            let [a, b, c] = histories().new_tree(&mut runner).unwrap().current();
            broken_law(&D::of(&a), &D::of(&b), &D::of(&c)).is_some()
        })
    }
    assert!(finds::<LastArrived>(), "last arrived wins");
    assert!(finds::<StampAlone>(), "no tie-break");
    assert!(finds::<FirstOfTwins>(), "first of twins wins");
    assert!(!finds::<Store>(), "the real one");
}
