use super::*;

fn job(completions: u32, concurrent: u32, more: &str) -> String {
    format!(
        r#"{{"Name":"job","TaskTemplate":{{"ContainerSpec":{{"Image":"a"}}{more}}},"Mode":{{"ReplicatedJob":{{"TotalCompletions":{completions},"MaxConcurrent":{concurrent}}}}}}}"#
    )
}

const GLOBAL_JOB: &str = r#"{"Name":"job","TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Mode":{"GlobalJob":{}}}"#;

impl World {
    fn complete(&mut self, number: u32) {
        self.end(number, TaskState::Complete, "");
    }

    /// Returns how many slots are done.
    fn done(&self) -> usize {
        let index = self.desired.as_ref().unwrap().index;
        let is_done = |task: &SlotTask| is_complete(task, None, index);
        self.slots.values().filter(|slot| slot.tasks.iter().any(is_done)).count()
    }

    fn running(&self) -> usize {
        self.reports.values().filter(|report| report.state == TaskState::Running).count()
    }
}

#[test]
fn a_job_works_through_its_slots_a_few_at_a_time() {
    let mut world = World::new(3, &job(5, 2, ""));
    world.settle();
    assert_eq!(world.numbers(), [0, 1]);
    world.complete(1);
    world.settle();
    assert_eq!((world.numbers(), world.done()), (vec![0, 2], 1));
    for number in [0, 2, 3, 4] {
        world.complete(number);
        world.settle();
    }
    assert_eq!((world.numbers(), world.done(), world.progress.clone()), (vec![], 5, None));
    assert_eq!(world.ids, 5, "each piece of work was done once");
    // What the slots remember is enough: nothing is done again though nobody reports it any more.
    world.reports.clear();
    world.memory = Memory::default();
    assert!(world.plan().is_empty());
}

