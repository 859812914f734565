//! Control groups after the container: finding out why it ended, and removing what is left, in every hierarchy.
//!
//! libcontainer makes the groups. Removing them is done here as well, because it must also work after a crash and for the
//! parents, which libcontainer leaves behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long the kernel may need to empty a group whose processes were killed.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Returns where each hierarchy is mounted. Source: proc_pid_mountinfo(5).
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let kind = source.split(' ').next()?;
            (kind == "cgroup" || kind == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
        })
        .collect();
    found.dedup();
    Ok(found)
}

/// Returns whether the unified hierarchy (cgroup v2) is the only one.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Returns how many processes of a group the kernel killed because they were out of memory.
pub fn out_of_memory_kills(group: &str) -> u64 {
    let files = ["memory.oom_control", "memory.events"];
    let texts = hierarchies()
        .unwrap_or_default()
        .into_iter()
        .flat_map(|root| files.map(|file| fs::read_to_string(root.join(group).join(file)).unwrap_or_default()));
    texts.map(|text| kills_in(&text)).max().unwrap_or(0)
}

fn kills_in(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Kills every process of a group and removes it from every hierarchy. Blocks; what is not there is fine.
pub fn remove(group: &str) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_MAX;
    for root in hierarchies()? {
        let path = root.join(group);
        while path.exists() {
            match fs::remove_dir(&path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if Instant::now() >= deadline => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
                Err(_) => {
                    kill_all(&path)?;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
    Ok(())
}

/// Removes the parents of a node's groups, if they are empty: what other nodes on this machine use stays.
pub fn remove_empty_parents(node_group: &str) -> io::Result<()> {
    for root in hierarchies()? {
        let mut path = root.join(node_group);
        while path != root && fs::remove_dir(&path).is_ok() {
            path.pop();
        }
        // A node that never ran anything has no group of its own, but its parent may still be ours to remove.
        if let Some(first) = Path::new(node_group).iter().next() {
            let _ = fs::remove_dir(root.join(first));
        }
    }
    Ok(())
}

fn kill_all(path: &Path) -> io::Result<()> {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(kills_in("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills_in(""), 0);
    }
}
