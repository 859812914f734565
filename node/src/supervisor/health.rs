//! The health of one container: starts its checks when they are due and writes down what they make of it.
//!
//! Decides nothing: when and what follows is [`Checks`]' business. The state is in the supervisor, so checks go on while no
//! daemon runs.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use shoal_control::task::health::{Checks, OUTPUT_BYTES_MAX, Policy};
use shoal_protocol::{Time, WallTime};

use super::check;
use crate::driver::embedded::bundle::{BundleDir, CHECKS_KEPT, CheckRecord, HealthRecord, wall_now, write_json};

/// What a check's process may take beyond the check's own timeout, which it keeps by itself, before it is killed.
const EXTRA: Duration = Duration::from_secs(5);

/// The program that runs the check, also after a new version has taken its place.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The health of a container that runs.
pub struct Monitor {
    directory: BundleDir,
    policy: Policy,
    checks: Checks,
    /// What [`Time`] counts from here.
    origin: Instant,
    running: Option<Running>,
    /// What is written down.
    record: HealthRecord,
}

struct Running {
    child: Child,
    output: ChildStdout,
    text: Vec<u8>,
    began: Time,
    began_wall: WallTime,
}

impl Monitor {
    /// Begins to check a container that was just started.
    pub fn new(directory: &BundleDir, policy: &Policy) -> Self {
        let checks = Checks::new(policy, Time(0));
        let (directory, policy) = (directory.clone(), policy.clone());
        Self { directory, policy, checks, origin: Instant::now(), running: None, record: HealthRecord::starting() }
    }

    /// Returns what becomes readable when there is something to do.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.output.as_fd())
    }

    /// Returns after how long there is something to do in any case.
    pub fn timeout(&self) -> Duration {
        let due = self.running.as_ref().map_or(self.checks.due(), |running| self.latest(running));
        due.since(self.now())
    }

    /// Does what there is to do.
    pub fn turn(&mut self) {
        if let Some(mut running) = self.running.take() {
            if running.goes_on() {
                if self.now() < self.latest(&running) {
                    self.running = Some(running);
                    return;
                }
                let _ = running.child.kill();
            }
            let code = running.child.wait().ok().and_then(|status| status.code()).unwrap_or(-1);
            let output = String::from_utf8_lossy(&running.text).into_owned();
            let check = CheckRecord { began: running.began_wall, ended: wall_now(), code, output };
            self.take_result(running.began, check);
        } else if self.now() >= self.checks.due() {
            let began = self.now();
            match Running::begin(&self.directory, began) {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    let output = format!("failed to run the health check: {error}");
                    self.take_result(began, CheckRecord { began: wall_now(), ended: wall_now(), code: -1, output });
                }
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn latest(&self, running: &Running) -> Time {
        running.began + self.policy.timeout.saturating_add(EXTRA)
    }

    fn take_result(&mut self, began: Time, check: CheckRecord) {
        self.checks.take_result(&self.policy, began, check.code == 0, self.now());
        let status = self.checks.status();
        if self.record.status != status {
            self.record.status = status;
            self.record.output = check.output.clone();
        }
        self.record.failures = self.checks.failures();
        self.record.log.push(check);
        let beyond = self.record.log.len().saturating_sub(CHECKS_KEPT);
        self.record.log.drain(..beyond);
        // On a full disk it is told after the next check.
        let _ = write_json(&self.directory.path("health.json"), &self.record);
    }
}

impl Running {
    fn begin(directory: &BundleDir, began: Time) -> io::Result<Self> {
        let mut child = Command::new(THIS_PROGRAM)
            .arg(check::SUBCOMMAND)
            .arg(&directory.0)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        match child.stdout.take() {
            Some(output) if rustix::io::ioctl_fionbio(&output, true).is_ok() => {
                Ok(Self { child, output, text: Vec::new(), began, began_wall: wall_now() })
            }
            Some(_) | None => {
                end(&mut child);
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// Reads what there is; returns whether more will come. The process keeps its output open until it ends.
    fn goes_on(&mut self) -> bool {
        let mut buffer = [0; OUTPUT_BYTES_MAX];
        loop {
            match self.output.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let room = OUTPUT_BYTES_MAX.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            end(&mut running.child);
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
