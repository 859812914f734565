//! Flows of UDP: which datagrams belong together, when a flow ends, and which one makes room for another.
//!
//! UDP has no connections, so a flow is what one client sends to one published port until both fall silent. One [`Flows`]
//! serves a node. It assumes that its caller has chosen the backend, and keeps for each flow whatever the caller reaches that
//! backend by: what is returned or dropped here is to be closed. It knows nothing of sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use shoal_protocol::{TaskId, Time};

use crate::balance::Balancer;
use crate::routes::Route;

/// Flows of a node at most. A new one then ends the oldest that no backend has answered yet, or else the oldest: clients
/// that a stranger invents and no backend answers push out each other. Fewer than the streams of a link to another node, so that its TCP
/// connections have streams left.
pub const FLOWS_MAX: usize = 1024;

/// Silence after which a flow ends that no backend has answered. Source: Linux, `nf_conntrack_udp_timeout`.
pub const UNANSWERED_IDLE_MAX: Duration = Duration::from_secs(30);

/// Silence of both sides after which a flow ends that was answered. Source: Linux, `nf_conntrack_udp_timeout_stream`; RFC
/// 4787, REQ-5 asks for no less.
pub const ANSWERED_IDLE_MAX: Duration = Duration::from_secs(120);

/// What tells a flow from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// The published port.
    pub port: u16,
    /// Who sends.
    pub client: SocketAddr,
    /// Which of this node's addresses the client sends to, and expects answers from; `None` where there is only one.
    pub local: Option<IpAddr>,
}

/// Tells a flow from an earlier or later one of the same client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowId(u64);

/// The flows of a node; `T` is what the caller reaches a backend by.
#[derive(Debug)]
pub struct Flows<T> {
    flows: BTreeMap<FlowKey, Flow<T>>,
    /// In the order in which they make room: those without an answer first, then by the last datagram.
    order: BTreeSet<(bool, Time, FlowKey)>,
    max: usize,
    next: u64,
}

#[derive(Debug)]
struct Flow<T> {
    id: FlowId,
    task: TaskId,
    used: Time,
    answered: bool,
    upstream: T,
}

/// What an answer of a backend means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is the first of its flow.
    First,
    /// There were others before.
    Further,
    /// Its flow has ended: nobody waits for it.
    Late,
}

/// Returns whether a flow stays with `task`: it does until the task is no longer behind the port, or has failed another flow.
///
/// A backend on a suspect node keeps its flows. Moving one breaks protocols with a state, and what is suspect is either well
/// again or found dead soon.
pub fn stays(task: TaskId, route: &Route, balancer: &Balancer, now: Time) -> bool {
    route.backends.contains_key(&task) && !balancer.is_resting(task, now)
}

impl<T> Flows<T> {
    /// Returns a table for at most `max` flows, at least one.
    pub fn new(max: usize) -> Self {
        Self { flows: BTreeMap::new(), order: BTreeSet::new(), max: max.max(1), next: 0 }
    }

    /// Returns how many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Takes a datagram of a client: returns where its flow leads. A flow that does not stay with its backend ends here, and
    /// as for a client that is new, nothing is returned.
    pub fn sent(&mut self, key: &FlowKey, stays: impl FnOnce(TaskId) -> bool, now: Time) -> Option<(FlowId, &T)> {
        let task = self.flows.get(key)?.task;
        if !stays(task) {
            self.take(key);
            return None;
        }
        let flow = self.flows.get_mut(key)?;
        touch(&mut self.order, key, flow, now, flow.answered);
        Some((flow.id, &flow.upstream))
    }

    /// Begins a flow that leads to `task`; `upstream` makes what reaches it, told by which name to report on it. Returns what
    /// had to end for it: the flow that the client had before, and the one that made room.
    pub fn begin(&mut self, key: FlowKey, task: TaskId, now: Time, upstream: impl FnOnce(FlowId) -> T) -> Ended<T> {
        let id = FlowId(self.next);
        self.next += 1;
        let before = self.take(&key);
        let evicted = match self.flows.len() < self.max {
            true => None,
            false => self.order.first().map(|(.., oldest)| *oldest).and_then(|oldest| self.take(&oldest)),
        };
        self.order.insert((false, now, key));
        self.flows.insert(key, Flow { id, task, used: now, answered: false, upstream: upstream(id) });
        Ended { before, evicted }
    }

