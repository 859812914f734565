use proptest::prelude::*;
use shoal_protocol::spec::Placement;

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
            "ports",
            vec![Node { usage: taken, ..node("a") }],
            "no suitable node (host-mode port already in use on 1 node)",
        ),
    ] {
        assert_eq!(place(&request, &cluster(nodes)).unwrap_err().to_string(), want, "{name}");
    }
    let mut one_each = cluster([node("a")]);
    one_each.occupy(NodeId(1), SERVICE, &Reservations::default(), &[]);
    let want = "no suitable node (max replicas per node limit exceed on 1 node)";
    assert_eq!(place(&request, &one_each).unwrap_err().to_string(), want);
}

#[test]
fn tasks_spread_over_what_is_free() {
    const OTHER: ServiceId = ServiceId(8);
    let tiny = Reservations::default();
    let half = Reservations { memory_bytes: GIB / 2, ..Reservations::default() };
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
            (0..count).for_each(|_| cluster.occupy(NodeId(node), service, reservations, &[]));
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
    let reservations = Reservations { nano_cpus: 5, memory_bytes: 6 };
    cluster.occupy(NodeId(2), SERVICE, &reservations, &[host_port(80), host_port(0)]);
    assert_ne!(cluster, before);
    cluster.vacate(NodeId(2), SERVICE, &reservations, &[host_port(80), host_port(0)]);
    assert_eq!(cluster, before);
    cluster.occupy(NodeId(9), SERVICE, &reservations, &[]);
    assert_eq!(cluster, before, "a node that is not listed has no account");
}

prop_compose! {
    fn any_node()(
        flags in 0u8..32, nano_cpus in 0u64..4, memory in 0u64..4, tasks in 0u64..4, port in proptest::option::of(80u16..83),
    ) -> Node {
        Node {
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
    fn any_template()(nano_cpus in 0u64..3, memory in 0u64..3, max_replicas in 0u64..3) -> TaskTemplate {
        let mut template = TaskTemplate::default();
        template.resources.reservations = Reservations { nano_cpus: nano_cpus * 500_000_000, memory_bytes: memory * GIB / 3 };
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
        for (service, template, port, count) in batches {
            let ports: Vec<PortConfig> = port.map(host_port).into_iter().collect();
            let request = Request::new(ServiceId(service), &template, &ports);
            let mut one_by_one = cluster.clone();
            let placed = place_many(&request, count, &mut cluster);
            prop_assert_eq!(placed.len(), count);
            for choice in placed {
                let single = place(&request, &one_by_one);
                prop_assert_eq!(&single, &choice);
                if let Ok(node) = single {
                    one_by_one.occupy(node, request.service, &request.reservations, &ports);
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
