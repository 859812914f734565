use proptest::prelude::*;
use shoal_protocol::spec::generic::Amount;
use shoal_protocol::spec::{GenericResource, Placement, Preference, Spread};

use super::*;

const SERVICE: ServiceId = ServiceId(7);
const GIB: u64 = 1 << 30;

fn node(hostname: &str) -> Node {
    Node {
        hostname: hostname.to_owned(),
        os: "linux".to_owned(),
        architecture: "x86_64".to_owned(),
        nano_cpus: 2_000_000_000,
        memory_bytes: GIB,
        ..Node::default()
    }
}

fn cluster(nodes: impl IntoIterator<Item = Node>) -> Cluster {
    Cluster::new(nodes.into_iter().enumerate().map(|(n, node)| (NodeId(n as u128 + 1), node)).collect())
}

fn host_port(published_port: u16) -> PortConfig {
    PortConfig { target_port: 80, published_port, publish_mode: PublishMode::Host, ..PortConfig::default() }
}

/// What a task takes that was given no generic resources.
fn share<'a>(reservations: &'a Reservations, ports: &'a [PortConfig]) -> Share<'a> {
    static NONE: GenericResources = GenericResources(BTreeMap::new());
    Share { reservations, ports, generic: &NONE }
}

fn template(constraints: &[&str]) -> TaskTemplate {
    TaskTemplate {
        placement: Placement {
            constraints: constraints.iter().map(|text| (*text).to_owned()).collect(),
            ..Placement::default()
        },
        ..TaskTemplate::default()
    }
}

#[test]
fn constraints_pick_nodes() {
    let labelled = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let cluster = cluster([
        Node { role: Role::Manager, ..node("n1") },
        Node { labels: labelled("zone", "a"), ..node("n2") },
        Node { engine_labels: labelled("disk", "ssd"), architecture: "aarch64".to_owned(), ..node("n3") },
    ]);
    for (constraints, want) in [
        (&["node.hostname==n2"] as &[&str], vec![2]),
        (&["node.hostname == N2"], vec![2]),
        (&["node.hostname!=n2"], vec![1, 3]),
        (&["node.role==manager"], vec![1]),
        (&["node.role!=manager"], vec![2, 3]),
        (&["node.labels.zone==a"], vec![2]),
        (&["node.labels.ZONE==a"], vec![]),
        (&["NODE.LABELS.zone==A"], vec![2]),
        (&["node.labels.zone!=a"], vec![1, 3]),
        (&["engine.labels.disk==ssd"], vec![3]),
        (&["node.platform.os==linux", "node.platform.arch==aarch64"], vec![3]),
        (&["node.platform.os==windows"], vec![]),
        (&["node.role==worker", "node.labels.zone!=a"], vec![3]),
        (&["node.id==0000000000000000000000001"], vec![1]),
    ] {
        let template = template(constraints);
        let request = Request::new(SERVICE, &template, &[]);
        let got: Vec<u128> = cluster
            .nodes
            .iter()
            .filter(|(id, _)| request.refusal(**id, &cluster).is_none())
            .map(|(id, _)| id.0)
            .collect();
        assert_eq!(got, want, "{constraints:?}");
    }
}

