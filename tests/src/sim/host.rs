//! One simulated machine: a disk, containers, and a daemon that may be up, paused or dead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use shoal_control::core::{Action, Boot, Control, Event, Faults, PersistBatch};
use shoal_control::lease;
use shoal_control::task::health::HealthStatus;
use shoal_control::task::{DriverCall, DriverReport, Found, FoundState, Running};
use shoal_protocol::record::{Record, SlotName};
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::NodeStatus;
use shoal_protocol::{ClusterId, Key, NodeId, Now, ServiceId, TaskId, Time, WallTime};

use super::Happening;
use super::roles::NEVER;

/// An image whose containers can be made but not started.
pub const BROKEN_IMAGE: &str = "broken";

/// An image whose containers end well by themselves.
pub const JOB_IMAGE: &str = "job";

/// A container on a simulated machine. It outlives its daemon.
#[derive(Debug, Clone)]
pub struct Container {
    service: ServiceId,
    slot: SlotName,
    is_broken: bool,
    is_job: bool,
    running: Option<Running>,
    exited: Option<i32>,
    is_checked: bool,
}

/// A simulated machine.
pub struct Host {
    /// The node.
    pub id: NodeId,
    /// Its role.
    pub granted: RoleGrant,
    /// The editions of the managers' key that it was given.
    pub keys: BTreeSet<u64>,
    /// When it may ask for another credential again.
    pub(super) asks_again_at: Time,
    /// Counts the starts of its daemon: what was meant for an earlier one does not reach it.
    pub life: u64,
    /// Whether its daemon is stopped in its tracks.
    pub paused: bool,
    pub(super) held_back: Vec<Happening>,
    control: Option<Control>,
    records: BTreeMap<Key, Record>,
    leases: Option<lease::Durable>,
    incarnation: u64,
    containers: BTreeMap<TaskId, Container>,
    /// How many containers were ever made here.
    pub made: usize,
    /// How many ended well by themselves.
    pub ended_well: usize,
    arrivals: BTreeMap<usize, Time>,
    wake_at: Option<Time>,
}

impl Host {
    pub(super) fn new(id: NodeId, role: Role) -> Self {
        let granted = RoleGrant::first(role);
        Self {
            id,
            granted,
            keys: if role == Role::Manager { BTreeSet::from([1]) } else { BTreeSet::new() },
            asks_again_at: NEVER,
            life: 0,
            paused: false,
            held_back: Vec::new(),
            control: None,
            records: BTreeMap::new(),
            leases: None,
            incarnation: 0,
            containers: BTreeMap::new(),
            made: 0,
            ended_well: 0,
            arrivals: BTreeMap::new(),
            wake_at: None,
        }
    }

    pub(super) fn disk_init(&mut self, records: Vec<Record>, leases: lease::Durable) {
        self.records = records.into_iter().map(|record| (record.key, record)).collect();
        self.leases = Some(leases);
    }

    /// Loses the disk: the machine comes back with nothing but its identity.
    pub fn lose_disk(&mut self) {
        self.records.clear();
        self.leases = None;
    }

    pub(super) fn start(&mut self, seed: u64, faults: Faults, now: Now) {
        self.life += 1;
        self.incarnation += 1;
        self.paused = false;
        self.held_back.clear();
        self.arrivals.clear();
        self.wake_at = None;
        let status = NodeStatus {
            hostname: format!("host-{}", self.id.short()),
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            ..NodeStatus::default()
        };
        let boot = Boot {
            me: self.id,
            cluster: ClusterId(1),
            granted: self.granted,
            incarnation: self.incarnation,
            records: self.records.values().cloned().collect(),
            leases: self.leases.clone(),
            restarted: self.incarnation > 1,
            status,
            serves_host_ports: false,
            addresses: BTreeMap::new(),
            seed,
            faults,
        };
        self.control = Some(Control::new(boot, now));
    }

    pub(super) fn crash(&mut self, all: bool) {
        self.control = None;
        self.life += 1;
        self.paused = false;
        self.held_back.clear();
        if all {
            self.containers.clear();
        }
    }

    /// Returns whether its daemon exists, paused or not.
    pub fn is_running(&self) -> bool {
        self.control.is_some()
    }

    /// Returns the decisions of its daemon, if there is one.
    pub fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Returns the tasks whose containers run here.
    pub fn running(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.containers.iter().filter(|(_, container)| container.running.is_some()).map(|(&task, _)| task)
    }

    pub(super) fn containers(&self) -> Vec<Found> {
        let found = self.containers.iter().map(|(&task, container)| {
            let state = match (&container.running, container.exited) {
                // Checks went on while the daemon was away.
                (Some(running), _) => FoundState::Running(Running {
                    health: container.is_checked.then_some(HealthStatus::Healthy),
                    ..running.clone()
                }),
                (None, Some(code)) => FoundState::Exited { code },
                (None, None) => FoundState::Created,
            };
            Found { task, service: container.service, slot: container.slot, state }
        });
        found.collect()
    }

