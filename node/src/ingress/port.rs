//! One published port: its route and the standing of its backends, shared by its listener and its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_control::balance::Balancer;
use shoal_control::flows;
use shoal_control::routes::{Backend, Route};
use shoal_protocol::spec::{ProxyVersion, PublishedPort};
use shoal_protocol::{NodeId, TaskId, Time};
use tokio::sync::Notify;

use super::IngressConfig;
use super::metrics::{BackendCounts, PortMetrics, Reached};

pub(super) struct Port {
    pub(super) published: PublishedPort,
    /// On which address alone it listens.
    pub(super) address: Option<IpAddr>,
    pub(super) metrics: PortMetrics,
    here: NodeId,
    state: Mutex<State>,
    /// There may be room for one more connection. Only the listener waits for it.
    room: Notify,
}

struct State {
    route: Route,
    balancer: Balancer,
    rng: StdRng,
    /// What is counted of each backend of the route.
    counts: BTreeMap<TaskId, Arc<BackendCounts>>,
    /// Connections of clients that count towards the port's limit.
    admitted: u32,
}

/// A client's connection that counts towards the limit of its port for as long as this lives.
pub(super) struct Admitted(Arc<Port>);

/// A connection that is counted for a backend for as long as this lives.
pub(super) struct Counted {
    pub(super) port: Arc<Port>,
    pub(super) task: TaskId,
    pub(super) backend: Backend,
    pub(super) counts: Arc<BackendCounts>,
}

impl Port {
    pub(super) fn new(published: PublishedPort, route: Route, config: &IngressConfig) -> Self {
        let rng = StdRng::seed_from_u64(config.seed ^ u64::from(published.number));
        let metrics = config.metrics.port(published);
        let counts = metrics.backends(&route.backends);
        Self {
            published,
            address: route.settings.address,
            metrics,
            here: config.node,
            state: Mutex::new(State { route, balancer: Balancer::default(), rng, counts, admitted: 0 }),
            room: Notify::new(),
        }
    }

    pub(super) fn retarget(&self, route: Route) {
        let counts = self.metrics.backends(&route.backends);
        let mut state = self.state();
        (state.route, state.counts) = (route, counts);
        let State { route, balancer, .. } = &mut *state;
        balancer.retain(route);
        drop(state);
        self.room.notify_one();
    }

    /// Waits until the port may forward one more connection.
    pub(super) async fn admit(self: &Arc<Self>) -> Admitted {
        let mut is_paused = false;
        loop {
            {
                let mut state = self.state();
                if state.route.settings.connections.is_none_or(|most| state.admitted < most.get()) {
                    state.admitted += 1;
                    return Admitted(self.clone());
                }
            }
            if !is_paused {
                self.metrics.add(|port| &port.paused, 1);
            }
            is_paused = true;
            self.room.notified().await;
        }
    }

    /// Chooses a backend that is not in `tried` and counts a connection for it.
    pub(super) fn choose(self: &Arc<Self>, tried: &BTreeSet<TaskId>, now: Time) -> Option<Counted> {
        let mut state = self.state();
        let State { route, balancer, rng, counts, .. } = &mut *state;
        let task = balancer.choose(route, self.here, tried, rng, now)?;
        let (backend, counts) = (route.backends.get(&task)?.clone(), counts.get(&task)?.clone());
        balancer.opening(task);
        Some(Counted { port: self.clone(), task, backend, counts })
    }

    /// Returns by which header tasks are told who the client is.
    pub(super) fn proxy(&self) -> Option<ProxyVersion> {
        self.state().route.settings.proxy
    }

    /// Returns whether a flow stays with `task`.
    pub(super) fn keeps(&self, task: TaskId, now: Time) -> bool {
        let state = self.state();
        flows::stays(task, &state.route, &state.balancer, now)
    }

    pub(super) fn connected(&self, task: TaskId) {
        self.state().balancer.connected(task);
    }

    /// Notes an attempt at `task` that failed or was too slow, and ejects it unless it rests already.
    pub(super) fn failed(&self, task: TaskId, counts: &BackendCounts, now: Time) {
        self.metrics.add(|port| &port.attempts_failed, 1);
        counts.attempts_failed.add(1);
        if self.state().balancer.failed(task, now) {
            self.metrics.add(|port| &port.ejections, 1);
            counts.ejections.add(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock leaves the state half-changed, so a panic elsewhere does not make it unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Counts a connection that reached the backend, as open for as long as what this returns lives.
    pub(super) fn reached(&self) -> Reached {
        Reached::new(self.counts.clone())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.state().admitted -= 1;
        self.0.room.notify_one();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.port.state();
        state.balancer.closed(self.task);
        let State { route, balancer, .. } = &mut *state;
        if !route.backends.contains_key(&self.task) {
            balancer.retain(route);
        }
    }
}
