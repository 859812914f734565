//! The mounts that a service asks for, put on the root file system before the runtime adds its own.
//!
//! Every target is looked up below the container's root, whatever symbolic links the image or a volume holds, and mounted on
//! by descriptor, so it cannot be exchanged in between. What lies below `/dev`, which the runtime mounts anew, is handed to
//! it instead. No device in a mount can be opened, as in the rest of the container.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount as mount_new, move_mount, open_tree};
use serde_json::{Value, json};
use shoal_protocol::spec::Mount;
use shoal_protocol::spec::mount::{MountKind, Propagation};

use super::SuperviseError;
use super::rootfs::{MountPoint, Root};
use super::volume;
use crate::driver::embedded::bundle::{Bundle, BundleDir};

/// Who may write to a tmpfs of which nobody says it. Source: Linux.
const TMPFS_MODE_DEFAULT: u32 = 0o1777;

/// What was mounted.
#[derive(Default)]
pub struct Mounted {
    /// Where, as paths in the container without symbolic links.
    pub targets: Vec<String>,
    /// What the runtime is to mount, as in its specification.
    pub left: Vec<Value>,
}

/// Fills empty volumes and mounts what a container asks for, outer targets first.
pub fn mount_all(directory: &BundleDir, bundle: &Bundle, root: &Root) -> Result<Mounted, SuperviseError> {
    let mut mounts: Vec<&Mount> = bundle.plan.mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    // Before anything is mounted: a volume gets what the image has, not what another volume has.
    for mount in mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
        let place = volume_of(bundle, mount)?;
        let options = mount.volume_options.clone().unwrap_or_default();
        volume::provide(&place, &options, &mount.target, root)
            .map_err(|error| SuperviseError::io(&format!("failed to provide the volume at {}", mount.target), error))?;
    }
    let mut mounted = Mounted::default();
    for mount in mounts {
        let refused = |error: io::Error| {
            SuperviseError::Invalid(format!("failed to mount {} at {}: {error}", mount.kind.name(), mount.target))
        };
        let tree = match mount.kind {
            MountKind::Bind => Some(bind(mount)?),
            MountKind::Volume => Some(
                clone_tree(&volume_of(bundle, mount)?.data(), false, mount.read_only, Propagation::Rprivate)
                    .map_err(refused)?,
            ),
            MountKind::Tmpfs => None,
            // Of a version that knows how, since this one refuses them in specs.
            kind @ (MountKind::Unset | MountKind::Npipe | MountKind::Cluster | MountKind::Image) => {
                return Err(SuperviseError::Invalid(format!("mounts of type '{}' are not supported yet", kind.name())));
            }
        };
        let is_directory = tree.as_ref().is_none_or(is_directory);
        let point = root.mount_point(&mount.target, is_directory).map_err(refused)?;
        let target = real_target(directory, mount, &point)?;
        if target.starts_with("/dev/") {
            mounted.left.push(leave(directory, mount, tree, &target, &point).map_err(refused)?);
        } else if let Some(tree) = tree {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, "", &point.handle, "", flags).map_err(|error| refused(error.into()))?;
        } else {
            mount_tmpfs(mount, &point).map_err(refused)?;
        }
        mounted.targets.push(target);
    }
    Ok(mounted)
}

fn volume_of(bundle: &Bundle, mount: &Mount) -> Result<crate::driver::embedded::volumes::VolumeDir, SuperviseError> {
    let place = bundle.volumes.get(&mount.target);
    place.cloned().ok_or_else(|| SuperviseError::Failed(format!("no directory for the volume at {}", mount.target)))
}

