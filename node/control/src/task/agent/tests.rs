use proptest::prelude::*;
use shoal_protocol::WallTime;
use shoal_protocol::spec::{ContainerSpec, PublishMode, Reservations, Resources};

use super::*;
use crate::task::health::HealthStatus;
use crate::task::{ContainerPlan, Running};

fn at(secs: u64) -> Now {
    Now { time: Time(secs * 1000), wall: WallTime(secs * 1_000_000_000) }
}

fn agent() -> Agent {
    Agent::new(NodeIdentity {
        id: NodeId(7),
        hostname: "n7".to_owned(),
        os: "linux".to_owned(),
        architecture: "x86_64".to_owned(),
        cluster: ClusterId(9),
        capacity: Capacity { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30, ..Capacity::default() },
    })
}

fn listed_agent() -> Agent {
    let mut agent = agent();
    agent.found(Vec::new(), at(0));
    agent.sync_complete(at(0));
    agent
}

fn template(memory_bytes: u64) -> TaskTemplate {
    TaskTemplate {
        container_spec: ContainerSpec {
            image: "shoal/whoami".to_owned(),
            env: vec!["A=b".to_owned()],
            labels: BTreeMap::from([("tier".to_owned(), "front".to_owned())]),
            ..ContainerSpec::default()
        },
        resources: Resources {
            reservations: Reservations { memory_bytes, ..Reservations::default() },
            ..Resources::default()
        },
        ..TaskTemplate::default()
    }
}

fn wanted(desired: TaskState) -> Wanted {
    Wanted {
        service: ServiceId(3),
        slot: SlotName::Replica(2),
        desired,
        template: Ok(Arc::new(template(0))),
        service_name: "web".to_owned(),
        service_labels: BTreeMap::new(),
        ports: Vec::new(),
        generic: GenericResources::default(),
        fenced: false,
    }
}

fn heavy(desired: TaskState, memory_bytes: u64) -> Wanted {
    Wanted { template: Ok(Arc::new(template(memory_bytes))), ..wanted(desired) }
}

fn set(agent: &mut Agent, tasks: &[(u128, Wanted)], now: Now) {
    agent.set_wanted(tasks.iter().map(|(id, wanted)| (TaskId(*id), wanted.clone())).collect(), now);
}

fn running(id: u128) -> Running {
    Running { container_id: format!("c{id}"), pid: 10, address: None, started: WallTime(1), health: None }
}

fn found(id: u128, state: FoundState) -> Found {
    Found { task: TaskId(id), service: ServiceId(3), slot: SlotName::Replica(2), state }
}

fn drain(agent: &mut Agent) -> Vec<AgentAction> {
    std::iter::from_fn(|| agent.poll_action()).collect()
}

fn calls(actions: &[AgentAction]) -> Vec<&DriverCall> {
    actions
        .iter()
        .filter_map(|action| match action {
            AgentAction::Call(_, call) => Some(call),
            AgentAction::Adopt(_) | AgentAction::Report(..) | AgentAction::Forget(_) => None,
        })
        .collect()
}

fn states(actions: &[AgentAction]) -> Vec<(u128, TaskState)> {
    actions
        .iter()
        .filter_map(|action| match action {
            AgentAction::Report(task, report) => Some((task.0, report.state)),
            AgentAction::Adopt(_) | AgentAction::Call(..) | AgentAction::Forget(_) => None,
        })
        .collect()
}

fn plan_of(call: &DriverCall) -> &ContainerPlan {
    match call {
        DriverCall::Prepare(plan) => plan,
        DriverCall::Start(_) | DriverCall::Stop { .. } | DriverCall::Remove(_) => panic!("{call:?} has no plan"),
    }
}

/// Answers calls as an engine in which everything works, until there is none.
fn oblige(agent: &mut Agent, now: Now) -> Vec<AgentAction> {
    let mut all = Vec::new();
    while let Some(action) = agent.poll_action() {
        if let AgentAction::Call(task, call) = &action {
            let report = match call {
                DriverCall::Prepare(_) => DriverReport::Prepared { container_id: format!("c{}", task.0) },
                DriverCall::Start(_) => DriverReport::Started(running(task.0)),
                DriverCall::Stop { .. } => {
                    agent.handle_report(*task, DriverReport::Exited { code: 143, error: String::new() }, now);
                    DriverReport::Stopped
                }
                DriverCall::Remove(_) => DriverReport::Removed,
            };
            agent.handle_report(*task, report, now);
        }
        all.push(action);
    }
    all
}

