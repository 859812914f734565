//! Whole clusters in the simulator: many seeds with faults, named scenarios, and proof that the checks can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_control::core::Faults;
use shoal_control::lease;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::token::Role;
use shoal_protocol::value::UpdateState;
use shoal_protocol::write::{CredentialsChange, Write, WriteError};
use shoal_protocol::{NodeId, ServiceId};
use shoal_tests::sim::workload::{self, Report};
use shoal_tests::sim::{BROKEN_IMAGE, Counts, JOB_IMAGE, Options, Sim};

/// Seeds of the storm, divided over this many tests so that they use all cores.
const SEEDS: u64 = 520;
const PARTS: u64 = 4;

/// Returns the seeds to run: all of a part, or the one that is to be replayed.
fn seeds(part: u64) -> Vec<u64> {
    match std::env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..SEEDS).filter(|seed| seed % PARTS == part).collect(),
    }
}

fn storm(part: u64) {
    let mut counts = Counts::default();
    let mut acknowledged = 0;
    let seeds = seeds(part);
    for &seed in &seeds {
        let options = Options::new(seed, 3 + (seed % 7) as usize);
        let Report { violations, counts: seen, acknowledged: writes } = workload::run(options);
        assert!(violations.is_empty(), "{violations:#?}");
        counts += seen;
        acknowledged += writes;
    }
    println!("{} seeds, {acknowledged} acknowledged writes, {counts:?}", seeds.len());
    if seeds.len() > 1 {
        let Counts { crashes, cuts, lost, delayed, pauses, roles, rotations } = counts;
        for (name, count) in [
            ("crashes", crashes),
            ("cuts", cuts),
            ("lost messages", lost),
            ("delays", delayed),
            ("pauses", pauses),
            ("changes of role", roles),
            ("rotations of keys", rotations),
        ] {
            assert!(count > 0, "no {name} happened: the run shows nothing");
        }
        assert!(acknowledged > 0, "nothing was acknowledged: the run shows nothing");
    }
}

#[test]
fn storms_part_0() {
    storm(0);
}

#[test]
fn storms_part_1() {
    storm(1);
}

#[test]
fn storms_part_2() {
    storm(2);
}

#[test]
fn storms_part_3() {
    storm(3);
}

/// Returns the violations of as many seeds as it takes to find one.
fn first_violation(faults: Faults) -> Option<String> {
    (0..SEEDS).find_map(|seed| {
        let options = Options { faults, ..Options::new(seed, 3 + (seed % 7) as usize) };
        workload::run(options).violations.into_iter().next()
    })
}

#[test]
fn without_repair_documents_stay_apart() {
    let faults = Faults { no_repair: true, ..Faults::default() };
    let violation = first_violation(faults).expect("lost messages must show");
    assert!(violation.contains("not settled"), "{violation}");
}

#[test]
fn without_a_restarted_voters_wait_two_nodes_hold_a_lease() {
    let leases = lease::Faults { forget_grants_on_restart: true, no_restart_wait: true, ..lease::Faults::default() };
    let violation = first_violation(Faults { leases, ..Faults::default() }).expect("a forgotten grant must show");
    assert!(violation.contains("lease"), "{violation}");
}

fn service(sim: &mut Sim, at: usize, id: u128, replicas: u64) -> ServiceId {
    service_on(sim, at, id, replicas, &[])
}

fn service_on(sim: &mut Sim, at: usize, id: u128, replicas: u64, constraints: &[&str]) -> ServiceId {
    let id = ServiceId(id);
    let spec = serde_json::json!({
        "Name": format!("web-{}", id.0),
        "TaskTemplate": {"ContainerSpec": {"Image": "fake"}, "Placement": {"Constraints": constraints}},
        "Mode": {"Replicated": {"Replicas": replicas}},
    });
    let spec = spec.to_string();
    let request = sim.request(at, Write::CreateService { id, spec, credentials: None });
    assert!(sim.run_until(Duration::from_secs(20), |sim| sim.answer(request).is_some()), "no answer");
    sim.answer(request).expect("just seen").as_ref().expect("the service is created");
    id
}

