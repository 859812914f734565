use std::net::{IpAddr, Ipv4Addr};

use shoal_protocol::TaskId;

use super::*;

const NOW: Now = Now { time: Time(5_000), wall: WallTime(5_000_000_000) };

fn running() -> Running {
    Running {
        container_id: "c1".to_owned(),
        pid: 42,
        address: Some(IpAddr::V4(Ipv4Addr::new(10, 212, 0, 2))),
        started: WallTime(4_000_000_000),
        health: None,
    }
}

/// A task at `state` with a container as it is there, and a call outstanding.
fn life(state: TaskState, container: Container, call: Option<Call>) -> Life {
    let mut life = Life::assigned(ServiceId(1), SlotName::Replica(1), Now::default());
    life.status.state = state;
    life.container = container;
    life.call = call;
    if container == Container::Running {
        life.status.container_id = "c1".to_owned();
        life.status.pid = 42;
    }
    life
}

fn prepared() -> DriverReport {
    DriverReport::Prepared { container_id: "c1".to_owned() }
}

fn failed() -> DriverReport {
    DriverReport::Failed { error: "broken".to_owned() }
}

fn rejected() -> DriverReport {
    DriverReport::Rejected { error: "No such image: x on n1".to_owned() }
}

fn exited(code: i32) -> DriverReport {
    DriverReport::Exited { code, error: String::new() }
}

type Outcome = (TaskState, Container, Option<Call>);

