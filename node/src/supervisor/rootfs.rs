//! The root file system of a container: the layers of its image below a writable one, and what is looked up in it.
//!
//! It is mounted in a mount namespace of the supervisor's own, so nothing is left mounted when the last process of the
//! container is gone. Everything that the image decides is looked up below its root, whatever its symbolic links say.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::SuperviseError;

/// Bytes of `/etc/passwd` or `/etc/group` that are read; what comes after is not found.
const DATABASE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Makes mounts from now on invisible to the host, while the host's unmounts still arrive here.
pub fn detach_mounts() -> io::Result<()> {
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// Mounts the layers (lowest first) and the writable directory of a container on `<directory>/rootfs`.
pub fn mount_layers(directory: &Path, layers: &[impl AsRef<Path>]) -> io::Result<()> {
    for name in ["rootfs", "upper", "work", "lower"] {
        fs::create_dir_all(directory.join(name))?;
    }
    // Named by descriptor: the kernel takes one page of options, in which a path might hold a separator.
    let open = |path: &Path| -> io::Result<OwnedFd> {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    let name = |handle: &OwnedFd| format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut lower: Vec<OwnedFd> = layers.iter().rev().map(|layer| open(layer.as_ref())).collect::<Result<_, _>>()?;
    if lower.is_empty() {
        lower.push(open(&directory.join("lower"))?);
    }
    let (upper, work) = (open(&directory.join("upper"))?, open(&directory.join("work"))?);
    let lower_names: Vec<String> = lower.iter().map(name).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower_names.join(":"), name(&upper), name(&work));
    let options = CString::new(options)?;
    // No device in an image or written by a container is ever opened; `/dev` is mounted over this.
    mount("overlay", directory.join("rootfs"), "overlay", MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}

/// Where something is to be mounted.
pub struct MountPoint {
    /// The directory or file.
    pub handle: OwnedFd,
    /// Its permission bits if it was there before.
    pub mode: Option<u32>,
}

/// The mounted root file system, seen from outside.
pub struct Root(OwnedFd);

impl Root {
    /// Opens the root of a container whose layers are mounted.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, directory.join("rootfs"), flags, Mode::empty())?))
    }

    fn resolve(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Creates a directory with its parents, as Docker does for working directories that an image lacks.
    pub fn create_dir_all(&self, path: &str) -> io::Result<()> {
        let mut parent = self.resolve("/", OFlags::PATH | OFlags::DIRECTORY)?;
        let mut so_far = String::new();
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            so_far.push('/');
            so_far.push_str(name);
            parent = match self.resolve(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(directory) => directory,
                Err(rustix::io::Errno::NOENT) if name != ".." => {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                    self.resolve(&so_far, OFlags::PATH | OFlags::DIRECTORY)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    /// Opens a directory for reading; `None` if there is none.
    pub fn directory(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        match self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => Ok(Some(directory)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the place of a mount, and creates the directory or file with its parents if it is not there.
    pub fn mount_point(&self, path: &str, is_directory: bool) -> io::Result<MountPoint> {
        let kind = if is_directory { OFlags::DIRECTORY } else { OFlags::empty() };
        match self.resolve(path, OFlags::PATH | kind) {
            Ok(handle) => {
                let mode = fstat(&handle)?.st_mode & 0o7777;
                return Ok(MountPoint { handle, mode: Some(mode) });
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if is_directory {
            self.create_dir_all(path)?;
        } else {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            self.create_dir_all(parent)?;
            let parent = self.resolve(&format!("/{parent}"), OFlags::PATH | OFlags::DIRECTORY)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
        }
        Ok(MountPoint { handle: self.resolve(path, OFlags::PATH | kind)?, mode: None })
    }

    fn read(&self, path: &str) -> String {
        let mut text = Vec::new();
        if let Ok(file) = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            let _ = File::from(file).take(DATABASE_BYTES_MAX).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Finds out who `user`, `uid`, `user:group` or `uid:gid` is (empty is root), and adds further groups by name or number.
    pub fn user(&self, wanted: &str, groups: &[String]) -> Result<User, SuperviseError> {
        let group = self.read("etc/group");
        let mut user = find_user(wanted, &self.read("etc/passwd"), &group)?;
        for name in groups {
            let gid = find_group(name, &group_entries(&group))?;
            if !user.groups.contains(&gid) {
                user.groups.push(gid);
            }
        }
        Ok(user)
    }

    /// Returns the path of a program below the root, as a shell with this working directory and `PATH` finds it.
    pub fn program(&self, name: &str, directory: &str, search: &str) -> Result<String, SuperviseError> {
        let candidates: Vec<String> = if name.starts_with('/') {
            vec![name.to_owned()]
        } else if name.contains('/') {
            vec![format!("{directory}/{name}")]
        } else {
            search
                .split(':')
                .map(|part| if part.starts_with('/') { part.to_owned() } else { format!("{directory}/{part}") })
                .map(|part| format!("{part}/{name}"))
                .collect()
        };
        let mut found = None;
        for candidate in candidates {
            let Ok(file) = self.resolve(&candidate, OFlags::PATH) else { continue };
            let status = fstat(&file).map_err(|error| SuperviseError::io("failed to look at the program", error))?;
            let regular = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
            if regular && status.st_mode & 0o111 != 0 {
                return Ok(candidate);
            }
            found = Some(candidate);
        }
        Err(SuperviseError::Invalid(match (found, name.contains('/')) {
            (Some(path), _) => format!("exec: \"{path}\": permission denied"),
            (None, true) => format!("exec: \"{name}\": stat {name}: no such file or directory"),
            (None, false) => format!("exec: \"{name}\": executable file not found in $PATH"),
        }))
    }
}

/// Source: passwd(5), group(5); what cannot be read as a line of them is skipped.
fn find_user(wanted: &str, passwd: &str, group: &str) -> Result<User, SuperviseError> {
    let (user, wanted_group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?);
        (*name == user || number == Some(uid)).then(|| ((*name).to_owned(), uid, gid, (*home).to_owned()))
    });
    let groups = group_entries(group);
    let (name, uid, mut gid, home) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => (String::new(), uid, 0, "/".to_owned()),
        (None, None) => {
            return Err(SuperviseError::Invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let mut supplementary: Vec<u32> = groups
        .iter()
        .filter(|(_, _, members)| !name.is_empty() && members.split(',').any(|member| member == name))
        .map(|(_, gid, _)| *gid)
        .collect();
    if !wanted_group.is_empty() {
        supplementary.clear();
        gid = find_group(wanted_group, &groups)?;
    }
    Ok(User { uid, gid, groups: supplementary, home: if home.is_empty() { "/".to_owned() } else { home } })
}

/// Name, number and members of each group.
fn group_entries(group: &str) -> Vec<(&str, u32, &str)> {
    let entry = |line| {
        let mut fields = str::split(line, ':');
        let (name, gid) = (fields.next()?, fields.nth(1)?);
        Some((name, gid.parse().ok()?, fields.next()?))
    };
    group.lines().filter_map(entry).collect()
}

fn find_group(wanted: &str, groups: &[(&str, u32, &str)]) -> Result<u32, SuperviseError> {
    let named = groups.iter().find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| *gid);
    named.or_else(|| wanted.parse().ok()).ok_or_else(|| {
        SuperviseError::Invalid(format!("unable to find group {wanted}: no matching entries in group file"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:::/bin/false\n";
        let group = "root:x:0:\nwww:x:34:\nlogs:x:50:other,web\n";
        let user =
            |uid, gid, groups: &[u32], home: &str| User { uid, gid, groups: groups.to_vec(), home: home.to_owned() };
        for (wanted, want) in [
            ("", Some(user(0, 0, &[], "/root"))),
            ("web", Some(user(33, 34, &[50], "/"))),
            ("33", Some(user(33, 34, &[50], "/"))),
            ("web:logs", Some(user(33, 50, &[], "/"))),
            ("web:7", Some(user(33, 7, &[], "/"))),
            ("1000", Some(user(1000, 0, &[], "/"))),
            ("1000:1001", Some(user(1000, 1001, &[], "/"))),
            ("nobody", None),
            ("web:nogroup", None),
        ] {
            assert_eq!(find_user(wanted, passwd, group).ok(), want, "{wanted:?}");
        }
        assert_eq!(find_user("", "", "").unwrap(), user(0, 0, &[], "/"));
    }

    #[test]
    fn lookups_stay_below_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = directory.path().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        symlink("/etc", rootfs.join("etc")).unwrap();
        symlink("../../../..", rootfs.join("up")).unwrap();
        for (name, mode) in [("run", 0o755), ("data", 0o644)] {
            fs::write(rootfs.join("bin").join(name), "").unwrap();
            fs::set_permissions(rootfs.join("bin").join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let root = Root::open(directory.path()).unwrap();
        assert_eq!(root.read("etc/passwd"), "", "the host's file must not be seen");
        assert_eq!(root.program("run", "/", "/sbin:/bin").unwrap(), "/bin/run");
        assert_eq!(root.program("./run", "/bin", "").unwrap(), "/bin/./run");
        assert!(root.program("data", "/", "/bin").unwrap_err().to_string().contains("permission denied"));
        assert!(root.program("sh", "/", "/up/bin:/up/usr/bin").unwrap_err().to_string().contains("not found in $PATH"));
        root.create_dir_all("/up/work/deep").unwrap();
        assert!(rootfs.join("work/deep").is_dir());
    }
}
