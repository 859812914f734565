//! Tells users what happens: looks at what the decisions say is new, compares it with what was known, and hands the difference
//! to the API. What is a difference, and what is said of it, is decided in [`crate::api::events::difference`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_control::core::{Control, News};
use shoal_control::task::plan::container_plan;
use shoal_control::task::{NodeIdentity, Wanted};
use shoal_protocol::lease::LeaseId;
use shoal_protocol::object::ObjectHead;
use shoal_protocol::spec::{Availability, ModeKind, TaskTemplate};
use shoal_protocol::token::Role;
use shoal_protocol::value::TaskReport;
use shoal_protocol::{Key, NodeId, ObjectId, ServiceId, TaskId, TaskState, WallTime};

use super::backend::node_state;
use crate::api::Hub;
use crate::api::events::difference::{Container, Facts, Kind, Phase, container_events, difference};
use crate::api::render::update_state;
use crate::api::snapshot::NodeState;

/// Remembers what users were told of, and tells them what is new.
pub(super) struct Reporter {
    hub: Arc<Hub>,
    /// Since when this node looks.
    started: WallTime,
    /// Whether this node tells of its containers; an engine does that itself.
    tells_containers: bool,
    objects: BTreeMap<Object, Facts>,
    containers: BTreeMap<TaskId, Container>,
}

/// An object whose changes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Node(NodeId),
    Service(ServiceId),
    Other(shoal_protocol::Kind, ObjectId),
}

impl Object {
    /// Returns the object that a key of the document is about. Whoever adds a kind of object adds it here.
    fn of(key: &Key) -> Option<Self> {
        match *key {
            Key::Node(node) | Key::NodeStatus(node) => Some(Self::Node(node)),
            Key::Service(service) | Key::Progress(service) => Some(Self::Service(service)),
            Key::Object(kind, id) => Some(Self::Other(kind, id)),
            Key::Cluster | Key::Voters | Key::Claim(_) | Key::Slot(..) | Key::TaskStatus(..) => None,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Other(kind, _) => Kind::Object(kind),
        }
    }

    fn id(self) -> String {
        match self {
            Self::Node(node) => node.to_string(),
            Self::Service(service) => service.to_string(),
            Self::Other(_, id) => id.to_string(),
        }
    }

    fn facts(self, control: &Control) -> Option<Facts> {
        match self {
            Self::Node(node) => node_facts(control, node),
            Self::Service(service) => service_facts(control, service),
            Self::Other(kind, id) => control.store().object(kind, id).map(object_facts),
        }
    }
}

impl Reporter {
    /// Begins with what is known already, of which nothing is told.
    pub(super) fn new(hub: Arc<Hub>, control: &Control, tells_containers: bool, now: WallTime) -> Self {
        let found = objects(control).into_iter().filter_map(|object| Some((object, object.facts(control)?)));
        let (objects, containers) = (found.collect(), BTreeMap::new());
        Self { hub, started: now, tells_containers, objects, containers }
    }

    /// Tells of everything that is new.
    pub(super) fn tell(&mut self, control: &Control, news: &News, now: WallTime) {
        let mut changed: BTreeSet<Object> = news.keys.iter().filter_map(Object::of).collect();
        let mut tasks: BTreeSet<TaskId> = news.keys.iter().filter_map(task).collect();
        if news.missed {
            changed.extend(objects(control));
            changed.extend(self.objects.keys());
            tasks.extend(control.store().reports_of(control.me()).map(|(task, _)| task));
            tasks.extend(self.containers.keys());
        } else if news.keys.contains(&Key::Claim(LeaseId::REGISTRY)) {
            changed.extend(control.store().nodes().map(|(node, ..)| Object::Node(node)));
        }
        for object in changed {
            let after = object.facts(control);
            let name = (object.kind(), object.id());
            let before = self.objects.get(&object);
            if let Some(event) = difference((name.0, &name.1), before, after.as_ref(), self.started, now) {
                self.hub.tell(event);
            }
            match after {
                Some(after) => self.objects.insert(object, after),
                None => self.objects.remove(&object),
            };
        }
        if self.tells_containers {
            tasks.into_iter().for_each(|task| self.tell_container(control, task, now));
        }
    }

    fn tell_container(&mut self, control: &Control, task: TaskId, now: WallTime) {
        let before = self.containers.get(&task);
        let report = control.store().report(control.me(), task);
        let after = report.and_then(|report| container(control, task, report, before));
        container_events(before, after.as_ref(), now).into_iter().for_each(|event| self.hub.tell(event));
        match after {
            Some(after) => self.containers.insert(task, after),
            None => self.containers.remove(&task),
        };
    }
}

