//! `shoald supervise <directory>`: the process that stands beside one container of the embedded driver.
//!
//! It creates the container, keeps its output, waits for its end and writes down how it ended, across restarts of the
//! daemon (what conmon is to Podman). It is an own process with one thread because libcontainer forks, which is a hazard
//! in a process with threads, and because a container should outlive the daemon. It decides nothing: what to run is in
//! `bundle.json`, and signals come from the driver straight to the container's process.
//!
//! Its mount and network namespaces are its own, so that whatever kills it and the container leaves nothing behind but
//! files and an empty control group. If it is killed, the kernel kills the container.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, setsid, umask, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::driver::embedded::bundle::{
    Bundle, BundleDir, CONNECTED, OUT_OF_MEMORY, Progress, State, wall_now, write_json,
};
use crate::driver::embedded::{cgroup, process};

pub mod capabilities;
pub mod check;
mod executor;
mod health;
mod mounts;
mod names;
mod network;
mod rootfs;
mod seccomp;
mod spec;
pub mod streams;
mod volume;

pub use network::INTERFACE;

/// The hidden subcommand of `shoald`.
pub const SUBCOMMAND: &str = "supervise";

/// The container's name to the runtime, whose files are in a directory of the container's own.
const CONTAINER_NAME: &str = "container";

/// Files of a container's directory that are mounted over those of the same name in its `/etc`.
pub const NETWORK_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// How readily the kernel ends this process when memory runs out.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// How long another supervisor of the same container may take to go.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of a failure that are reported.
const ERROR_BYTES_MAX: u64 = 4096;

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The task's own settings cannot work anywhere.
    #[error("{0}")]
    Invalid(String),
    /// The kernel or the runtime failed.
    #[error("{0}")]
    Failed(String),
    /// Nothing is wrong: the container was started by another supervisor.
    #[error("another supervisor has started the container")]
    AlreadyStarted,
}

impl SuperviseError {
    fn io(what: &str, error: impl Into<io::Error>) -> Self {
        Self::Failed(format!("{what}: {}", error.into()))
    }
}

/// Runs the subcommand. To be called before anything starts a thread.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: shoald {SUBCOMMAND} DIRECTORY");
        return ExitCode::from(2);
    };
    let directory = BundleDir(PathBuf::from(directory));
    match supervise(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(SuperviseError::AlreadyStarted) => {
            say(&Progress::Started);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&Progress::Failed { invalid: matches!(error, SuperviseError::Invalid(_)), error: error.to_string() });
            ExitCode::FAILURE
        }
    }
}

/// Tells the driver. One that has died meanwhile finds everything in the files.
fn say(progress: &Progress) {
    if let Ok(mut line) = serde_json::to_string(progress) {
        line.push('\n');
        let _ = io::stdout().write_all(line.as_bytes());
    }
}

fn supervise(directory: &BundleDir) -> Result<(), SuperviseError> {
    // Fails only where it is not needed: in a process that leads a session already.
    let _ = setsid();
    umask(Mode::from_raw_mode(0o022));
    let _lock = lock(directory)?;
    let bundle = directory.bundle().map_err(|error| SuperviseError::io("failed to read what to run", error))?;
    let started = start(directory, &bundle);
    let (pid, streams) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = cgroup::remove(&bundle.cgroup);
            return Err(error);
        }
    };
    say(&Progress::Started);
    close_conversation();
    let health = bundle.health.as_ref().map(|policy| health::Monitor::new(directory, policy));
    let (code, error) = match wait(pid, streams, health) {
        Ok(code) if cgroup::out_of_memory_kills(&bundle.cgroup) > 0 => (code, OUT_OF_MEMORY.to_owned()),
        Ok(code) => (code, String::new()),
        Err(error) => (255, format!("failed to wait for the container: {error}")),
    };
    directory
        .write_exit(code, &error)
        .map_err(|error| SuperviseError::io("failed to record the exit status", error))?;
    cgroup::remove(&bundle.cgroup).map_err(|error| SuperviseError::io("failed to remove the control group", error))
}