#[test]
fn a_task_runs_and_is_removed() {
    let mut agent = listed_agent();
    set(&mut agent, &[(1, wanted(TaskState::Running))], at(1));
    let actions = oblige(&mut agent, at(1));
    assert_eq!(states(&actions), [(1, TaskState::Preparing), (1, TaskState::Starting), (1, TaskState::Running)]);

    set(&mut agent, &[(1, wanted(TaskState::Shutdown))], at(2));
    let actions = oblige(&mut agent, at(2));
    assert_eq!(states(&actions), [(1, TaskState::Shutdown)]);
    assert_eq!(
        calls(&actions),
        [&DriverCall::Stop { task: TaskId(1), grace: Duration::from_secs(10), drain: Duration::ZERO }]
    );

    set(&mut agent, &[], at(3));
    let actions = oblige(&mut agent, at(3));
    assert_eq!(actions, [AgentAction::Forget(TaskId(1)), AgentAction::Call(TaskId(1), DriverCall::Remove(TaskId(1)))]);
    assert!(agent.is_empty());
}

#[test]
fn a_task_to_be_removed_says_when_nothing_is_left() {
    let mut agent = listed_agent();
    set(&mut agent, &[(1, wanted(TaskState::Running))], at(1));
    oblige(&mut agent, at(1));
    set(&mut agent, &[(1, wanted(TaskState::Remove))], at(2));
    let actions = oblige(&mut agent, at(2));
    assert_eq!(states(&actions), [(1, TaskState::Shutdown), (1, TaskState::Remove)]);
}

#[test]
fn connections_to_a_published_task_are_waited_for_within_its_grace() {
    let port = |publish_mode, protocol: &str| PortConfig {
        target_port: 80,
        published_port: 81,
        publish_mode,
        protocol: protocol.to_owned(),
        ..Default::default()
    };
    for (ports, grace, want) in [
        (vec![port(PublishMode::Ingress, "tcp")], Some(10), 5),
        (vec![port(PublishMode::Ingress, "udp"), port(PublishMode::Ingress, "")], Some(2), 2),
        (vec![port(PublishMode::Ingress, "tcp")], Some(0), 0),
        (vec![port(PublishMode::Ingress, "udp"), port(PublishMode::Host, "tcp")], None, 0),
        (Vec::new(), None, 0),
    ] {
        let mut agent = listed_agent();
        let mut template = template(0);
        template.container_spec.stop_grace_period = grace.map(|secs: u64| secs * 1_000_000_000);
        let template = Ok(Arc::new(template));
        let published = |desired| Wanted { ports: ports.clone(), template: template.clone(), ..wanted(desired) };
        set(&mut agent, &[(1, published(TaskState::Running))], at(1));
        oblige(&mut agent, at(1));
        set(&mut agent, &[(1, published(TaskState::Shutdown))], at(2));
        let actions = oblige(&mut agent, at(2));
        let [DriverCall::Stop { drain, .. }] = calls(&actions)[..] else { panic!("{actions:?}") };
        assert_eq!(*drain, Duration::from_secs(want), "{ports:?}");
    }
}