fn objects(control: &Control) -> BTreeSet<Object> {
    let store = control.store();
    let nodes = store.nodes().map(|(node, ..)| Object::Node(node));
    let services = store.services().map(|(service, ..)| Object::Service(service));
    let of_kind = |kind| store.objects(kind).map(move |(id, ..)| Object::Other(kind, id));
    nodes.chain(services).chain(shoal_protocol::Kind::ALL.into_iter().flat_map(of_kind)).collect()
}

fn task(key: &Key) -> Option<TaskId> {
    if let Key::TaskStatus(_, task) = key { Some(*task) } else { None }
}

fn node_facts(control: &Control, node: NodeId) -> Option<Facts> {
    let object = control.store().node(node)?;
    let spec = control.store().node_spec(node)?;
    let hostname = control.store().node_status(node).map_or("", |status| &status.hostname);
    let (state, reachability) = match node_state(control, node) {
        NodeState::Ready | NodeState::Suspect => ("ready", "reachable"),
        NodeState::Down => ("down", "unreachable"),
        NodeState::Unknown => ("unknown", "unknown"),
    };
    let mut tracked = BTreeMap::from([
        ("availability", availability(spec.availability).to_owned()),
        ("role", spec.role.to_string()),
        ("state", state.to_owned()),
    ]);
    if spec.role == Role::Manager {
        let leads = control.holder(LeaseId::REGISTRY).is_some_and(|(holder, _)| holder == node);
        tracked.extend([("leader", leads.to_string()), ("reachability", reachability.to_owned())]);
    }
    let (index, created, updated) = (object.index, object.created, object.updated);
    Some(Facts { name: hostname.to_owned(), index, created, updated, tracked })
}

fn service_facts(control: &Control, service: ServiceId) -> Option<Facts> {
    let object = control.store().service(service)?;
    let spec = control.store().service_spec(service)?;
    let mut tracked = BTreeMap::new();
    if let ModeKind::Replicated { replicas } = spec.mode.kind() {
        tracked.insert("replicas", replicas.to_string());
    }
    // What an earlier spec's update came to says nothing about this one.
    let progress = control.store().progress(service);
    let progress = progress.filter(|progress| progress.index == object.index && object.index > 1);
    tracked.extend(progress.map(|progress| ("updatestate", update_state(progress.state).to_owned())));
    let (index, created, updated) = (object.index, object.created, object.updated);
    Some(Facts { name: spec.name.clone(), index, created, updated, tracked })
}

fn object_facts(object: &ObjectHead) -> Facts {
    let (index, created, updated) = (object.index, object.created, object.updated);
    Facts { name: object.name.clone(), index, created, updated, tracked: BTreeMap::new() }
}

fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// Describes the container of one of this node's tasks; what does not change is taken from what was known before.
fn container(control: &Control, task: TaskId, report: &TaskReport, before: Option<&Container>) -> Option<Container> {
    if report.container_id.is_empty() {
        return None;
    }
    let phase = match report.state {
        state if state < TaskState::Running => Phase::Created,
        TaskState::Running => Phase::Running,
        _ => Phase::Ended(report.exit_code),
    };
    let attributes = match before.filter(|before| before.id == report.container_id) {
        Some(before) => before.attributes.clone(),
        None => Arc::new(attributes(control, task, report)),
    };
    Some(Container { id: report.container_id.clone(), attributes, phase, since: report.since })
}

/// Returns the labels, the image and the name of a container, as its driver was told.
fn attributes(control: &Control, task: TaskId, report: &TaskReport) -> BTreeMap<String, String> {
    let store = control.store();
    let slot = store.slot(report.service, report.slot);
    let template = slot.and_then(|slot| slot.tasks.iter().find(|found| found.id == task));
    let template: Option<TaskTemplate> = template.and_then(|task| serde_json::from_str(&task.template).ok());
    let (Some(template), Some(spec), Some(cluster)) =
        (template, store.service_spec(report.service), store.cluster().map(|cluster| cluster.id))
    else {
        return BTreeMap::new(); // the service is being removed, and nobody can tell any more
    };
    let wanted = Wanted {
        service: report.service,
        slot: report.slot,
        desired: TaskState::Running,
        template: Ok(Arc::new(template.clone())),
        service_name: spec.name.clone(),
        service_labels: spec.labels.clone(),
        ports: Vec::new(),
        generic: Default::default(),
        fenced: false,
    };
    let node = NodeIdentity::new(control.me(), cluster, control.own_status());
    let Ok(plan) = container_plan(task, &wanted, &template, &node) else {
        return BTreeMap::new(); // its service has other labels by now
    };
    let mut attributes = plan.labels;
    attributes.extend([("image".to_owned(), plan.image), ("name".to_owned(), plan.name)]);
    attributes
}
