//! Single rules: what is refused, what is quarantined, what counts, what is read back.

use shoal_protocol::record::CLOCK_MAX;
use shoal_protocol::token::Role;

use super::*;

#[test]
fn malformed_envelopes_are_refused() {
    let service = Key::Service(ServiceId(1));
    let many: Vec<(u64, u64)> = (0..=CLOCK_MAX as u64).map(|actor| (actor, 1)).collect();
    let good = base(service, stamp(1, 1), 1, None);
    let clocked = |clock: &[(u64, u64)]| overlay(service, clock, 1, b"x");
    for (name, record, fine) in [
        ("a tombstone", good.clone(), true),
        ("a body too large", Record { body: Some(vec![0; BODY_BYTES_MAX + 1]), ..good.clone() }, false),
        ("a body of the largest size", Record { body: Some(vec![0; BODY_BYTES_MAX]), ..good.clone() }, true),
        ("a lease that does not exist", Record { key: Key::Claim(LeaseId(17)), ..good.clone() }, false),
        ("a foreign status", Record { key: Key::NodeStatus(NodeId(2)), ..good.clone() }, false),
        ("one's own status", Record { key: Key::NodeStatus(NodeId(1)), ..good.clone() }, true),
        ("a collected service", Record { schema: SCHEMA_COLLECTED, ..good.clone() }, true),
        ("a collected ban", Record { schema: SCHEMA_COLLECTED, key: Key::Node(NodeId(1)), ..good.clone() }, false),
        ("an overlay", clocked(&[(1, 1), (2, 1)]), true),
        ("an empty clock", clocked(&[]), false),
        ("an unsorted clock", clocked(&[(2, 1), (1, 1)]), false),
        ("an actor twice", clocked(&[(1, 1), (1, 2)]), false),
        ("a count of zero", clocked(&[(1, 0)]), false),
        ("a clock too long", clocked(&many), false),
        ("an overlay of a claim", Record { key: Key::Claim(LeaseId(1)), ..clocked(&[(1, 1)]) }, false),
        ("an overlay of a status", Record { key: Key::NodeStatus(NodeId(1)), ..clocked(&[(1, 1)]) }, false),
    ] {
        let mut store = Store::new();
        assert_eq!(matches!(store.merge(&record), Merged::New { .. }), fine, "{name}");
        assert_eq!(store.is_empty(), !fine, "{name}");
    }
}

#[test]
fn workers_are_believed_about_themselves_alone() {
    let status = |node| Record { key: Key::NodeStatus(NodeId(node)), ..base(Key::Voters, stamp(1, 1), node, None) };
    let task = Record { key: Key::TaskStatus(NodeId(1), TaskId(1)), ..status(1) };
    let service = base(Key::Service(ServiceId(1)), stamp(1, 1), 1, None);
    for (name, record, role, believed) in [
        ("own status", status(1), Role::Worker, true),
        ("own task", task, Role::Worker, true),
        ("another's status", status(2), Role::Worker, false),
        ("a service", service.clone(), Role::Worker, false),
        ("a manager's service", service, Role::Manager, true),
        ("a status passed on by a manager", status(2), Role::Manager, true),
    ] {
        assert_eq!(authority(&record, NodeId(1), role).is_ok(), believed, "{name}");
    }
}

