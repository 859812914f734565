use shoal_protocol::WallTime;

use super::*;

const SEC: u64 = 1_000_000_000;

fn at(secs: u64) -> Now {
    Now { time: Time(secs * 1000), wall: WallTime(secs * SEC) }
}

fn progress(index: u64, state: UpdateState) -> Progress {
    Progress { index, state, started: WallTime(0), completed: None, message: String::new() }
}

fn slots(phases: &[Phase]) -> Vec<(SlotName, Phase)> {
    phases.iter().enumerate().map(|(n, phase)| (SlotName::Replica(n as u32 + 1), *phase)).collect()
}

const OLD: Phase = Phase::Dirty { running: true };
const DEAD: Phase = Phase::Dirty { running: false };
const NEW_AT_5: Phase = Phase::Running { since: Time(5000), updated: true };
const KEPT: Phase = Phase::Running { since: Time(5000), updated: false };

#[test]
fn slots_are_taken_as_the_policy_says() {
    use Phase::{Moving, Settled};
    let policy =
        |parallelism, delay_secs| UpdateConfig { parallelism, delay: delay_secs * SEC, ..UpdateConfig::default() };
    for (name, policy, phases, now, want, wake) in [
        ("one at a time", policy(1, 0), vec![OLD, OLD, OLD], 6, vec![1], None),
        ("not while one is between two tasks", policy(1, 0), vec![Moving, OLD], 6, vec![], None),
        ("the next as soon as the last runs", policy(1, 0), vec![NEW_AT_5, OLD], 5, vec![2], None),
        ("two at a time", policy(2, 0), vec![Moving, OLD, OLD], 6, vec![2], None),
        ("all at once", policy(0, 0), vec![OLD, OLD, Moving], 6, vec![1, 2], None),
        ("after the delay", policy(1, 10), vec![NEW_AT_5, OLD], 6, vec![], Some(15_000)),
        ("and no later", policy(1, 10), vec![NEW_AT_5, OLD], 15, vec![2], None),
        ("what was not updated needs no delay", policy(1, 10), vec![KEPT, OLD], 6, vec![2], None),
        ("what serves nobody first", policy(1, 0), vec![OLD, DEAD], 6, vec![2], None),
        ("who waits for room holds nobody up", policy(1, 0), vec![Settled, OLD], 6, vec![2], None),
    ] {
        let progress = progress(2, UpdateState::Updating);
        let step = step(&Input {
            policy: &policy,
            rolls_back: false,
            index: 2,
            progress: Some(&progress),
            slots: &slots(&phases),
            failures: 0,
            failed: None,
            now: at(now),
        });
        let want: Vec<SlotName> = want.into_iter().map(SlotName::Replica).collect();
        assert_eq!((step.start, step.progress, step.wake), (want, None, wake.map(Time)), "{name}");
    }
}

#[test]
fn an_update_begins_ends_and_pauses() {
    use UpdateState::{Completed, Paused, Updating};
    let default = UpdateConfig::default();
    let half = UpdateConfig { max_failure_ratio: 0.5, ..UpdateConfig::default() };
    let go_on = UpdateConfig { failure_action: "continue".to_owned(), ..UpdateConfig::default() };
    let set = |state| Some(Some(state));
    for (name, policy, stored, phases, failures, now, want) in [
        ("nothing to do", &default, None, vec![KEPT], 0, 6, None),
        ("it begins", &default, None, vec![OLD], 0, 6, set(Updating)),
        ("again with the next spec", &default, Some((1, Completed)), vec![OLD], 0, 6, set(Updating)),
        ("even from a pause", &default, Some((1, Paused)), vec![OLD], 0, 6, set(Updating)),
        ("a spec that changes no task forgets it", &default, Some((1, Completed)), vec![KEPT], 0, 6, Some(None)),
        ("it goes on", &default, Some((2, Updating)), vec![OLD, Phase::Moving], 0, 6, None),
        ("tasks are watched", &default, Some((2, Updating)), vec![NEW_AT_5, KEPT], 0, 9, None),
        ("and then it is over", &default, Some((2, Updating)), vec![NEW_AT_5, KEPT], 0, 10, set(Completed)),
        ("a failure pauses it", &default, Some((2, Updating)), vec![OLD, Phase::Settled], 1, 6, set(Paused)),
        ("unless few are tolerated", &half, Some((2, Updating)), vec![OLD, NEW_AT_5], 1, 6, None),
        ("but not more", &half, Some((2, Updating)), vec![OLD, NEW_AT_5], 2, 6, set(Paused)),
        ("or all", &go_on, Some((2, Updating)), vec![OLD, NEW_AT_5], 2, 6, None),
        ("a pause stays", &default, Some((2, Paused)), vec![OLD], 1, 60, None),
        ("an end stays", &default, Some((2, Completed)), vec![NEW_AT_5], 0, 60, None),
        ("a slot found dirty later is updated", &default, Some((2, Completed)), vec![OLD], 0, 60, set(Updating)),
    ] {
        let stored = stored.map(|(index, state)| progress(index, state));
        let step = step(&Input {
            policy,
            rolls_back: false,
            index: 2,
            progress: stored.as_ref(),
            slots: &slots(&phases),
            failures,
            failed: (failures > 0).then_some(TaskId(9)),
            now: at(now),
        });
        let got = step.progress.map(|progress| progress.map(|progress| progress.state));
        assert_eq!(got, want, "{name}");
        let starts = want == set(Updating) || name == "unless few are tolerated" || name == "or all";
        assert_eq!(!step.start.is_empty(), starts, "{name}");
    }
}