fn settle(sim: &mut Sim, wanted: &BTreeMap<ServiceId, u64>) {
    let settled = sim.run_until(Duration::from_secs(60), |sim| sim.unsettled(wanted).is_none());
    assert!(settled, "{:?}", sim.unsettled(wanted));
    assert!(sim.violations().is_empty(), "{:?}", sim.violations());
}

fn holder_of(sim: &Sim, lease: LeaseId) -> Option<usize> {
    let now = sim.now().time;
    (0..sim.len()).find(|&at| sim.hosts()[at].control().is_some_and(|control| control.uses(lease, now).is_some()))
}

#[test]
fn tasks_of_a_crashed_node_run_elsewhere() {
    let mut sim = Sim::new(Options::new(1, 5));
    let web = service(&mut sim, 0, 7, 5);
    let wanted = BTreeMap::from([(web, 5)]);
    settle(&mut sim, &wanted);
    sim.crash(4, true);
    settle(&mut sim, &wanted);
    assert_eq!(sim.hosts()[4].running().count(), 0);
}

#[test]
fn a_daemon_that_is_back_before_the_verdict_keeps_its_tasks() {
    let mut sim = Sim::new(Options::new(2, 3));
    let web = service(&mut sim, 0, 7, 3);
    let wanted = BTreeMap::from([(web, 3)]);
    settle(&mut sim, &wanted);
    let before: Vec<_> = sim.hosts()[2].running().collect();
    assert!(!before.is_empty());
    sim.crash(2, false);
    sim.start(2);
    settle(&mut sim, &wanted);
    assert_eq!(sim.hosts()[2].running().collect::<Vec<_>>(), before);
}

#[test]
fn a_crashed_holder_is_replaced_and_writes_go_on() {
    let mut sim = Sim::new(Options::new(3, 5));
    let first = service(&mut sim, 0, 1, 2);
    let holder = holder_of(&sim, LeaseId::REGISTRY).expect("somebody orders writes");
    sim.crash(holder, true);
    let other = (0..3).find(|at| *at != holder).expect("three managers");
    let second = service(&mut sim, other, 2, 2);
    settle(&mut sim, &BTreeMap::from([(first, 2), (second, 2)]));
}

#[test]
fn without_a_quorum_writes_are_refused_and_tasks_stay() {
    let mut sim = Sim::new(Options::new(4, 4));
    let web = service(&mut sim, 0, 7, 4);
    settle(&mut sim, &BTreeMap::from([(web, 4)]));
    let kept: Vec<_> = sim.hosts()[0].running().collect();
    sim.crash(1, true);
    sim.crash(2, true);
    let request = sim.request(0, Write::RemoveService { id: web });
    assert!(sim.run_until(Duration::from_secs(20), |sim| sim.answer(request).is_some()), "no answer");
    assert!(matches!(sim.answer(request), Some(Err(WriteError::NoQuorum(_)))), "{:?}", sim.answer(request));
    let running: Vec<_> = sim.hosts()[0].running().collect();
    assert!(kept.iter().all(|task| running.contains(task)), "{kept:?} {running:?}");
    sim.start(1);
    settle(&mut sim, &BTreeMap::from([(web, 4)]));
}

#[test]
fn a_paused_holder_changes_nothing_when_it_wakes() {
    let mut sim = Sim::new(Options::new(5, 5));
    let web = service(&mut sim, 0, 7, 2);
    let wanted = BTreeMap::from([(web, 2)]);
    settle(&mut sim, &wanted);
    let shard = LeaseId::of_service(web);
    let holder = holder_of(&sim, shard).expect("somebody schedules");
    sim.pause(holder);
    sim.run_for(Duration::from_secs(5));
    assert_ne!(holder_of(&sim, shard), Some(holder), "a lease ends by itself");
    sim.resume(holder);
    settle(&mut sim, &wanted);
}

fn scale(sim: &mut Sim, at: usize, id: ServiceId, replicas: u64) {
    change(sim, at, id, |spec| spec["Mode"]["Replicated"]["Replicas"] = replicas.into());
}

