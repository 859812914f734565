//! Scheduling as the holder of shards: when to look at which service, and what to write of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::record::SlotName;
use shoal_protocol::settings::TASK_HISTORY_DEFAULT;
use shoal_protocol::spec::{Reservations, TaskTemplate};
use shoal_protocol::value::{NodeStatus, Slot, Value};
use shoal_protocol::write::{CredentialsChange, Write};
use shoal_protocol::{Key, Now, ServiceId, Stamp, TaskId, TaskState};

use super::Control;
use super::event::Action;
use crate::orchestrator::{self, Desired, Input, Plan, occupies};
use crate::scheduler::{Cluster, Node, Share};
use crate::updater;
use crate::view::Health;

/// How often a roll-back that is not carried out yet is asked for.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(1);

impl Control {
    /// Plans every service of this node's shards that something happened to. Returns whether anything was written.
    pub(super) fn reconcile(&mut self, now: Now) -> bool {
        let due: Vec<ServiceId> =
            self.wakes.iter().filter(|(_, at)| **at <= now.time).map(|(&service, _)| service).collect();
        for service in due {
            self.wakes.remove(&service);
            self.dirty.services.insert(service);
        }
        let services = self.services_to_plan(now);
        if services.is_empty() {
            return false;
        }
        let mut cluster = self.cluster();
        let mut moved = false;
        for (service, epoch) in services {
            let plan = self.plan(service, &mut cluster, now);
            self.counts.services_planned += 1;
            if let Some(wake) = plan.wake {
                self.wakes.insert(service, wake);
            }
            let writes = self.write_plan(service, epoch, plan);
            if writes > 0 {
                moved = true;
                self.counts.plan_writes += writes as u64;
                self.outbox.push(Action::Planned { service, epoch, writes });
            }
            self.take_back(service, now);
        }
        moved
    }

    /// Returns the marked services of shards that this node holds, with the epoch to write under, and unmarks all.
    fn services_to_plan(&mut self, now: Now) -> Vec<(ServiceId, u64)> {
        let all = std::mem::take(&mut self.dirty.all_services);
        let mut services = std::mem::take(&mut self.dirty.services);
        if all {
            services.extend(self.store.services().map(|(service, _, _)| service));
            // Services that were removed are planned until the last of their tasks is gone.
            services.extend(self.store.all_slots().map(|(service, _, _)| service));
        }
        let held: BTreeMap<LeaseId, u64> =
            LeaseId::all().filter_map(|lease| Some((lease, self.uses(lease, now.time)?))).collect();
        self.memory.retain(|service, _| held.contains_key(&LeaseId::of_service(*service)));
        self.wakes.retain(|service, _| held.contains_key(&LeaseId::of_service(*service)));
        let mine = |service: ServiceId| Some((service, *held.get(&LeaseId::of_service(service))?));
        services.into_iter().filter_map(mine).collect()
    }

    /// Returns the nodes as the scheduler sees them, and what tasks take of them.
    fn cluster(&self) -> Cluster {
        let nodes = self.store.nodes().map(|(id, object, spec)| {
            let status = self.store.node_status(id);
            let health = self.health(id);
            let node = Node {
                role: spec.role,
                availability: spec.availability,
                ready: status.is_some() && matches!(health, Health::Alive | Health::Suspect),
                suspect: matches!(health, Health::Suspect),
                failed: matches!(health, Health::Failed | Health::Left),
                joined: object.created,
                hostname: status.map(|status| status.hostname.clone()).unwrap_or_default(),
                os: status.map(|status| status.os.clone()).unwrap_or_default(),
                architecture: status.map(|status| status.architecture.clone()).unwrap_or_default(),
                labels: spec.labels.clone(),
                engine_labels: status.map(|status| status.engine_labels.clone()).unwrap_or_default(),
                nano_cpus: status.map_or(0, |status| status.nano_cpus),
                memory_bytes: status.map_or(0, |status| status.memory_bytes),
                generic: status.map(|status| status.generic.clone()).unwrap_or_default(),
                has_engine: status.is_none_or(NodeStatus::has_engine),
                ..Node::default()
            };
            (id, node)
        });
        let mut cluster = Cluster::new(nodes.collect());
        let mut templates: BTreeMap<&str, Reservations> = BTreeMap::new();
        for (service, _, slot) in self.store.all_slots() {
            for task in &slot.tasks {
                let Some(node) = task.node else { continue };
                if !occupies(task, self.store.report(node, task.id)) {
                    continue;
                }
                let reservations = templates.entry(&task.template).or_insert_with(|| {
                    let template: Option<TaskTemplate> = serde_json::from_str(&task.template).ok();
                    template.map(|template| template.resources.reservations).unwrap_or_default()
                });
                cluster.occupy(node, service, Share { reservations, ports: &task.ports, generic: &task.generic });
            }
        }
        cluster
    }

