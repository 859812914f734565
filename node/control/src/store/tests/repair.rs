//! Repair by digests: any histories end in equal documents, within the limits of a frame, in a bounded number of rounds.

use shoal_protocol::message::{RECORDS_MAX, Summary, SyncMessage};
use shoal_protocol::token::Role;

use super::*;

/// Carries a message, as a frame would.
fn carried(message: SyncMessage) -> SyncMessage {
    let frame = codec::encode(&message).unwrap();
    codec::decode(&frame).unwrap()
}

fn merge_all(store: &mut Store, records: &[Record], from_role: Role) {
    assert!(records.len() <= RECORDS_MAX);
    for record in records {
        if authority(record, NodeId(1), from_role).is_ok() {
            assert!(!matches!(store.merge(record), Merged::Refused(_)));
        }
    }
}

/// One round begun by `here`, in which both are peers of the given roles; returns whether anything was sent.
fn round(here: (&mut Store, Role), there: (&mut Store, Role)) -> bool {
    let (here, here_role) = here;
    let (there, there_role) = there;
    let SyncMessage::Digest(digests) = carried(here.sync_digest()) else { unreachable!() };
    let Some(summary) = there.answer_digest(&digests) else {
        return false;
    };
    let SyncMessage::Summary { buckets, records, .. } = carried(summary) else { panic!("not a summary") };
    let Some(exchange) = here.answer_summary(&buckets, &records, (NodeId(1), there_role), &BTreeSet::new()) else {
        return false;
    };
    let SyncMessage::Exchange { records, wanted } = carried(exchange) else { panic!("not an exchange") };
    merge_all(there, &records, here_role);
    if let Some(answer) = there.answer_exchange(&wanted) {
        let SyncMessage::Records(records) = carried(answer) else { panic!("not records") };
        merge_all(here, &records, there_role);
    }
    true
}

/// Rounds in both directions until the digests agree; returns how many.
fn repair(a: &mut Store, b: &mut Store, rounds_max: usize) -> usize {
    for rounds in 0..rounds_max {
        if a.digest() == b.digest() {
            return rounds;
        }
        round((a, Role::Manager), (b, Role::Manager));
        round((b, Role::Manager), (a, Role::Manager));
    }
    panic!("no agreement after {rounds_max} rounds");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Each write reaches some replicas at once, in any order and with repetitions; each replica sweeps when it likes;
    /// repair does the rest.
    #[test]
    fn replicas_agree_after_deltas_and_repair(
        writes in proptest::collection::vec((records(), any::<u8>(), any::<u8>()), 1..60)
    ) {
        let mut replicas = vec![Store::new(); 4];
        for (record, reached, sweeps) in &writes {
            for (index, replica) in replicas.iter_mut().enumerate() {
                if reached & (1 << index) != 0 {
                    replica.merge(record);
                }
                if sweeps & (0x11 << index) == 0x11 << index {
                    replica.prune_reports(NodeId(index as u128));
                    replica.collect();
                }
            }
            let late = usize::from(*sweeps) % writes.len();
            replicas[usize::from(*reached) % 4].merge(&writes[late].0);
        }
        for _ in 0..3 {
            for (one, other) in [(0, 1), (1, 2), (2, 3), (0, 3)] {
                let (left, right) = replicas.split_at_mut(other);
                repair(&mut left[one], &mut right[0], 10);
            }
        }
        for pair in replicas.windows(2) {
            prop_assert_eq!(counted(&pair[0]), counted(&pair[1]));
            prop_assert_eq!(pair[0].digest(), pair[1].digest());
        }
    }

    #[test]
    fn strange_sync_messages_do_no_harm(
        digests in proptest::collection::vec(any::<u64>(), 0..300),
        buckets in proptest::collection::vec(any::<u16>(), 0..20),
        hashes in proptest::collection::vec((records(), any::<u64>()), 0..20),
    ) {
        let mut store = Store::new();
        store.merge(&base(slot_key(1, 1), stamp(1, 1), 1, None));
        let before = bytes(&store);
        let summary = |(record, hash): &(Record, u64)| Summary { key: record.key, stamp: record.stamp, hash: *hash };
        let summaries: Vec<Summary> = hashes.iter().map(summary).collect();
        let wanted: Vec<Key> = hashes.iter().map(|(record, _)| record.key).collect();
        store.answer_digest(&digests);
        store.answer_summary(&buckets, &summaries, (NodeId(1), Role::Worker), &BTreeSet::new());
        store.answer_exchange(&wanted);
        prop_assert_eq!(bytes(&store), before);
    }
}

#[test]
fn equal_documents_have_nothing_to_say() {
    let mut one = Store::new();
    one.merge(&base(slot_key(1, 1), stamp(1, 1), 1, None));
    let mut two = one.clone();
    assert_eq!(two.answer_digest(&one.buckets()), None);
    assert!(!round((&mut one, Role::Manager), (&mut two, Role::Manager)));
}

