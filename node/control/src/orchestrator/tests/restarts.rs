//! Tasks that end by themselves or are rejected, and what is remembered of them.

use super::*;

#[test]
fn a_task_that_ended_is_restarted_after_the_delay() {
    let mut world = World::new(1, &spec(1, "a", ""));
    world.settle();
    world.end(1, TaskState::Failed, "exit 1");
    assert!(world.plan().is_empty());
    assert_eq!(world.wake, Some(world.now.time + Duration::from_secs(5)));
    world.pass(Duration::from_millis(4999));
    assert!(world.plan().is_empty());
    world.memory = Memory::default();
    assert!(world.plan().is_empty(), "a new holder counts from its own observation");
    world.pass(Duration::from_secs(5));
    world.settle();
    let tasks = &world.slots[&SlotName::Replica(1)].tasks;
    assert_eq!(tasks.len(), 2);
    assert_eq!((tasks[1].desired, tasks[1].last_seen), (TaskState::Shutdown, Some(TaskState::Failed)));
    assert_eq!(tasks[1].note, "exit 1");
}

#[test]
fn a_task_that_ended_as_its_node_died_is_replaced_at_once() {
    let mut world = World::new(2, &spec(1, "a", ""));
    world.settle();
    let node = world.nodes_used()[0];
    world.end(1, TaskState::Failed, "exit 137");
    assert!(world.plan().is_empty());
    world.set_failed(node, true);
    world.settle();
    assert_ne!(world.nodes_used(), [node]);
    assert_eq!(world.current().len(), 1);
}

#[test]
fn restarts_obey_the_policy() {
    use TaskState::{Complete, Failed};
    for (name, policy, ends, want) in [
        ("none", r#""Condition":"none""#, vec![Failed], 1),
        ("on failure, done", r#""Condition":"on-failure""#, vec![Complete], 1),
        ("on failure, failed", r#""Condition":"on-failure""#, vec![Failed], 2),
        ("any", r#""Condition":"any""#, vec![Complete, Complete], 3),
        ("two attempts", r#""Condition":"any","MaxAttempts":2"#, vec![Failed, Failed, Failed], 3),
        (
            "two attempts in a window that moves on",
            r#""Condition":"any","MaxAttempts":2,"Window":4000000000"#,
            vec![Failed, Failed, Failed],
            4,
        ),
    ] {
        for forgets in [false, true] {
            let mut world = World::new(1, &spec(1, "a", &format!(r#","RestartPolicy":{{{policy}}}"#)));
            world.settle();
            for state in &ends {
                world.end(1, *state, "");
                world.settle_and_wait(2);
                if forgets {
                    world.memory = Memory::default();
                }
            }
            world.settle();
            let slot = &world.slots[&SlotName::Replica(1)];
            assert_eq!(slot.tasks.len(), want, "{name}");
            let runs = want == ends.len() + 1;
            assert_eq!(slot.current().count(), usize::from(runs), "{name}");
            let view = effective(&slot.tasks[0], None, false);
            assert!(runs || view.state == *ends.last().unwrap(), "{name}: {view:?}");
        }
    }
}

#[test]
fn a_rejected_task_is_tried_elsewhere_with_growing_pauses() {
    let mut world = World::new(2, &spec(1, "a", ""));
    world.settle();
    let mut pauses = Vec::new();
    for round in 0..9 {
        let node = world.nodes_used()[0];
        world.end(1, TaskState::Rejected, "No such image: a on n1");
        assert!(world.plan().is_empty());
        let pause = world.wake.unwrap().since(world.now.time);
        pauses.push(pause.as_millis());
        world.pass(pause);
        let plan = world.plan();
        assert_eq!(plan.slots.len(), 1);
        if round == 0 {
            assert_ne!(world.nodes_used(), [node], "on the other node");
        }
        assert_eq!(world.slots[&SlotName::Replica(1)].tasks[1].note, "No such image: a on n1");
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    assert!(world.slots[&SlotName::Replica(1)].tasks.len() <= 6, "history is bounded");
    world.settle();
    world.end(1, TaskState::Rejected, "");
    world.plan();
    assert_eq!(world.wake.unwrap().since(world.now.time).as_millis(), 250, "a task that ran starts the count again");
}

#[test]
fn other_replicas_learn_from_a_rejection() {
    let mut world = World::new(2, &spec(1, "a", ""));
    world.settle();
    world.end(1, TaskState::Rejected, "No such image: a on n1");
    world.settle_and_wait(2);
    world.set(&spec(4, "a", ""));
    world.settle();
    assert_eq!(world.nodes_used(), [2, 2, 2, 2]);
}

#[test]
fn as_many_past_tasks_are_remembered_as_users_want() {
    for (history, want) in [(0, 1), (1, 1), (3, 3), (TASK_HISTORY_MAX, 12), (u64::MAX, 12)] {
        let mut world = World::new(2, &spec(1, "a", ""));
        world.history = history;
        world.settle();
        for round in 1..=12 {
            world.set(&spec(1, &format!("a{round}"), ""));
            world.settle_and_wait(10);
        }
        let past = |world: &World| {
            world.slots[&SlotName::Replica(1)].tasks.iter().filter(|task| task.desired > TaskState::Running).count()
        };
        assert_eq!(past(&world), want, "history of {history}");
        // Another limit holds for what is remembered already.
        world.history = 2;
        world.plan();
        assert_eq!(past(&world), want.min(2), "history of {history}, then 2");
    }
}

#[test]
fn a_slot_of_a_large_spec_fits_into_a_record() {
    let filler = format!(r#","Filler":"{}""#, "x".repeat(250_000));
    let mut world = World::new(2, &spec(1, "a0", &filler));
    world.settle();
    for update in 1..=6 {
        world.set(&spec(1, &format!("a{update}"), &filler));
        world.settle_and_wait(10);
        let (name, slot) = world.slots.first_key_value().unwrap();
        assert!(slot.current().next().unwrap().template.contains(&format!("a{update}")));
        let stamp = shoal_protocol::Stamp { lineage: 0, epoch: 1, seq: 1 };
        let (key, value) = (Key::Slot(SERVICE, *name), Value::Slot(slot.clone()));
        crate::store::Store::seal(key, stamp, NodeId(1), Some(&value)).unwrap();
    }
}
