use shoal_protocol::object::Sealed;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::{Availability, NodeSpec};
use shoal_protocol::token::RoleGrant;
use shoal_protocol::value::{NodeStatus, Value};
use shoal_protocol::{Key, ObjectId, ServiceId, Stamp};

use super::*;
use crate::core::Event;
use crate::core::testing::{Disk, ME, alone, at, run, watch};
use crate::store::Store;

const OTHER: NodeId = NodeId(2);
const SECRET: ObjectId = ObjectId(5);

/// A manager that holds its leases, and its disk.
fn holder() -> (Control, Disk) {
    let (mut control, mut disk) = (alone(NodeStatus::default()), Disk::default());
    run(&mut control, &mut disk, 0, 4_000);
    (control, disk)
}

/// Lets a write through at a moment; returns what else was to be done in the next 100 ms.
fn write(control: &mut Control, disk: &mut Disk, write: Write, ms: u64) -> Vec<Action> {
    control.handle_event(Event::Request { request: ms, write }, at(ms));
    let (answers, actions) = watch(control, disk, ms, 100);
    assert!(matches!(answers[..], [(_, Ok(_))]), "{answers:?}");
    actions
}

fn role_write(control: &Control, node: NodeId, role: Role) -> Write {
    let version = control.store().node(node).unwrap().index;
    let spec = serde_json::to_string(&NodeSpec { role, ..NodeSpec::default() }).unwrap();
    Write::UpdateNode { id: node, version, spec }
}

fn admit(role: Role) -> Write {
    Write::AdmitNode { id: OTHER, role, availability: Availability::Active }
}

fn next_edition(control: &Control) -> Write {
    let mut cluster = control.store().cluster().unwrap().next_edition();
    cluster.root_pem = format!("root {}", cluster.edition);
    cluster.keys = [(ME, vec![1])].into();
    Write::UpdateCluster { cluster }
}

#[test]
fn a_manager_that_is_none_any_more_has_the_keys_replaced() {
    let (mut control, mut disk) = holder();
    let quiet = |actions: &[Action]| !actions.iter().any(|action| matches!(action, Action::Rotate));
    let admitted = write(&mut control, &mut disk, admit(Role::Worker), 4_000);
    assert!(quiet(&admitted) && !control.is_rotation_due());
    assert!(!control.may_have_key(OTHER), "it is a worker");

    let promotion = role_write(&control, OTHER, Role::Manager);
    assert!(quiet(&write(&mut control, &mut disk, promotion, 4_200)));
    assert!(control.store().cluster().unwrap().keys.contains_key(&OTHER), "it is noted before it has the key");
    assert!(control.may_have_key(OTHER));

    let demotion = role_write(&control, OTHER, Role::Worker);
    let actions = write(&mut control, &mut disk, demotion, 4_400);
    assert!(!quiet(&actions) && control.is_rotation_due());
    assert!(!control.may_have_key(OTHER));
    let (_, again) = watch(&mut control, &mut disk, 4_600, 1_200);
    assert!(!quiet(&again), "it is asked for until it is done");

    let rotation = next_edition(&control);
    assert!(quiet(&write(&mut control, &mut disk, rotation, 6_000)));
    assert!(!control.is_rotation_due() && control.is_outdated());
    assert!(control.is_rotation_under_way(), "this node still has its old credential");
    assert_eq!(control.store().cluster().unwrap().former_roots, [""]);
    control.handle_event(Event::Granted(RoleGrant { role: Role::Manager, index: 1, edition: 2 }), at(6_200));
    assert!(!control.is_outdated() && !control.is_rotation_under_way());
}

#[test]
fn a_removed_manager_and_a_user_have_the_keys_replaced() {
    let (mut control, mut disk) = holder();
    write(&mut control, &mut disk, admit(Role::Manager), 4_000);
    assert!(!control.is_rotation_due());
    write(&mut control, &mut disk, Write::RemoveNode { id: OTHER, force: true }, 4_200);
    assert!(control.is_rotation_due());
    let rotation = next_edition(&control);
    write(&mut control, &mut disk, rotation, 4_400);
    assert!(!control.is_rotation_due());
    let wanted = ClusterObject { rotate: true, ..control.store().cluster().unwrap().clone() };
    write(&mut control, &mut disk, Write::UpdateCluster { cluster: wanted }, 4_600);
    assert!(control.is_rotation_due());
}

