//! Processes that may outlive the daemon: naming them so that a reused identifier is not mistaken for them, waiting for
//! their end though they are nobody's children, and signalling them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// A process, once and for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its identifier on the node.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// Which boot, as the kernel names it.
    pub boot: String,
}

impl Identity {
    /// Names the process that has this identifier now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)?, boot: boot()? })
    }

    /// Opens the process, unless it has ended.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after opening: whoever has the identifier now is whom the handle names.
        let same = boot()? == self.boot && start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks);
        Ok(same.then_some(handle))
    }

    /// Returns whether it has not ended.
    pub fn lives(&self) -> io::Result<bool> {
        Ok(self.open()?.is_some() && !is_zombie(self.pid))
    }

    /// Sends a signal; returns whether there was a process to receive it.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(handle) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> io::Result<()> {
        let Some(handle) = self.open()? else { return Ok(()) };
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is registered.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }.map_err(io::Error::from)?;
        loop {
            let mut guard = handle.ready(Interest::READABLE).await?;
            if guard.ready().is_readable() {
                return Ok(());
            }
            guard.clear_ready_matching(Ready::READABLE);
        }
    }

    /// Waits until it has ended, but not longer than `limit`; returns whether it has.
    pub async fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// Source: proc_pid_stat(5); the program's name may hold anything, so fields are counted from its last parenthesis.
fn stat_fields(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    const STARTTIME: usize = 22 - 3;
    stat_fields(pid)?
        .get(STARTTIME)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn is_zombie(pid: u32) -> bool {
    stat_fields(pid).is_ok_and(|fields| fields.first().is_some_and(|state| state == "Z"))
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Reads a signal as Docker does: `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub fn parse_signal(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    // Below these two the C library keeps real-time signals for itself.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let name = text.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = if let Ok(number) = name.parse::<i32>() {
        Some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        if rest.is_empty() { Some(RTMIN) } else { rest.strip_prefix('+')?.parse::<i32>().ok().map(|n| RTMIN + n) }
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        if rest.is_empty() { Some(RTMAX) } else { rest.strip_prefix('-')?.parse::<i32>().ok().map(|n| RTMAX - n) }
    } else {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    number.filter(|number| (1..=31).contains(number) || (RTMIN..=RTMAX).contains(number))
}

/// Returns the signal with a number that [`parse_signal`] gave.
pub fn signal(number: i32) -> Signal {
    Signal::from_named_raw(number).unwrap_or_else(|| {
        // SAFETY: a signal handed to pidfd_send_signal is only looked at by the kernel, which checks the number; the
        // numbers that the C library keeps for itself were refused when it was parsed.
        unsafe { Signal::from_raw_unchecked(if (34..=64).contains(&number) { number } else { 15 }) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_docker_reads_them() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("int", Some(2)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("32", None),
            ("65", None),
            ("SIGRTMIN+40", None),
            ("SIGWHAT", None),
            ("", None),
        ] {
            assert_eq!(parse_signal(text), want, "{text}");
        }
    }

    #[test]
    fn a_process_is_more_than_its_identifier() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.lives().unwrap());
        let other_start = Identity { start_ticks: me.start_ticks + 1, ..me.clone() };
        let other_boot = Identity { boot: "another".to_owned(), ..me };
        assert!(!other_start.lives().unwrap());
        assert!(!other_boot.lives().unwrap());
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(!identity.ended_within(Duration::from_millis(20)).await.unwrap());
        assert!(identity.signal(Signal::KILL).unwrap());
        assert!(identity.ended_within(Duration::from_secs(10)).await.unwrap());
        child.wait().unwrap();
        assert!(!identity.signal(Signal::KILL).unwrap());
    }
}