#[test]
fn refusals_explain_themselves() {
    let full = Usage { memory_bytes: GIB, ..Usage::default() };
    let taken = Usage { host_ports: BTreeMap::from([(PublishedPort::tcp(8080), 1)]), ..Usage::default() };
    let mut template = template(&["node.hostname!=odd"]);
    template.resources.reservations.memory_bytes = GIB / 2;
    template.placement.max_replicas = 1;
    template.container_spec.settings.tty = true;
    template.placement.platforms = vec![Platform { architecture: "amd64".to_owned(), os: "linux".to_owned() }];
    let ports = [host_port(8080)];
    let request = Request::new(SERVICE, &template, &ports);
    let odd = || node("odd");
    for (name, nodes, want) in [
        ("no nodes at all", vec![], "no suitable node"),
        (
            "constraints",
            vec![odd(), odd(), odd()],
            "no suitable node (scheduling constraints not satisfied on 3 nodes)",
        ),
        (
            "the most frequent reason comes first",
            vec![Node { usage: full.clone(), ..node("a") }, odd(), odd()],
            "no suitable node (scheduling constraints not satisfied on 2 nodes; insufficient resources on 1 node)",
        ),
        (
            "health and availability",
            vec![
                Node { ready: false, ..node("a") },
                Node { availability: Availability::Drain, ..node("b") },
                Node { availability: Availability::Pause, ..node("c") },
            ],
            "no suitable node (2 nodes not available for new tasks; 1 node not ready)",
        ),
        (
            "platform",
            vec![Node { architecture: "arm64".to_owned(), ..node("a") }],
            "no suitable node (unsupported platform on 1 node)",
        ),
        (
            "what only an engine has",
            vec![Node { has_engine: false, ..node("a") }],
            "no suitable node (missing plugin on 1 node)",
        ),
        (
            "ports",
            vec![Node { usage: taken, ..node("a") }],
            "no suitable node (host-mode port already in use on 1 node)",
        ),
    ] {
        assert_eq!(place(&request, &cluster(nodes)).unwrap_err().to_string(), want, "{name}");
    }
    let mut one_each = cluster([node("a")]);
    one_each.occupy(NodeId(1), SERVICE, share(&Reservations::default(), &[]));
    let want = "no suitable node (max replicas per node limit exceed on 1 node)";
    assert_eq!(place(&request, &one_each).unwrap_err().to_string(), want);
}

#[test]
fn tasks_spread_over_what_is_free() {
    const OTHER: ServiceId = ServiceId(8);
    let tiny = Reservations::default();
    let part = |memory_bytes| Reservations { memory_bytes, ..Reservations::default() };
    let half = part(GIB / 2);
    let (more, less) = (part(GIB / 50), part(GIB / 60));
    let template = TaskTemplate::default();
    let plain = || vec![node("a"), node("b")];
    for (name, nodes, tasks, avoid, want) in [
        ("ties go to the lowest identifier", plain(), vec![], None, 1),
        ("fewest tasks of the service", plain(), vec![(1, SERVICE, 1, &tiny), (2, OTHER, 9, &tiny)], None, 2),
        ("then fewest tasks", plain(), vec![(1, OTHER, 2, &tiny), (2, OTHER, 1, &tiny)], None, 2),
        (
            "measured by the cores it has",
            vec![node("a"), Node { nano_cpus: 64_000_000_000, ..node("b") }],
            vec![(1, OTHER, 3, &tiny), (2, OTHER, 4, &tiny)],
            None,
            2,
        ),
        ("then the smaller reserved share", plain(), vec![(1, OTHER, 1, &more), (2, OTHER, 1, &less)], None, 2),
        (
            "then the node that has more left",
            vec![node("a"), Node { memory_bytes: 2 * GIB, ..node("b") }],
            vec![],
            None,
            2,
        ),
        (
            "but never before tasks of the service",
            vec![node("a"), Node { memory_bytes: 2 * GIB, ..node("b") }],
            vec![(2, SERVICE, 1, &tiny)],
            None,
            1,
        ),
        ("what is reserved counts more", plain(), vec![(1, OTHER, 1, &half), (2, OTHER, 3, &tiny)], None, 2),
        (
            "a suspect comes last",
            vec![Node { suspect: true, ..node("a") }, node("b")],
            vec![(2, SERVICE, 9, &tiny)],
            None,
            2,
        ),
        (
            "but is taken if it must be",
            vec![Node { suspect: true, ..node("a") }, Node { ready: false, ..node("b") }],
            vec![],
            None,
            1,
        ),
        ("a node to avoid as well", plain(), vec![(2, SERVICE, 1, &tiny)], Some(NodeId(1)), 2),
    ] {
        let mut cluster = cluster(nodes);
        for (node, service, count, reservations) in tasks {
            (0..count).for_each(|_| cluster.occupy(NodeId(node), service, share(reservations, &[])));
        }
        let mut request = Request::new(SERVICE, &template, &[]);
        request.avoid.extend(avoid);
        assert_eq!(place(&request, &cluster), Ok(NodeId(want)), "{name}");
    }
}

