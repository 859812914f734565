use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_protocol::ServiceId;

use super::*;

const HERE: NodeId = NodeId(1);
const NONE: BTreeSet<TaskId> = BTreeSet::new();

/// A route with one backend for each (task, node, suspect).
fn route(backends: &[(u128, u128, bool)]) -> Route {
    let backend = |node, suspect| Backend {
        name: "web.1".into(),
        node: NodeId(node),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 80,
        suspect,
    };
    Route {
        service: ServiceId(9),
        settings: Default::default(),
        backends: backends.iter().map(|&(task, node, suspect)| (TaskId(task), backend(node, suspect))).collect(),
    }
}

/// How often each task is chosen in 1,000 draws.
fn shares(balancer: &Balancer, route: &Route, tried: &BTreeSet<TaskId>, now: Time) -> BTreeMap<TaskId, u32> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut shares = BTreeMap::new();
    for _ in 0..1000 {
        if let Some(task) = balancer.choose(route, HERE, tried, &mut rng, now) {
            *shares.entry(task).or_default() += 1;
        }
    }
    shares
}

#[test]
fn an_idle_port_prefers_local_and_uses_remote() {
    let shares = shares(&Balancer::default(), &route(&[(1, 1, false), (2, 2, false)]), &NONE, Time(0));
    assert!(shares[&TaskId(1)] > 650, "{shares:?}");
    assert!(shares[&TaskId(2)] > 150, "{shares:?}");
}

#[test]
fn equals_share_equally() {
    let backends: Vec<_> = (1..=10).map(|task| (task, 2, false)).collect();
    let shares = shares(&Balancer::default(), &route(&backends), &NONE, Time(0));
    assert!(shares.len() == 10 && shares.values().all(|share| (60..140).contains(share)), "{shares:?}");
}

#[test]
fn fewer_connections_beat_local() {
    let mut balancer = Balancer::default();
    balancer.opening(TaskId(1));
    let route = route(&[(1, 1, false), (2, 2, false)]);
    let shares = shares(&balancer, &route, &NONE, Time(0));
    assert!(shares[&TaskId(2)] > 650, "{shares:?}");
}

#[test]
fn usable_backends_come_before_resting_and_suspect_ones() {
    let route = route(&[(1, 1, true), (2, 2, false), (3, 3, false)]);
    let mut balancer = Balancer::default();
    balancer.failed(TaskId(2), Time(0));
    let chosen = |balancer: &Balancer, tried: &[u128]| {
        let tried = tried.iter().copied().map(TaskId).collect();
        shares(balancer, &route, &tried, Time(500)).into_keys().map(|task| task.0).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&balancer, &[]), [3]);
    assert_eq!(chosen(&balancer, &[3]), [2], "a resting backend comes before a suspect one");
    assert_eq!(chosen(&balancer, &[2, 3]), [1], "a suspect backend is used when no other is left");
    assert_eq!(chosen(&balancer, &[1, 2, 3]), [] as [u128; 0]);
}

#[test]
fn rests_grow_until_a_success() {
    let mut balancer = Balancer::default();
    let mut now = Time(0);
    for seconds in [1, 2, 4, 8, 10, 10] {
        assert!(balancer.failed(TaskId(1), now));
        assert!(!balancer.failed(TaskId(1), now), "failures during a rest change nothing");
        let until = balancer.backends[&TaskId(1)].resting_until;
        assert_eq!(until, Some(now + Duration::from_secs(seconds)));
        now = now + Duration::from_secs(seconds);
    }
    balancer.connected(TaskId(1));
    assert!(balancer.failed(TaskId(1), now));
    assert_eq!(balancer.backends[&TaskId(1)].resting_until, Some(now + EJECTION_MIN));
}

#[test]
fn a_backend_is_forgotten_with_its_last_connection() {
    let mut balancer = Balancer::default();
    balancer.opening(TaskId(1));
    balancer.retain(&route(&[]));
    assert_eq!(balancer.open(TaskId(1)), 1);
    balancer.closed(TaskId(1));
    balancer.retain(&route(&[]));
    assert_eq!(balancer, Balancer::default());
}

#[derive(Debug, Clone)]
enum Step {
    Opening(u128),
    Closed(u128),
    Connected(u128),
    Failed(u128),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..6u128).prop_map(Step::Opening),
        (0..6u128).prop_map(Step::Closed),
        (0..6u128).prop_map(Step::Connected),
        (0..6u128).prop_map(Step::Failed),
        (0..20_000u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn a_port_with_an_untried_backend_always_has_a_choice(
        steps in steps(),
        backends in prop::collection::btree_map(0..6u128, (0..3u128, any::<bool>()), 0..6),
        tried in prop::collection::btree_set(0..6u128, 0..6),
        seed: u64,
    ) {
        let (mut balancer, mut now) = (Balancer::default(), Time(0));
        for step in steps {
            match step {
                Step::Opening(task) => balancer.opening(TaskId(task)),
                Step::Closed(task) => balancer.closed(TaskId(task)),
                Step::Connected(task) => balancer.connected(TaskId(task)),
                Step::Failed(task) => { balancer.failed(TaskId(task), now); }
                Step::Wait(ms) => now = now + Duration::from_millis(ms),
            }
        }
        let list: Vec<_> = backends.iter().map(|(&task, &(node, suspect))| (task, node, suspect)).collect();
        let (route, tried) = (route(&list), tried.into_iter().map(TaskId).collect::<BTreeSet<_>>());
        let choose = || balancer.choose(&route, HERE, &tried, &mut StdRng::seed_from_u64(seed), now);
        let choice = choose();
        prop_assert_eq!(choice, choose(), "equal input gives an equal choice");
        let mut untried = route.backends.iter().filter(|(task, _)| !tried.contains(task));
        match choice {
            None => prop_assert!(untried.next().is_none()),
            Some(task) => {
                prop_assert!(!tried.contains(&task));
                let sound = |task: TaskId, backend: &Backend| balancer.tier(task, backend, now) == Tier::Good;
                if untried.any(|(task, backend)| sound(*task, backend)) {
                    prop_assert!(sound(task, &route.backends[&task]));
                }
            }
        }
        balancer.retain(&route);
        prop_assert!(balancer.backends.iter().all(|(task, s)| s.open > 0 || route.backends.contains_key(task)));
    }

    #[test]
    fn no_rest_outlasts_its_bound(failures in 1..80u32) {
        let (mut balancer, mut now) = (Balancer::default(), Time(0));
        for _ in 0..failures {
            balancer.failed(TaskId(1), now);
            let until = balancer.backends[&TaskId(1)].resting_until.unwrap();
            prop_assert!(until.since(now) >= EJECTION_MIN && until.since(now) <= EJECTION_MAX);
            now = until;
        }
    }
}