#[test]
fn secrets_are_sealed_with_the_present_key_one_after_the_other() {
    let (mut control, mut disk) = holder();
    let sealed = |fill| vec![fill; shoal_protocol::object::SEAL_BYTES + 1];
    for id in [SECRET, ObjectId(6)] {
        let spec = format!(r#"{{"Name": "secret{}"}}"#, id.0);
        let create = Write::CreateObject { kind: Kind::Secret, id, spec, data: sealed(1), edition: 1 };
        assert_eq!(write(&mut control, &mut disk, create, 4_000 + id.0 as u64 * 100), []);
    }
    let version = control.store().object(Kind::Secret, SECRET).unwrap().index;
    let rotation = next_edition(&control);
    let actions = write(&mut control, &mut disk, rotation, 5_000);
    let asked = |actions: &[Action], secret| actions.contains(&Action::Reseal { secret });
    assert!(asked(&actions, SECRET) && !asked(&actions, ObjectId(6)));
    let reseal = |id| Write::ResealSecret { id, edition: 2, data: sealed(2) };
    assert!(asked(&write(&mut control, &mut disk, reseal(SECRET), 5_200), ObjectId(6)));
    let head = control.store().object(Kind::Secret, SECRET).unwrap();
    assert_eq!((head.edition, head.index), (2, version), "users do not see a change");
    let done = write(&mut control, &mut disk, reseal(ObjectId(6)), 5_400);
    assert!(!done.iter().any(|action| matches!(action, Action::Reseal { .. })));
    // A second copy changes nothing, and other bytes of another length are no copy.
    let again = Write::ResealSecret { id: SECRET, edition: 2, data: sealed(3) };
    write(&mut control, &mut disk, again, 5_600);
    assert_eq!(control.store().object_with_data(Kind::Secret, SECRET).unwrap().data, sealed(2));
    let other = Write::ResealSecret { id: SECRET, edition: 3, data: vec![0; 7] };
    control.handle_event(Event::Request { request: 9, write: other }, at(5_800));
    assert!(run(&mut control, &mut disk, 5_800, 100)[0].1.is_err());
}

#[test]
fn credentials_are_sealed_with_the_present_key_too() {
    let (mut control, mut disk) = holder();
    let id = ServiceId(7);
    let sealed = |edition| Some(Sealed { edition, data: vec![edition as u8; 50] });
    let spec = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x"}},"Mode":{"Replicated":{"Replicas":0}}}"#;
    let create = Write::CreateService { id, spec: spec.to_owned(), credentials: sealed(1) };
    let asked = |actions: &[Action]| actions.contains(&Action::ResealCredentials { service: id });
    assert!(!asked(&write(&mut control, &mut disk, create, 4_000)));
    let rotation = next_edition(&control);
    assert!(asked(&write(&mut control, &mut disk, rotation, 4_200)));
    let reseal = Write::ResealCredentials { id, version: 1, credentials: sealed(2), previous: None };
    assert!(!asked(&write(&mut control, &mut disk, reseal, 4_400)));
    assert_eq!(control.store().service(id).unwrap().credentials, sealed(2));
    // A manager that lags behind seals with the key that it knows.
    let late = ServiceId(8);
    let spec = spec.replace("web", "late");
    let create = Write::CreateService { id: late, spec, credentials: sealed(1) };
    let actions = write(&mut control, &mut disk, create, 4_600);
    assert!(actions.contains(&Action::ResealCredentials { service: late }));
}

#[test]
fn what_cannot_be_opened_holds_up_nothing_else() {
    let (mut control, mut disk) = holder();
    let spec = |name: &str| {
        format!(
            r#"{{"Name":"{name}","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}}}},"Mode":{{"Replicated":{{"Replicas":0}}}}}}"#
        )
    };
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let credentials = Some(Sealed { edition: 1, data: vec![1; 50] });
        let create = Write::CreateService { id: ServiceId(id), spec: spec(name), credentials };
        write(&mut control, &mut disk, create, 4_000 + id as u64 * 100);
    }
    let rotation = next_edition(&control);
    let mut actions = write(&mut control, &mut disk, rotation, 4_500);
    // Nobody seals anything.
    actions.extend(watch(&mut control, &mut disk, 4_600, 3_400).1);
    let asked = actions.iter().filter_map(|action| match action {
        Action::ResealCredentials { service } => Some(service.0),
        _ => None,
    });
    assert_eq!(asked.collect::<Vec<_>>(), [1, 2, 3, 1]);
}

