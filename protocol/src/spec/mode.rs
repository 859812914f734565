//! How many tasks a service has, and whether they are to run on or to end. Source: Docker Engine API v1.50, `ServiceSpec.Mode`.

use serde::{Deserialize, Serialize};

/// How many tasks a service has. Exactly one field is set; none means one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Mode {
    /// A number of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
    /// One task on every eligible node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<Global>,
    /// A number of tasks that run to their end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated_job: Option<ReplicatedJob>,
    /// One task on every eligible node that runs to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_job: Option<GlobalJob>,
}

/// A number of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Replicated {
    /// How many; `None` means one.
    pub replicas: Option<u64>,
}

/// One task on every eligible node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Global {}

/// A number of tasks that run to their end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ReplicatedJob {
    /// How many run at once at most; `None` means one.
    pub max_concurrent: Option<u64>,
    /// How many are to end well; `None` means as many as run at once.
    pub total_completions: Option<u64>,
}

/// One task on every eligible node that runs to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalJob {}

/// A mode with its gaps filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeKind {
    /// So many tasks that run on.
    Replicated {
        /// How many.
        replicas: u64,
    },
    /// One task on every eligible node that runs on.
    Global,
    /// So many tasks that run to their end.
    ReplicatedJob {
        /// How many are to end well.
        completions: u64,
        /// How many run at once at most.
        concurrent: u64,
    },
    /// One task that runs to its end on every eligible node that was a member when the job was last changed.
    GlobalJob,
}

impl ModeKind {
    /// Returns the name that flags and filters use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicated { .. } => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob { .. } => "replicated-job",
            Self::GlobalJob => "global-job",
        }
    }

    /// Returns whether tasks are to end by themselves.
    pub fn is_job(self) -> bool {
        match self {
            Self::Replicated { .. } | Self::Global => false,
            Self::ReplicatedJob { .. } | Self::GlobalJob => true,
        }
    }
}

impl Mode {
    /// Returns what the mode says, gaps filled in as Docker Engine does.
    pub fn kind(&self) -> ModeKind {
        if self.global.is_some() {
            return ModeKind::Global;
        }
        if self.global_job.is_some() {
            return ModeKind::GlobalJob;
        }
        if let Some(job) = &self.replicated_job {
            let concurrent = job.max_concurrent.unwrap_or(1);
            return ModeKind::ReplicatedJob { completions: job.total_completions.unwrap_or(concurrent), concurrent };
        }
        let replicas = self.replicated.as_ref().and_then(|replicated| replicated.replicas).unwrap_or(1);
        ModeKind::Replicated { replicas }
    }

    /// Returns whether tasks are to end by themselves.
    pub fn is_job(&self) -> bool {
        self.kind().is_job()
    }

    /// Returns how many modes are given at once; more than one make no sense.
    pub(super) fn given(&self) -> usize {
        let given = [
            self.replicated.is_some(),
            self.global.is_some(),
            self.replicated_job.is_some(),
            self.global_job.is_some(),
        ];
        given.into_iter().filter(|given| *given).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_in_as_docker_engine_does() {
        for (json, want) in [
            ("{}", ModeKind::Replicated { replicas: 1 }),
            (r#"{"Replicated":{}}"#, ModeKind::Replicated { replicas: 1 }),
            (r#"{"Replicated":{"Replicas":0}}"#, ModeKind::Replicated { replicas: 0 }),
            (r#"{"Global":{}}"#, ModeKind::Global),
            (r#"{"GlobalJob":{}}"#, ModeKind::GlobalJob),
            (r#"{"ReplicatedJob":{}}"#, ModeKind::ReplicatedJob { completions: 1, concurrent: 1 }),
            (r#"{"ReplicatedJob":{"MaxConcurrent":2}}"#, ModeKind::ReplicatedJob { completions: 2, concurrent: 2 }),
            (r#"{"ReplicatedJob":{"TotalCompletions":9}}"#, ModeKind::ReplicatedJob { completions: 9, concurrent: 1 }),
        ] {
            let mode: Mode = serde_json::from_str(json).unwrap();
            assert_eq!(mode.kind(), want, "{json}");
            assert_eq!(mode.is_job(), json.contains("Job"), "{json}");
        }
    }
}
