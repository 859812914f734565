use super::*;

fn with_policy(replicas: u32, image: &str, policy: &str) -> String {
    format!(
        r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"{image}"}}}},"Mode":{{"Replicated":{{"Replicas":{replicas}}}}},"UpdateConfig":{{{policy}}}}}"#
    )
}

#[test]
fn an_update_goes_one_by_one_and_completes() {
    let mut world = World::new(3, &spec(3, "a", ""));
    world.settle();
    world.set(&spec(3, "b", ""));
    let plan = world.plan();
    assert_eq!(plan.slots.len(), 1);
    assert_eq!(world.update_state(), Some(UpdateState::Updating));
    assert_eq!(world.current().len(), 2, "stop first");
    for _ in 0..50 {
        world.plan();
        world.agents();
        assert!(world.current().len() >= 2, "one at a time");
    }
    assert_eq!(world.images(), ["b", "b", "b"]);
    assert_eq!(world.update_state(), Some(UpdateState::Updating), "still watched");
    world.memory = Memory::default();
    world.settle_and_wait(2);
    assert_eq!(world.update_state(), Some(UpdateState::Completed), "by a new holder too");
    assert_eq!(world.progress.as_ref().unwrap().message, "update completed");
    world.set(&spec(4, "b", ""));
    world.settle();
    assert_eq!(world.progress, None, "a change that is no update forgets the last one");
}

#[test]
fn starting_first_never_has_fewer() {
    let mut world = World::new(3, &with_policy(2, "a", r#""Order":"start-first","Parallelism":1"#));
    world.settle();
    world.set(&with_policy(2, "b", r#""Order":"start-first","Parallelism":1"#));
    for _ in 0..50 {
        world.plan();
        let running = world.reports.values().filter(|report| report.state == TaskState::Running).count();
        assert!((2..=3).contains(&running), "{running} run");
        world.agents();
    }
    assert_eq!(world.images(), ["b", "b"]);
    world.settle_and_wait(3);
    assert_eq!(world.update_state(), Some(UpdateState::Completed));
}

#[test]
fn an_update_that_fails_pauses_and_the_next_spec_resumes_it() {
    for order in ["stop-first", "start-first"] {
        let policy = format!(r#""Parallelism":1,"Order":"{order}""#);
        let mut world = World::new(3, &with_policy(3, "a", &policy));
        world.settle();
        world.set(&with_policy(3, "b", &policy));
        world.plan();
        if order == "stop-first" {
            world.agents();
            world.plan();
        }
        let broken = world.slots.iter().find(|(_, slot)| slot.current().any(|task| task.index == 2)).unwrap();
        let (SlotName::Replica(number), id) = (*broken.0, broken.1.tasks[0].id) else { panic!("replicated") };
        world.end(number, TaskState::Failed, "exit 1");
        world.plan();
        assert_eq!(world.update_state(), Some(UpdateState::Paused), "{order}");
        let want = format!("update paused due to failure or early termination of task {id}");
        assert_eq!(world.progress.as_ref().unwrap().message, want, "{order}");
        world.pass(Duration::from_secs(60));
        world.settle();
        let old = world.images().iter().filter(|image| *image == "a").count();
        assert_eq!(old, if order == "start-first" { 3 } else { 2 }, "{order}: the others are left alone");
        world.set(&with_policy(3, "c", &policy));
        world.settle_and_wait(5);
        assert_eq!(world.images(), ["c", "c", "c"], "{order}");
        assert_eq!(world.update_state(), Some(UpdateState::Completed), "{order}");
    }
}

#[test]
fn other_words_for_the_same_template_restart_nothing() {
    let mut world = World::new(2, &spec(2, "a", ""));
    world.settle();
    world.set(&spec(2, "a", r#","ForceUpdate":0,"Resources":{"Limits":{},"Reservations":{}},"Runtime":"container""#));
    assert!(world.plan().is_empty());
    world.set(&spec(2, "a", r#","ForceUpdate":1"#));
    assert!(!world.plan().is_empty(), "a forced update does");
}