fn change(sim: &mut Sim, at: usize, id: ServiceId, how: impl FnOnce(&mut serde_json::Value)) {
    let object = sim.hosts()[at].control().and_then(|control| control.store().service(id)).expect("it exists").clone();
    let mut spec: serde_json::Value = serde_json::from_str(&object.spec).expect("it was JSON");
    how(&mut spec);
    let write = Write::UpdateService {
        id,
        version: object.index,
        spec: spec.to_string(),
        rollback: false,
        credentials: CredentialsChange::Keep,
    };
    let request = sim.request(at, write);
    assert!(sim.run_until(Duration::from_secs(20), |sim| sim.answer(request).is_some()), "no answer");
    sim.answer(request).expect("just seen").as_ref().expect("the service is changed");
}

/// A holder schedules a third task and is paused while its words are on their way; the user changes their mind; a successor
/// takes over; then the words arrive. Returns how many containers were made in all.
fn containers_after_a_late_write(seed: u64, faults: Faults) -> usize {
    let mut sim = Sim::new(Options { faults, ..Options::new(seed, 5) });
    sim.run_for(Duration::from_secs(120)); // leases move only to nodes that have been stable for a while
    let registry = holder_of(&sim, LeaseId::REGISTRY).expect("somebody orders writes");
    let elsewhere = |id: &u128| holder_of(&sim, LeaseId::of_service(ServiceId(*id))).is_some_and(|at| at != registry);
    let id = (1..64).find(elsewhere).expect("leases are spread");
    // Not on managers: what a holder places on itself is not late.
    let web = service_on(&mut sim, registry, id, 2, &["node.role == worker"]);
    settle(&mut sim, &BTreeMap::from([(web, 2)]));
    let shard = LeaseId::of_service(web);
    let late = holder_of(&sim, shard).expect("somebody schedules");
    let slots =
        |sim: &Sim, at: usize| sim.hosts()[at].control().map_or(0, |control| control.store().slots(web).count());

    sim.delay_from(late);
    scale(&mut sim, registry, web, 3);
    assert!(sim.run_until(Duration::from_secs(2), |sim| slots(sim, late) == 3), "no third task was scheduled");
    sim.pause(late);
    scale(&mut sim, registry, web, 2);
    // Until a node has heard of the next holder it may do what the last one says.
    let is_replaced = |sim: &Sim| {
        let knows = |at: usize| sim.hosts()[at].control()?.holder(shard).map(|(holder, _)| holder);
        let late_id = sim.hosts()[late].id;
        (0..sim.len()).filter(|at| *at != late).all(|at| knows(at).is_some_and(|holder| holder != late_id))
    };
    assert!(sim.run_until(Duration::from_secs(20), is_replaced), "the lease does not end by itself");
    assert_eq!(slots(&sim, registry), 2, "the third task was heard of too early: this shows nothing");
    sim.deliver_from(late);
    sim.run_for(Duration::from_secs(1));
    sim.resume(late);
    settle(&mut sim, &BTreeMap::from([(web, 2)]));
    sim.hosts().iter().map(|host| host.made).sum()
}

/// Seeds of the above. Whether the late words come in time to start anything is a matter of milliseconds.
const LATE: std::ops::Range<u64> = 0..12;

#[test]
fn a_replaced_holders_late_write_starts_nothing() {
    for seed in LATE {
        assert_eq!(containers_after_a_late_write(seed, Faults::default()), 2, "seed {seed}");
    }
}

#[test]
fn without_fencing_a_replaced_holders_late_write_starts_a_task() {
    let faults = Faults { no_fencing: true, ..Faults::default() };
    let made: Vec<usize> = LATE.map(|seed| containers_after_a_late_write(seed, faults)).collect();
    assert!(made.contains(&3), "the check above would not notice that nobody looks at epochs: {made:?}");
}

#[test]
fn all_nodes_at_once_come_back_with_everything_acknowledged() {
    let mut sim = Sim::new(Options::new(6, 5));
    let wanted: BTreeMap<_, _> = (1..6).map(|id| (service(&mut sim, id as usize % 3, id, 2), 2)).collect();
    for at in 0..5 {
        sim.crash(at, true);
    }
    for at in 0..5 {
        sim.start(at);
    }
    settle(&mut sim, &wanted);
}

