use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use shoal_protocol::Key;
use shoal_protocol::WallTime;
use shoal_protocol::settings::{TASK_HISTORY_DEFAULT, TASK_HISTORY_MAX};
use shoal_protocol::spec::{Availability, Reservations};
use shoal_protocol::value::{UpdateState, Value};

use super::*;
use crate::scheduler::{Node, Share, Usage};

mod jobs;
mod moves;
mod restarts;
mod spread;
mod updates;

const SERVICE: ServiceId = ServiceId(5);

/// One service on a few nodes whose agents do what they are told, at once and only when asked to.
struct World {
    desired: Option<Desired>,
    slots: BTreeMap<SlotName, Slot>,
    reports: BTreeMap<(NodeId, TaskId), TaskReport>,
    cluster: Cluster,
    memory: Memory,
    progress: Option<Progress>,
    now: Now,
    ids: u128,
    wake: Option<Time>,
    history: u64,
    is_slow: bool,
}

impl World {
    fn new(nodes: u128, spec: &str) -> Self {
        let node = |n| Node { hostname: format!("n{n}"), memory_bytes: 1 << 30, ..Node::default() };
        let mut world = Self {
            desired: None,
            slots: BTreeMap::new(),
            reports: BTreeMap::new(),
            cluster: Cluster::new((1..=nodes).map(|n| (NodeId(n), node(n))).collect()),
            memory: Memory::default(),
            progress: None,
            now: Now { time: Time(1_000), wall: WallTime(1_000) },
            ids: 0,
            wake: None,
            history: TASK_HISTORY_DEFAULT,
            is_slow: false,
        };
        world.set(spec);
        world
    }

    /// Writes the spec: `patch` of the template, mode and update policy over a plain service.
    fn set(&mut self, spec: &str) {
        let index = self.desired.as_ref().map_or(0, |desired| desired.index) + 1;
        let object = ServiceObject {
            index,
            created: WallTime(0),
            updated: self.now.wall,
            spec: spec.to_owned(),
            previous_spec: None,
            rolled_back: false,
            credentials: None,
            previous_credentials: None,
            ports: ServiceSpec::read(spec).unwrap().endpoint_spec.ports,
        };
        self.desired = Some(Desired::of(&object).unwrap());
    }

    /// Plans until nothing is left to do at this moment; each plan must leave nothing to do if nothing changes.
    fn plan(&mut self) -> Plan {
        let plan = self.reconcile();
        let before = self.slots.clone();
        self.apply(&plan);
        let again = self.reconcile();
        assert!(again.is_empty(), "planned {plan:?} from {before:?} and then {again:?}");
        plan
    }

    fn reconcile(&mut self) -> Plan {
        self.count();
        let reports = &self.reports;
        let report = |node, task| reports.get(&(node, task));
        let input = Input {
            service: SERVICE,
            desired: self.desired.as_ref(),
            slots: &self.slots,
            report: &report,
            progress: self.progress.as_ref(),
            history: self.history,
            now: self.now,
        };
        let ids = &mut self.ids;
        let mut next = || {
            *ids += 1;
            TaskId(*ids)
        };
        let plan = reconcile(input, &mut self.cluster, &mut self.memory, &mut next);
        self.wake = plan.wake;
        plan
    }

    fn apply(&mut self, plan: &Plan) {
        for (name, slot) in &plan.slots {
            match slot {
                Some(slot) => self.slots.insert(*name, slot.clone()),
                None => self.slots.remove(name),
            };
        }
        if let Some(progress) = &plan.progress {
            self.progress.clone_from(progress);
        }
    }

    fn count(&mut self) {
        for node in self.cluster.nodes.values_mut() {
            node.usage = Usage::default();
        }
        self.cluster = Cluster::new(std::mem::take(&mut self.cluster.nodes));
        for task in self.slots.values().flat_map(|slot| slot.tasks.iter()) {
            let Some(node) = task.node else { continue };
            if occupies(task, self.reports.get(&(node, task.id))) {
                let reservations: Reservations = template_of(task).unwrap().resources.reservations;
                let share = Share { reservations: &reservations, ports: &task.ports, generic: &task.generic };
                self.cluster.occupy(node, SERVICE, share);
            }
        }
    }