#[test]
fn the_greater_stamp_wins_and_outcomes_are_told_apart() {
    let mut store = Store::new();
    let key = Key::Service(ServiceId(1));
    let old = base(key, stamp(1, 1), 1, Some(&service_object(r#"{"Name":"old"}"#)));
    let new = base(key, stamp(1, 2), 1, Some(&service_object(r#"{"Name":"new"}"#)));
    assert_eq!(store.merge(&old), Merged::New { durable: true });
    assert_eq!(store.merge(&new), Merged::New { durable: true });
    assert_eq!(store.merge(&new), Merged::Known);
    assert_eq!(store.merge(&old), Merged::Stale);
    assert_eq!(store.service_spec(ServiceId(1)).unwrap().name, "new");
    assert_eq!(store.record(&key), Some(new));
    assert_eq!(store.take_dirty(), BTreeSet::from([key]));
    assert_eq!(store.take_dirty(), BTreeSet::new());
}

#[test]
fn equal_stamps_of_two_authors_end_the_same_everywhere() {
    let key = Key::Service(ServiceId(1));
    let one = base(key, stamp(1, 1), 1, Some(&service_object("{}")));
    let two = base(key, stamp(1, 1), 2, Some(&service_object("{}")));
    let mut here = Store::new();
    let mut there = Store::new();
    for record in [&one, &two] {
        here.merge(record);
    }
    for record in [&two, &one] {
        there.merge(record);
    }
    assert_eq!(here.record(&key), there.record(&key));
    assert_eq!(here.digest(), there.digest());
}

#[test]
fn what_cannot_be_read_is_kept_digested_and_counted() {
    let key = Key::Service(ServiceId(1));
    let good = base(key, stamp(1, 1), 1, Some(&service_object("{}")));
    let newer = Record { schema: SCHEMA + 1, ..base(key, stamp(1, 2), 1, Some(&service_object("{}"))) };
    let damaged = Record { body: Some(vec![1, 2, 3]), ..base(key, stamp(1, 3), 1, None) };
    let not_json = base(key, stamp(1, 4), 1, Some(&service_object("{")));
    let mut store = Store::new();
    store.merge(&good);
    for record in [newer, damaged, not_json] {
        let before = store.digest();
        assert_eq!(store.merge(&record), Merged::New { durable: true });
        assert_ne!(store.digest(), before);
        assert_eq!(store.service(ServiceId(1)), None);
        assert_eq!(store.quarantined().len(), 1);
        assert_eq!(store.record(&key), Some(record));
    }
    let good = Record { stamp: stamp(1, 5), ..good };
    store.merge(&good);
    assert_eq!(store.quarantined().len(), 0);
    assert!(store.service(ServiceId(1)).is_some());
}

#[test]
fn a_write_is_checked_before_it_is_authored() {
    let mut store = Store::new();
    let claim = Value::Claim(Claim { lease: LeaseId(1), holder: NodeId(1) });
    let voters = Value::Voters(VoterSet { version: 1, members: vec![NodeId(2), NodeId(1)], previous: Vec::new() });
    assert!(matches!(store.put(Key::Voters, stamp(1, 1), NodeId(1), Some(&claim)), Err(PutError::Value(_))));
    assert!(matches!(store.put(Key::Voters, stamp(1, 1), NodeId(1), Some(&voters)), Err(PutError::Value(_))));
    assert!(store.is_empty());
    let key = Key::Claim(LeaseId(1));
    store.put(key, stamp(2, 1), NodeId(1), Some(&claim)).unwrap();
    let stale = store.put(key, stamp(1, 9), NodeId(1), Some(&claim));
    assert_eq!(stale, Err(PutError::Superseded { stamp: stamp(1, 9), current: stamp(2, 1) }));
    assert_eq!(store.claim(LeaseId(1)), Some((stamp(2, 1), &Claim { lease: LeaseId(1), holder: NodeId(1) })));
    let huge = service_object(&" ".repeat(BODY_BYTES_MAX));
    assert!(matches!(
        store.put(Key::Service(ServiceId(1)), stamp(1, 1), NodeId(1), Some(&huge)),
        Err(PutError::Record(RecordError::BodyTooLarge { .. }))
    ));
}

#[test]
fn tasks_are_found_by_their_node() {
    let mut store = Store::new();
    store.put(slot_key(1, 1), stamp(1, 1), NodeId(1), Some(&slot_of(&[(10, 1), (11, 2)]))).unwrap();
    store.put(slot_key(1, 2), stamp(1, 2), NodeId(1), Some(&slot_of(&[(12, 1)]))).unwrap();
    store.put(slot_key(2, 1), stamp(1, 3), NodeId(1), Some(&slot_of(&[(13, 1)]))).unwrap();
    let on = |store: &Store, node| {
        store.slots_on(NodeId(node)).map(|(service, _, task)| (service.0, task.id.0)).collect::<Vec<_>>()
    };
    assert_eq!(on(&store, 1), [(1, 10), (1, 12), (2, 13)]);
    assert_eq!(on(&store, 2), [(1, 11)]);
    store.put(slot_key(1, 1), stamp(1, 4), NodeId(1), Some(&slot_of(&[(14, 2), (10, 1)]))).unwrap();
    store.put(slot_key(1, 2), stamp(1, 5), NodeId(1), None).unwrap();
    assert_eq!(on(&store, 1), [(1, 10), (2, 13)]);
    assert_eq!(on(&store, 2), [(1, 14)]);
    assert_eq!(store.slots(ServiceId(1)).map(|(name, _)| name).collect::<Vec<_>>(), [SlotName::Replica(1)]);
    assert_eq!(store.all_slots().count(), 2);
}

#[test]
fn a_report_counts_while_a_slot_names_its_task() {
    let mut store = Store::new();
    let key = Key::TaskStatus(NodeId(1), TaskId(10));
    store.merge(&base(key, stamp(1, 1), 1, Some(&report("early"))));
    assert_eq!(store.digest(), 0, "it ran ahead of its slot");
    assert!(store.report(NodeId(1), TaskId(10)).is_some());
    store.put(slot_key(1, 1), stamp(1, 1), NodeId(2), Some(&slot_of(&[(10, 1)]))).unwrap();
    let slot_alone = store.record(&slot_key(1, 1)).unwrap().hash();
    assert_ne!(store.digest(), slot_alone);
    store.prune_reports(NodeId(3));
    store.prune_reports(NodeId(3));
    assert!(store.report(NodeId(1), TaskId(10)).is_some());
    // The task moves to another node: what the first says of it is no longer part of the document, and goes.
    let moved = store.put(slot_key(1, 1), stamp(1, 2), NodeId(2), Some(&slot_of(&[(10, 2)]))).unwrap();
    assert_eq!(store.digest(), moved.hash());
    store.prune_reports(NodeId(3));
    assert!(store.report(NodeId(1), TaskId(10)).is_some(), "one call of grace");
    store.prune_reports(NodeId(3));
    assert_eq!(store.report(NodeId(1), TaskId(10)), None);
}

#[test]
fn a_node_cannot_fill_the_store_with_reports() {
    let mut store = Store::new();
    let report = |task| base(Key::TaskStatus(NodeId(1), TaskId(task)), stamp(1, 1), 1, Some(&report("")));
    for task in 0..REPORTS_AHEAD_MAX as u128 {
        assert_eq!(store.merge(&report(task)), Merged::New { durable: false });
    }
    let refused = Merged::Refused(RecordError::TooManyReports { node: NodeId(1) });
    assert_eq!(store.merge(&report(5000)), refused);
    store.put(slot_key(1, 1), stamp(1, 1), NodeId(2), Some(&slot_of(&[(5000, 1)]))).unwrap();
    assert_eq!(store.merge(&report(5000)), Merged::New { durable: false });
}

#[test]
fn a_removed_node_is_banned_and_its_status_goes() {
    let mut store = Store::new();
    let status = Value::NodeStatus(NodeStatus::default());
    store.put(Key::NodeStatus(NodeId(1)), stamp(1, 1), NodeId(1), Some(&status)).unwrap();
    assert_eq!(store.digest(), 0);
    store.prune_reports(NodeId(1));
    store.prune_reports(NodeId(1));
    assert!(store.node_status(NodeId(1)).is_some(), "its own status waits for the cluster to list it");
    store.put(Key::Node(NodeId(1)), stamp(1, 1), NodeId(2), Some(&node_object("{}"))).unwrap();
    assert_eq!((store.is_listed(NodeId(1)), store.is_banned(NodeId(1)), store.nodes().count()), (true, false, 1));
    store.put(Key::Node(NodeId(1)), stamp(1, 2), NodeId(2), None).unwrap();
    assert_eq!((store.is_listed(NodeId(1)), store.is_banned(NodeId(1)), store.nodes().count()), (false, true, 0));
    store.prune_reports(NodeId(2));
    store.prune_reports(NodeId(2));
    assert!(store.node_status(NodeId(1)).is_none());
    assert!(store.tombstones().next().is_none(), "a ban is not collected");
    assert!(!store.is_banned(NodeId(7)));
}

#[test]
fn concurrent_overlays_are_kept_and_superseded_ones_are_not() {
    let mut store = Store::new();
    let key = Key::Service(ServiceId(1));
    let [one, two] = [overlay(key, &[(1, 1)], 1, b"one"), overlay(key, &[(2, 1)], 2, b"two")];
    let both = overlay(key, &[(1, 1), (2, 2)], 2, b"both");
    assert_eq!(store.merge(&one), Merged::New { durable: true });
    assert_eq!(store.merge(&two), Merged::New { durable: true });
    assert_eq!(store.records(&key).len(), 2);
    assert_eq!(store.merge(&both), Merged::New { durable: true });
    assert_eq!(store.records(&key), [both]);
    assert_eq!(store.merge(&one), Merged::Stale);
    assert_eq!(store.service(ServiceId(1)), None, "overlays are not read by this version");
    assert_eq!(store.record(&key), None);
    assert_eq!(store.quarantined().len(), 0);
}
