//! The runtime specification of a container, with Docker's defaults. Source: OCI runtime specification 1.1; moby, `oci`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shoal_control::task::health::Policy;
use shoal_protocol::spec::settings::Ulimit;

use super::mounts::Mounted;
use super::rootfs::User;
use super::{capabilities, network};
use crate::driver::embedded::bundle::Bundle;
use crate::driver::embedded::cgroup;

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the program that stands before the container's own is found in it. Source: moby, `inContainerInitPath`.
pub const INIT: &str = "/sbin/docker-init";

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Microseconds over which a CPU limit is enforced. Source: Docker, `--cpu-period`.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// Builds the specification. The network namespace is the supervisor's, so it is not named here.
///
/// Unlike Docker's, containers cannot gain privileges by executing set-user-ID programs (`noNewPrivileges`): the filter of
/// system calls is installed after the capabilities were dropped, which the kernel allows only so.
pub fn build(bundle: &Bundle, directory: &Path, user: &User, mounted: &Mounted, limited_devices: bool) -> Value {
    let settings = &bundle.plan.settings;
    let capabilities = capabilities::of(settings, limited_devices);
    // Docker gives users other than root the bounding set alone.
    let effective = if user.uid == 0 { capabilities.clone() } else { Vec::new() };
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    if !limited_devices {
        // Docker's default on the unified hierarchy.
        namespaces.push(json!({"type": "cgroup"}));
    }
    json!({
        "ociVersion": "1.1.0",
        "hostname": bundle.hostname,
        "root": {"path": directory.join("rootfs"), "readonly": bundle.plan.read_only},
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": bundle.args,
            "env": bundle.env,
            "cwd": bundle.dir,
            "noNewPrivileges": true,
            "oomScoreAdj": (settings.oom_score_adj != 0).then_some(settings.oom_score_adj), // else it stays the daemon's
            "rlimits": settings.ulimits.iter().map(rlimit).collect::<Vec<_>>(),
            "capabilities": {
                "bounding": capabilities,
                "effective": effective,
                "permitted": effective,
                "inheritable": [],
                "ambient": [],
            },
        },
        "mounts": mounts(directory, bundle, mounted),
        "linux": {
            "cgroupsPath": format!("/{}", bundle.cgroup),
            "namespaces": namespaces,
            "resources": resources(bundle),
            "sysctl": settings.sysctls.iter().filter(|(name, _)| !network::is_network(name)).collect::<BTreeMap<_, _>>(),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": readonly_paths(),
        },
    })
}

/// Returns the process of a health check: the container's own but for what it executes.
pub fn check_process(spec: &Value, policy: &Policy) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = json!(policy.command);
    process
}

/// The runtime mounts the hierarchies of cgroup v1 writable whatever the mount's options say, so each is named here.
fn readonly_paths() -> Vec<String> {
    let hierarchies = fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten();
    let hierarchies = hierarchies.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = hierarchies.map(|entry| entry.path().to_string_lossy().into_owned());
    let names = names.filter(|_| !cgroup::is_unified()).chain([CGROUP_ROOT.to_owned()]);
    READONLY_PATHS.map(str::to_owned).into_iter().chain(names).collect()
}

/// What the runtime mounts over the root file system. What the service mounts at the same place is there instead.
fn mounts(directory: &Path, bundle: &Bundle, mounted: &Mounted) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(CGROUP_ROOT, "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ];
    for name in super::NETWORK_FILES {
        mounts.push(json!({
            "destination": format!("/etc/{name}"),
            "type": "bind",
            "source": directory.join(name),
            "options": ["rbind", "rprivate"],
        }));
    }
    if let Some(init) = &bundle.init {
        mounts.push(mount(INIT, "bind", &init.to_string_lossy(), &["bind", "ro", "nosuid", "nodev"]));
    }
    mounts.retain(|mount| !mounted.targets.iter().any(|target| mount["destination"] == target.as_str()));
    mounts.extend(mounted.left.iter().cloned());
    mounts
}

/// A limit of -1 is none.
fn rlimit(limit: &Ulimit) -> Value {
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
    json!({"type": kind, "soft": value(limit.soft), "hard": value(limit.hard)})
}

fn resources(bundle: &Bundle) -> Value {
    let limits = &bundle.plan.limits;
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if limits.memory_bytes > 0 {
        resources["memory"] = json!({"limit": i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX)});
    }
    if limits.nano_cpus > 0 {
        // The kernel refuses quotas under a millisecond.
        let quota = (u128::from(limits.nano_cpus) * u128::from(CPU_PERIOD_MICROS) / 1_000_000_000).max(1000);
        resources["cpu"] = json!({"quota": i64::try_from(quota).unwrap_or(i64::MAX), "period": CPU_PERIOD_MICROS});
    }
    if limits.pids > 0 {
        resources["pids"] = json!({"limit": i64::try_from(limits.pids).unwrap_or(i64::MAX)});
    }
    resources
}