#[expect(clippy::too_many_lines, reason = "one table of transitions")]
#[test]
fn life_steps() {
    use Container::*;
    use DriverReport::*;
    use Goal::{Discard, Keep, Run, Stop};
    use TaskState as S;

    let cases: Vec<(&str, Life, Goal, Option<DriverReport>, Outcome)> = vec![
        // On the way up.
        ("not admitted yet", life(S::Assigned, Absent, None), Run, None, (S::Assigned, Absent, None)),
        ("accepted", life(S::Accepted, Absent, None), Run, None, (S::Preparing, Created, Some(Call::Prepare))),
        (
            "accepted and to be ready",
            life(S::Accepted, Absent, None),
            Goal::Ready,
            None,
            (S::Preparing, Created, Some(Call::Prepare)),
        ),
        (
            "prepared and to be ready waits",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Goal::Ready,
            Some(prepared()),
            (S::Ready, Created, None),
        ),
        (
            "prepared and to run starts",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Run,
            Some(prepared()),
            (S::Starting, Created, Some(Call::Start)),
        ),
        ("ready and then to run", life(S::Ready, Created, None), Run, None, (S::Starting, Created, Some(Call::Start))),
        ("ready but fenced", life(S::Ready, Created, None), Keep, None, (S::Ready, Created, None)),
        (
            "started",
            life(S::Starting, Created, Some(Call::Start)),
            Run,
            Some(Started(running())),
            (S::Running, Running, None),
        ),
        (
            "no second call while one is outstanding",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Run,
            None,
            (S::Preparing, Created, Some(Call::Prepare)),
        ),
        ("running stays", life(S::Running, Running, None), Run, None, (S::Running, Running, None)),
        ("running and fenced stays", life(S::Running, Running, None), Keep, None, (S::Running, Running, None)),
        // What cannot go up.
        (
            "the image is missing",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Run,
            Some(rejected()),
            (S::Rejected, Created, None),
        ),
        (
            "preparing failed",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Run,
            Some(failed()),
            (S::Failed, Created, None),
        ),
        (
            "a failed start may have left something running",
            life(S::Starting, Created, Some(Call::Start)),
            Run,
            Some(failed()),
            (S::Failed, Unknown, Some(Call::Stop)),
        ),
        (
            "a refused start too",
            life(S::Starting, Created, Some(Call::Start)),
            Run,
            Some(rejected()),
            (S::Rejected, Unknown, Some(Call::Stop)),
        ),
        (
            "what was left running is stopped and the failure stays",
            life(S::Failed, Unknown, Some(Call::Stop)),
            Run,
            Some(Stopped),
            (S::Failed, Ended, None),
        ),
        // Ends of its own.
        ("it finished", life(S::Running, Running, None), Run, Some(exited(0)), (S::Complete, Ended, None)),
        ("it failed", life(S::Running, Running, None), Run, Some(exited(3)), (S::Failed, Ended, None)),
        ("it failed while fenced", life(S::Running, Running, None), Keep, Some(exited(3)), (S::Failed, Ended, None)),
        ("an ended task is not started again", life(S::Failed, Ended, None), Run, None, (S::Failed, Ended, None)),
        ("nor one that finished", life(S::Complete, Ended, None), Run, None, (S::Complete, Ended, None)),
        ("an end is told once", life(S::Failed, Ended, None), Run, Some(exited(0)), (S::Failed, Ended, None)),
        // Told to end.
        ("it is stopped", life(S::Running, Running, None), Stop, None, (S::Running, Running, Some(Call::Stop))),
        (
            "its end under stop is a shutdown",
            life(S::Running, Running, Some(Call::Stop)),
            Stop,
            Some(exited(143)),
            (S::Shutdown, Ended, Some(Call::Stop)),
        ),
        (
            "the answer to stop comes after",
            life(S::Shutdown, Ended, Some(Call::Stop)),
            Stop,
            Some(Stopped),
            (S::Shutdown, Ended, None),
        ),
        (
            "or is all there is",
            life(S::Running, Running, Some(Call::Stop)),
            Stop,
            Some(Stopped),
            (S::Shutdown, Ended, None),
        ),
        ("stopped before it was let in", life(S::Assigned, Absent, None), Stop, None, (S::Shutdown, Absent, None)),
        ("stopped when ready", life(S::Ready, Created, None), Stop, None, (S::Shutdown, Created, None)),
        (
            "stopped while preparing",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Stop,
            None,
            (S::Shutdown, Created, Some(Call::Prepare)),
        ),
        (
            "what is prepared too late is not started",
            life(S::Shutdown, Created, Some(Call::Prepare)),
            Stop,
            Some(prepared()),
            (S::Shutdown, Created, None),
        ),
        (
            "stopped while starting waits for the start",
            life(S::Starting, Created, Some(Call::Start)),
            Stop,
            None,
            (S::Starting, Created, Some(Call::Start)),
        ),
        (
            "and is stopped then",
            life(S::Starting, Created, Some(Call::Start)),
            Stop,
            Some(Started(running())),
            (S::Running, Running, Some(Call::Stop)),
        ),
        (
            "a failed stop is tried later",
            life(S::Running, Running, Some(Call::Stop)),
            Stop,
            Some(failed()),
            (S::Running, Running, None),
        ),
        ("how it ended stays", life(S::Failed, Ended, None), Stop, None, (S::Failed, Ended, None)),
        // Removed.
        (
            "what ran is stopped first",
            life(S::Running, Running, None),
            Discard,
            None,
            (S::Running, Running, Some(Call::Stop)),
        ),
        (
            "what ended is removed",
            life(S::Running, Running, Some(Call::Stop)),
            Discard,
            Some(Stopped),
            (S::Shutdown, Ended, Some(Call::Remove)),
        ),
        (
            "an end does not answer the stop",
            life(S::Running, Running, Some(Call::Stop)),
            Discard,
            Some(exited(143)),
            (S::Shutdown, Ended, Some(Call::Stop)),
        ),
        ("what never ran", life(S::Ready, Created, None), Discard, None, (S::Shutdown, Created, Some(Call::Remove))),
        (
            "nothing is left",
            life(S::Shutdown, Ended, Some(Call::Remove)),
            Discard,
            Some(Removed),
            (S::Remove, Absent, None),
        ),
        (
            "a failed removal is tried later",
            life(S::Shutdown, Ended, Some(Call::Remove)),
            Discard,
            Some(failed()),
            (S::Shutdown, Ended, None),
        ),
        ("nothing was there", life(S::Rejected, Absent, None), Discard, None, (S::Remove, Absent, None)),
        // Answers to nothing.
        ("a stale answer", life(S::Running, Running, None), Run, Some(prepared()), (S::Running, Running, None)),
        ("a stale failure", life(S::Running, Running, None), Run, Some(failed()), (S::Running, Running, None)),
        (
            "an answer to another call",
            life(S::Preparing, Created, Some(Call::Prepare)),
            Run,
            Some(Started(running())),
            (S::Preparing, Created, Some(Call::Prepare)),
        ),
    ];
    for (name, before, goal, report, want) in cases {
        let outstanding = before.call;
        let (after, call) = step(before, goal, report, NOW);
        assert_eq!((after.status.state, after.container, after.call), want, "{name}");
        let fresh = call.is_some();
        assert!(!fresh || call == after.call, "{name}: what is returned is outstanding");
        assert!(!(fresh && outstanding == after.call), "{name}: nothing is called twice");
    }
}

