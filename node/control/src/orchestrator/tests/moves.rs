//! Nodes that are lost, drained, removed or not wanted any more, and what becomes of their tasks.

use super::*;

#[test]
fn a_failed_node_is_replaced_at_once_and_told_to_stop_later() {
    let mut world = World::new(3, &spec(3, "a", ""));
    world.settle();
    world.set_failed(1, true);
    let plan = world.plan();
    assert_eq!(plan.slots.len(), 1, "in one plan");
    let (_, Some(slot)) = &plan.slots[0] else { panic!("the slot stays") };
    assert_eq!(slot.tasks[1].desired, TaskState::Shutdown);
    assert_eq!(slot.tasks[1].last_seen, Some(TaskState::Running));
    assert_eq!(world.nodes_used().len(), 3);
    assert!(!world.nodes_used().contains(&1));
    world.set_failed(1, false);
    world.settle();
    assert!(!world.nodes_used().contains(&1), "what was placed elsewhere stays there");
    assert_eq!(world.reports.values().filter(|report| report.state == TaskState::Running).count(), 3);
}

#[test]
fn a_task_whose_replacement_finds_no_room_is_adopted_when_its_node_is_back() {
    let mut world = World::new(1, &spec(1, "a", ""));
    world.settle();
    let before = world.slots.clone();
    world.set_failed(1, true);
    world.settle();
    let pending = world.slots[&SlotName::Replica(1)].tasks[0].clone();
    assert_eq!((pending.node, pending.note.as_str()), (None, "no suitable node (1 node not ready)"));
    world.set_failed(1, false);
    world.settle();
    assert_eq!(world.slots, before, "the same task goes on");
}

#[test]
fn a_removed_node_and_a_drained_one_lose_their_tasks_a_paused_one_keeps_them() {
    let mut world = World::new(3, &spec(3, "a", ""));
    world.settle();
    world.set_availability(2, Availability::Pause);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2, 3]);
    world.set_availability(3, Availability::Drain);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 1, 2]);
    world.cluster.nodes.remove(&NodeId(2));
    world.settle();
    assert_eq!(world.nodes_used(), [1, 1, 1]);
}

#[test]
fn a_task_on_a_drained_node_goes_on_until_its_replacement_runs() {
    let states = |world: &World| -> Vec<(u128, TaskState)> {
        world.current().iter().map(|(_, task)| (task.node.unwrap().0, task.desired)).collect()
    };
    let drained = || {
        let mut world = World::new(2, &spec(1, "a", ""));
        world.settle();
        let here = world.nodes_used()[0];
        world.set_availability(here, Availability::Drain);
        world.plan();
        assert_eq!(world.nodes_used(), [1, 2], "both are wanted");
        (world, here, 3 - here)
    };
    let (mut world, _, there) = drained();
    world.settle();
    assert_eq!(states(&world), [(there, TaskState::Running)]);
    let old = &world.slots[&SlotName::Replica(1)].tasks[1];
    assert_eq!((old.desired, old.note.as_str()), (TaskState::Shutdown, "its node is drained"));

    let (mut world, _, there) = drained();
    world.pass(Duration::from_secs(60) - Duration::from_millis(1));
    assert!(world.plan().is_empty());
    assert_eq!(world.wake, Some(world.now.time + Duration::from_millis(1)));
    world.pass(Duration::from_millis(1));
    world.plan();
    assert_eq!(states(&world), [(there, TaskState::Running)], "it is not waited for any longer");

    let (mut world, here, there) = drained();
    world.end(1, TaskState::Rejected, "no room after all");
    world.plan();
    assert!(states(&world).contains(&(here, TaskState::Running)), "one that was rejected is no replacement");
    world.settle_and_wait(2);
    assert_eq!(states(&world), [(there, TaskState::Running)]);

    let (mut world, here, there) = drained();
    world.cluster.nodes.insert(NodeId(3), world.cluster.nodes[&NodeId(there)].clone());
    world.set_failed(there, true);
    world.plan();
    assert_eq!(world.nodes_used(), [here, 3], "nor is one whose node is lost");
    world.settle();
    assert_eq!(states(&world), [(3, TaskState::Running)]);

    let (mut world, here, _) = drained();
    world.set_availability(here, Availability::Active);
    world.settle();
    assert_eq!(world.nodes_used().len(), 1, "a drain that is taken back leaves one of them");
}

#[test]
fn a_task_on_a_drained_node_does_not_wait_for_room_elsewhere() {
    let mut world = World::new(1, &spec(1, "a", ""));
    world.settle();
    world.set_availability(1, Availability::Drain);
    world.settle();
    let slot = &world.slots[&SlotName::Replica(1)];
    assert_eq!((slot.tasks[0].node, slot.tasks[1].desired), (None, TaskState::Shutdown));
}

#[test]
fn a_node_that_restarts_keeps_its_tasks() {
    let mut world = World::new(2, &spec(2, "a", ""));
    world.settle();
    world.cluster.nodes.get_mut(&NodeId(1)).unwrap().ready = false;
    assert!(world.plan().is_empty());
}

#[test]
fn a_label_that_changes_moves_the_task() {
    let mut world = World::new(2, &spec(1, "a", r#","Placement":{"Constraints":["node.hostname==n1"]}"#));
    world.settle();
    assert_eq!(world.nodes_used(), [1]);
    world.cluster.nodes.get_mut(&NodeId(1)).unwrap().hostname = "n9".to_owned();
    world.settle();
    assert_eq!(world.nodes_used(), Vec::<u128>::new());
}