    /// Lets the agents of all live nodes do what the slots say.
    fn agents(&mut self) {
        let mut named = BTreeSet::new();
        for task in self.slots.values().flat_map(|slot| slot.tasks.iter()) {
            let Some(node) = task.node else { continue };
            named.insert((node, task.id));
            if self.cluster.nodes.get(&node).is_none_or(|node| !node.ready) {
                continue;
            }
            let old = self.reports.get(&(node, task.id)).map(|report| report.state);
            let state = match (old, task.desired <= TaskState::Running) {
                (Some(state), _) if state.is_terminal() => state,
                (_, true) => TaskState::Running,
                // A task that was told to end takes its time if the test says so.
                (Some(TaskState::Running), false) if self.is_slow => TaskState::Running,
                (_, false) => TaskState::Shutdown,
            };
            self.reports.insert((node, task.id), report(state, ""));
        }
        self.reports
            .retain(|key, _| named.contains(key) || self.cluster.nodes.get(&key.0).is_some_and(|node| !node.ready));
    }

    /// Plans and lets the agents act until nothing happens any more at this moment.
    fn settle(&mut self) {
        for _ in 0..200 {
            let plan = self.plan();
            let reports = self.reports.clone();
            self.agents();
            if plan.is_empty() && reports == self.reports {
                return;
            }
        }
        panic!("never settles: {:?}", self.slots);
    }

    fn pass(&mut self, time: Duration) {
        self.now.time = self.now.time + time;
        self.now.wall = WallTime(self.now.time.0);
    }

    /// Settles, then waits for whatever is due, `count` times.
    fn settle_and_wait(&mut self, count: usize) {
        for _ in 0..count {
            self.settle();
            let Some(wake) = self.wake else { return };
            assert!(wake > self.now.time, "a wake that lies behind keeps the loop busy");
            self.pass(wake.since(self.now.time));
        }
    }

    fn set_failed(&mut self, node: u128, failed: bool) {
        let node = self.cluster.nodes.get_mut(&NodeId(node)).unwrap();
        (node.failed, node.ready) = (failed, !failed);
    }

    fn set_availability(&mut self, node: u128, availability: Availability) {
        self.cluster.nodes.get_mut(&NodeId(node)).unwrap().availability = availability;
    }

    fn current(&self) -> Vec<(SlotName, &SlotTask)> {
        self.slots.iter().flat_map(|(&name, slot)| slot.current().map(move |task| (name, task))).collect()
    }

    fn nodes_used(&self) -> Vec<u128> {
        let mut nodes: Vec<u128> = self.current().iter().filter_map(|(_, task)| task.node).map(|node| node.0).collect();
        nodes.sort_unstable();
        nodes
    }

    fn numbers(&self) -> Vec<u32> {
        let number = |name: &SlotName| if let SlotName::Replica(number) = name { *number } else { 0 };
        self.current().iter().map(|(name, _)| number(name)).collect()
    }

    /// Makes the task of a slot end by itself.
    fn end(&mut self, number: u32, state: TaskState, error: &str) {
        let slot = &self.slots[&SlotName::Replica(number)];
        let task = slot.current().next().unwrap();
        self.reports.insert((task.node.unwrap(), task.id), report(state, error));
    }

    fn images(&self) -> Vec<String> {
        self.current().iter().map(|(_, task)| template_of(task).unwrap().container_spec.image).collect()
    }

    fn update_state(&self) -> Option<UpdateState> {
        self.progress.as_ref().map(|progress| progress.state)
    }
}

fn report(state: TaskState, error: &str) -> TaskReport {
    TaskReport {
        service: SERVICE,
        slot: SlotName::Replica(1),
        state,
        since: WallTime(0),
        message: String::new(),
        error: error.to_owned(),
        container_id: String::new(),
        pid: 0,
        exit_code: None,
        address: None,
    }
}

fn spec(replicas: u32, image: &str, more: &str) -> String {
    format!(
        r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"{image}"}}{more}}},"Mode":{{"Replicated":{{"Replicas":{replicas}}}}}}}"#
    )
}

const GLOBAL: &str = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Mode":{"Global":{}}}"#;