    /// Takes a datagram of a flow's backend.
    pub fn answered(&mut self, key: &FlowKey, id: FlowId, now: Time) -> Answer {
        let Some(flow) = self.flows.get_mut(key).filter(|flow| flow.id == id) else { return Answer::Late };
        let answer = if flow.answered { Answer::Further } else { Answer::First };
        touch(&mut self.order, key, flow, now, true);
        answer
    }

    /// Ends a flow, unless it has ended already.
    pub fn end(&mut self, key: &FlowKey, id: FlowId) -> Option<T> {
        self.flows.get(key).filter(|flow| flow.id == id)?;
        self.take(key)
    }

    /// Ends all flows of a port that is closed.
    pub fn end_port(&mut self, port: u16) -> Vec<T> {
        let keys: Vec<FlowKey> = self.flows.keys().filter(|key| key.port == port).copied().collect();
        keys.iter().filter_map(|key| self.take(key)).collect()
    }

    /// Ends the flows that were silent for too long.
    pub fn expire(&mut self, now: Time) -> Vec<T> {
        let silent = |flow: &Flow<T>| {
            let idle_max = if flow.answered { ANSWERED_IDLE_MAX } else { UNANSWERED_IDLE_MAX };
            flow.used + idle_max <= now
        };
        let keys: Vec<FlowKey> = self.flows.iter().filter(|(_, flow)| silent(flow)).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.take(key)).collect()
    }

    fn take(&mut self, key: &FlowKey) -> Option<T> {
        let flow = self.flows.remove(key)?;
        self.order.remove(&(flow.answered, flow.used, *key));
        Some(flow.upstream)
    }
}

/// What ended for a new flow.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended<T> {
    /// The client's flow before.
    pub before: Option<T>,
    /// The flow that made room.
    pub evicted: Option<T>,
}