#[test]
fn the_status_tells_how_it_ended() {
    let (life, _) = step(
        life(TaskState::Starting, Container::Created, Some(Call::Start)),
        Goal::Run,
        Some(DriverReport::Started(running())),
        NOW,
    );
    assert_eq!((life.status.pid, life.status.since), (42, WallTime(4_000_000_000)), "since its process was started");
    assert_eq!(life.status.message, "started");

    let (life, _) = step(life, Goal::Run, Some(exited(3)), NOW);
    assert_eq!(life.status.error, "task: non-zero exit (3)");
    assert_eq!(life.status.message, "started", "how far it had come");
    assert_eq!((life.status.exit_code, life.status.pid, life.status.address), (Some(3), 0, None));
    assert_eq!(life.status.container_id, "c1", "for whoever looks for its output");
}

#[test]
fn failed_stops_back_off_and_end_in_force() {
    let mut task = life(TaskState::Running, Container::Running, Some(Call::Stop));
    let mut now = NOW;
    let mut waits = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..10 {
        (task, _) = step(task, Goal::Stop, Some(failed()), now);
        assert!(task.status.error.ends_with("its container: broken"), "{}", task.status.error);
        let early = Now { time: Time(task.retry.0 - 1), ..now };
        let (_, call) = step(task.clone(), Goal::Stop, None, early);
        assert_eq!(call, None, "not before its time");
        waits.push(task.retry.since(now.time).as_secs());
        now.time = task.retry;
        let (next, call) = step(task, Goal::Stop, None, now);
        calls.push(call.unwrap());
        task = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    assert_eq!(calls[..2], [Call::Stop; 2]);
    assert!(calls[2..].iter().all(|call| *call == Call::Remove));

    let (task, _) = step(task, Goal::Stop, Some(DriverReport::Removed), now);
    assert_eq!((task.status.state, task.attempts, task.status.error.as_str()), (TaskState::Shutdown, 0, ""));
}

#[test]
fn found_containers_are_taken_for_what_they_are() {
    let found = |state| Found { task: TaskId(1), service: ServiceId(1), slot: SlotName::Replica(1), state };
    for (name, state, told_to_end, want) in [
        ("runs", FoundState::Running(running()), false, (TaskState::Running, Container::Running)),
        ("never started", FoundState::Created, false, (TaskState::Assigned, Container::Created)),
        ("failed", FoundState::Exited { code: 3 }, false, (TaskState::Failed, Container::Ended)),
        ("finished", FoundState::Exited { code: 0 }, false, (TaskState::Complete, Container::Ended)),
        ("killed with its node", FoundState::Exited { code: 137 }, false, (TaskState::Failed, Container::Ended)),
        ("stopped", FoundState::Exited { code: 143 }, true, (TaskState::Shutdown, Container::Ended)),
        ("failed before it was replaced", FoundState::Exited { code: 3 }, true, (TaskState::Failed, Container::Ended)),
    ] {
        let life = Life::adopted(&found(state), told_to_end, NOW);
        assert_eq!((life.status.state, life.container), want, "{name}");
    }
}

#[test]
fn long_errors_are_cut_between_characters() {
    let text = shorten(&"é".repeat(ERROR_BYTES_MAX), ERROR_BYTES_MAX);
    assert!(text.len() <= ERROR_BYTES_MAX + '…'.len_utf8());
}

#[test]
fn a_task_that_lacks_something_is_prepared_again_until_it_is_unwanted() {
    let not_yet = || DriverReport::NotYet { reason: "no manager answers".to_owned() };
    let waiting = life(TaskState::Preparing, Container::Created, Some(Call::Prepare));
    let (waiting, call) = step(waiting, Goal::Run, Some(not_yet()), NOW);
    assert_eq!((waiting.status.state, call), (TaskState::Preparing, None));
    assert_eq!(waiting.status.error, "no manager answers");
    let mut now = NOW;
    let (mut again, mut pauses) = (waiting.clone(), Vec::new());
    for _ in 0..10 {
        pauses.push(again.retry.since(now.time));
        now.time = again.retry;
        let (asks, call) = step(again, Goal::Run, None, now);
        assert_eq!(call, Some(Call::Prepare));
        again = step(asks, Goal::Run, Some(not_yet()), now).0;
    }
    assert_eq!((pauses[0], pauses[9]), (PREPARE_DELAY_MIN, PREPARE_DELAY_MAX));
    // It came.
    now.time = again.retry;
    let (asks, _) = step(again, Goal::Run, None, now);
    let (ready, call) = step(asks, Goal::Run, Some(prepared()), now);
    assert_eq!((ready.status.state, call), (TaskState::Starting, Some(Call::Start)));
    assert_eq!(ready.status.error, "");
    // It is refused.
    let (asks, _) = step(waiting.clone(), Goal::Run, None, Now { time: waiting.retry, ..NOW });
    assert_eq!(step(asks, Goal::Run, Some(rejected()), NOW).0.status.state, TaskState::Rejected);
    // It is wanted no more: nobody waits for the next attempt.
    let (stopped, call) = step(waiting.clone(), Goal::Stop, None, NOW);
    assert_eq!((stopped.status.state, call, stopped.status.error.as_str()), (TaskState::Shutdown, None, ""));
    let (_, call) = step(waiting, Goal::Discard, None, NOW);
    assert_eq!(call, Some(Call::Remove));
}

fn health(status: HealthStatus, output: &str) -> Option<DriverReport> {
    Some(DriverReport::Health { status, output: output.to_owned() })
}

fn begun(health: HealthStatus) -> Life {
    let started = DriverReport::Started(Running { health: Some(health), ..running() });
    step(life(TaskState::Starting, Container::Created, Some(Call::Start)), Goal::Run, Some(started), NOW).0
}

#[test]
fn a_task_that_is_checked_runs_when_it_is_well() {
    let task = begun(HealthStatus::Starting);
    assert_eq!((task.status.state, task.status.pid), (TaskState::Starting, 42), "it runs, but is not well yet");
    let (task, call) = step(task, Goal::Run, health(HealthStatus::Starting, ""), NOW);
    assert_eq!((task.status.state, call), (TaskState::Starting, None));
    let (task, call) = step(task, Goal::Run, health(HealthStatus::Healthy, "ok"), NOW);
    assert_eq!((task.status.state, call), (TaskState::Running, None));
    assert_eq!((task.status.message.as_str(), task.status.since), ("started", NOW.wall));
    assert_eq!(begun(HealthStatus::Healthy).status.state, TaskState::Running);
}

#[test]
fn a_task_that_is_not_well_is_stopped_and_fails() {
    let error = "task: non-zero exit (143): dockerexec: unhealthy container: no answer";
    for (name, task, goal, code, want) in [
        ("never was well", begun(HealthStatus::Starting), Goal::Run, 143, error),
        ("was well", begun(HealthStatus::Healthy), Goal::Run, 143, error),
        ("was placed by an earlier holder", begun(HealthStatus::Healthy), Goal::Keep, 143, error),
        ("ends well", begun(HealthStatus::Healthy), Goal::Run, 0, "task: dockerexec: unhealthy container: no answer"),
    ] {
        let before = task.status.state;
        let (task, call) = step(task, goal, health(HealthStatus::Unhealthy, " no\n answer\n"), NOW);
        assert_eq!((task.status.state, call), (before, Some(Call::Stop)), "{name}: not failed while it may run");
        assert_eq!(task.status.address, None, "{name}: nobody is sent there");
        let (task, _) = step(task, goal, health(HealthStatus::Healthy, ""), NOW);
        assert_eq!(task.status.state, before, "{name}: it is too late to be well");
        let (ended, call) = step(task.clone(), goal, Some(exited(code)), NOW);
        assert_eq!((ended.status.state, ended.status.error.as_str(), call), (TaskState::Failed, want, None), "{name}");
        let (ended, _) = step(ended, goal, Some(DriverReport::Stopped), NOW);
        assert_eq!((ended.container, ended.call), (Container::Ended, None), "{name}");

        let (unseen, _) = step(task.clone(), goal, Some(DriverReport::Stopped), NOW);
        assert_eq!(unseen.status.state, TaskState::Failed, "{name}: also if its end was not seen");
        let (told, _) = step(task, Goal::Stop, Some(exited(code)), NOW);
        assert_eq!(told.status.state, TaskState::Shutdown, "{name}: unless it was told to end meanwhile");
    }
}

#[test]
fn a_container_found_unwell_is_stopped() {
    let state = FoundState::Running(Running { health: Some(HealthStatus::Unhealthy), ..running() });
    let found = Found { task: TaskId(1), service: ServiceId(1), slot: SlotName::Replica(1), state };
    let (_, call) = step(Life::adopted(&found, false, NOW), Goal::Run, None, NOW);
    assert_eq!(call, Some(Call::Stop));
}

#[test]
fn health_of_what_does_not_run_is_ignored() {
    let before = life(TaskState::Shutdown, Container::Ended, None);
    for status in [HealthStatus::Healthy, HealthStatus::Unhealthy] {
        assert_eq!(step(before.clone(), Goal::Run, health(status, ""), NOW), (before.clone(), None));
    }
}