    pub(super) fn handle(&mut self, event: Event, now: Now) {
        if let Some(control) = &mut self.control {
            control.handle_event(event, now);
        }
    }

    pub(super) fn wake(&mut self, now: Now) {
        self.wake_at = None;
        if self.control.as_ref().is_some_and(|control| control.poll_timeout() <= now.time) {
            self.handle(Event::Tick, now);
        }
    }

    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.control.as_mut()?.poll_action()
    }

    /// Returns when the daemon has to be woken, if that is not arranged yet.
    pub(super) fn next_wake(&mut self, now: Time) -> Option<Time> {
        let wanted = self.control.as_ref()?.poll_timeout().max(now + Duration::from_millis(1));
        if self.wake_at.is_some_and(|at| at <= wanted) {
            return None;
        }
        self.wake_at = Some(wanted);
        Some(wanted)
    }

    pub(super) fn write_disk(&mut self, batch: PersistBatch) {
        for record in batch.records {
            self.records.insert(record.key, record);
        }
        for key in batch.removed {
            self.records.remove(&key);
        }
        if let Some(leases) = batch.leases {
            self.leases = Some(leases);
        }
    }

    pub(super) fn last_arrival(&self, peer: usize) -> Time {
        self.arrivals.get(&peer).copied().unwrap_or_default()
    }

    pub(super) fn set_last_arrival(&mut self, peer: usize, at: Time) {
        self.arrivals.insert(peer, at);
    }

    /// Returns after which time a started container ends by itself, if it does.
    pub(super) fn works_for(&self, task: TaskId, random: &mut StdRng) -> Option<Duration> {
        let is_at_work = |container: &&Container| container.is_job && container.running.is_some();
        self.containers.get(&task).filter(is_at_work)?;
        Some(Duration::from_millis(random.random_range(100..3_000)))
    }

    /// Ends a container whose work is done, whether there is a daemon to see it or not. Returns whether it ran.
    pub(super) fn end(&mut self, task: TaskId) -> bool {
        let Some(container) = self.containers.get_mut(&task) else { return false };
        let ran = container.running.take().is_some();
        if ran {
            container.exited = Some(0);
            self.ended_well += 1;
        }
        ran
    }

    /// Performs a driver call at once; its reports come a little later.
    pub(super) fn drive(
        &mut self,
        task: TaskId,
        call: DriverCall,
        random: &mut StdRng,
    ) -> Vec<(Duration, DriverReport)> {
        let after = Duration::from_millis(random.random_range(1..50));
        let report = match call {
            DriverCall::Prepare(plan) => {
                self.made += usize::from(!self.containers.contains_key(&task));
                self.containers.entry(task).or_insert(Container {
                    service: plan.service,
                    slot: plan.slot,
                    is_broken: plan.image == BROKEN_IMAGE,
                    is_job: plan.image == JOB_IMAGE,
                    running: None,
                    exited: None,
                    is_checked: plan.healthcheck.is_some(),
                });
                DriverReport::Prepared { container_id: task.to_string() }
            }
            DriverCall::Start(_) => {
                let running = Running {
                    container_id: task.to_string(),
                    pid: 1,
                    address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    started: WallTime(1),
                    health: None,
                };
                match self.containers.get_mut(&task) {
                    Some(container) if container.is_broken => {
                        DriverReport::Failed { error: "no such program".to_owned() }
                    }
                    Some(container) if container.is_checked => {
                        let running = Running { health: Some(HealthStatus::Starting), ..running };
                        container.running = Some(running.clone());
                        return [(after, DriverReport::Started(running))]
                            .into_iter()
                            .chain(checks(after, random))
                            .collect();
                    }
                    Some(container) => {
                        container.running = Some(running.clone());
                        DriverReport::Started(running)
                    }
                    None => DriverReport::Failed { error: "no such container".to_owned() },
                }
            }
            DriverCall::Stop { .. } => {
                let ended = self.containers.get_mut(&task).and_then(|container| {
                    container.running.take()?;
                    container.exited = Some(143);
                    Some((after, DriverReport::Exited { code: 143, error: String::new() }))
                });
                return ended.into_iter().chain([(after, DriverReport::Stopped)]).collect();
            }
            DriverCall::Remove(_) => {
                self.containers.remove(&task);
                DriverReport::Removed
            }
        };
        vec![(after, report)]
    }
}

/// What the checks of a container find in the time after its start: most are well after a while, some never, and some not for
/// long.
fn checks(started: Duration, random: &mut StdRng) -> Vec<(Duration, DriverReport)> {
    let report = |after, status| (after, DriverReport::Health { status, output: String::new() });
    let first = started + Duration::from_millis(random.random_range(50..3_000));
    let second = first + Duration::from_millis(random.random_range(50..5_000));
    match random.random_range(0..10) {
        0 => vec![report(first, HealthStatus::Unhealthy)],
        1 => vec![report(first, HealthStatus::Healthy), report(second, HealthStatus::Unhealthy)],
        _ => vec![report(first, HealthStatus::Healthy)],
    }
}