fn touch<T>(order: &mut BTreeSet<(bool, Time, FlowKey)>, key: &FlowKey, flow: &mut Flow<T>, now: Time, answered: bool) {
    order.remove(&(flow.answered, flow.used, *key));
    (flow.used, flow.answered) = (flow.used.max(now), answered);
    order.insert((flow.answered, flow.used, *key));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_protocol::{NodeId, ServiceId};

    use super::*;
    use crate::routes::Backend;

    fn key(client: u16) -> FlowKey {
        FlowKey { port: 53, client: SocketAddr::from(([10, 0, 0, 1], client)), local: None }
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1000)
    }

    fn begin(flows: &mut Flows<u16>, client: u16, now: Time) -> (FlowId, Ended<u16>) {
        let mut id = None;
        let ended = flows.begin(key(client), TaskId(client.into()), now, |new| {
            id = Some(new);
            client
        });
        (id.unwrap(), ended)
    }

    #[test]
    fn a_flow_ends_after_silence_of_both_sides() {
        for (name, sent, answered, ends) in [
            ("one datagram", None, None, 30),
            ("a client that goes on", Some(20), None, 50),
            ("an answer", None, Some(5), 125),
            ("both", Some(100), Some(5), 220),
        ] {
            let mut flows = Flows::new(8);
            let (id, _) = begin(&mut flows, 1, at(0));
            if let Some(seconds) = answered {
                assert_eq!(flows.answered(&key(1), id, at(seconds)), Answer::First, "{name}");
                assert_eq!(flows.answered(&key(1), id, at(seconds)), Answer::Further, "{name}");
            }
            if let Some(seconds) = sent {
                assert_eq!(flows.sent(&key(1), |_| true, at(seconds)), Some((id, &1)), "{name}");
            }
            assert_eq!(flows.expire(Time(ends * 1000 - 1)), [] as [u16; 0], "{name}");
            assert_eq!(flows.expire(at(ends)), [1], "{name}");
            assert_eq!(flows.answered(&key(1), id, at(ends)), Answer::Late, "{name}");
        }
    }

    #[test]
    fn the_oldest_without_an_answer_makes_room_first() {
        let mut flows = Flows::new(3);
        let (served, _) = begin(&mut flows, 1, at(0));
        begin(&mut flows, 2, at(1));
        begin(&mut flows, 3, at(2));
        flows.answered(&key(1), served, at(2));
        flows.sent(&key(2), |_| true, at(3));
        assert_eq!(begin(&mut flows, 4, at(4)).1.evicted, Some(3));
        assert_eq!(begin(&mut flows, 5, at(5)).1.evicted, Some(2));
        let (again, ended) = begin(&mut flows, 5, at(6));
        assert_eq!(ended, Ended { before: Some(5), evicted: None }, "a client's next flow replaces its own");
        flows.answered(&key(5), again, at(6));
        assert_eq!(begin(&mut flows, 6, at(7)).1.evicted, Some(4));
        assert_eq!(flows.sent(&key(1), |_| true, at(8)), Some((served, &1)));
    }

    #[test]
    fn a_report_on_an_earlier_flow_does_not_end_a_later_one() {
        let mut flows = Flows::new(8);
        let (old, _) = begin(&mut flows, 1, at(0));
        let (new, _) = begin(&mut flows, 1, at(0));
        assert_eq!(flows.answered(&key(1), old, at(1)), Answer::Late);
        assert_eq!(flows.end(&key(1), old), None);
        assert_eq!(flows.end(&key(1), new), Some(1));
        assert!(flows.is_empty());
    }

    #[test]
    fn a_port_takes_its_flows_along() {
        let mut flows = Flows::new(8);
        begin(&mut flows, 1, at(0));
        flows.begin(FlowKey { port: 54, ..key(1) }, TaskId(1), at(0), |_| 9);
        assert_eq!(flows.end_port(53), [1]);
        assert_eq!(flows.len(), 1);
    }

    #[test]
    fn a_flow_leaves_a_backend_that_failed_or_went() {
        let name = "dns.1".into();
        let backend = Backend { name, node: NodeId(1), address: [10, 0, 0, 9].into(), port: 53, suspect: true };
        let route = Route {
            service: ServiceId(1),
            settings: Default::default(),
            backends: BTreeMap::from([(TaskId(1), backend)]),
        };
        let mut balancer = Balancer::default();
        assert!(stays(TaskId(1), &route, &balancer, at(0)), "suspicion alone moves nothing");
        assert!(!stays(TaskId(2), &route, &balancer, at(0)));
        balancer.failed(TaskId(1), at(0));
        assert!(!stays(TaskId(1), &route, &balancer, at(0)));
        let mut flows = Flows::new(8);
        begin(&mut flows, 1, at(0));
        assert_eq!(flows.sent(&key(1), |task| stays(task, &route, &balancer, at(0)), at(0)), None);
        assert!(flows.is_empty());
    }

    proptest! {
        #[test]
        fn the_table_keeps_its_bound_and_its_order(
            max in 1usize..5,
            steps in prop::collection::vec((0u8..5, 0u16..8, 0u64..40), 0..80),
        ) {
            let (mut flows, mut now, mut ids) = (Flows::new(max), at(0), BTreeMap::new());
            for (step, client, seconds) in steps {
                match step {
                    0 => { ids.insert(client, begin(&mut flows, client, now).0); }
                    1 => { flows.sent(&key(client), |_| client % 2 == 0, now); }
                    2 => { ids.get(&client).map(|id| flows.answered(&key(client), *id, now)); }
                    3 => { ids.get(&client).map(|id| flows.end(&key(client), *id)); }
                    _ => { now = now + Duration::from_secs(seconds); flows.expire(now); }
                }
                prop_assert!(flows.len() <= max);
                let listed: BTreeSet<_> =
                    flows.flows.iter().map(|(key, flow)| (flow.answered, flow.used, *key)).collect();
                prop_assert_eq!(&listed, &flows.order);
            }
            flows.expire(now + ANSWERED_IDLE_MAX);
            prop_assert!(flows.is_empty());
        }
    }
}
