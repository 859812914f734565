//! Finds, signals and forgets the processes of a node, by what the kernel shows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Returns the processes that run `shoald` with `data_dir` among their arguments: the daemon, its helpers and supervisors.
pub fn of_data_dir(data_dir: &Path) -> BTreeSet<i32> {
    all().into_iter().filter(|pid| is_of_data_dir(*pid, data_dir)).collect()
}

/// Returns whether process `pid` runs `shoald` with `data_dir` among its arguments.
pub fn is_of_data_dir(pid: i32, data_dir: &Path) -> bool {
    let wanted = data_dir.to_string_lossy();
    let arguments = arguments(pid);
    let program = arguments.first().map(|first| Path::new(first).file_name().unwrap_or_default().to_owned());
    program.is_some_and(|name| name == "shoald") && arguments.iter().any(|argument| argument.contains(&*wanted))
}

/// Returns when a process was started, in clock ticks since the machine was, if it is there. Source: proc(5), `starttime`.
pub fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything; the third field follows it.
    stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3)?.parse().ok()
}

/// Returns a process's arguments; none if it is gone or a zombie.
pub fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty()).map(|p| String::from_utf8_lossy(p).into()).collect()
}

fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the processes in the cgroups of a node's tasks, by task: `shoal/<node id>/<task id>` in any hierarchy.
pub fn of_tasks(node_id: &str) -> BTreeMap<String, BTreeSet<i32>> {
    let mut tasks: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for directory in cgroups_of(node_id) {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            let pids = processes_below(&entry.path());
            if !pids.is_empty() {
                tasks.entry(entry.file_name().to_string_lossy().into_owned()).or_default().extend(pids);
            }
        }
    }
    tasks
}

/// Returns the directories of a node's cgroup: one, or with cgroup v1 one in each hierarchy.
fn cgroups_of(node_id: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(point))
    });
    roots.map(|root| root.join("shoal").join(node_id)).filter(|path| path.is_dir()).collect()
}

fn processes_below(directory: &Path) -> BTreeSet<i32> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut pids: BTreeSet<i32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids.extend(processes_below(&entry.path()));
        }
    }
    pids
}

/// Removes the empty cgroups of a node.
pub fn remove_cgroups(node_id: &str) {
    fn remove(directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
        // A cgroup that is still busy stays; it is not worth failing for.
        let _ = fs::remove_dir(directory);
    }
    cgroups_of(node_id).iter().for_each(|directory| remove(directory));
}

/// Takes hold of processes, so that a signal can only reach the ones that were found.
pub fn hold(pids: impl IntoIterator<Item = i32>) -> Vec<OwnedFd> {
    pids.into_iter().filter_map(|pid| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()).collect()
}

/// Signals processes that were taken hold of. Those that ended since are passed over.
pub fn signal(processes: &[OwnedFd], signal: Signal) {
    for process in processes {
        // The only failure of a signal from root is that the process is gone.
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Returns whether all of some processes have ended and let go of what they had open. Their memory, and with it their
/// arguments, goes earlier. Source: pidfd_open(2), a descriptor is readable once its process has ended.
pub fn have_ended(processes: &[OwnedFd]) -> bool {
    processes.iter().all(|process| {
        let mut waiting = [PollFd::new(process, PollFlags::IN)];
        poll(&mut waiting, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    })
}

/// Unmounts everything below a directory.
pub fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    // What was mounted last lies on top.
    below.reverse();
    for point in below {
        unmount(&point, UnmountFlags::DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}