#[test]
fn a_task_that_fails_is_tried_again_in_its_own_slot_and_keeps_its_place() {
    let mut world = World::new(2, &job(3, 1, r#","RestartPolicy":{"Delay":1000000000}"#));
    world.settle();
    world.end(0, TaskState::Failed, "exit 1");
    world.settle();
    assert_eq!(world.running(), 0, "the delay counts, and nobody else takes the place meanwhile");
    world.settle_and_wait(2);
    assert_eq!((world.numbers(), world.running(), world.done()), (vec![0], 1, 0));
    assert_eq!(world.slots[&SlotName::Replica(0)].tasks.len(), 2);
}

#[test]
fn a_task_that_may_not_be_tried_again_gives_its_place_up() {
    for policy in [r#""Condition":"none""#, r#""Condition":"on-failure","MaxAttempts":1,"Delay":1"#] {
        let mut world = World::new(2, &job(2, 1, &format!(r#","RestartPolicy":{{{policy}}}"#)));
        for _ in 0..2 {
            world.settle();
            if world.numbers() == [0] {
                world.end(0, TaskState::Failed, "exit 1");
                world.settle_and_wait(2);
            }
        }
        assert_eq!((world.numbers(), world.done()), (vec![1], 0), "{policy}");
        world.complete(1);
        world.settle_and_wait(2);
        assert_eq!((world.numbers(), world.done()), (vec![], 1), "{policy}");
    }
}

#[test]
fn a_change_begins_another_run_once_the_last_one_has_ended() {
    let mut world = World::new(3, &job(4, 2, ""));
    world.settle();
    world.complete(0);
    world.settle();
    world.is_slow = true;
    world.set(&job(3, 2, "")); // even where the tasks stay the same
    world.settle();
    assert_eq!((world.current().len(), world.running(), world.done()), (0, 2, 0), "at most two at once, ever");
    world.is_slow = false;
    world.settle();
    assert_eq!((world.numbers(), world.running()), (vec![0, 1], 2));
    let all_new = world.current().iter().all(|(_, task)| task.index == 2);
    assert!(all_new);
    for number in 0..3 {
        world.complete(number);
        world.settle();
    }
    assert_eq!((world.numbers(), world.done(), world.slots.len()), (vec![], 3, 3));
}

#[test]
fn work_on_a_failed_node_is_done_elsewhere_and_counts_once() {
    let mut world = World::new(2, &job(1, 1, ""));
    world.settle();
    let first = world.current()[0].1.clone();
    world.set_failed(first.node.unwrap().0, true);
    world.settle();
    assert_ne!(world.current()[0].1.id, first.id);
    // The node was cut off only, and its task ended well meanwhile: what was begun elsewhere is not needed any more.
    world.reports.insert((first.node.unwrap(), first.id), report(TaskState::Complete, ""));
    world.set_failed(first.node.unwrap().0, false);
    world.settle();
    assert_eq!((world.current().len(), world.running(), world.done()), (0, 0, 1));
    world.reports.clear();
    assert!(world.plan().is_empty());
}

#[test]
fn work_on_a_drained_node_ends_before_it_is_begun_elsewhere() {
    let mut world = World::new(2, &job(1, 1, ""));
    world.settle();
    let node = world.current()[0].1.node.unwrap();
    world.is_slow = true;
    world.set_availability(node.0, Availability::Drain);
    world.settle();
    assert_eq!((world.current().len(), world.running()), (0, 1));
    world.is_slow = false;
    world.settle();
    assert_ne!(world.current()[0].1.node, Some(node));
    assert_eq!(world.running(), 1);
}

#[test]
fn a_global_job_runs_once_on_each_node_that_was_there() {
    let mut world = World::new(3, GLOBAL_JOB);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2, 3]);
    let late = Node { joined: WallTime(u64::MAX), ..Node::default() };
    world.cluster.nodes.insert(NodeId(4), late);
    for task in world.current().into_iter().map(|(_, task)| task.clone()).collect::<Vec<_>>() {
        world.reports.insert((task.node.unwrap(), task.id), report(TaskState::Complete, ""));
    }
    world.settle();
    assert_eq!((world.current().len(), world.done()), (0, 3));
    world.set(GLOBAL_JOB);
    world.settle();
    assert_eq!(world.nodes_used(), [1, 2, 3], "a change begins another run");
    assert_eq!(world.done(), 0);
}

proptest! {
    /// Whatever ends, fails, drains, comes and goes: never more than the limit run on nodes that live, no slot is done twice,
    /// and in the end all are.
    #[test]
    fn a_job_keeps_its_limit_and_completes(
        completions in 1u32..7,
        concurrent in 1u32..4,
        steps in proptest::collection::vec((0u8..6, 0u32..7, 1u128..4), 0..40),
    ) {
        let mut world = World::new(3, &job(completions, concurrent, r#","RestartPolicy":{"Delay":1000}"#));
        for (what, number, node) in steps {
            let is_running = world.slots.get(&SlotName::Replica(number)).is_some_and(|slot| {
                slot.current().next().is_some_and(|task| {
                    task.node.is_some_and(|node| world.reports.get(&(node, task.id)).is_some_and(|report| report.state == TaskState::Running))
                })
            });
            match what {
                0 | 1 if is_running => world.complete(number),
                2 if is_running => world.end(number, TaskState::Failed, "exit 1"),
                3 => world.set_availability(node, Availability::Drain),
                4 => world.set_availability(node, Availability::Active),
                5 => world.is_slow = !world.is_slow,
                _ => {}
            }
            world.plan();
            world.agents();
            prop_assert!(world.running() <= concurrent as usize);
            world.pass(Duration::from_micros(2));
        }
        world.is_slow = false;
        (1..4).for_each(|node| world.set_availability(node, Availability::Active));
        for _ in 0..completions + 1 {
            world.settle_and_wait(3);
            let numbers = world.numbers();
            numbers.into_iter().for_each(|number| world.complete(number));
        }
        world.settle();
        prop_assert_eq!((world.numbers(), world.done()), (vec![], completions as usize));
    }
}
