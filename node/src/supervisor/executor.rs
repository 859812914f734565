//! The last steps inside the container before its program takes over.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::seccomp::Filters;

/// Installs the filters of system calls and executes the program. What fails here is written to `report`, which closes by
/// itself when the program is executed: an end without a byte means success.
#[derive(Clone)]
pub struct FilteringExecutor {
    /// Path of the program inside the container.
    pub program: String,
    /// Program and arguments as the program sees them.
    pub args: Vec<String>,
    /// `NAME=VALUE` each: all of its environment.
    pub env: Vec<String>,
    /// The filters.
    pub filters: Filters,
    /// Where failures go; close-on-exec.
    pub report: Arc<File>,
}

impl FilteringExecutor {
    fn fail(&self, message: &str) -> ExecutorError {
        let _ = (&*self.report).write_all(message.as_bytes());
        ExecutorError::Other(message.to_owned())
    }
}

impl Executor for FilteringExecutor {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let pairs = self.env.iter().filter_map(|variable| variable.split_once('='));
        let mut command = Command::new(&self.program);
        command.args(&self.args[1..]).arg0(&self.args[0]).env_clear().envs(pairs);
        self.filters.install().map_err(|error| self.fail(&format!("failed to filter system calls: {error}")))?;
        let error = command.exec();
        Err(self.fail(&format!("exec {}: {error}", self.program)))
    }

    /// Called after the user was changed, which forgets the signal, and before the container counts as created.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Without its supervisor nobody would read its output or keep its exit status.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| {
            ExecutorValidationError::ArgValidationError(format!("failed to follow the supervisor: {error}"))
        })
    }

    /// The environment is handed over by `exec` as a whole.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