#[test]
fn replicas_are_spread_and_scaled() {
    let mut world = World::new(3, &spec(6, "a", ""));
    world.settle();
    assert_eq!(world.nodes_used(), [1, 1, 2, 2, 3, 3]);
    world.set(&spec(2, "a", ""));
    world.settle();
    assert_eq!(world.nodes_used().len(), 2);
    assert_ne!(world.nodes_used()[0], world.nodes_used()[1], "scaling down keeps the spread");
    assert_eq!(world.slots.len(), 2, "slots that were scaled away are removed");
    assert_eq!(world.progress, None, "scaling is no update");
    world.set(&spec(4, "a", ""));
    world.settle();
    assert_eq!(world.numbers(), [1, 2, 3, 4]);
    world.set(&spec(0, "a", ""));
    world.settle();
    assert!(world.slots.is_empty());
}

#[test]
fn scaling_down_gives_up_what_does_not_run_first() {
    let mut world = World::new(3, &spec(3, "a", ""));
    world.settle();
    world.end(1, TaskState::Failed, "exit 1");
    world.set(&spec(2, "a", ""));
    world.settle();
    assert_eq!(world.numbers(), [2, 3]);
    world.set(&spec(3, "a", ""));
    world.settle();
    assert_eq!(world.numbers(), [1, 2, 3], "the lowest free number is used again");
}

#[test]
fn a_task_that_waits_says_why_and_is_placed_when_it_can_be() {
    let memory = r#","Resources":{"Reservations":{"MemoryBytes":700000000}}"#;
    let mut world = World::new(1, &spec(2, "a", memory));
    world.settle();
    let waiting = world.slots[&SlotName::Replica(2)].tasks[0].clone();
    assert_eq!(waiting.note, "no suitable node (insufficient resources on 1 node)");
    let view = effective(&waiting, None, false);
    assert_eq!((view.state, view.error), (TaskState::Pending, waiting.note));
    let node = world.cluster.nodes[&NodeId(1)].clone();
    world.cluster.nodes.insert(NodeId(2), node);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2]);
    assert_eq!(world.slots[&SlotName::Replica(2)].tasks.len(), 1, "it is the same task");
}

#[test]
fn a_global_service_covers_the_nodes() {
    let mut world = World::new(3, GLOBAL);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2, 3]);
    let spec = world.desired.as_ref().unwrap().spec.clone();
    assert_eq!(desired_tasks(&spec, &world.cluster), 3);
    let before = world.slots.clone();
    world.set_failed(1, true);
    world.settle();
    assert_eq!(world.slots, before, "a failed node's task waits for it");
    world.set_failed(1, false);
    world.set_availability(2, Availability::Drain);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 3]);
    assert_eq!(desired_tasks(&spec, &world.cluster), 2);
    world.set_availability(2, Availability::Active);
    world.set_availability(3, Availability::Pause);
    let node = world.cluster.nodes[&NodeId(1)].clone();
    world.cluster.nodes.insert(NodeId(4), Node { availability: Availability::Pause, ..node });
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2, 3], "a paused node keeps its task and gets none");
    world.cluster.nodes.remove(&NodeId(1));
    world.settle();
    assert_eq!(world.nodes_used(), [2, 3]);
    assert_eq!(world.slots.len(), 2);
}

#[test]
fn a_removed_service_goes_and_leaves_nothing() {
    let mut world = World::new(3, &spec(3, "a", ""));
    world.settle();
    world.set_failed(3, true);
    world.desired = None;
    let plan = world.plan();
    assert_eq!(plan.slots.iter().filter(|(_, slot)| slot.is_none()).count(), 1, "nobody waits for a failed node");
    assert!(world.slots.values().all(|slot| slot.tasks.iter().all(|task| task.desired == TaskState::Remove)));
    world.settle();
    assert!(world.slots.is_empty());
}