#[test]
fn what_is_vacated_is_free_again() {
    let mut cluster = cluster([node("a"), node("b")]);
    let before = cluster.clone();
    let reservations = Reservations { nano_cpus: 5, memory_bytes: 6, ..Reservations::default() };
    let generic = GenericResources::parse(["gpu=a", "ssd=2"]).unwrap();
    let ports = [host_port(80), host_port(0)];
    let all = Share { generic: &generic, ..share(&reservations, &ports) };
    cluster.occupy(NodeId(2), SERVICE, all);
    assert_ne!(cluster, before);
    cluster.vacate(NodeId(2), SERVICE, all);
    assert_eq!(cluster, before);
    cluster.occupy(NodeId(9), SERVICE, all);
    assert_eq!(cluster, before, "a node that is not listed has no account");
}

/// Returns the labels of a node in a zone and a rack; 0 stands for no label.
fn places(zone: u8, rack: u8) -> BTreeMap<String, String> {
    let labels = [("zone", zone), ("rack", rack)].into_iter().filter(|(_, value)| *value > 0);
    labels.map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}

fn spread_over(descriptors: &[&str]) -> TaskTemplate {
    let spread = |descriptor: &&str| Spread { spread_descriptor: (*descriptor).to_owned() };
    let mut template = TaskTemplate::default();
    template.placement.preferences =
        descriptors.iter().map(|descriptor| Preference { spread: Some(spread(descriptor)) }).collect();
    template
}

/// Returns on which nodes `count` tasks are placed, in order.
fn placed(template: &TaskTemplate, count: usize, cluster: &mut Cluster) -> Vec<u128> {
    let request = Request::new(SERVICE, template, &[]);
    place_many(&request, count, cluster).into_iter().map(|placed| placed.unwrap().node.0).collect()
}

#[test]
fn tasks_are_spread_over_the_values_of_a_label() {
    let zone = |zone| Node { labels: places(zone, 0), ..node("x") };
    let by_zone = spread_over(&["node.labels.zone"]);
    for (name, nodes, count, want) in [
        ("two zones, of which one is larger", vec![zone(1), zone(1), zone(1), zone(2)], 6, vec![1, 1, 1, 3]),
        ("nodes without the label are a group of their own", vec![zone(1), zone(1), zone(0), zone(0)], 4, vec![1; 4]),
        (
            "a zone that takes nothing has no part in it",
            vec![zone(1), zone(2), Node { ready: false, ..zone(3) }],
            4,
            vec![2, 2, 0],
        ),
    ] {
        let mut cluster = cluster(nodes);
        placed(&by_zone, count, &mut cluster);
        let got: Vec<u64> =
            cluster.nodes.keys().map(|id| cluster.tasks_of(SERVICE).get(id).copied().unwrap_or(0)).collect();
        assert_eq!(got, want, "{name}");
    }
    let engine = |rack: &str| Node { engine_labels: [("rack".to_owned(), rack.to_owned())].into(), ..node("x") };
    let mut cluster = cluster([engine("a"), engine("a"), engine("b")]);
    assert_eq!(placed(&spread_over(&["engine.labels.rack"]), 4, &mut cluster), [1, 3, 2, 3]);
}

#[test]
fn preferences_are_nested() {
    let place = |zone, rack| Node { labels: places(zone, rack), ..node("x") };
    // Zone 1 has two racks, of which the first has two nodes; zone 2 has one node.
    let mut cluster = cluster([place(1, 1), place(1, 1), place(1, 2), place(2, 1)]);
    placed(&spread_over(&["node.labels.zone", "node.labels.rack"]), 8, &mut cluster);
    let counts: Vec<u64> = cluster.tasks_of(SERVICE).values().copied().collect();
    assert_eq!(counts, [1, 1, 2, 4]);
}

