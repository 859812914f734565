//! How far a job is: what is done, and what is at work.

use std::collections::BTreeMap;

use shoal_protocol::spec::ModeKind;

use super::{Look, rank, slot_key};
use crate::model::{Service, Task};

/// Looks at a job and tells whether all its work is done. Tasks of earlier runs do not count.
pub(super) fn look(service: &Service, tasks: &[Task]) -> (Look, bool) {
    let run = service.job_status.as_ref().map_or(0, |status| status.job_iteration.index);
    let is_of_run = |task: &&Task| task.job_iteration.as_ref().is_some_and(|version| version.index == run);
    let mut by_slot: BTreeMap<String, &Task> = BTreeMap::new();
    // Of a slot's tasks the one that is least far: the others failed before it.
    for task in tasks.iter().filter(is_of_run) {
        let least = by_slot.entry(slot_key(task)).or_insert(task);
        if place(task) < place(least) {
            *least = task;
        }
    }
    let is_active = |task: &&&Task| rank(&task.status.state) <= rank("running");
    let active = by_slot.values().filter(is_active).count() as u64;
    let (desired, completed) =
        service.service_status.as_ref().map_or((0, 0), |status| (status.desired_tasks, status.completed_tasks));
    let (total, sums) = match service.spec.mode.kind() {
        ModeKind::ReplicatedJob { completions, concurrent } => {
            let width = completions.to_string().len();
            let active_width = concurrent.to_string().len();
            let at_once = completions.saturating_sub(completed).min(concurrent);
            let sums = vec![
                format!("job progress: {completed:>width$} out of {completions} complete"),
                format!("active tasks: {active:>active_width$} out of {at_once:>active_width$} tasks"),
            ];
            (completions, sums)
        }
        ModeKind::Replicated { .. } | ModeKind::Global | ModeKind::GlobalJob => {
            let total = desired + completed;
            let width = total.to_string().len();
            let sum = if total == 0 {
                "job progress: waiting for tasks".to_owned()
            } else {
                format!("job progress: {completed:>width$} out of {total} complete")
            };
            (total, vec![sum])
        }
    };
    // A global job has nothing to do until it is known where.
    let may_be_over = total > 0 || matches!(service.spec.mode.kind(), ModeKind::ReplicatedJob { .. });
    let told = |task: &Task| {
        let number = task.slot.map_or_else(|| task.node_id.clone(), |slot| (slot + 1).to_string());
        (number, (task.status.state.clone(), task.status.err.clone()))
    };
    let look = Look { sums, total, running: active, slots: by_slot.into_values().map(told).collect() };
    (look, may_be_over && completed >= total)
}

/// Returns how far a task is; those that ended badly are behind all others.
fn place(task: &Task) -> (usize, bool) {
    (rank(&task.status.state), task.status.state != "complete")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(slot: u64, run: u64, state: &str) -> Task {
        let iteration = json!({"Index": run});
        serde_json::from_value(json!({"ID": "x", "Slot": slot, "DesiredState": "complete", "JobIteration": iteration,
            "Status": {"State": state}}))
        .unwrap()
    }

    fn service(mode: &serde_json::Value, desired: u64, completed: u64) -> Service {
        serde_json::from_value(json!({"ID": "s", "Spec": {"Mode": mode}, "JobStatus": {"JobIteration": {"Index": 1}},
            "ServiceStatus": {"DesiredTasks": desired, "CompletedTasks": completed}}))
        .unwrap()
    }

    #[test]
    fn what_is_done_and_at_work_is_told_as_docker_tells_it() {
        let mode = json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 10}});
        let tasks = [
            task(0, 1, "complete"),
            task(1, 1, "failed"),
            task(1, 1, "running"),
            task(2, 1, "preparing"),
            task(0, 0, "running"),
        ];
        let (seen, is_over) = look(&service(&mode, 2, 1), &tasks);
        assert!(!is_over);
        assert_eq!(seen.sums, ["job progress:  1 out of 10 complete", "active tasks: 2 out of 2 tasks"]);
        assert_eq!(seen.slots["2"].0, "running", "people count from one");
        assert_eq!(seen.slots.len(), 3);
        assert!(look(&service(&mode, 0, 10), &[]).1);
        let global = json!({"GlobalJob": {}});
        assert!(!look(&service(&global, 0, 0), &[]).1, "nothing is known yet");
        let (seen, is_over) = look(&service(&global, 1, 2), &[]);
        assert_eq!((seen.sums, is_over), (vec!["job progress: 2 out of 3 complete".to_owned()], false));
        assert!(look(&service(&global, 0, 3), &[]).1);
    }
}