fn is_directory(tree: &OwnedFd) -> bool {
    fstat(tree).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

/// Returns the target as the container will see it. The runtime's own file systems are not to be disturbed: programs and
/// the runtime itself trust what they read there.
fn real_target(directory: &BundleDir, mount: &Mount, point: &MountPoint) -> Result<String, SuperviseError> {
    let path = fs::read_link(format!("/proc/self/fd/{}", point.handle.as_raw_fd()));
    let path = path.map_err(|error| SuperviseError::io("failed to look at a mount's target", error))?;
    let below = path.strip_prefix(directory.path("rootfs")).map_err(|_| {
        SuperviseError::Failed(format!("the target {} is outside of the container: {}", mount.target, path.display()))
    })?;
    if below == Path::new("") || below == Path::new("dev") || below.starts_with("proc") || below.starts_with("sys") {
        let name = below.components().next().map(|name| name.as_os_str().to_string_lossy().into_owned());
        return Err(SuperviseError::Invalid(format!(
            "\"{}\" cannot be mounted because it is inside /{}",
            mount.target,
            name.unwrap_or_default()
        )));
    }
    Ok(format!("/{}", below.display()))
}

fn bind(mount: &Mount) -> Result<OwnedFd, SuperviseError> {
    let options = mount.bind_options.clone().unwrap_or_default();
    let source = Path::new(&mount.source);
    clone_tree(source, !options.non_recursive, mount.read_only, options.propagation).map_err(|error| {
        SuperviseError::Invalid(match error.kind() {
            io::ErrorKind::NotFound => crate::driver::missing_source_text(&mount.source),
            _ => format!("failed to bind {}: {error}", mount.source),
        })
    })
}

/// Copies a mount, with those below it if it is to be `recursive`, without placing it anywhere.
fn clone_tree(source: &Path, recursive: bool, read_only: bool, propagation: Propagation) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, source, flags)?;
    let mut attributes = libc::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    // Everything here follows the host's mounts, since the supervisor detached itself.
    let (all, top) = match propagation {
        Propagation::Unset | Propagation::Rprivate => (libc::MS_PRIVATE, 0),
        Propagation::Private => (0, libc::MS_PRIVATE),
        // The driver refuses what goes both ways.
        Propagation::Slave | Propagation::Rslave | Propagation::Shared | Propagation::Rshared => (0, 0),
    };
    set_attributes(&tree, attributes, all, libc::AT_RECURSIVE)?;
    if top != 0 {
        set_attributes(&tree, 0, top, 0)?;
    }
    Ok(tree)
}

/// Source: mount_setattr(2).
fn set_attributes(tree: &OwnedFd, set: u64, propagation: u64, flags: libc::c_int) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes { set, clear: 0, propagation, user_namespace: 0 };
    // SAFETY: the kernel reads the path and the structure, both of which outlive the call, and no more than their sizes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn tmpfs_data(mount: &Mount, point: &MountPoint) -> Vec<String> {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mode = match (options.mode, point.mode) {
        (0, Some(mode)) => mode,
        (0, None) => TMPFS_MODE_DEFAULT,
        (mode, _) => mode,
    };
    let size = (options.size_bytes > 0).then(|| format!("size={}", options.size_bytes));
    [format!("mode={mode:o}")].into_iter().chain(size).collect()
}

fn mount_tmpfs(mount: &Mount, point: &MountPoint) -> io::Result<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = std::ffi::CString::new(tmpfs_data(mount, point).join(","))?;
    let target = format!("/proc/self/fd/{}", point.handle.as_raw_fd());
    Ok(mount_new("tmpfs", target, "tmpfs", flags, data.as_c_str())?)
}

/// Describes a mount for the runtime. A copied mount is parked in the container's directory, where the runtime finds it.
fn leave(
    directory: &BundleDir,
    mount: &Mount,
    tree: Option<OwnedFd>,
    target: &str,
    point: &MountPoint,
) -> io::Result<Value> {
    let mut options: Vec<String> = if mount.read_only { vec!["ro".to_owned()] } else { Vec::new() };
    let Some(tree) = tree else {
        options.extend(["nosuid", "nodev", "noexec"].map(str::to_owned));
        options.extend(tmpfs_data(mount, point));
        return Ok(json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}));
    };
    let parked = directory.path("mounts").join(target.replace('/', "_"));
    let handle = if is_directory(&tree) {
        fs::create_dir_all(&parked)?;
        openat(CWD, &parked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?
    } else {
        fs::create_dir_all(directory.path("mounts"))?;
        OwnedFd::from(fs::OpenOptions::new().create(true).truncate(false).write(true).open(&parked)?)
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &handle, "", flags)?;
    options.extend(["rbind", "nodev"].map(str::to_owned));
    Ok(json!({"destination": target, "type": "bind", "source": parked, "options": options}))
}
