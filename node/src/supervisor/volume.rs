//! Creating a volume, and giving an empty one what the image has at its target, as Docker does.
//!
//! Nothing that is in a volume is ever overwritten, and a file appears in it whole, so a copy that was interrupted is
//! finished by the next container. Other containers may be using the volume: no symbolic link in it is followed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, flock, fsetxattr, fstat, futimens, mkdirat, mknodat,
    openat, readlinkat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use shoal_protocol::spec::mount::VolumeOptions;

use super::rootfs::Root;
use crate::driver::embedded::bundle::{wall_now, write_json};
use crate::driver::embedded::volumes::{RECORD, VolumeDir, VolumeRecord};

/// Directories within each other at most; an image with more cannot fill a volume. Each holds two descriptors open.
const DEPTH_MAX: usize = 200;
/// Bytes of an extended attribute or of their names at most. Source: Linux, `XATTR_SIZE_MAX`.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// A file that is there while a volume is being filled.
const FILLING: &str = "filling";
/// A file on its way into the volume.
const PARTIAL: &str = "partial";

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Creates a volume unless it is there, and fills it if it is empty.
pub fn provide(volume: &VolumeDir, options: &VolumeOptions, target: &str, root: &Root) -> io::Result<()> {
    fs::create_dir_all(&volume.0)?;
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(volume.0.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let record = volume.0.join(RECORD);
    if !record.exists() {
        fs::create_dir_all(volume.data())?;
        write_json(&record, &VolumeRecord { labels: options.labels.clone(), created: wall_now() })?;
    }
    let filling = volume.0.join(FILLING);
    let is_empty = fs::read_dir(volume.data())?.next().is_none();
    if options.no_copy || !is_empty && !filling.exists() {
        return Ok(());
    }
    let Some(source) = root.directory(target)? else { return Ok(()) };
    File::create(&filling)?;
    let area = openat(CWD, &volume.0, DIRECTORY, Mode::empty())?;
    let data = openat(&area, "_data", DIRECTORY, Mode::empty())?;
    Filler { area }.fill(&source, &data, 0)?;
    fs::remove_file(filling)
}

struct Filler {
    /// The volume's own directory, in which files are written before they appear in the volume.
    area: OwnedFd,
}

impl Filler {
    /// Copies what is in a directory and then the directory's own attributes.
    fn fill(&self, source: &OwnedFd, target: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("the image has more than {DEPTH_MAX} directories within each other")));
        }
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let status = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => {
                    ignore(Errno::EXIST, mkdirat(target, name, Mode::RWXU))?;
                    let inner = openat(source, name, DIRECTORY, Mode::empty())?;
                    self.fill(&inner, &openat(target, name, DIRECTORY, Mode::empty())?, depth + 1)?;
                }
                FileType::RegularFile => self.file(source, target, name, &status)?,
                FileType::Symlink => {
                    let link = readlinkat(source, name, Vec::new())?;
                    if ignore(Errno::EXIST, symlinkat(link, target, name))? {
                        let (uid, gid) = owner(&status);
                        chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                }
                kind @ FileType::Fifo => {
                    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
                    if ignore(Errno::EXIST, mknodat(target, name, kind, mode, 0))? {
                        let (uid, gid) = owner(&status);
                        chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                }
                // Neither works as a copy: devices cannot be opened in a container, sockets have nobody behind them.
                FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket | FileType::Unknown => {}
            }
        }
        attributes(source, target, &fstat(source)?)
    }

    fn file(&self, source: &OwnedFd, target: &OwnedFd, name: &std::ffi::CStr, status: &Stat) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut from = File::from(openat(source, name, flags, Mode::empty())?);
        ignore(Errno::NOENT, unlinkat(&self.area, PARTIAL, AtFlags::empty()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut to = File::from(openat(&self.area, PARTIAL, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(&mut from, &mut to)?;
        attributes(&from, &to, status)?;
        if !ignore(Errno::EXIST, renameat_with(&self.area, PARTIAL, target, name, RenameFlags::NOREPLACE))? {
            unlinkat(&self.area, PARTIAL, AtFlags::empty())?;
        }
        Ok(())
    }
}

/// Copies owner, mode, extended attributes and times, in the order in which they do not undo each other.
fn attributes(source: impl AsFd, target: impl AsFd, status: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(status);
    fchown(&target, Some(uid), Some(gid))?;
    fchmod(&target, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    let mut names = vec![0u8; ATTRIBUTE_BYTES_MAX];
    let length = flistxattr(&source, &mut names).unwrap_or(0); // a file system without them has none
    let mut value = vec![0u8; ATTRIBUTE_BYTES_MAX];
    for name in names[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        // Others belong to the file system, as overlayfs's own do, or to the machine.
        if name.starts_with("user.") || name == "security.capability" || name.starts_with("system.posix_acl_") {
            let length = fgetxattr(&source, name, &mut value[..])?;
            fsetxattr(&target, name, &value[..length], XattrFlags::empty())?;
        }
    }
    let time = |secs, nanos| Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(status.st_atime, i64::try_from(status.st_atime_nsec).unwrap_or_default()),
        last_modification: time(status.st_mtime, i64::try_from(status.st_mtime_nsec).unwrap_or_default()),
    };
    Ok(futimens(&target, &times)?)
}

fn owner(status: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid))
}

/// Returns whether a call did what it should, or false if it failed for the reason that is expected.
fn ignore(expected: Errno, result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error == expected => Ok(false),
        Err(error) => Err(error.into()),
    }
}