#[test]
fn the_plan_says_who_the_task_is() {
    let mut agent = listed_agent();
    let host =
        PortConfig { target_port: 80, published_port: 81, publish_mode: PublishMode::Host, ..Default::default() };
    let ingress = PortConfig { target_port: 80, published_port: 82, ..Default::default() };
    let global =
        Wanted { slot: SlotName::Node(NodeId(7)), ports: vec![host.clone(), ingress], ..wanted(TaskState::Running) };
    set(&mut agent, &[(1, wanted(TaskState::Running)), (2, global)], at(1));
    let actions = drain(&mut agent);
    let plans: Vec<_> = calls(&actions).into_iter().map(plan_of).collect();

    assert_eq!(plans[0].name, format!("web.2.{}", TaskId(1)));
    assert_eq!(plans[1].name, format!("web.{}.{}", NodeId(7), TaskId(2)));
    assert_eq!(plans[1].host_ports, [host]);
    assert_eq!(plans[0].stop_grace, Duration::from_secs(10));
    assert_eq!(
        plans[0].env[..4],
        [
            "A=b".to_owned(),
            format!("SHOAL_NODE_ID={}", NodeId(7)),
            "SHOAL_NODE_HOSTNAME=n7".to_owned(),
            "SHOAL_SERVICE_NAME=web".to_owned()
        ]
    );
    for (label, want) in [
        ("tier", "front".to_owned()),
        ("shoal.cluster.id", ClusterId(9).to_string()),
        ("shoal.node.id", NodeId(7).to_string()),
        ("com.docker.swarm.node.id", NodeId(7).to_string()),
        ("com.docker.swarm.service.id", ServiceId(3).to_string()),
        ("com.docker.swarm.service.name", "web".to_owned()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", TaskId(1).to_string()),
        ("com.docker.swarm.task.name", format!("web.2.{}", TaskId(1))),
    ] {
        assert_eq!(plans[0].labels.get(label), Some(&want), "{label}");
    }
}

#[test]
fn nothing_is_done_before_the_driver_was_listed() {
    let mut agent = agent();
    set(&mut agent, &[(1, wanted(TaskState::Running)), (2, wanted(TaskState::Shutdown))], at(1));
    agent.sync_complete(at(1));
    assert_eq!(drain(&mut agent), []);
}

#[test]
fn what_runs_and_is_wanted_is_adopted_in_either_order() {
    for wanted_first in [true, false] {
        let mut agent = agent();
        let tasks = [
            (1, wanted(TaskState::Running)),
            (2, wanted(TaskState::Shutdown)),
            (3, wanted(TaskState::Running)),
            (4, wanted(TaskState::Shutdown)),
        ];
        let list = vec![
            found(1, FoundState::Running(running(1))),
            found(2, FoundState::Exited { code: 143 }),
            found(3, FoundState::Exited { code: 137 }),
        ];
        if wanted_first {
            set(&mut agent, &tasks, at(1));
            agent.found(list, at(1));
        } else {
            agent.found(list, at(1));
            set(&mut agent, &tasks, at(1));
        }
        let actions = drain(&mut agent);
        assert_eq!(actions[0], AgentAction::Adopt(TaskId(1)));
        assert_eq!(
            states(&actions),
            [(1, TaskState::Running), (2, TaskState::Shutdown), (3, TaskState::Failed), (4, TaskState::Shutdown)],
            "wanted first: {wanted_first}"
        );
        assert!(calls(&actions).is_empty());
        let (_, status) = agent.statuses().next().unwrap();
        assert_eq!((status.container_id.as_str(), status.since), ("c1", WallTime(1)));
    }
}

#[test]
fn what_nobody_wants_is_removed_only_after_a_manager_was_heard() {
    let mut agent = agent();
    agent.found(vec![found(1, FoundState::Running(running(1))), found(2, FoundState::Created)], at(1));
    set(&mut agent, &[], at(1));
    assert_eq!(oblige(&mut agent, at(1)), [AgentAction::Adopt(TaskId(1))], "watched, not touched");

    agent.sync_complete(at(2));
    let actions = oblige(&mut agent, at(2));
    assert_eq!(
        calls(&actions),
        [
            &DriverCall::Stop { task: TaskId(1), grace: STOP_GRACE_UNKNOWN, drain: Duration::ZERO },
            &DriverCall::Remove(TaskId(2)),
            &DriverCall::Remove(TaskId(1)),
        ]
    );
    assert!(states(&actions).is_empty() && agent.is_empty());
}

#[test]
fn a_prepared_container_is_found_and_used() {
    let mut agent = agent();
    agent.found(vec![found(1, FoundState::Created)], at(1));
    set(&mut agent, &[(1, wanted(TaskState::Running))], at(1));
    assert_eq!(states(&oblige(&mut agent, at(1))).last(), Some(&(1, TaskState::Running)));
}

#[test]
fn an_old_word_starts_nothing_and_stops_nothing_that_runs() {
    let mut agent = listed_agent();
    let fenced = |desired| Wanted { fenced: true, ..wanted(desired) };
    set(&mut agent, &[(1, fenced(TaskState::Running)), (2, wanted(TaskState::Running))], at(1));
    oblige(&mut agent, at(1));
    set(&mut agent, &[(1, fenced(TaskState::Running)), (2, fenced(TaskState::Running))], at(2));
    assert!(calls(&oblige(&mut agent, at(2))).is_empty());
    let got: Vec<_> = agent.statuses().map(|(task, status)| (task.0, status.state)).collect();
    assert_eq!(got, [(1, TaskState::Assigned), (2, TaskState::Running)]);

    set(&mut agent, &[(1, wanted(TaskState::Running)), (2, fenced(TaskState::Shutdown))], at(3));
    oblige(&mut agent, at(3));
    let got: Vec<_> = agent.statuses().map(|(task, status)| (task.0, status.state)).collect();
    assert_eq!(got, [(1, TaskState::Running), (2, TaskState::Shutdown)]);
}

#[test]
fn memory_that_two_holders_gave_away_is_given_once() {
    let mut agent = listed_agent();
    let half = (1 << 29) + 1;
    set(&mut agent, &[(1, heavy(TaskState::Running, half)), (2, heavy(TaskState::Running, half))], at(1));
    oblige(&mut agent, at(1));
    let (_, status) = agent.statuses().nth(1).unwrap();
    assert_eq!(status.state, TaskState::Rejected);
    assert!(status.error.contains("insufficient memory on n7"), "{}", status.error);
}

#[test]
fn a_task_waits_for_those_that_leave() {
    let mut agent = listed_agent();
    set(&mut agent, &[(1, heavy(TaskState::Running, 1 << 30))], at(1));
    oblige(&mut agent, at(1));
    set(&mut agent, &[(2, heavy(TaskState::Running, 1 << 30))], at(2)); // 1 was removed with its slot
    let actions = drain(&mut agent);
    assert_eq!(states(&actions), [(2, TaskState::Assigned)]);
    assert_eq!(agent.poll_timeout(), Some(at(2).time + ADMISSION_WAIT_MAX));

    agent.handle_report(TaskId(1), DriverReport::Stopped, at(3));
    assert_eq!(states(&oblige(&mut agent, at(3))).last(), Some(&(2, TaskState::Running)));
    assert_eq!(agent.poll_timeout(), None);
}

#[test]
fn a_task_does_not_wait_for_ever() {
    let mut agent = listed_agent();
    set(&mut agent, &[(1, heavy(TaskState::Running, 1 << 30))], at(1));
    oblige(&mut agent, at(1));
    set(&mut agent, &[(2, heavy(TaskState::Running, 1 << 30))], at(2));
    drain(&mut agent);
    agent.handle_timeout(at(62));
    assert_eq!(states(&drain(&mut agent)), [(2, TaskState::Rejected)]);
    assert_eq!(agent.poll_timeout(), None);
}

#[test]
fn what_cannot_be_read_is_rejected() {
    let mut agent = listed_agent();
    let unreadable = Wanted { template: Err("template: expected value".to_owned()), ..wanted(TaskState::Running) };
    set(&mut agent, &[(1, unreadable)], at(1));
    let actions = drain(&mut agent);
    assert_eq!(states(&actions), [(1, TaskState::Rejected)]);
    assert!(calls(&actions).is_empty());
}

#[test]
fn templates_are_filled_in_for_the_node_or_reject_the_task() {
    let with_hostname = |hostname: &str, labels: &[(&str, &str)]| {
        let mut template = template(0);
        template.container_spec.hostname = hostname.to_owned();
        let service_labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Wanted { template: Ok(Arc::new(template)), service_labels, ..wanted(TaskState::Running) }
    };
    let mut agent = listed_agent();
    let good = with_hostname("{{.Node.Hostname}}-{{.Task.Slot}}-{{.Service.Labels.zone}}", &[("zone", "a")]);
    set(&mut agent, &[(1, good), (2, with_hostname("{{.Service.Labels.zone}}", &[]))], at(1));
    let actions = drain(&mut agent);
    let calls = calls(&actions);
    assert_eq!((calls.len(), plan_of(calls[0]).hostname.as_str()), (1, "n7-2-a"));
    assert_eq!(states(&actions), [(1, TaskState::Preparing), (2, TaskState::Rejected)]);
    let (_, rejected) = agent.statuses().last().unwrap();
    assert!(rejected.error.starts_with("expanding hostname failed: template: expansion:1:17:"), "{}", rejected.error);
}

#[test]
fn a_failed_removal_is_due_again() {
    let mut agent = agent();
    agent.found(vec![found(1, FoundState::Exited { code: 0 })], at(1));
    agent.sync_complete(at(1));
    assert_eq!(calls(&drain(&mut agent)), [&DriverCall::Remove(TaskId(1))]);
    agent.handle_report(TaskId(1), DriverReport::Failed { error: "busy".to_owned() }, at(2));
    assert_eq!(agent.poll_timeout(), Some(at(3).time));
    assert_eq!(drain(&mut agent), []);
    agent.handle_timeout(at(3));
    assert_eq!(calls(&oblige(&mut agent, at(3))), [&DriverCall::Remove(TaskId(1))]);
    assert!(agent.is_empty());
}

#[test]
fn a_forgotten_task_that_is_wanted_again_is_reported_again() {
    let mut agent = listed_agent();
    set(&mut agent, &[(1, wanted(TaskState::Running))], at(1));
    oblige(&mut agent, at(1));
    set(&mut agent, &[], at(2));
    set(&mut agent, &[(1, wanted(TaskState::Running))], at(2));
    let actions = oblige(&mut agent, at(2));
    assert!(!actions.contains(&AgentAction::Forget(TaskId(1))));
    assert!(!states(&actions).is_empty());
}

const TASKS: u128 = 4;

#[derive(Debug, Clone)]
enum Step {
    Want(u128, TaskState, bool),
    Drop(u128),
    /// Answers the oldest call of a task: well, badly, or with a rejection.
    Answer(u128, u8),
    Exit(u128, i32),
    /// Its check finds a running container well or not.
    Check(u128, bool),
    Sync,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let desired = prop::sample::select(vec![
        TaskState::Ready,
        TaskState::Running,
        TaskState::Running,
        TaskState::Shutdown,
        TaskState::Remove,
    ]);
    let step = prop_oneof![
        4 => (0..TASKS, desired, prop::bool::weighted(0.1)).prop_map(|(id, state, fenced)| Step::Want(id, state, fenced)),
        1 => (0..TASKS).prop_map(Step::Drop),
        6 => (0..TASKS, 0..6u8).prop_map(|(id, how)| Step::Answer(id, how)),
        1 => (0..TASKS, 0..3i32).prop_map(|(id, code)| Step::Exit(id, code)),
        2 => (0..TASKS, prop::bool::weighted(0.7)).prop_map(|(id, is_well)| Step::Check(id, is_well)),
        1 => Just(Step::Sync),
        1 => (0..90u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

/// The world around an agent: what is wanted, which calls are outstanding, and what was last said.
struct World {
    agent: Agent,
    wanted: BTreeMap<TaskId, Wanted>,
    /// The furthest each task was ever to get: holders only move forward, also for a task that was out of sight.
    furthest: BTreeMap<TaskId, TaskState>,
    outstanding: BTreeMap<TaskId, DriverCall>,
    said: BTreeMap<TaskId, TaskState>,
    /// Whose containers exist; true for those that run.
    containers: BTreeMap<TaskId, bool>,
    now: Now,
}

impl World {
    fn new() -> Self {
        let mut agent = agent();
        agent.found(Vec::new(), at(0));
        Self {
            agent,
            wanted: BTreeMap::new(),
            furthest: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            said: BTreeMap::new(),
            containers: BTreeMap::new(),
            now: at(0),
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Want(id, desired, fenced) => {
                let task = TaskId(id);
                let furthest = self.furthest.entry(task).or_insert(desired);
                *furthest = desired.max(*furthest);
                let desired = *furthest;
                self.wanted.insert(task, Wanted { fenced, ..heavy(desired, 1 << 28) });
                self.agent.set_wanted(self.wanted.clone(), self.now);
            }
            Step::Drop(id) => {
                self.wanted.remove(&TaskId(id));
                self.agent.set_wanted(self.wanted.clone(), self.now);
            }
            Step::Answer(id, how) => self.answer(TaskId(id), how),
            Step::Exit(id, code) => {
                let task = TaskId(id);
                if self.containers.get(&task) == Some(&true) {
                    self.containers.insert(task, false);
                    let error = String::new();
                    self.agent.handle_report(task, DriverReport::Exited { code, error }, self.now);
                }
            }
            Step::Check(id, is_well) => {
                if self.containers.get(&TaskId(id)) == Some(&true) {
                    let status = if is_well { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
                    let report = DriverReport::Health { status, output: String::new() };
                    self.agent.handle_report(TaskId(id), report, self.now);
                }
            }
            Step::Sync => self.agent.sync_complete(self.now),
            Step::Wait(secs) => {
                self.now.time = self.now.time + Duration::from_secs(secs);
                self.agent.handle_timeout(self.now);
            }
        }
        self.perform();
    }

    fn answer(&mut self, task: TaskId, how: u8) {
        let Some(call) = self.outstanding.remove(&task) else { return };
        let error = "no".to_owned();
        let report = match (how, call) {
            (4, _) => DriverReport::Failed { error },
            (5, _) => DriverReport::Rejected { error },
            (_, DriverCall::Prepare(_)) => {
                self.containers.entry(task).or_insert(false);
                DriverReport::Prepared { container_id: "c".to_owned() }
            }
            (_, DriverCall::Start(_)) => {
                self.containers.insert(task, true);
                let health = (task.0 % 2 == 1).then_some(HealthStatus::Starting); // every other one is checked
                DriverReport::Started(Running { health, ..running(task.0) })
            }
            (_, DriverCall::Stop { .. }) => {
                if self.containers.insert(task, false) == Some(true) {
                    self.agent.handle_report(task, DriverReport::Exited { code: 143, error: String::new() }, self.now);
                    self.perform();
                }
                DriverReport::Stopped
            }
            (_, DriverCall::Remove(_)) => {
                self.containers.remove(&task);
                DriverReport::Removed
            }
        };
        self.agent.handle_report(task, report, self.now);
    }

    fn perform(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            match action {
                AgentAction::Call(task, call) => {
                    let before = self.outstanding.insert(task, call);
                    assert_eq!(before, None, "one call at a time");
                }
                AgentAction::Report(task, report) => {
                    assert!(self.wanted.contains_key(&task), "only what is wanted is reported");
                    let before = self.said.insert(task, report.state);
                    assert!(before <= Some(report.state), "{before:?} to {:?}", report.state);
                }
                AgentAction::Forget(task) => {
                    self.said.remove(&task);
                }
                AgentAction::Adopt(_) => panic!("nothing was found"),
            }
        }
    }

    /// Lets everything work from now on until nothing happens any more.
    fn settle(&mut self) {
        self.agent.sync_complete(self.now);
        for wanted in self.wanted.values_mut() {
            wanted.fenced = false;
        }
        self.agent.set_wanted(self.wanted.clone(), self.now);
        self.perform();
        for _ in 0..100 {
            for task in self.outstanding.keys().copied().collect::<Vec<_>>() {
                self.answer(task, 0);
                self.perform();
            }
            for id in 0..TASKS {
                self.take_step(Step::Check(id, true));
            }
            if let Some(due) = self.agent.poll_timeout() {
                self.now.time = self.now.time.max(due);
                self.agent.handle_timeout(self.now);
                self.perform();
            } else if self.outstanding.is_empty() {
                return;
            }
        }
        panic!("it never settles");
    }
}

proptest! {
    #[test]
    fn whatever_happens_ends_as_wanted(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.take_step(step);
        }
        world.settle();
        for (task, wanted) in &world.wanted {
            let state = world.said[task];
            match wanted.desired {
                TaskState::Ready => prop_assert!(state == TaskState::Ready || state.is_terminal()),
                TaskState::Running => prop_assert!(state >= TaskState::Running, "{state}"),
                TaskState::Remove => prop_assert_eq!(state, TaskState::Remove),
                desired => prop_assert!(state.is_terminal(), "{} though {}", state, desired),
            }
            let runs = world.containers.get(task) == Some(&true);
            prop_assert_eq!(runs, state == TaskState::Running, "what runs is what is said to run");
        }
        for task in world.containers.keys() {
            prop_assert!(world.wanted.contains_key(task), "what nobody wants is removed");
        }
        prop_assert_eq!(world.said.keys().collect::<Vec<_>>(), world.wanted.keys().collect::<Vec<_>>());
    }

    #[test]
    fn with_an_obliging_driver_all_that_is_wanted_runs(count in 1..40u128) {
        let mut agent = listed_agent();
        let tasks: Vec<_> = (0..count).map(|id| (id, wanted(TaskState::Running))).collect();
        set(&mut agent, &tasks, at(1));
        oblige(&mut agent, at(1));
        prop_assert!(agent.statuses().all(|(_, status)| status.state == TaskState::Running));
        set(&mut agent, &[], at(2));
        oblige(&mut agent, at(2));
        prop_assert!(agent.is_empty());
    }
}
