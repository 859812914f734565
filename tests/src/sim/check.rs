//! What must hold in every run: after each event, and once the faults are over.

use std::collections::{BTreeMap, BTreeSet};

use shoal_control::core::Control;
use shoal_control::orchestrator::is_complete;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::token::Role;
use shoal_protocol::value::Slot;
use shoal_protocol::{NodeId, ServiceId, TaskId, TaskState, Time};

use super::Sim;
use super::host::Host;

/// Violations kept at most; one is enough to fail a run.
const VIOLATIONS_MAX: usize = 16;

/// What was seen of leases so far.
#[derive(Debug, Default)]
pub struct History {
    epochs: BTreeMap<LeaseId, (u64, NodeId)>,
    violations: Vec<String>,
}

impl History {
    /// Looks at every daemon after an event: at most one uses a lease, and epochs only grow.
    pub(super) fn observe(&mut self, hosts: &[Host], now: Time, seed: u64) {
        for lease in LeaseId::all() {
            let users: Vec<(u64, NodeId)> =
                hosts.iter().filter_map(|host| Some((host.control()?.uses(lease, now)?, host.id))).collect();
            if users.len() > 1 {
                self.violation(format!("two nodes use lease {lease} at {now:?}: {users:?}; replay: SHOAL_SEED={seed}"));
            }
            for (epoch, node) in users {
                let (last, holder) = self.epochs.get(&lease).copied().unwrap_or_default();
                if epoch < last || (epoch == last && holder != node && last > 0) {
                    self.violation(format!(
                        "lease {lease} is used under epoch {epoch} by {node} after {last} by {holder}; replay: \
                         SHOAL_SEED={seed}"
                    ));
                }
                self.epochs.insert(lease, (epoch.max(last), node));
            }
        }
    }

    fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    /// Returns what was violated.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }
}

impl Sim {
    /// Returns what was violated so far.
    pub fn violations(&self) -> &[String] {
        self.history.violations()
    }

    /// Returns how many slots of a job are done, as its slots remember it on the first node that runs.
    pub fn completions(&self, job: ServiceId) -> u64 {
        let Some(control) = self.hosts().iter().find_map(Host::control) else { return 0 };
        let Some(index) = control.store().service(job).map(|object| object.index) else { return 0 };
        let is_done = |slot: &Slot| slot.tasks.iter().any(|task| is_complete(task, None, index));
        control.store().slots(job).filter(|(_, slot)| is_done(slot)).count() as u64
    }

    /// Returns why the cluster is not in its desired state, or nothing if it is: every running node has the same document,
    /// every wanted service has just its tasks running and well, and nothing else runs.
    pub fn unsettled(&self, wanted: &BTreeMap<ServiceId, u64>) -> Option<String> {
        let running: Vec<&Host> = self.hosts().iter().filter(|host| host.is_running()).collect();
        let digests: BTreeSet<u128> =
            running.iter().filter_map(|host| host.control()).map(|control| control.store().digest()).collect();
        if digests.len() != 1 {
            return Some(format!("{} different documents on {} nodes", digests.len(), running.len()));
        }
        let control = running.first()?.control()?;
        if let Some(unsettled) = unsettled_keys(control, &running, self.hosts()) {
            return Some(unsettled);
        }
        let mut expected: BTreeMap<TaskId, NodeId> = BTreeMap::new();
        let services: BTreeSet<ServiceId> = control.store().services().map(|(id, _, _)| id).collect();
        if services != wanted.keys().copied().collect() {
            return Some(format!("services are {services:?}, wanted are {:?}", wanted.keys()));
        }
        for (&service, &replicas) in wanted {
            let is_job = control.store().service_spec(service).is_some_and(|spec| spec.mode.is_job());
            if is_job {
                let done = self.completions(service);
                if done != replicas {
                    return Some(format!("job {service} has {done} completions, wanted are {replicas}"));
                }
            }
            let mut count = 0;
            for (name, slot) in control.store().slots(service) {
                let current: Vec<_> = slot.current().filter(|task| task.desired == TaskState::Running).collect();
                match current[..] {
                    [] => {}
                    [task] => {
                        count += 1;
                        let Some(node) = task.node else { return Some(format!("{service} {name} has no node")) };
                        let report = control.store().report(node, task.id);
                        if !report.is_some_and(|report| report.state == TaskState::Running && report.address.is_some())
                        {
                            return Some(format!("{service} {name} is said to be {report:?}"));
                        }
                        expected.insert(task.id, node);
                    }
                    _ => return Some(format!("{service} {name} has {} tasks", current.len())),
                }
            }
            if count != if is_job { 0 } else { replicas } {
                return Some(format!("{service} has {count} slots filled, wanted are {replicas}"));
            }
        }
        let actual: BTreeMap<TaskId, NodeId> =
            self.hosts().iter().flat_map(|host| host.running().map(|task| (task, host.id))).collect();
        let extra: Vec<_> = actual.iter().filter(|(task, node)| expected.get(task) != Some(node)).collect();
        let missing: Vec<_> = expected.iter().filter(|(task, node)| actual.get(task) != Some(node)).collect();
        (actual != expected).then(|| format!("not wanted but running: {extra:?}; wanted but not running: {missing:?}"))
    }
}

/// Returns why the keys of a cluster are not as they should be: nobody knows the present key who is no manager, and everybody who
/// is there has a credential of the present root.
fn unsettled_keys(control: &Control, running: &[&Host], all: &[Host]) -> Option<String> {
    let cluster = control.store().cluster()?;
    if control.is_rotation_due() {
        return Some(format!("edition {} of the keys is to be replaced", cluster.edition));
    }
    if let Some(host) = running.iter().find(|host| host.granted.edition != cluster.edition) {
        let edition = host.granted.edition;
        return Some(format!("{} has a credential of edition {edition}, not {}", host.id, cluster.edition));
    }
    let is_manager = |id| control.store().node_spec(id).is_some_and(|spec| spec.role == Role::Manager);
    let stranger = all.iter().find(|host| host.keys.contains(&cluster.edition) && !is_manager(host.id))?;
    Some(format!("{} is no manager and has the key of edition {}", stranger.id, cluster.edition))
}