/// Updates a service of four to `image` while the holder of its shard dies after `until_crash` and comes back 3 s later.
/// Returns where the update stands in the end, and the images that its tasks run.
fn update_without_its_holder(seed: u64, image: &str, until_crash: Duration) -> (UpdateState, Vec<String>) {
    let mut sim = Sim::new(Options::new(seed, 5));
    let web = service(&mut sim, 0, 7, 4);
    settle(&mut sim, &BTreeMap::from([(web, 4)]));
    change(&mut sim, 0, web, |spec| {
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = image.into();
        spec["UpdateConfig"] =
            serde_json::json!({"Parallelism": 1, "Monitor": 500_000_000, "FailureAction": "rollback"});
        spec["RollbackConfig"] = serde_json::json!({"Parallelism": 1, "Monitor": 500_000_000});
    });
    sim.run_for(until_crash);
    let holder = holder_of(&sim, LeaseId::of_service(web));
    if let Some(holder) = holder {
        sim.crash(holder, false);
        sim.run_for(Duration::from_secs(3));
        sim.start(holder);
    }
    let progress = |sim: &Sim| sim.hosts()[0].control().and_then(|control| control.store().progress(web).cloned());
    let is_over = |sim: &Sim| {
        let ends = [UpdateState::Completed, UpdateState::Paused, UpdateState::RollbackCompleted];
        progress(sim).is_some_and(|progress| ends.contains(&progress.state))
    };
    assert!(sim.run_until(Duration::from_secs(120), is_over), "seed {seed}: {:?}", progress(&sim));
    settle(&mut sim, &BTreeMap::from([(web, 4)]));
    let control = sim.hosts()[0].control().expect("it runs");
    let image_of = |template: &str| -> String {
        let template: serde_json::Value = serde_json::from_str(template).expect("it was JSON");
        template["ContainerSpec"]["Image"].as_str().unwrap_or_default().to_owned()
    };
    let slots = control.store().slots(web);
    let images = slots.flat_map(|(_, slot)| slot.current().map(|task| image_of(&task.template)).collect::<Vec<_>>());
    (progress(&sim).expect("just seen").state, images.collect())
}

#[test]
fn an_update_goes_on_when_its_holder_dies_at_any_moment() {
    for seed in 0..40 {
        let until_crash = Duration::from_millis(seed * 100);
        let (state, images) = update_without_its_holder(seed, "better", until_crash);
        assert_eq!((state, images), (UpdateState::Completed, vec!["better".to_owned(); 4]), "seed {seed}");
    }
}

#[test]
fn a_failing_update_is_rolled_back_when_its_holder_dies_at_any_moment() {
    for seed in 0..40 {
        let until_crash = Duration::from_millis(seed * 100);
        let (state, images) = update_without_its_holder(seed, BROKEN_IMAGE, until_crash);
        assert_eq!((state, images), (UpdateState::RollbackCompleted, vec!["fake".to_owned(); 4]), "seed {seed}");
    }
}

/// Runs a job of eight, three at a time, while the holder of its shard dies. `machine` tells whether its containers die with it;
/// else its daemon is back before the verdict, and what it ran went on. Returns how often work was done to its end.
fn job_without_its_holder(seed: u64, machine: bool) -> usize {
    let mut sim = Sim::new(Options::new(seed, 5));
    let job = ServiceId(7);
    let spec = serde_json::json!({
        "Name": "job",
        "TaskTemplate": {"ContainerSpec": {"Image": JOB_IMAGE}, "RestartPolicy": {"Delay": 1_000_000}},
        "Mode": {"ReplicatedJob": {"TotalCompletions": 8, "MaxConcurrent": 3}},
    });
    sim.request(0, Write::CreateService { id: job, spec: spec.to_string(), credentials: None });
    let go_on = |sim: &mut Sim, millis: u64| {
        for _ in 0..millis / 10 {
            sim.run_for(Duration::from_millis(10));
            let at_work: usize = sim.hosts().iter().map(|host| host.running().count()).sum();
            assert!(at_work <= 3, "seed {seed}: {at_work} at once");
            assert!(sim.completions(job) <= 8, "seed {seed}");
        }
    };
    go_on(&mut sim, 100 + seed * 100);
    if let Some(holder) = holder_of(&sim, LeaseId::of_service(job)) {
        sim.crash(holder, machine);
        go_on(&mut sim, if machine { 4_000 } else { 300 });
        sim.start(holder);
    }
    go_on(&mut sim, 20_000);
    settle(&mut sim, &BTreeMap::from([(job, 8)]));
    assert_eq!(sim.completions(job), 8, "seed {seed}");
    sim.hosts().iter().map(|host| host.ended_well).sum()
}