#[test]
fn messages_are_swarms() {
    let policy = UpdateConfig::default();
    let stored = progress(2, UpdateState::Updating);
    let message = |phases: &[Phase], failed: bool| {
        let input = Input {
            policy: &policy,
            rolls_back: false,
            index: 2,
            progress: Some(&stored),
            slots: &slots(phases),
            failures: usize::from(failed),
            failed: failed.then_some(TaskId(0)),
            now: at(20),
        };
        step(&input).progress.unwrap().unwrap()
    };
    let completed = message(&[NEW_AT_5], false);
    assert_eq!((completed.message.as_str(), completed.completed), ("update completed", Some(WallTime(20 * SEC))));
    let paused = message(&[OLD], true);
    let want = "update paused due to failure or early termination of task 0000000000000000000000000";
    assert_eq!((paused.message.as_str(), paused.completed), (want, None));
}

#[test]
fn a_failed_update_is_rolled_back_by_the_other_policy() {
    use UpdateState::{Completed, Paused, RollbackCompleted, RollbackPaused, RollbackStarted, Updating};
    let back = UpdateConfig { failure_action: "rollback".to_owned(), ..UpdateConfig::default() };
    let pause = UpdateConfig::default();
    let go_on = UpdateConfig { failure_action: "continue".to_owned(), ..UpdateConfig::default() };
    let failed = "update rolled back due to failure or early termination of task 0000000000000000000000009";
    let asked = "manually requested rollback";
    let paused = "rollback paused due to failure or early termination of task 0000000000000000000000009";
    for (name, policy, rolls_back, (index, state, message), phases, failures, want) in [
        ("it fails", &back, false, (2, Updating, ""), vec![OLD], 1, Some((RollbackStarted, failed, 0))),
        ("it waits for the previous spec", &back, false, (2, RollbackStarted, failed), vec![OLD], 1, None),
        (
            "which says why",
            &pause,
            true,
            (1, RollbackStarted, failed),
            vec![OLD],
            0,
            Some((RollbackStarted, failed, 1)),
        ),
        ("users say it themselves", &pause, true, (1, Completed, ""), vec![OLD], 0, Some((RollbackStarted, asked, 1))),
        ("even in a pause", &pause, true, (1, Paused, ""), vec![OLD], 0, Some((RollbackStarted, asked, 1))),
        ("even for no task", &pause, true, (1, Completed, ""), vec![KEPT], 0, Some((RollbackStarted, asked, 0))),
        (
            "going back ends",
            &pause,
            true,
            (2, RollbackStarted, asked),
            vec![KEPT],
            0,
            Some((RollbackCompleted, "rollback completed", 0)),
        ),
        ("or fails", &pause, true, (2, RollbackStarted, asked), vec![OLD], 1, Some((RollbackPaused, paused, 0))),
        ("or goes on", &go_on, true, (2, RollbackStarted, asked), vec![NEW_AT_5, Phase::Moving], 1, None),
        ("and then it stays", &pause, true, (2, RollbackPaused, paused), vec![OLD], 1, None),
        ("so does its end", &pause, true, (2, RollbackCompleted, ""), vec![KEPT], 0, None),
        (
            "a next spec is an update",
            &pause,
            false,
            (1, RollbackCompleted, ""),
            vec![OLD],
            0,
            Some((Updating, "update in progress", 1)),
        ),
    ] {
        let stored = Progress { message: message.to_owned(), ..progress(index, state) };
        let step = step(&Input {
            policy,
            rolls_back,
            index: 2,
            progress: Some(&stored),
            slots: &slots(&phases),
            failures,
            failed: (failures > 0).then_some(TaskId(9)),
            now: at(20),
        });
        let got = step.progress.map(|progress| progress.unwrap());
        let got = got.as_ref().map(|progress| (progress.state, progress.message.as_str(), step.start.len()));
        assert_eq!(got, want, "{name}");
    }
}
