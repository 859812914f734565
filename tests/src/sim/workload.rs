//! A seeded history of users' writes and faults, followed by calm and the checks of the final state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_protocol::ServiceId;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::spec::{Mode, ModeKind};
use shoal_protocol::token::Role;
use shoal_protocol::write::Write;

use super::{Counts, JOB_IMAGE, Options, Sim};

/// How long the faults go on.
const STORM: Duration = Duration::from_secs(40);

/// How long the cluster may take to settle once they are over: voters wait out a lease, ends of tasks a restart delay.
const CALM: Duration = Duration::from_secs(120);

/// What became of a run.
#[derive(Debug)]
pub struct Report {
    /// What was violated; empty if nothing was.
    pub violations: Vec<String>,
    /// What happened.
    pub counts: Counts,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
}

/// What the users believe.
#[derive(Debug, Default)]
struct Users {
    /// Services whose creation was asked for, with the number of the request and the replicas asked for.
    asked: BTreeMap<u64, (ServiceId, u64)>,
    /// Services that exist for certain.
    created: BTreeMap<ServiceId, u64>,
    /// Requests for removal.
    removals: BTreeMap<u64, ServiceId>,
    removed: BTreeSet<ServiceId>,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> Report {
    let mut sim = Sim::new(options);
    let mut random = StdRng::seed_from_u64(options.seed ^ 0x5eed);
    let mut users = Users::default();
    let end = sim.now().time + STORM;
    sim.set_loss(random.random_range(0..=5));
    while sim.now().time < end {
        users.act(&mut sim, &mut random);
        strike(&mut sim, &mut random);
        sim.run_for(Duration::from_millis(random.random_range(100..2_000)));
        users.listen(&sim);
    }
    calm(&mut sim);
    let settled = sim.run_until(CALM, |sim| {
        let wanted = users.wanted(sim);
        sim.unsettled(&wanted).is_none()
    });
    users.listen(&sim);
    let mut violations = sim.violations().to_vec();
    let wanted = users.wanted(&sim);
    if !settled && let Some(why) = sim.unsettled(&wanted) {
        violations.push(format!("not settled: {why}; replay: SHOAL_SEED={}", options.seed));
    }
    violations.extend(
        users
            .lost(&sim)
            .map(|service| format!("acknowledged service {service} is gone; replay: SHOAL_SEED={}", options.seed)),
    );
    Report { violations, counts: sim.counts, acknowledged: users.created.len() + users.removed.len() }
}

/// Returns a spec; containers of every other service have a health check, and every fifth service is a job.
fn spec(service: ServiceId, replicas: u64) -> String {
    let is_job = service.0.is_multiple_of(5);
    let check = if service.0.is_multiple_of(2) && !is_job { r#","Healthcheck":{"Test":["CMD","check"]}"# } else { "" };
    let (image, mode) = if is_job {
        (JOB_IMAGE, format!(r#""ReplicatedJob":{{"TotalCompletions":{replicas},"MaxConcurrent":2}}"#))
    } else {
        ("fake", format!(r#""Replicated":{{"Replicas":{replicas}}}"#))
    };
    format!(
        r#"{{"Name":"s{}","TaskTemplate":{{"ContainerSpec":{{"Image":"{image}"{check}}},"RestartPolicy":{{"Delay":1000000}}}},
        "Mode":{{{mode}}}}}"#,
        service.short()
    )
}

/// Returns how many tasks a service is to have, or of a job, how many are to complete.
fn tasks(mode: &Mode) -> u64 {
    match mode.kind() {
        ModeKind::Replicated { replicas } => replicas,
        ModeKind::ReplicatedJob { completions, .. } => completions,
        ModeKind::Global | ModeKind::GlobalJob => 0, // the storm makes none
    }
}

impl Users {
    /// Asks some manager for something.
    fn act(&mut self, sim: &mut Sim, random: &mut StdRng) {
        let managers: Vec<usize> = (0..sim.len())
            .filter(|&at| sim.hosts()[at].granted.role == Role::Manager && sim.hosts()[at].is_running())
            .collect();
        let Some(&at) = managers.get(random.random_range(0..managers.len().max(1))) else { return };
        if random.random_range(0..8) == 0 {
            let node = random.random_range(0..sim.len());
            let role = if random.random_range(0..3) == 0 { Role::Worker } else { Role::Manager };
            sim.give_role(at, node, role);
            return;
        }
        let removable = self.created.keys().next().copied().filter(|_| random.random_range(0..4) == 0);
        match removable {
            Some(service) => {
                self.created.remove(&service);
                let request = sim.request(at, Write::RemoveService { id: service });
                self.removals.insert(request, service);
            }
            None => {
                let service = ServiceId(random.random());
                let replicas = random.random_range(1..4);
                let request = sim.request(
                    at,
                    Write::CreateService { id: service, spec: spec(service, replicas), credentials: None },
                );
                self.asked.insert(request, (service, replicas));
            }
        }
    }

    /// Takes in the answers.
    fn listen(&mut self, sim: &Sim) {
        let answered = |request: &u64| sim.answer(*request).is_some_and(Result::is_ok);
        let created: Vec<u64> = self.asked.keys().copied().filter(answered).collect();
        for request in created {
            if let Some((service, replicas)) = self.asked.remove(&request) {
                self.created.insert(service, replicas);
            }
        }
        let removed: Vec<u64> = self.removals.keys().copied().filter(answered).collect();
        for request in removed {
            self.removed.extend(self.removals.remove(&request));
        }
    }

    /// Returns what the final state may be: what was acknowledged, and of the rest whatever a node has.
    fn wanted(&self, sim: &Sim) -> BTreeMap<ServiceId, u64> {
        let mut wanted = self.created.clone();
        let store = sim.hosts().iter().find_map(|host| host.control()).map(|control| control.store());
        for (service, _, _) in store.into_iter().flat_map(|store| store.services()) {
            let unsure = self.asked.values().find(|(asked, _)| *asked == service).map(|(_, replicas)| *replicas);
            let unremoved = self.removals.values().any(|removed| *removed == service);
            if unremoved {
                let replicas = store.and_then(|store| store.service_spec(service)).map_or(0, |spec| tasks(&spec.mode));
                wanted.insert(service, replicas);
            } else if let Some(replicas) = unsure {
                wanted.insert(service, replicas);
            }
        }
        wanted
    }

    /// Returns the services that were acknowledged and are nowhere.
    fn lost<'a>(&'a self, sim: &'a Sim) -> impl Iterator<Item = ServiceId> + 'a {
        self.created.keys().copied().filter(|service| {
            !sim.hosts()
                .iter()
                .filter_map(|host| host.control())
                .any(|control| control.store().service(*service).is_some())
        })
    }
}

/// One fault, or the end of one.
fn strike(sim: &mut Sim, random: &mut StdRng) {
    let at = random.random_range(0..sim.len());
    match random.random_range(0..8) {
        0 => {
            if sim.hosts()[at].is_running() {
                sim.crash(at, random.random());
            }
        }
        1 | 2 => {
            let dead: Vec<usize> = (0..sim.len()).filter(|&at| !sim.hosts()[at].is_running()).collect();
            if let Some(&at) = dead.first() {
                sim.start(at);
            }
        }
        3 => sim.cut(at),
        4 | 5 => (0..sim.len()).for_each(|at| sim.heal(at)),
        6 => {
            let now = sim.now().time;
            let holder = (0..sim.len()).find(|&at| {
                let control = sim.hosts()[at].control();
                !sim.hosts()[at].paused
                    && control.is_some_and(|control| LeaseId::all().any(|lease| control.uses(lease, now).is_some()))
            });
            if let Some(holder) = holder {
                sim.pause(holder);
            }
        }
        _ => (0..sim.len()).for_each(|at| {
            if sim.hosts()[at].paused {
                sim.resume(at);
            }
        }),
    }
}

/// Ends all faults.
fn calm(sim: &mut Sim) {
    sim.set_loss(0);
    for at in 0..sim.len() {
        sim.heal(at);
        if sim.hosts()[at].paused {
            sim.resume(at);
        }
        if !sim.hosts()[at].is_running() {
            sim.start(at);
        }
    }
}