#[test]
fn a_manager_that_is_not_noted_is_noted_by_itself() {
    let (mut control, mut disk) = holder();
    write(&mut control, &mut disk, admit(Role::Manager), 4_000);
    let mut cluster = control.store().cluster().unwrap().clone();
    cluster.keys.remove(&OTHER);
    write(&mut control, &mut disk, Write::UpdateCluster { cluster }, 4_200);
    assert!(control.store().cluster().unwrap().keys.contains_key(&OTHER));
    assert!(control.store().stamp(&Key::Cluster).is_some());
}

#[test]
fn what_a_former_root_signed_says_nothing_beyond_the_record() {
    let (mut control, mut disk) = holder();
    write(&mut control, &mut disk, admit(Role::Worker), 4_000);
    let forged = RoleGrant { role: Role::Manager, index: u64::MAX, edition: 1 };
    let (listed, stranger) = (OTHER, NodeId(9));
    assert!(control.is_manager_by(listed, forged) && control.is_manager_by(stranger, forged), "the root can say so");
    let rotation = next_edition(&control);
    write(&mut control, &mut disk, rotation, 4_200);
    assert!(!control.is_manager_by(listed, forged) && !control.is_manager_by(stranger, forged));
    let genuine = RoleGrant { edition: 2, ..forged };
    assert!(control.is_manager_by(listed, genuine) && control.is_manager_by(stranger, genuine));
    let old = RoleGrant { role: Role::Manager, index: 1, edition: 1 };
    assert!(control.is_manager_by(ME, old), "its record says so");
}

#[test]
fn the_shells_are_told_whom_to_let_in() {
    let (mut control, mut disk) = holder();
    write(&mut control, &mut disk, admit(Role::Worker), 4_000);
    let rotation = next_edition(&control);
    let actions = write(&mut control, &mut disk, rotation, 4_200);
    let trusts: Vec<_> = actions
        .into_iter()
        .filter_map(|action| if let Action::Trust(trust) = action { Some(trust) } else { None })
        .collect();
    let [trust] = &trusts[..] else { panic!("{trusts:?}") };
    assert_eq!((trust.edition, trust.root_pem.as_str(), &trust.former_roots[..]), (2, "root 2", &[String::new()][..]));
    assert_eq!(trust.listed, [(ME, Role::Manager), (OTHER, Role::Worker)].into());
}

#[test]
fn a_root_and_its_edition_change_together() {
    let (mut control, mut disk) = holder();
    let current = control.store().cluster().unwrap().clone();
    let with = |change: &dyn Fn(&mut ClusterSettings)| {
        let mut settings = current.settings.clone();
        change(&mut settings);
        settings
    };
    for cluster in [
        ClusterObject { root_pem: "another".to_owned(), ..current.clone() },
        ClusterObject { edition: 2, ..current.clone() },
        ClusterObject { edition: 3, root_pem: "another".to_owned(), ..current.clone() },
        ClusterObject { id: shoal_protocol::ClusterId(9), ..current.clone() },
        ClusterObject { lock: 2, ..current.clone() },
        ClusterObject { settings: with(&|settings| settings.auto_lock = true), ..current.clone() },
        ClusterObject { settings: with(&|settings| settings.task_history = 21), ..current.clone() },
        ClusterObject { settings: with(&|settings| settings.credential_ns = 1), ..current.clone() },
        ClusterObject { index: 7, ..current },
    ] {
        control.handle_event(Event::Request { request: 1, write: Write::UpdateCluster { cluster } }, at(4_000));
        let answers = run(&mut control, &mut disk, 4_000, 50);
        assert!(matches!(answers[..], [(1, Err(_))]), "{answers:?}");
    }
}