#[test]
fn what_is_shown_of_a_task() {
    use TaskState::{Assigned, Complete, Failed, Orphaned, Pending, Running, Shutdown};
    let task = |node: Option<u128>, desired, last_seen| SlotTask {
        node: node.map(NodeId),
        desired,
        last_seen,
        ..SlotTask::default()
    };
    for (name, task, said, failed, want) in [
        ("no node", task(None, Running, None), None, false, Pending),
        ("not heard of", task(Some(1), Running, None), None, false, Assigned),
        ("as reported", task(Some(1), Running, None), Some(Running), false, Running),
        ("on a failed node", task(Some(1), Running, None), Some(Running), true, Orphaned),
        ("replaced there", task(Some(1), Shutdown, Some(Running)), None, true, Orphaned),
        ("ended before", task(Some(1), Running, None), Some(Complete), true, Complete),
        ("ended and forgotten", task(Some(1), Shutdown, Some(Failed)), None, false, Failed),
        ("never started", task(Some(1), Shutdown, None), None, false, Shutdown),
    ] {
        let said = said.map(|state| report(state, ""));
        assert_eq!(effective(&task, said.as_ref(), failed).state, want, "{name}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Fail(u128),
    Return(u128),
    Availability(u128, Availability),
    Scale(u32),
    Image(bool),
    StartFirst(bool),
    End(usize, TaskState),
    Agents,
    Pass(u64),
    NewHolder,
}

fn any_step() -> impl Strategy<Value = Step> {
    let availability = prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)];
    let end = prop_oneof![Just(TaskState::Complete), Just(TaskState::Failed), Just(TaskState::Rejected)];
    prop_oneof![
        2 => (1u128..5).prop_map(Step::Fail),
        2 => (1u128..5).prop_map(Step::Return),
        1 => (1u128..5, availability).prop_map(|(node, availability)| Step::Availability(node, availability)),
        2 => (0u32..7).prop_map(Step::Scale),
        1 => any::<bool>().prop_map(Step::Image),
        1 => any::<bool>().prop_map(Step::StartFirst),
        2 => (0usize..7, end).prop_map(|(task, state)| Step::End(task, state)),
        4 => Just(Step::Agents),
        2 => (1u64..7000).prop_map(Step::Pass),
        1 => Just(Step::NewHolder),
    ]
}

proptest! {
    /// Whatever happens, a plan leaves nothing to do; and when it stops happening, what is wanted runs.
    #[test]
    fn plans_are_idempotent_and_converge(steps in proptest::collection::vec(any_step(), 0..60), global: bool) {
        let (mut replicas, mut image, mut order) = (3, "a", "stop-first");
        let text = |replicas: u32, image: &str, order: &str| {
            let mode = if global { r#""Global":{}"#.to_owned() } else { format!(r#""Replicated":{{"Replicas":{replicas}}}"#) };
            format!(r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"{image}"}},"Resources":{{"Reservations":{{"MemoryBytes":300000000}}}}}},"Mode":{{{mode}}},"UpdateConfig":{{"Parallelism":1,"FailureAction":"continue","Order":"{order}"}}}}"#)
        };
        let mut world = World::new(4, &text(replicas, image, order));
        for step in steps {
            match step {
                Step::Fail(node) => world.set_failed(node, true),
                Step::Return(node) => world.set_failed(node, false),
                Step::Availability(node, availability) => world.set_availability(node, availability),
                Step::Scale(count) => replicas = count,
                Step::Image(new) => image = if new { "b" } else { "a" },
                Step::StartFirst(first) => order = if first { "start-first" } else { "stop-first" },
                Step::End(position, state) => {
                    let task = world.current().get(position).and_then(|(_, task)| Some((task.node?, task.id)));
                    if let Some(key) = task && world.reports.get(&key).is_some_and(|old| !old.state.is_terminal()) {
                        world.reports.insert(key, report(state, ""));
                    }
                }
                Step::Agents => world.agents(),
                Step::Pass(millis) => world.pass(Duration::from_millis(millis)),
                Step::NewHolder => world.memory = Memory::default(),
            }
            let spec = text(replicas, image, order);
            if world.desired.as_ref().unwrap().spec != ServiceSpec::read(&spec).unwrap() {
                world.set(&spec);
            }
            world.plan();
            // One that serves, one on a node that was lost, and one that waits for another node.
            prop_assert!(world.slots.values().all(|slot| slot.current().count() <= 3), "{:?}", world.slots);
            for node in world.cluster.nodes.values() {
                prop_assert!(node.usage.memory_bytes <= node.memory_bytes);
            }
        }
        for node in 1..5 {
            world.set_failed(node, false);
            world.set_availability(node, Availability::Active);
        }
        world.settle_and_wait(60);
        let want = if global { 4 } else { replicas as usize };
        prop_assert_eq!(world.current().len(), want, "{:?}", world.slots);
        let running = world.reports.values().filter(|report| report.state == TaskState::Running).count();
        prop_assert_eq!(running, want, "{:?}", world.slots);
        prop_assert!(world.images().iter().all(|used| used == image));
        prop_assert!(world.progress.is_none_or(|progress| progress.state == UpdateState::Completed));
        prop_assert!(world.slots.values().all(|slot| slot.tasks.len() <= 6));
    }
}
