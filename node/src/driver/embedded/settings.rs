//! What of a container's settings this driver can do, and what they come to on this node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_control::task::ContainerPlan;
use shoal_protocol::spec::LogDriver;

use super::cgroup;
use crate::driver::DriverError;
use crate::supervisor::capabilities;

/// Where Docker's init process is kept, and a program of the same kind. Source: Debian, `docker.io` and `tini`; Docker's packages.
const INIT_PATHS: [&str; 4] =
    ["/usr/bin/docker-init", "/usr/libexec/docker/docker-init", "/usr/local/bin/docker-init", "/usr/bin/tini-static"];

/// Kernel parameters of the namespaces that a container has for itself. Source: runc, `validate.sysctl`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Files of a container's output at most.
pub const LOG_FILES_MAX: usize = 100;

/// Which of a container's output is kept: as much of each of its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file; then the next one is begun.
    pub file_bytes: u64,
    /// Files, the present one included; the oldest is removed. With 0 nothing is kept.
    pub files: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file_bytes: 10 * 1024 * 1024, files: 3 }
    }
}

/// Refuses what this driver or this node cannot do.
pub fn check(plan: &ContainerPlan) -> Result<(), DriverError> {
    let settings = &plan.settings;
    if settings.tty {
        return Err(DriverError::Refused("a terminal (TTY) is not supported by the embedded driver".to_owned()));
    }
    if let Some(name) = settings.sysctls.keys().find(|name| !is_namespaced(name)) {
        return Err(DriverError::Invalid(format!("sysctl \"{name}\" is not in a separate kernel namespace")));
    }
    if cgroup::is_unified()
        && let Some(name) = capabilities::unsafe_without_device_limits(settings)
    {
        return Err(DriverError::Refused(format!(
            "capability {name} is not granted by the embedded driver on a node with cgroup v2, where devices are not limited"
        )));
    }
    Ok(())
}

fn is_namespaced(name: &str) -> bool {
    name.starts_with("net.")
        || name.starts_with("fs.mqueue.")
        || IPC_SYSCTLS.contains(&name)
        || name == "kernel.domainname"
}

/// Returns the program that stands before a container's own, if it asks for one.
pub fn init(plan: &ContainerPlan) -> Result<Option<PathBuf>, DriverError> {
    if plan.settings.init != Some(true) {
        return Ok(None);
    }
    let found = INIT_PATHS.iter().map(Path::new).find(|path| is_static(path));
    match found.and_then(|path| path.canonicalize().ok()) {
        Some(path) => Ok(Some(path)),
        None => Err(DriverError::Refused(
            "there is no init process (docker-init or tini-static) on this node: install Debian's tini".to_owned(),
        )),
    }
}

/// Returns whether a file is a program that needs no loader, which a container may lack. Source: elf(5).
fn is_static(path: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    let Ok(program) = fs::read(path) else { return false };
    let bytes = |at: usize, count: usize| program.get(at..at + count);
    let u16_at = |at| bytes(at, 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let u32_at = |at| bytes(at, 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (table, size, count) = (u32_at(32) as usize, u16_at(54), u16_at(56));
    let asks_for_loader = (0..count).any(|index| u32_at(table.saturating_add(index * size)) == INTERPRETER);
    program.starts_with(b"\x7fELF\x02\x01") && !asks_for_loader
}

/// Reads which of a container's output is kept. Source: Docker, logging drivers `json-file` and `none`.
pub fn log_limits(driver: Option<&LogDriver>) -> Result<LogLimits, DriverError> {
    let default = LogLimits::default();
    let Some(driver) = driver else { return Ok(default) };
    let limits = match driver.name.as_str() {
        "" => default,
        "json-file" => LogLimits { files: if driver.options.is_empty() { default.files } else { 1 }, ..default },
        "none" if driver.options.is_empty() => return Ok(LogLimits { files: 0, ..default }),
        "none" => return Err(DriverError::Invalid("the log driver 'none' has no options".to_owned())),
        other => {
            return Err(DriverError::Refused(format!(
                "the log driver '{other}' is not supported by the embedded driver: it has json-file and none"
            )));
        }
    };
    with_options(limits, &driver.options)
}

fn with_options(mut limits: LogLimits, options: &BTreeMap<String, String>) -> Result<LogLimits, DriverError> {
    for (name, value) in options {
        let invalid = || DriverError::Invalid(format!("invalid log option {name}={value}"));
        match name.as_str() {
            "max-size" => limits.file_bytes = bytes(value).filter(|bytes| *bytes > 0).ok_or_else(invalid)?,
            "max-file" => {
                let files = value.parse().ok().filter(|files| (1..=LOG_FILES_MAX).contains(files));
                limits.files = files.ok_or_else(invalid)?;
            }
            other => {
                return Err(DriverError::Refused(format!(
                    "the log option '{other}' is not supported by the embedded driver: it has max-size and max-file"
                )));
            }
        }
    }
    Ok(limits)
}

/// Source: docker/go-units, `FromHumanSize`: units are powers of 1000. `-1` is no limit, which there is not here.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let power = match unit.trim().trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1000u64.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_read_or_refused_by_name() {
        let of = |name: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let limits = log_limits(Some(&LogDriver { name: name.to_owned(), options }));
            limits.map(|limits| (limits.file_bytes, limits.files)).map_err(|error| error.to_string())
        };
        let size = LogLimits::default().file_bytes;
        assert_eq!(log_limits(None).unwrap(), LogLimits::default());
        assert_eq!(of("json-file", &[]), Ok((size, 3)));
        assert_eq!(of("json-file", &[("max-size", "1m")]), Ok((1_000_000, 1)));
        assert_eq!(of("", &[("max-size", "20kb"), ("max-file", "5")]), Ok((20_000, 5)));
        assert_eq!(of("none", &[]), Ok((size, 0)));
        for (name, options, want) in [
            ("syslog", &[][..], "the log driver 'syslog'"),
            ("json-file", &[("labels", "a")], "the log option 'labels'"),
            ("json-file", &[("max-size", "big")], "invalid log option max-size=big"),
            ("json-file", &[("max-file", "0")], "invalid log option max-file=0"),
            ("none", &[("max-file", "1")], "has no options"),
        ] {
            assert!(of(name, options).unwrap_err().contains(want), "{name} {options:?}");
        }
    }

    #[test]
    fn only_parameters_of_own_namespaces_are_set() {
        for (name, want) in [
            ("net.ipv4.ip_forward", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.shmmax", true),
            ("kernel.domainname", true),
            ("kernel.hostname", false),
            ("kernel.panic", false),
            ("vm.swappiness", false),
        ] {
            assert_eq!(is_namespaced(name), want, "{name}");
        }
    }
}
