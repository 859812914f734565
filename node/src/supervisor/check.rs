//! `shoald check <directory>`: runs the health check of a container once, inside it and with everything that binds its own
//! program: namespaces, control group, user, capabilities, environment, the filter of system calls.
//!
//! Ends with 0 if the check did, and writes what the check wrote. It is an own process because the runtime forks, and
//! because the supervisor must go on with the container's output meanwhile.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid};
use serde_json::Value;
use shoal_control::task::health::{OUTPUT_BYTES_MAX, Policy};

use super::executor::FilteringExecutor;
use super::{CONTAINER_NAME, chain, filters};
use crate::driver::embedded::bundle::{Bundle, BundleDir, read_json};

/// The hidden subcommand of `shoald`.
pub const SUBCOMMAND: &str = "check";

/// What the check's process is like, in the form of the runtime specification.
pub const PROCESS_FILE: &str = "check.json";

/// Runs the subcommand. To be called before anything starts a thread.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: shoald {SUBCOMMAND} DIRECTORY");
        return ExitCode::from(2);
    };
    let (succeeded, output) =
        run(&BundleDir(PathBuf::from(directory))).unwrap_or_else(|error| (false, error.into_bytes()));
    // Whoever asked may have gone with the container.
    let _ = io::stdout().write_all(&output);
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns whether the check succeeded and what it wrote, or why it could not be run.
fn run(directory: &BundleDir) -> Result<(bool, Vec<u8>), String> {
    let text = |error: io::Error| error.to_string();
    let bundle = directory.bundle().map_err(text)?;
    let policy = bundle.health.as_ref().ok_or("the container has no health check")?;
    let deadline = Instant::now() + policy.timeout;
    let (output, output_of_check) = pipe().map_err(text)?;
    let pid = begin(directory, &bundle, policy, output_of_check.into())?;
    watch(pid, output, deadline, policy.timeout).map_err(text)
}

fn begin(directory: &BundleDir, bundle: &Bundle, policy: &Policy, output: OwnedFd) -> Result<Pid, String> {
    let text = |error: io::Error| error.to_string();
    let file = directory.path(PROCESS_FILE);
    let process: Value = read_json(&file).map_err(text)?.ok_or("the container's health check was not prepared")?;
    let env = process["env"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let null = File::options().read(true).write(true).open("/dev/null").map_err(text)?;
    let executor = FilteringExecutor {
        program: policy.command[0].clone(),
        args: policy.command.clone(),
        env: env.map(str::to_owned).collect(),
        filters: filters(bundle).map_err(|error| error.to_string())?,
        report: Arc::new(null.try_clone().map_err(text)?), // the runtime passes failures on by itself
    };
    let build = || {
        ContainerBuilder::new(CONTAINER_NAME.to_owned(), SyscallType::default())
            .with_executor(executor)
            .with_root_path(directory.path("runtime"))?
            .with_stdin(null)
            .with_stdout(output.try_clone().map_err(LibcontainerError::OtherIO)?)
            .with_stderr(output)
            .validate_id()?
            .as_tenant()
            .with_process(Some(file))
            .with_detach(true)
            .build()
    };
    let pid = build().map_err(|error| chain(&error))?;
    Pid::from_raw(pid.as_raw()).ok_or_else(|| "the runtime did not say which process it created".to_owned())
}

/// Waits for the end of the check, and kills it with all that it started when its time is over.
fn watch(pid: Pid, mut output: PipeReader, deadline: Instant, limit: Duration) -> io::Result<(bool, Vec<u8>)> {
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let (mut kept, mut is_open) = (Vec::new(), true);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // The runtime made it the leader of a session. It may have ended by itself just now.
            let _ = kill_process_group(pid, Signal::KILL);
            wait(pid)?;
            return Ok((false, format!("Health check exceeded timeout ({limit:?})").into_bytes()));
        }
        let mut waiting = vec![PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        if is_open {
            waiting.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
        }
        match poll(&mut waiting, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let over = !waiting[0].revents().is_empty();
        drop(waiting);
        is_open = is_open && keep(&mut output, &mut kept);
        if over {
            return Ok((wait(pid)?, kept));
        }
    }
}

/// Reads what there is and keeps the beginning. Returns whether more may come.
fn keep(output: &mut PipeReader, kept: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let room = OUTPUT_BYTES_MAX - kept.len();
                kept.extend_from_slice(&buffer[..count.min(room)]);
                if room == 0 {
                    return true; // a check that writes without end must not keep this from its clock
                }
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn wait(pid: Pid) -> io::Result<bool> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status.exit_status() == Some(0)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