#[test]
fn large_documents_take_several_rounds_of_bounded_frames() {
    let mut full = Store::new();
    let spec = format!(r#"{{"Name":"{}"}}"#, "x".repeat(100 * 1024));
    for service in 0..100 {
        full.put(Key::Service(ServiceId(service)), stamp(1, 1), NodeId(1), Some(&service_object(&spec))).unwrap();
    }
    for service in 0..20_000 {
        full.put(Key::Progress(ServiceId(service)), stamp(1, 1), NodeId(1), None).unwrap();
    }
    let mut largest = base(Key::Service(ServiceId(5000)), stamp(1, 1), 1, None);
    largest.body = Some(vec![0; BODY_BYTES_MAX]);
    full.merge(&largest);
    let mut empty = Store::new();
    let rounds = repair(&mut empty, &mut full, 100);
    assert!(rounds > 3, "{rounds} rounds");
    assert_eq!(bytes(&empty), bytes(&full));
}

#[test]
fn many_overlays_of_one_key_are_repaired_across_frames() {
    let key = Key::Service(ServiceId(1));
    let mut full = Store::new();
    for actor in 0..8 {
        full.merge(&overlay(key, &[(actor, 1)], 1, &vec![actor as u8; 100 * 1024]));
    }
    let mut other = Store::new();
    other.merge(&base(key, stamp(1, 1), 1, Some(&service_object("{}"))));
    repair(&mut full, &mut other, 10);
    assert_eq!(bytes(&full), bytes(&other));
    assert_eq!(full.records(&key).len(), 9);
}

#[test]
fn what_a_worker_lacks_authority_for_is_not_asked_of_it() {
    let mut manager = Store::new();
    let mut worker = Store::new();
    let status = Value::NodeStatus(NodeStatus::default());
    let key = Key::NodeStatus(NodeId(1));
    for store in [&mut manager, &mut worker] {
        store.put(Key::Node(NodeId(1)), stamp(1, 1), NodeId(2), Some(&node_object("{}"))).unwrap();
    }
    worker.put(key, stamp(1, 1), NodeId(1), Some(&status)).unwrap();
    worker.put(Key::Service(ServiceId(1)), stamp(1, 1), NodeId(1), Some(&service_object("{}"))).unwrap();
    round((&mut manager, Role::Manager), (&mut worker, Role::Worker));
    assert!(manager.node_status(NodeId(1)).is_some());
    assert_eq!(manager.service(ServiceId(1)), None);
    let Some(SyncMessage::Summary { buckets, records, .. }) = worker.answer_digest(&manager.buckets()) else {
        panic!("they still differ");
    };
    assert_eq!(manager.answer_summary(&buckets, &records, (NodeId(1), Role::Worker), &BTreeSet::new()), None);
}

/// The whole way of a tombstone: confirmed by all, marked by the holder, dropped by all at different times, and a
/// straggler with the bare tombstone brings back neither the service nor lasting disagreement.
#[test]
fn a_collected_tombstone_does_not_resurrect() {
    let key = Key::Service(ServiceId(1));
    let mut stores = vec![Store::new(); 3];
    let alive = base(key, stamp(1, 1), 1, Some(&service_object("{}")));
    let gone = base(key, stamp(1, 2), 1, None);
    for store in &mut stores {
        store.merge(&alive);
        store.merge(&gone);
    }
    let listed: BTreeSet<NodeId> = (0..3).map(NodeId).collect();
    let mut tracker = Tombstones::new();
    for (node, store) in stores.iter().enumerate() {
        assert_eq!(tracker.ready(&listed), []);
        let asked = tracker.ask(NodeId(node as u128), stores[0].tombstones());
        tracker.confirmed(NodeId(node as u128), &store.confirm(&asked));
    }
    assert_eq!(tracker.ready(&listed), [key]);
    let mark = stores[0].put_collected(key, stamp(1, 3), NodeId(1)).unwrap();
    assert_eq!(stores[0].digest(), 0);
    stores[1].merge(&mark);
    assert_eq!(stores[1].collect(), BTreeSet::new(), "one call of grace");
    assert_eq!(stores[1].collect(), BTreeSet::from([key]));
    assert!(stores[1].is_empty());

    let (left, straggler) = stores.split_at_mut(2);
    repair(&mut left[1], &mut straggler[0], 3);
    assert_eq!(left[1].service(ServiceId(1)), None);
    assert_eq!(left[1].tombstones().count(), 1, "the bare tombstone came back");
    for other in [&mut left[1], &mut straggler[0]] {
        let mut holder = holder_of(&mark);
        repair(&mut holder, other, 3);
        assert_eq!(other.digest(), 0);
    }
    for store in &mut stores {
        store.collect();
        store.collect();
        assert!(store.is_empty());
    }
}

fn holder_of(mark: &Record) -> Store {
    let mut store = Store::new();
    store.merge(mark);
    store
}