#[test]
fn a_job_completes_when_its_holders_daemon_dies_at_any_moment() {
    for seed in 0..40 {
        assert_eq!(job_without_its_holder(seed, false), 8, "seed {seed}: what is done is not done again");
    }
}

#[test]
fn a_job_completes_when_its_holders_machine_dies_at_any_moment() {
    for seed in 0..40 {
        // What ended a moment before its machine died may be heard of by nobody.
        assert!(job_without_its_holder(seed, true) >= 8, "seed {seed}");
    }
}

fn gives_role(sim: &mut Sim, at: usize, node: usize, role: Role) {
    let request = sim.give_role(at, node, role).expect("it is listed");
    assert!(sim.run_until(Duration::from_secs(20), |sim| sim.answer(request).is_some()), "no answer");
    sim.answer(request).expect("just seen").as_ref().expect("the role is changed");
}

/// Waits until just these nodes act as managers, and as many of them vote as should.
fn expect_managers(sim: &mut Sim, managers: &[usize], voters: usize) {
    let ids: BTreeSet<NodeId> = managers.iter().map(|at| sim.hosts()[*at].id).collect();
    let is_so = |sim: &Sim| {
        let sets = sim.hosts().iter().filter_map(|host| host.control()).map(|control| &control.voters().members);
        let vote = sets.clone().all(|set| set.len() == voters && set.iter().all(|voter| ids.contains(voter)));
        sim.managers() == managers && vote
    };
    let sets: Vec<_> =
        sim.hosts().iter().filter_map(|host| host.control()).map(|control| control.voters().clone()).collect();
    assert!(sim.run_until(Duration::from_secs(60), is_so), "managers are {:?}, {sets:?}", sim.managers());
}

#[test]
fn a_promoted_node_votes_and_a_demoted_one_does_not() {
    for seed in 0..20 {
        let mut sim = Sim::new(Options::new(seed, 5));
        let web = service(&mut sim, 0, 7, 4);
        let wanted = BTreeMap::from([(web, 4)]);
        settle(&mut sim, &wanted);
        gives_role(&mut sim, 1, 0, Role::Worker);
        expect_managers(&mut sim, &[1, 2], 1);
        gives_role(&mut sim, 2, 3, Role::Manager);
        expect_managers(&mut sim, &[1, 2, 3], 3);
        sim.run_for(Duration::from_secs(5)); // until the new voters have merged from the old ones
        // The new set carries the cluster: the demoted node and one of the others may be lost.
        sim.crash(0, true);
        sim.crash(1, true);
        scale(&mut sim, 3, web, 3);
        settle(&mut sim, &BTreeMap::from([(web, 3)]));
    }
}

#[test]
fn the_only_voter_can_be_demoted_and_the_last_manager_cannot() {
    for seed in 0..20 {
        let mut sim = Sim::new(Options::new(seed, 2));
        let web = service(&mut sim, 0, 7, 2);
        settle(&mut sim, &BTreeMap::from([(web, 2)]));
        let voter = (0..2).find(|at| {
            let host = &sim.hosts()[*at];
            host.control().is_some_and(|control| control.voters().contains(host.id))
        });
        let voter = voter.expect("there is one");
        let other = 1 - voter;
        gives_role(&mut sim, voter, voter, Role::Worker);
        expect_managers(&mut sim, &[other], 1);
        let request = sim.give_role(other, other, Role::Worker).expect("it is listed");
        assert!(sim.run_until(Duration::from_secs(20), |sim| sim.answer(request).is_some()), "no answer");
        let refusal = sim.answer(request).expect("just seen").as_ref().expect_err("somebody has to manage");
        assert!(refusal.to_string().contains("last manager"), "{refusal}");
        sim.crash(voter, true);
        scale(&mut sim, other, web, 1);
        settle(&mut sim, &BTreeMap::from([(web, 1)]));
    }
}
