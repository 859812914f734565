//! One node of a laboratory: its daemon, its tasks, and what can be done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{Driver, Lab, Layout, PORT, address, engine, network, process};
use crate::http::namespace_path;
use crate::shoal::{self, Shoal};
use crate::wait::wait_until;

/// How long killed processes may take to be gone.
const DEATH_WAIT: Duration = Duration::from_secs(20);

/// A node of a laboratory.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The laboratory.
    pub lab: &'a Lab,
    /// Its number, from 1.
    pub index: usize,
}

impl Node<'_> {
    /// Returns its address.
    pub fn address(self) -> IpAddr {
        address(self.lab.config.layout, self.index)
    }

    /// Returns whether it joins as a manager.
    pub fn is_manager(self) -> bool {
        self.index <= self.lab.config.managers
    }

    /// Returns where its things are.
    pub fn dir(self) -> PathBuf {
        self.lab.config.dir.join(format!("n{}", self.index))
    }

    /// Returns its data directory.
    pub fn data_dir(self) -> PathBuf {
        self.dir().join("data")
    }

    /// Returns its API socket.
    pub fn socket(self) -> PathBuf {
        self.dir().join("shoal.sock")
    }

    /// Returns where its daemon's log is.
    pub fn log_path(self) -> PathBuf {
        self.dir().join("log")
    }

    /// Returns the network namespace it lives in, if it has one of its own.
    pub fn namespace(self) -> Option<PathBuf> {
        match self.lab.config.layout {
            Layout::Namespaces | Layout::NamespacesV6 => Some(namespace_path(&network::SHOAL.namespace(self.index))),
            Layout::Loopback => None,
        }
    }

    /// Returns a client of its daemon.
    pub fn shoal(self) -> Shoal {
        Shoal { binary: self.lab.config.bin_dir.join("shoal"), socket: self.socket() }
    }

    /// Returns its identifier in the cluster, once its daemon has written it.
    pub fn id(self) -> Result<String> {
        let path = self.data_dir().join("node-id");
        Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
    }

    /// Returns its daemon's process, if it runs.
    pub fn daemon(self) -> Option<i32> {
        let pid = fs::read_to_string(self.dir().join("pid")).ok()?.trim().parse().ok()?;
        process::is_of_data_dir(pid, &self.data_dir()).then_some(pid)
    }

    /// Returns the tasks whose containers run on it, by looking at processes, with their processes.
    pub fn tasks(self) -> BTreeMap<String, BTreeSet<i32>> {
        let Ok(id) = self.id() else { return BTreeMap::new() };
        match self.lab.config.driver {
            Driver::Embedded => process::of_tasks(&id),
            Driver::Docker => engine::tasks(self, &id).unwrap_or_default(),
        }
    }

    /// Starts its daemon, and its engine if that was killed too. Does not wait until it answers.
    pub fn start(self) -> Result<()> {
        self.start_on(PORT)
    }

    /// As [`Node::start`], on another port than the one that its peers remember.
    pub fn start_on(self, port: u16) -> Result<()> {
        self.start_as(port, &[])
    }

    /// As [`Node::start`], with more flags.
    pub fn start_with(self, flags: &[String]) -> Result<()> {
        self.start_as(PORT, flags)
    }

    fn start_as(self, port: u16, flags: &[String]) -> Result<()> {
        if self.daemon().is_some() {
            bail!("node {} runs already", self.index);
        }
        engine::start(self)?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command_on(port)?;
        command.args(flags);
        // A process group of its own: an interrupt at the terminal is for whoever runs the laboratory, who cleans up.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
        fs::write(self.dir().join("pid"), child.id().to_string())?;
        let pid = i32::try_from(child.id())?;
        std::thread::spawn(move || child.wait());
        let data_dir = self.data_dir();
        let what = format!("node {} became shoald", self.index);
        wait_until(&what, DEATH_WAIT, || {
            Ok(process::is_of_data_dir(pid, &data_dir) || process::arguments(pid).is_empty())
        })?;
        Ok(())
    }

    /// Returns the command that is its daemon, for whoever wants to see how it ends.
    pub fn command(self) -> Result<Command> {
        self.command_on(PORT)
    }

    fn command_on(self, port: u16) -> Result<Command> {
        let mut command = self.entered("shoald")?;
        command.args(self.arguments(port)?).current_dir(self.dir());
        Ok(command)
    }

    /// Starts its daemon and waits until it answers.
    pub fn start_and_wait(self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.start()?;
        self.wait_answers(limit)?;
        Ok(start.elapsed())
    }

    /// Waits until its daemon answers.
    pub fn wait_answers(self, limit: Duration) -> Result<()> {
        let what = format!("node {} answers", self.index);
        wait_until(&what, limit, || {
            if self.daemon().is_none() {
                bail!("its daemon does not run; see {}", self.log_path().display());
            }
            // Any answer will do: a daemon outside a cluster refuses the question.
            let output = self.shoal().run_within(&["node", "ls"], limit)?;
            let silent = output.stderr.contains("is shoald running");
            Ok(output.code == 0 || !silent)
        })
        .map(|_| ())
    }

    /// Returns a command for one of shoal's binaries inside the node's network namespace.
    fn entered(self, binary: &str) -> Result<Command> {
        let binary = self.lab.config.bin_dir.join(binary);
        let Some(namespace) = self.namespace() else { return Ok(Command::new(binary)) };
        if network::SHOAL.path(self.index).is_none() {
            bail!("there is no namespace {}", namespace.display());
        }
        // Unlike `ip netns exec` this leaves the mounts alone, among them the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display())).arg("--").arg(binary);
        Ok(command)
    }

    fn arguments(self, port: u16) -> Result<Vec<String>> {
        let config = &self.lab.config;
        let address = self.address();
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut arguments: Vec<String> = [
            // Whatever is set for a daemon of this machine is not for these.
            ("--config", "/dev/null".to_owned()),
            ("--data-dir", text(self.data_dir())),
            ("--host", format!("unix://{}", text(self.socket()))),
            ("--listen-addr", SocketAddr::new(address, port).to_string()),
            ("--advertise-addr", address.to_string()),
            ("--hostname", format!("n{}", self.index)),
            ("--driver", config.driver.name().to_owned()),
            ("--log-level", std::env::var("SHOAL_LAB_LOG").unwrap_or_else(|_| "info".to_owned())),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if let Some(host) = engine::docker_host(self) {
            arguments.extend(["--docker-host".to_owned(), host]);
        }
        if !config.bare && self.index == 1 {
            arguments.push("--init".to_owned());
        } else if !config.bare {
            let role = if self.is_manager() { "manager" } else { "worker" };
            let seed = SocketAddr::new(self.lab.node(1).address(), PORT).to_string();
            arguments.extend(["--join".to_owned(), seed, "--token-file".to_owned(), text(self.lab.token_file(role))]);
        }
        Ok(arguments)
    }

    /// Kills the daemon alone, as a crash of it does: its tasks run on.
    pub fn kill_daemon(self) -> Result<()> {
        let daemon = self.signal_daemon(Signal::KILL)?;
        self.wait_gone("its daemon is gone", || process::have_ended(&daemon))
    }

    /// Asks the daemon to end and waits until it did; its tasks run on.
    pub fn stop(self) -> Result<()> {
        let daemon = self.signal_daemon(Signal::TERM)?;
        self.wait_gone("its daemon is gone", || process::have_ended(&daemon))
    }

    /// Stops the daemon's clock, so to speak: it neither runs nor dies.
    pub fn pause(self) -> Result<()> {
        self.signal_daemon(Signal::STOP).map(|_| ())
    }

    /// Lets a paused daemon run on.
    pub fn resume(self) -> Result<()> {
        self.signal_daemon(Signal::CONT).map(|_| ())
    }

    fn signal_daemon(self, signal: Signal) -> Result<Vec<OwnedFd>> {
        let pid = self.daemon().with_context(|| format!("node {} does not run", self.index))?;
        let daemon = process::hold([pid]);
        process::signal(&daemon, signal);
        Ok(daemon)
    }

    /// Kills everything of this node at once, as a power failure does: daemon, supervisors, containers, engine. Returns
    /// when the first signal was sent.
    pub fn crash(self) -> Result<Instant> {
        let data_dir = self.data_dir();
        let processes = || {
            let mut pids = process::of_data_dir(&data_dir);
            match self.lab.config.driver {
                Driver::Docker => pids.extend(engine::processes(self)),
                Driver::Embedded => pids.extend(self.tasks().into_values().flatten()),
            }
            pids
        };
        let held = process::hold(processes());
        let start = Instant::now();
        process::signal(&held, Signal::KILL);
        let id = self.id().unwrap_or_default();
        self.wait_gone("all its processes are gone", || {
            let left = processes();
            process::signal(&process::hold(left.iter().copied()), Signal::KILL);
            // The processes of a shared engine may have other numbers here than there: the engine has to kill them.
            let killed = engine::has_own(self.lab) || engine::kill_tasks(self, &id).is_ok();
            left.is_empty() && killed && process::have_ended(&held)
        })?;
        Ok(start)
    }

    fn wait_gone(self, what: &str, gone: impl Fn() -> bool) -> Result<()> {
        wait_until(&format!("node {}: {what}", self.index), DEATH_WAIT, || Ok(gone())).map(|_| ())
    }

    /// Runs a command inside the node's network namespace in place of this process. Returns only if that failed.
    pub fn exec(self, program: &str, arguments: &[String]) -> anyhow::Error {
        if let Err(error) = crate::http::enter(self.namespace().as_deref()) {
            return error;
        }
        anyhow::Error::new(Command::new(program).args(arguments).exec()).context(format!("run {program}"))
    }

    /// Removes what dead processes leave behind: cgroups, and in a network namespace that lives on bridge and rules.
    pub(super) fn remove_traces(self) -> Result<()> {
        let Ok(id) = self.id() else { return Ok(()) };
        process::remove_cgroups(&id);
        if self.lab.config.layout == Layout::Loopback {
            let short = id.get(..8).unwrap_or(&id);
            let quietly = |program: &str, arguments: &[&str]| {
                let mut command = Command::new(program);
                command.args(arguments);
                // Not there, or the tool is not: either way there is nothing else to be done here.
                let _ = shoal::run(command, DEATH_WAIT);
            };
            quietly("ip", &["link", "del", &format!("shl-{short}")]);
            for family in ["inet", "ip"] {
                quietly("nft", &["delete", "table", family, &format!("shoal-{short}")]);
            }
        }
        Ok(())
    }
}
