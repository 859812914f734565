//! What a container may do beyond a plain user. Source: moby, `oci/caps` and `daemon/pkg/oci/defaults.go`.

use std::fs;

use shoal_protocol::spec::Settings;
use shoal_protocol::spec::settings::{CAPABILITIES, CAPABILITY_ALL, capability};

/// Docker's default capabilities, but for `MKNOD`, which is granted only where the devices of a container are limited by its
/// control group.
const DEFAULT: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// With these a container could open any device of the machine where its control group does not limit devices.
const OPENS_DEVICES: [&str; 3] = ["CAP_MKNOD", "CAP_SYS_ADMIN", CAPABILITY_ALL];

/// Returns the first capability that is to be added and that is not safe where devices are not limited.
pub fn unsafe_without_device_limits(settings: &Settings) -> Option<&'static str> {
    settings.capability_add.iter().filter_map(|name| capability(name)).find(|name| OPENS_DEVICES.contains(name))
}

/// Returns the capabilities of a container.
pub fn of(settings: &Settings, limited_devices: bool) -> Vec<&'static str> {
    let mut default: Vec<&str> = DEFAULT.to_vec();
    if limited_devices {
        default.push("CAP_MKNOD");
    }
    let known = known_to_kernel();
    combine(settings, &default).into_iter().filter(|name| CAPABILITIES[..known].contains(name)).collect()
}

fn combine(settings: &Settings, default: &[&'static str]) -> Vec<&'static str> {
    let read = |names: &[String]| names.iter().filter_map(|name| capability(name)).collect::<Vec<_>>();
    let (add, drop) = (read(&settings.capability_add), read(&settings.capability_drop));
    let has = |name: &str| {
        if add.contains(&CAPABILITY_ALL) {
            !drop.contains(&name)
        } else if drop.contains(&CAPABILITY_ALL) {
            add.contains(&name)
        } else {
            add.contains(&name) || default.contains(&name) && !drop.contains(&name)
        }
    };
    CAPABILITIES.into_iter().filter(|name| has(name)).collect()
}

fn known_to_kernel() -> usize {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    last.map_or(CAPABILITIES.len(), |last: usize| CAPABILITIES.len().min(last.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_dropped_is_combined_as_docker_does() {
        for (add, drop, want) in [
            (&[][..], &[][..], &["CAP_CHOWN", "CAP_KILL"][..]),
            (&["net_admin"], &[], &["CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"]),
            (&[], &["CAP_KILL"], &["CAP_CHOWN"]),
            (&["CAP_KILL"], &["kill"], &["CAP_CHOWN", "CAP_KILL"]),
            (&["CAP_NET_RAW"], &["all"], &["CAP_NET_RAW"]),
            (&[], &["ALL"], &[]),
        ] {
            let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let settings = Settings { capability_add: texts(add), capability_drop: texts(drop), ..Settings::default() };
            assert_eq!(combine(&settings, &["CAP_CHOWN", "CAP_KILL"]), want, "{add:?} {drop:?}");
        }
        let all_but = Settings {
            capability_add: vec!["ALL".to_owned()],
            capability_drop: vec!["CAP_SYS_ADMIN".to_owned()],
            ..Settings::default()
        };
        let got = combine(&all_but, &[]);
        assert_eq!((got.len(), got.contains(&"CAP_SYS_ADMIN")), (CAPABILITIES.len() - 1, false));
        assert_eq!(unsafe_without_device_limits(&all_but), Some("ALL"));
    }
}
