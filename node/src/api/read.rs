//! Fills snapshots from a node's document. Runs on the event loop, so it copies what is wanted and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use shoal_control::orchestrator::is_complete;
use shoal_control::store::Store;
use shoal_protocol::codec;
use shoal_protocol::object::network::{self, NetworkState};
use shoal_protocol::object::{Kind, ObjectHead};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{Mode, ModeKind};
use shoal_protocol::token::Role;
use shoal_protocol::value::{ServiceObject, Slot, SlotTask};
use shoal_protocol::{NodeId, ObjectId, ServiceId, TaskState};

use super::snapshot::{
    Counts, NodeState, NodeView, ObjectView, Pick, PickTasks, ServiceView, Snapshot, TaskView, Want, effective_state,
    find_all, task_fits,
};

/// What a node knows beside its document.
pub struct Source<'a> {
    /// The document.
    pub store: &'a Store,
    /// This node.
    pub me: NodeId,
    /// The role it acts in.
    pub role: Role,
    /// Who holds the registry lease.
    pub leader: Option<NodeId>,
    /// Whether keys of the cluster are being replaced.
    pub rotating: bool,
    /// Whether each node is there.
    pub state: &'a dyn Fn(NodeId) -> NodeState,
}

impl Source<'_> {
    /// Answers a request's question.
    pub fn snapshot(&self, want: &Want) -> Snapshot {
        let (tasks, tasks_left_out) = match want.tasks {
            PickTasks::Foremost(most) => self.foremost(most),
            ref pick => (self.tasks(pick), 0),
        };
        let mut services = self.picked_services(&want.services);
        services.extend(tasks.iter().map(|task| task.service));
        let down = if want.counts { self.down() } else { BTreeSet::new() };
        let services = services.into_iter().filter_map(|id| {
            let object = self.store.service(id)?.clone();
            let spec = self.store.service_spec(id)?.clone();
            let progress = self.store.progress(id).cloned();
            let counts = if want.counts { self.counts(id, &object, &spec.mode, &down) } else { Counts::default() };
            Some(ServiceView { id, object, spec, progress, counts })
        });
        let nodes = self.picked_nodes(&want.nodes).into_iter().filter_map(|id| self.node(id));
        let (states, running) = if want.states { self.states() } else { Default::default() };
        Snapshot {
            me: self.me,
            role: self.role,
            cluster: self.store.cluster().cloned(),
            rotating: self.rotating,
            nodes: nodes.collect(),
            services: services.collect(),
            tasks,
            tasks_left_out,
            states,
            running,
            objects: want.objects.as_ref().map_or_else(Vec::new, |(kind, pick)| self.objects(*kind, pick)),
        }
    }

    fn states(&self) -> (BTreeMap<TaskState, u64>, BTreeMap<NodeId, u64>) {
        let down = self.down();
        let (mut states, mut running) = (BTreeMap::new(), BTreeMap::new());
        for (_, _, task) in self.all_tasks() {
            let state = self.state_of(task, &down);
            *states.entry(state).or_default() += 1;
            if let (TaskState::Running, Some(node)) = (state, task.node) {
                *running.entry(node).or_default() += 1;
            }
        }
        (states, running)
    }

    fn state_of(&self, task: &SlotTask, down: &BTreeSet<NodeId>) -> TaskState {
        let report = task.node.and_then(|node| self.store.report(node, task.id));
        let node_down = task.node.is_some_and(|node| down.contains(&node));
        effective_state(task, report, node_down)
    }

    /// Copies no more tasks than are wanted, however many there are. Returns also how many were left out.
    fn foremost(&self, most: usize) -> (Vec<TaskView>, usize) {
        let down = self.down();
        let mut ranked: [Vec<(ServiceId, SlotName, &SlotTask)>; 3] = Default::default();
        for found in self.all_tasks() {
            if let Some(rank) = rank(found.2, self.state_of(found.2, &down)) {
                ranked[rank].push(found);
            }
        }
        let fitting = ranked.iter().map(Vec::len).sum::<usize>();
        let mut seen = BTreeMap::new();
        let chosen = ranked.into_iter().flatten().take(most);
        let tasks = chosen.map(|found| self.view(found, &mut seen)).collect();
        (tasks, fitting.saturating_sub(most))
    }

    /// Copies a task. `down` remembers which nodes are gone from one task to the next.
    fn view(
        &self,
        (service, slot, task): (ServiceId, SlotName, &SlotTask),
        down: &mut BTreeMap<NodeId, bool>,
    ) -> TaskView {
        TaskView {
            is_job: self.store.service_spec(service).is_some_and(|spec| spec.mode.is_job()),
            service,
            slot,
            report: task.node.and_then(|node| self.store.report(node, task.id)).cloned(),
            node_down: task.node.is_some_and(|node| *down.entry(node).or_insert_with(|| self.is_down(node))),
            task: task.clone(),
        }
    }

    fn picked_nodes(&self, pick: &Pick) -> BTreeSet<NodeId> {
        let ids = || self.store.nodes().map(|(id, ..)| id);
        match pick {
            Pick::None => BTreeSet::new(),
            Pick::All => ids().collect(),
            Pick::Named(names) => {
                let hostname = |id| self.store.node_status(id).map_or("", |status| status.hostname.as_str());
                find_all(names, &ids().map(|id| (id, hostname(id))).collect::<Vec<_>>())
            }
        }
    }

    fn picked_services(&self, pick: &Pick) -> BTreeSet<ServiceId> {
        match pick {
            Pick::None => BTreeSet::new(),
            Pick::All => self.store.services().map(|(id, ..)| id).collect(),
            Pick::Named(names) => {
                let all: Vec<(ServiceId, &str)> =
                    self.store.services().map(|(id, _, spec)| (id, spec.name.as_str())).collect();
                find_all(names, &all)
            }
        }
    }

    fn objects(&self, kind: Kind, pick: &Pick) -> Vec<ObjectView> {
        let ingress = self.ingress().filter(|_| kind == Kind::Network);
        let all = self.store.objects(kind).map(|(id, head, _)| (id, head.name.as_str()));
        let all: Vec<(ObjectId, &str)> = all.chain(ingress.as_ref().map(|view| (view.id, network::INGRESS))).collect();
        let picked: BTreeSet<ObjectId> = match pick {
            Pick::None => BTreeSet::new(),
            Pick::All => all.into_iter().map(|(id, _)| id).collect(),
            Pick::Named(names) => find_all(names, &all),
        };
        let view = |id| match kind {
            Kind::Network if ingress.as_ref().is_some_and(|view| view.id == id) => ingress.clone(),
            Kind::Secret => Some(ObjectView { id, head: self.store.object(kind, id)?.clone(), data: Vec::new() }),
            Kind::Config | Kind::Network => {
                let object = self.store.object_with_data(kind, id)?;
                Some(ObjectView { id, head: object.head, data: object.data })
            }
        };
        picked.into_iter().filter_map(view).collect()
    }

    /// The network of published ports, which every cluster has and nobody has made.
    fn ingress(&self) -> Option<ObjectView> {
        let cluster = self.store.cluster()?;
        let state = NetworkState { blocks: vec![network::Block::new(cluster.settings.ingress())] };
        let head = ObjectHead {
            index: 1,
            created: cluster.created,
            updated: cluster.created,
            edition: 0,
            name: network::INGRESS.to_owned(),
            spec: String::new(),
        };
        Some(ObjectView { id: network::ingress_id(cluster.id), head, data: codec::encode(&state).ok()? })
    }

    fn node(&self, id: NodeId) -> Option<NodeView> {
        Some(NodeView {
            id,
            object: self.store.node(id)?.clone(),
            spec: self.store.node_spec(id)?.clone(),
            status: self.store.node_status(id).cloned(),
            state: (self.state)(id),
            leader: self.leader == Some(id),
        })
    }

    fn down(&self) -> BTreeSet<NodeId> {
        self.store.nodes().map(|(id, ..)| id).filter(|id| (self.state)(*id) == NodeState::Down).collect()
    }

    /// A node that is listed no more is as good as gone.
    fn is_down(&self, node: NodeId) -> bool {
        !self.store.is_listed(node) || (self.state)(node) == NodeState::Down
    }

    fn counts(&self, service: ServiceId, object: &ServiceObject, mode: &Mode, down: &BTreeSet<NodeId>) -> Counts {
        let mut counts = Counts::default();
        for (_, slot) in self.store.slots(service) {
            let mut is_done = false;
            for task in &slot.tasks {
                let report = task.node.and_then(|node| self.store.report(node, task.id));
                let state = self.state_of(task, down);
                let wanted = task.desired <= TaskState::Running;
                if mode.is_job() {
                    is_done |= is_complete(task, report, object.index);
                } else {
                    counts.completed += u64::from(state == TaskState::Complete);
                }
                counts.desired += u64::from(wanted && !(mode.is_job() && state == TaskState::Complete));
                counts.running += u64::from(wanted && state == TaskState::Running);
            }
            counts.completed += u64::from(is_done);
        }
        counts.desired = match mode.kind() {
            ModeKind::Replicated { replicas } => replicas,
            ModeKind::ReplicatedJob { completions, concurrent } => {
                concurrent.min(completions.saturating_sub(counts.completed))
            }
            ModeKind::Global | ModeKind::GlobalJob => counts.desired,
        };
        counts
    }

    fn tasks(&self, pick: &PickTasks) -> Vec<TaskView> {
        let mut down: BTreeMap<NodeId, bool> = BTreeMap::new();
        match pick {
            PickTasks::None => Vec::new(),
            PickTasks::Foremost(most) => self.foremost(*most).0,
            PickTasks::Named(wanted) => {
                let parsed = wanted.parse().ok();
                self.all_tasks()
                    .filter(|(_, _, task)| task_fits(wanted, parsed, task.id))
                    .map(|found| self.view(found, &mut down))
                    .collect()
            }
            PickTasks::Of { services, nodes } => {
                let nodes = (!nodes.is_empty()).then(|| self.picked_nodes(&Pick::Named(nodes.clone())));
                let fits = |task: &SlotTask| {
                    nodes.as_ref().is_none_or(|nodes| task.node.is_some_and(|node| nodes.contains(&node)))
                };
                let chosen: Vec<_> = if services.is_empty() {
                    self.all_tasks().filter(|(_, _, task)| fits(task)).collect()
                } else {
                    self.picked_services(&Pick::Named(services.clone()))
                        .into_iter()
                        .flat_map(|service| self.store.slots(service).flat_map(move |slot| tasks_of(service, slot)))
                        .filter(|(_, _, task)| fits(task))
                        .collect()
                };
                chosen.into_iter().map(|found| self.view(found, &mut down)).collect()
            }
        }
    }

    /// Tasks of services that are being removed are nobody's business any more.
    fn all_tasks(&self) -> impl Iterator<Item = (ServiceId, SlotName, &SlotTask)> {
        self.store
            .all_slots()
            .filter(|(service, ..)| self.store.service(*service).is_some())
            .flat_map(|(service, name, slot)| tasks_of(service, (name, slot)))
    }
}

fn tasks_of(
    service: ServiceId,
    (name, slot): (SlotName, &Slot),
) -> impl Iterator<Item = (ServiceId, SlotName, &SlotTask)> {
    slot.tasks.iter().map(move |task| (service, name, task))
}

/// Tells how soon people should see a task, from 0; `None` for what ended as it was meant to.
fn rank(task: &SlotTask, state: TaskState) -> Option<usize> {
    match state {
        TaskState::Running => Some(1),
        TaskState::Complete | TaskState::Shutdown | TaskState::Remove => None,
        _ if task.desired <= TaskState::Running => Some(0),
        _ => Some(2),
    }
}