#[test]
fn what_stays_counts_in_its_group_whatever_its_node_takes() {
    let zone = |zone| Node { labels: places(zone, 0), ..node("x") };
    let paused = Node { availability: Availability::Pause, ..zone(1) };
    for (staying, want) in [(BTreeMap::new(), [2, 3, 2]), (BTreeMap::from([(NodeId(1), 2)]), [3, 3, 2])] {
        let mut cluster = cluster([paused.clone(), zone(1), zone(2)]);
        let template = spread_over(&["node.labels.zone"]);
        let request = Request { staying, ..Request::new(SERVICE, &template, &[]) };
        let placed = place_many(&request, 3, &mut cluster);
        assert_eq!(placed.into_iter().map(|placed| placed.unwrap().node.0).collect::<Vec<_>>(), want);
    }
}

#[test]
fn generic_resources_are_given_to_one_task_each() {
    let offers = |terms: &[&str]| GenericResources::parse(terms.iter().copied()).unwrap();
    let mut cluster = cluster([
        Node { generic: offers(&["gpu=a", "gpu=b"]), ..node("n1") },
        Node { generic: offers(&["gpu=1"]), ..node("n2") },
        node("n3"),
    ]);
    let mut template = TaskTemplate::default();
    template.resources.reservations.generic_resources = vec![GenericResource::of("gpu", 1)];
    let request = Request::new(SERVICE, &template, &[]);
    let results: Vec<Result<(u128, GenericResources), String>> = place_many(&request, 4, &mut cluster)
        .into_iter()
        .map(|result| result.map(|placed| (placed.node.0, placed.generic)).map_err(|refusals| refusals.to_string()))
        .collect();
    let want = [
        Ok((1, offers(&["gpu=a"]))),
        Ok((2, offers(&["gpu=1"]))),
        Ok((1, offers(&["gpu=b"]))),
        Err("no suitable node (insufficient resources on 3 nodes)".to_owned()),
    ];
    assert_eq!(results, want);
}

prop_compose! {
    fn any_node()(
        flags in 0u8..32, nano_cpus in 0u64..4, memory in 0u64..4, tasks in 0u64..4, port in proptest::option::of(80u16..83),
        (zone, rack) in (0u8..4, 0u8..3), gpus in 0usize..4,
    ) -> Node {
        let gpus: Vec<String> = (0..gpus).map(|n| format!("gpu=u{n}")).collect();
        Node {
            labels: places(zone, rack),
            generic: GenericResources::parse(gpus.iter().map(String::as_str)).unwrap(),
            ready: flags & 3 != 0,
            suspect: flags & 4 != 0,
            availability: if flags & 24 == 0 { Availability::Pause } else { Availability::Active },
            nano_cpus: nano_cpus * 1_000_000_000,
            memory_bytes: memory * GIB,
            usage: Usage {
                tasks,
                host_ports: port.into_iter().map(|port| (PublishedPort::tcp(port), 1)).collect(),
                ..Usage::default()
            },
            ..node("x")
        }
    }
}

prop_compose! {
    fn any_template()(
        nano_cpus in 0u64..3, memory in 0u64..3, max_replicas in 0u64..3, depth in 0usize..3, gpus in 0i64..3,
    ) -> TaskTemplate {
        let mut template = spread_over(&["node.labels.zone", "node.labels.rack"][..depth]);
        template.resources.reservations.generic_resources = vec![GenericResource::of("gpu", gpus)];
        template.resources.reservations.nano_cpus = nano_cpus * 500_000_000;
        template.resources.reservations.memory_bytes = memory * GIB / 3;
        template.placement.max_replicas = max_replicas;
        template
    }
}

