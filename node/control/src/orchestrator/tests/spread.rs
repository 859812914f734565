//! Placement preferences and generic resources over the life of a service.

use proptest::prelude::*;
use shoal_protocol::spec::GenericResources;

use super::*;

const BY_ZONE: &str = r#","Placement":{"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}]}"#;
const BY_ZONE_AND_RACK: &str = r#","Placement":{"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}},
    {"Spread":{"SpreadDescriptor":"node.labels.rack"}}]}"#;

impl World {
    /// Puts each node into a zone and a rack.
    fn place_nodes(&mut self, places: &[(&str, &str)]) {
        for (node, (zone, rack)) in self.cluster.nodes.values_mut().zip(places) {
            let labels = [("zone", *zone), ("rack", *rack)].into_iter().filter(|(_, value)| !value.is_empty());
            node.labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        }
    }

    /// Returns how many tasks are meant to run in each zone, or rack of a zone, that has a live node.
    fn groups(&self, depth: usize) -> BTreeMap<Vec<String>, u64> {
        let path = |node: &Node| {
            let value = |name: &&str| node.labels.get(*name).cloned().unwrap_or_default();
            ["zone", "rack"][..depth].iter().map(value).collect::<Vec<_>>()
        };
        let live = self.cluster.nodes.values().filter(|node| node.ready);
        let mut groups: BTreeMap<Vec<String>, u64> = live.map(|node| (path(node), 0)).collect();
        for node in self.nodes_used() {
            *groups.entry(path(&self.cluster.nodes[&NodeId(node)])).or_default() += 1;
        }
        groups
    }

    fn counts(&self, depth: usize) -> Vec<u64> {
        self.groups(depth).into_values().collect()
    }
}

#[test]
fn zones_stay_even_when_nodes_fail_and_replicas_come_and_go() {
    let mut world = World::new(5, &spec(6, "a", BY_ZONE));
    world.place_nodes(&[("a", ""), ("a", ""), ("a", ""), ("b", ""), ("", "")]);
    world.settle();
    assert_eq!(world.counts(1), [2, 2, 2], "the node without a zone is one of its own");
    world.set_failed(4, true);
    world.settle();
    assert_eq!(world.counts(1), [3, 3]);
    world.set_failed(4, false);
    world.set(&spec(10, "a", BY_ZONE));
    world.settle();
    let mut counts = world.counts(1);
    counts.sort_unstable();
    assert_eq!(counts, [3, 3, 4], "what came back gets the new ones, though its old tasks still end there");
    world.set(&spec(4, "a", BY_ZONE));
    world.settle();
    assert_eq!(world.counts(1).iter().max(), Some(&2), "{:?}", world.groups(1));
    world.set(&spec(3, "a", BY_ZONE));
    world.settle();
    assert_eq!(world.counts(1), [1, 1, 1]);
}