#[test]
fn managers_and_they_alone_are_to_be_locked_with_the_present_key() {
    let (mut control, mut disk) = holder();
    assert_eq!(control.wanted_lock(), None);
    let mut lock = |control: &mut Control, auto_lock, lock, ms| {
        let current = control.store().cluster().unwrap().clone();
        let settings = ClusterSettings { auto_lock, ..current.settings.clone() };
        write(control, &mut disk, Write::UpdateCluster { cluster: ClusterObject { settings, lock, ..current } }, ms);
        control.wanted_lock()
    };
    assert_eq!(lock(&mut control, true, 1, 4_000), Some(1));
    assert_eq!(lock(&mut control, true, 2, 4_200), Some(2), "another key");
    assert_eq!(lock(&mut control, false, 2, 4_400), None);
    assert_eq!(lock(&mut control, true, 3, 4_600), Some(3), "a key is not used twice");
    // Whoever is no manager is not locked.
    write(&mut control, &mut disk, admit(Role::Worker), 4_800);
    let next = next_edition(&control);
    write(&mut control, &mut disk, next, 5_000);
    assert_eq!(control.wanted_lock(), Some(3), "another edition changes nothing");
    control.handle_event(Event::Granted(RoleGrant { role: Role::Worker, index: 9, edition: 2 }), at(5_200));
    assert_eq!(control.wanted_lock(), None);
}

#[test]
fn the_only_manager_with_the_keys_is_not_demoted() {
    let (mut control, mut disk) = holder();
    write(&mut control, &mut disk, admit(Role::Manager), 4_000);
    control.handle_event(Event::PeerUp { node: OTHER, granted: RoleGrant::first(Role::Manager) }, at(4_200));
    let say = |control: &mut Control, role, seq| {
        let said = NodeStatus { granted: RoleGrant::first(role), ..NodeStatus::default() };
        let stamp = Stamp { lineage: 0, epoch: 1, seq };
        let status = Store::seal(Key::NodeStatus(OTHER), stamp, OTHER, Some(&Value::NodeStatus(said))).unwrap();
        control.store.merge(&status);
    };
    assert!(!control.is_key_lost(), "what has said nothing yet may have it");
    say(&mut control, Role::Worker, 1);
    assert!(control.is_key_lost(), "it was a worker when it last said what it has");
    let demotion = role_write(&control, ME, Role::Worker);
    control.handle_event(Event::Request { request: 1, write: demotion.clone() }, at(4_200));
    let answers = run(&mut control, &mut disk, 4_200, 50);
    let [(1, Err(refusal))] = &answers[..] else { panic!("{answers:?}") };
    assert!(refusal.to_string().contains("the only manager with the keys"), "{refusal}");

    say(&mut control, Role::Manager, 2);
    assert!(!control.is_key_lost());
    control.handle_event(Event::Request { request: 2, write: demotion }, at(4_300));
    let answers = run(&mut control, &mut disk, 4_300, 50);
    assert!(matches!(answers[..], [(2, Ok(_))]), "{answers:?}");
}

#[test]
fn the_unlock_key_is_replaced_when_it_is_wanted() {
    use Relocking::{Drop, Keep, Replace};
    for (was, is, rotates, want) in [
        (false, false, false, Some(Keep)),
        (false, true, false, Some(Replace)),
        (false, true, true, Some(Replace)),
        (true, true, false, Some(Keep)),
        (true, true, true, Some(Replace)),
        (true, false, false, Some(Drop)),
        (true, false, true, None),
        (false, false, true, None),
    ] {
        assert_eq!(Relocking::of(was, is, rotates).ok(), want, "{was} {is} {rotates}");
    }
}