/// Makes sure that a container has one supervisor. The lock goes with the process, however that ends.
fn lock(directory: &BundleDir) -> Result<File, SuperviseError> {
    let failed = |error: io::Error| SuperviseError::io("failed to lock the container", error);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(directory.path("lock")).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    loop {
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        if directory.state().map_err(failed)?.is_some() {
            return Err(SuperviseError::AlreadyStarted);
        }
        match locked {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn start(directory: &BundleDir, bundle: &Bundle) -> Result<(Pid, streams::Streams), SuperviseError> {
    // SAFETY: file descriptor tables stay shared: only mounts and networks are separated, in a process with one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }
        .map_err(|error| SuperviseError::io("failed to create namespaces", error))?;
    rootfs::detach_mounts().map_err(|error| SuperviseError::io("failed to detach the host's mounts", error))?;
    say(&Progress::Waiting);
    let prepared = prepare(directory, bundle)?;
    let Created { mut container, pid, streams, mut report } = create(directory, prepared)?;
    await_connection()?;
    network::configure(bundle)?;

    let identity =
        |pid| process::Identity::of(pid).map_err(|error| SuperviseError::io("failed to look at the container", error));
    let state = State {
        supervisor: identity(std::process::id())?,
        container: identity(pid.as_raw_nonzero().get().unsigned_abs())?,
        started: wall_now(),
    };
    write_json(&directory.path("state.json"), &state)
        .map_err(|error| SuperviseError::io("failed to record what runs", error))?;
    let result = container.start().map_err(|error| SuperviseError::Failed(chain(&error)));
    let result = result.and_then(|()| match failure(&mut report) {
        Some(error) => Err(SuperviseError::Invalid(error)),
        None => Ok((pid, streams)),
    });
    if let Err(error) = &result {
        // Docker's code for a program that cannot be executed.
        let _ = directory.write_exit(126, &error.to_string());
    }
    result
}

/// What is needed to create a container.
struct Prepared {
    program: String,
    bundle: Bundle,
}

/// Mounts the file systems, writes the specification, and finds out what depends on the files of the image.
fn prepare(directory: &BundleDir, bundle: &Bundle) -> Result<Prepared, SuperviseError> {
    let failed = |what: &'static str| move |error: io::Error| SuperviseError::io(what, error);
    rootfs::mount_layers(&directory.0, &bundle.layers).map_err(failed("failed to mount the layers of the image"))?;
    let root = rootfs::Root::open(&directory.0).map_err(failed("failed to open the root file system"))?;
    root.create_dir_all(&bundle.dir).map_err(|error| {
        SuperviseError::Invalid(format!("failed to create working directory {}: {error}", bundle.dir))
    })?;
    let mounted = mounts::mount_all(directory, bundle, &root)?;
    let user = root.user(&bundle.user, &bundle.plan.settings.groups)?;
    let mut bundle = bundle.clone();
    if !bundle.env.iter().any(|variable| variable.starts_with("HOME=")) {
        bundle.env.push(format!("HOME={}", user.home));
    }
    let search = bundle.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut program = root.program(&bundle.args[0], &bundle.dir, search)?;
    if bundle.init.is_some() {
        program = spec::INIT.to_owned();
        bundle.args.splice(0..0, [spec::INIT, "--"].map(str::to_owned));
    }
    names::write(&directory.0, &bundle).map_err(failed("failed to write /etc/hosts"))?;
    let spec = spec::build(&bundle, &directory.0, &user, &mounted, limits_devices());
    write_json(&directory.path("config.json"), &spec).map_err(failed("failed to write the specification"))?;
    if let Some(policy) = &bundle.health {
        let process = spec::check_process(&spec, policy);
        let written = write_json(&directory.path(check::PROCESS_FILE), &process);
        written.map_err(failed("failed to write the specification of the health check"))?;
    }
    Ok(Prepared { program, bundle })
}

/// Compiles the filters of system calls of a container.
fn filters(bundle: &Bundle) -> Result<seccomp::Filters, seccompiler::BackendError> {
    seccomp::Filters::compile(&capabilities::of(&bundle.plan.settings, limits_devices()))
}

/// Returns whether the control groups of containers limit the devices that they open.
fn limits_devices() -> bool {
    !cgroup::is_unified()
}

/// A container whose first process waits for the word to execute its program.
struct Created {
    container: Container,
    pid: Pid,
    streams: streams::Streams,
    report: PipeReader,
}

fn create(directory: &BundleDir, prepared: Prepared) -> Result<Created, SuperviseError> {
    let failed = |error: io::Error| SuperviseError::io("failed to open the container's streams", error);
    let filters = filters(&prepared.bundle)
        .map_err(|error| SuperviseError::Failed(format!("failed to compile the system call filter: {error}")))?;
    let (stdout, stdout_of_container) = pipe().map_err(failed)?;
    let (stderr, stderr_of_container) = pipe().map_err(failed)?;
    let (report, report_of_container) = pipe().map_err(failed)?;
    let streams =
        streams::Streams::new(&directory.0, stdout.into(), stderr.into(), prepared.bundle.log).map_err(failed)?;
    let executor = executor::FilteringExecutor {
        program: prepared.program,
        args: prepared.bundle.args,
        env: prepared.bundle.env,
        filters,
        report: Arc::new(File::from(std::os::fd::OwnedFd::from(report_of_container))),
    };
    // What an earlier attempt left.
    let runtime = directory.path("runtime");
    let _ = fs::remove_dir_all(&runtime);
    fs::create_dir_all(&runtime).map_err(failed)?;
    let build = || {
        ContainerBuilder::new(CONTAINER_NAME.to_owned(), SyscallType::default())
            .with_executor(executor)
            .with_root_path(&runtime)?
            .with_stdin(File::open("/dev/null").map_err(libcontainer::error::LibcontainerError::OtherIO)?)
            .with_stdout(stdout_of_container)
            .with_stderr(stderr_of_container)
            .validate_id()?
            .as_init(&directory.0)
            .with_systemd(false)
            .with_detach(true)
            .build()
    };
    let own = fs::read_to_string(OOM_SCORE);
    let container = build().map_err(|error| SuperviseError::Failed(chain(&error)))?;
    // The runtime gave this process the container's, to be inherited; the container is not to go with its supervisor.
    if let Ok(own) = own {
        let _ = fs::write(OOM_SCORE, own);
    }
    let pid = container
        .pid()
        .and_then(|pid| Pid::from_raw(pid.as_raw()))
        .ok_or_else(|| SuperviseError::Failed("the runtime did not say which process it created".to_owned()))?;
    Ok(Created { container, pid, streams, report })
}

/// Waits for the driver's word that the interface is there.
fn await_connection() -> Result<(), SuperviseError> {
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(_) if line.trim_end() == CONNECTED => Ok(()),
        Ok(_) => Err(SuperviseError::Failed("the daemon ended while the container was being started".to_owned())),
        Err(error) => Err(SuperviseError::io("failed to listen to the daemon", error)),
    }
}

/// Returns why the program could not be executed; `None` once it is.
fn failure(report: &mut impl Read) -> Option<String> {
    let mut text = String::new();
    match report.take(ERROR_BYTES_MAX).read_to_string(&mut text) {
        Ok(0) => None,
        Ok(_) => Some(text),
        Err(error) => Some(error.to_string()),
    }
}

/// Gives up the pipes to the driver, which may be replaced by another while this process lives.
fn close_conversation() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
            // SAFETY: replaces a descriptor that only the standard library's stateless handles name.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
}

fn wait(pid: Pid, streams: streams::Streams, health: Option<health::Monitor>) -> io::Result<i32> {
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    // Whatever becomes of the output, the exit status is what counts.
    let _ = streams.record_until(ended.as_fd(), health);
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return Ok(status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                    .unwrap_or(255));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