#[test]
fn what_is_on_its_way_elsewhere_does_not_count_in_its_zone() {
    type Change = fn(&mut Node);
    let changes: [(&str, Change); 3] = [
        ("drained", |node| node.availability = Availability::Drain),
        ("failed", |node| (node.failed, node.ready) = (true, false)),
        ("not wanted any more", |node| node.os = "other".to_owned()),
    ];
    for (name, change) in changes {
        let placement = BY_ZONE.replace("{\"Pref", r#"{"Constraints":["node.platform.os!=other"],"Pref"#);
        let mut world = World::new(3, &spec(4, "a", &placement));
        world.place_nodes(&[("a", ""), ("a", ""), ("b", "")]);
        world.settle();
        assert_eq!(world.nodes_used(), [1, 2, 3, 3]);
        change(world.cluster.nodes.get_mut(&NodeId(1)).unwrap());
        world.settle();
        assert_eq!(world.nodes_used(), [2, 2, 3, 3], "{name}");
    }
}

#[test]
fn scaling_down_keeps_racks_of_a_zone_even_too() {
    let mut world = World::new(4, &spec(12, "a", BY_ZONE_AND_RACK));
    world.place_nodes(&[("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]);
    world.settle();
    assert_eq!(world.counts(2), [3, 3, 3, 3]);
    for (replicas, want) in [(10, [5, 5]), (8, [4, 4]), (4, [2, 2]), (2, [1, 1])] {
        world.set(&spec(replicas, "a", BY_ZONE_AND_RACK));
        world.settle();
        assert_eq!(world.counts(1), want, "{replicas} replicas");
        let racks = world.counts(2);
        assert!(racks[0].abs_diff(racks[1]) <= 1 && racks[2].abs_diff(racks[3]) <= 1, "{racks:?}");
    }
}

#[test]
fn an_update_leaves_zones_even() {
    for order in ["stop-first", "start-first"] {
        let with = |image: &str| {
            let policy = format!(r#","UpdateConfig":{{"Order":"{order}"}}}}"#);
            spec(6, image, BY_ZONE).strip_suffix('}').map(|spec| format!("{spec}{policy}")).unwrap()
        };
        let mut world = World::new(4, &with("a"));
        world.place_nodes(&[("a", ""), ("a", ""), ("b", ""), ("c", "")]);
        world.settle();
        world.set(&with("b"));
        world.settle_and_wait(60);
        assert!(world.images().iter().all(|image| image == "b"), "{order}");
        assert_eq!(world.counts(1), [2, 2, 2], "{order}");
    }
}

#[test]
fn a_slot_records_which_resources_its_task_was_given() {
    let gpu =
        r#","Resources":{"Reservations":{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":1}}]}}"#;
    let mut world = World::new(2, &spec(3, "a", gpu));
    for (node, names) in world.cluster.nodes.values_mut().zip([["gpu=a", "gpu=b"], ["gpu=c", "gpu=d"]]) {
        node.generic = GenericResources::parse(names).unwrap();
    }
    let given = |world: &World| {
        let mut given: Vec<String> = world.current().iter().flat_map(|(_, task)| task.generic.variables()).collect();
        given.sort_unstable();
        given.join(" ")
    };
    world.settle();
    assert_eq!(given(&world), "DOCKER_RESOURCE_GPU=a DOCKER_RESOURCE_GPU=b DOCKER_RESOURCE_GPU=c");
    world.set_failed(1, true);
    world.settle();
    assert_eq!(given(&world).matches("GPU=d").count(), 1);
    let waiting = world.current().into_iter().filter(|(_, task)| task.node.is_none()).count();
    assert_eq!(waiting, 1, "there is no third one on the node that is left");
    world.set(&spec(3, "b", gpu));
    world.set_failed(1, false);
    world.settle_and_wait(60);
    let names = given(&world);
    let distinct: BTreeSet<&str> = names.split(' ').collect();
    assert_eq!((distinct.len(), world.current().len()), (3, 3), "{names}");
}

proptest! {
    /// However nodes fail and replicas are scaled, zones and the racks in them are even by one once the nodes are back and the
    /// service was scaled to nothing but what runs.
    #[test]
    fn what_is_new_or_left_is_even(
        places in proptest::collection::vec((0usize..3, 0usize..3), 1..8),
        first in 0u32..20,
        second in 0u32..20,
    ) {
        let names = ["", "x", "y"];
        let mut world = World::new(places.len() as u128, &spec(first, "a", BY_ZONE_AND_RACK));
        let places: Vec<(&str, &str)> = places.iter().map(|&(zone, rack)| (names[zone], names[rack])).collect();
        world.place_nodes(&places);
        world.settle();
        for replicas in [first, second] {
            world.set(&spec(replicas, "a", BY_ZONE_AND_RACK));
            world.settle();
            prop_assert_eq!(world.current().len(), replicas as usize);
            let zones = world.groups(1);
            prop_assert!(zones.values().max().unwrap() - zones.values().min().unwrap() <= 1, "{:?}", zones);
            let racks = world.groups(2);
            for (path, count) in &racks {
                let siblings = racks.iter().filter(|(other, _)| other[0] == path[0]);
                prop_assert!(siblings.map(|(_, other)| other.abs_diff(*count)).max().unwrap() <= 1, "{:?}", racks);
            }
        }
    }
}