proptest! {
    /// No node is ever given more than it has, and placing in bulk chooses as placing one by one does.
    #[test]
    fn a_node_is_never_exceeded(
        nodes in proptest::collection::vec(any_node(), 0..8),
        batches in proptest::collection::vec((1u128..4, any_template(), proptest::option::of(80u16..83), 0usize..9), 1..6),
    ) {
        let mut cluster = cluster(nodes);
        let initial = cluster.clone();
        let mut gpus = BTreeSet::new();
        for (service, template, port, count) in batches {
            let ports: Vec<PortConfig> = port.map(host_port).into_iter().collect();
            let mut request = Request::new(ServiceId(service), &template, &ports);
            request.staying = cluster.tasks_of(request.service).clone();
            let mut one_by_one = cluster.clone();
            let placed = place_many(&request, count, &mut cluster);
            prop_assert_eq!(placed.len(), count);
            for choice in placed {
                let single = place(&request, &one_by_one);
                prop_assert_eq!(&single, &choice.clone().map(|placed| placed.node));
                if let Ok(node) = single {
                    let placed = assign(&request, node, &mut one_by_one);
                    for gpu in placed.generic.list() {
                        let name = gpu.named_resource_spec.expect("all gpus have names").value;
                        prop_assert!(gpus.insert((node, name)), "given twice: {:?}", placed);
                    }
                    prop_assert_eq!(placed.generic.0.get("gpu").map_or(0, Amount::count), request.generic.get("gpu").copied().unwrap_or(0));
                    prop_assert_eq!(Ok(placed), choice);
                    *request.staying.entry(node).or_default() += 1;
                    let max = template.placement.max_replicas;
                    prop_assert!(max == 0 || one_by_one.tasks_of(request.service)[&node] <= max);
                }
            }
            prop_assert_eq!(&one_by_one, &cluster);
        }
        for (id, node) in &cluster.nodes {
            prop_assert!(node.usage.nano_cpus <= node.nano_cpus);
            prop_assert!(node.usage.memory_bytes <= node.memory_bytes);
            prop_assert!(node.usage.host_ports.values().all(|&claims| claims == 1));
            let takes = node.ready && node.availability == Availability::Active;
            prop_assert!(takes || node.usage == initial.nodes[id].usage);
        }
    }
}

prop_compose! {
    fn a_place()(zone in 0u8..4, rack in 0u8..3, room in 0u64..5) -> (u8, u8, u64) {
        (zone, rack, room)
    }
}

/// Returns the tasks of each branch at `depth` and whether it has room for more.
fn branches(places: &[(u8, u8, u64)], cluster: &Cluster, depth: usize) -> BTreeMap<(u8, u8), (u64, bool)> {
    let mut branches: BTreeMap<(u8, u8), (u64, bool)> = BTreeMap::new();
    for (&(zone, rack, room), id) in places.iter().zip(cluster.nodes.keys()) {
        let branch = branches.entry((zone, if depth > 1 { rack } else { 0 })).or_default();
        let tasks = cluster.tasks_of(SERVICE).get(id).copied().unwrap_or(0);
        (branch.0, branch.1) = (branch.0 + tasks, branch.1 || tasks < room);
    }
    branches
}

proptest! {
    /// Groups that have room differ by one task at most, and none that is full has more than those: on every level, within
    /// one branch of the level above.
    #[test]
    fn groups_that_have_room_are_even(
        places in proptest::collection::vec(a_place(), 1..12),
        batches in proptest::collection::vec(0usize..12, 1..4),
    ) {
        let task = 1 << 20;
        let nodes = places.iter().map(|&(zone, rack, room)| {
            Node { labels: self::places(zone, rack), memory_bytes: room * task, ..node("x") }
        });
        let mut cluster = cluster(nodes);
        let mut template = spread_over(&["node.labels.zone", "node.labels.rack"]);
        template.resources.reservations.memory_bytes = task;
        let mut request = Request::new(SERVICE, &template, &[]);
        for count in batches {
            request.staying = cluster.tasks_of(SERVICE).clone();
            place_many(&request, count, &mut cluster);
            for depth in [1, 2] {
                let branches = branches(&places, &cluster, depth);
                for (&(zone, _), &(tasks, has_room)) in &branches {
                    let siblings = branches.iter().filter(|((other, _), _)| depth == 1 || *other == zone);
                    for (_, &(other, _)) in siblings {
                        prop_assert!(!has_room || other <= tasks + 1, "{:?} at depth {}", branches, depth);
                    }
                }
            }
        }
    }
}