    fn plan(&mut self, service: ServiceId, cluster: &mut Cluster, now: Now) -> Plan {
        let desired = match self.store.service(service).map(Desired::of) {
            Some(Ok(desired)) => Some(desired),
            // Only this service stands still: its spec cannot be read, so nothing of it is touched.
            Some(Err(_)) => return Plan::default(),
            None if self.store.stamp(&Key::Service(service)).is_none() => return Plan::default(),
            None => None,
        };
        let slots: BTreeMap<SlotName, Slot> =
            self.store.slots(service).map(|(name, slot)| (name, slot.clone())).collect();
        let store = &self.store;
        let report = |node, task| store.report(node, task);
        let progress = store.progress(service);
        let history = store.cluster().map_or(TASK_HISTORY_DEFAULT, |cluster| cluster.settings.task_history);
        let desired = desired.as_ref();
        let input = Input { service, desired, slots: &slots, report: &report, progress, history, now };
        let memory = self.memory.entry(service).or_default();
        let random = &mut self.random;
        orchestrator::reconcile(input, cluster, memory, &mut || TaskId(random.random()))
    }

    /// Writes what a plan changes. Returns how many records that are.
    fn write_plan(&mut self, service: ServiceId, epoch: u64, plan: Plan) -> usize {
        let lease = LeaseId::of_service(service);
        let mut writes = plan.slots.len() + usize::from(plan.progress.is_some());
        let planned: BTreeSet<SlotName> = plan.slots.iter().map(|(name, _)| *name).collect();
        for (name, slot) in plan.slots {
            self.write(lease, epoch, Key::Slot(service, name), slot.map(Value::Slot));
        }
        if let Some(progress) = plan.progress {
            self.write(lease, epoch, Key::Progress(service), progress.map(Value::Progress));
        }
        // A node starts a task only on the word of the newest holder that it knows of: what the last one placed and nobody
        // started yet is said again under this epoch.
        for (name, slot) in self.unstarted(service, epoch) {
            if !planned.contains(&name) {
                self.write(lease, epoch, Key::Slot(service, name), Some(Value::Slot(slot)));
                writes += 1;
            }
        }
        if self.store.slots(service).next().is_none() && self.store.service(service).is_none() {
            self.memory.remove(&service);
            self.wakes.remove(&service);
        }
        writes
    }

    /// Asks for the previous spec of a service whose update failed. Objects are the registry holder's to write.
    fn take_back(&mut self, service: ServiceId, now: Now) {
        let (Some(object), Some(progress)) = (self.store.service(service), self.store.progress(service)) else {
            return;
        };
        if updater::wants_rollback(progress, object.index, object.rolled_back) {
            let write = Write::UpdateService {
                id: service,
                version: object.index,
                spec: String::new(),
                rollback: true,
                credentials: CredentialsChange::Keep,
            };
            self.requests.add_own(write, now.time);
            self.wakes.insert(service, now.time + TAKE_BACK_EVERY);
        }
    }

    fn unstarted(&self, service: ServiceId, epoch: u64) -> Vec<(SlotName, Slot)> {
        let is_unstarted = |slot: &Slot| {
            slot.current().any(|task| {
                let report = task.node.and_then(|node| self.store.report(node, task.id));
                task.node.is_some() && report.is_none_or(|report| report.state < TaskState::Running)
            })
        };
        self.store
            .slots(service)
            .filter(|(name, _)| self.store.stamp(&Key::Slot(service, *name)).is_some_and(|stamp| stamp.epoch < epoch))
            .filter(|(_, slot)| is_unstarted(slot))
            .map(|(name, slot)| (name, slot.clone()))
            .collect()
    }

    fn write(&mut self, lease: LeaseId, epoch: u64, key: Key, value: Option<Value>) {
        let stamp = Stamp { lineage: 0, epoch, seq: self.holds.next_seq(lease) };
        self.author(key, stamp, value);
    }
}
