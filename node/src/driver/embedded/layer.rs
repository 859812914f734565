//! Unpacking one layer of an image. The archive is hostile: whatever it says, nothing outside the target is touched.
//!
//! Parents are opened by the kernel strictly below the target and through no symbolic link, and the last component is
//! created, never followed. Whiteouts become those of overlayfs. Sources: OCI image specification 1.1, "Image Layer
//! Filesystem Changeset"; kernel documentation of overlayfs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::images::ImageError;

/// Entries of one layer; an archive with more is refused.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Bytes of one layer, unpacked; an archive with more is refused.
pub const LAYER_BYTES_MAX: u64 = 32 << 30;

const WHITEOUT_PREFIX: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// What became of a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Hexadecimal SHA-256 of the archive, its "diff ID".
    pub diff_id: String,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Unpacks an uncompressed archive into an empty directory. After an error the directory holds some part of it.
pub fn unpack(archive: impl Read, target: &Path, bytes_max: u64) -> Result<Unpacked, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        openat(CWD, target, flags, Mode::empty()).map_err(|error| ImageError::io("failed to open layer", error))?;
    let mut reader = Measured { inner: archive, hash: Sha256::new(), bytes: 0, bytes_max };
    let mut unpacker = Unpacker { root, parent: None, directory_times: Vec::new(), entries: 0, written: 0, bytes_max };
    {
        let mut archive = tar::Archive::new(&mut reader);
        for entry in archive.entries().map_err(ImageError::archive)? {
            unpacker.unpack(&mut entry.map_err(ImageError::archive)?)?;
        }
    }
    unpacker.set_directory_times();
    // The digest covers the padding after the last entry too.
    io::copy(&mut reader, &mut io::sink()).map_err(ImageError::archive)?;
    let diff_id = super::images::hex(&reader.hash.finalize());
    Ok(Unpacked { diff_id, bytes: reader.bytes })
}

/// Counts and hashes what passes through, and ends an endless stream.
struct Measured<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        if self.bytes > self.bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("layer exceeds {} bytes", self.bytes_max)));
        }
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

struct Unpacker {
    root: OwnedFd,
    /// The directory of the last entry: archives list directories in one piece.
    parent: Option<(String, OwnedFd)>,
    directory_times: Vec<(String, Timespec)>,
    entries: usize,
    /// Bytes of files, which sparse entries make more than those of the archive.
    written: u64,
    bytes_max: u64,
}

impl Unpacker {
    fn unpack<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ImageError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(ImageError::Invalid(format!("layer has more than {ENTRIES_MAX} entries")));
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = components(&entry.path_bytes())?;
        let Some((name, parents)) = path.split_last() else {
            // The root itself; its mode is the image's, its place is ours.
            return if kind == EntryType::Directory { self.set_root_mode(entry) } else { Ok(()) };
        };
        let shown = path.join("/");
        let failed = |error: Errno| ImageError::entry(&shown, error);
        let parent = self.parent(&parents.join("/"))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return whiteout(&parent, name, hidden).map_err(failed);
        }
        let replaced = matches!(kind, EntryType::Directory)
            && is_whiteout(&parent, name)
            && unlinkat(&parent, name, AtFlags::empty()).is_ok();
        match kind {
            EntryType::Directory => {
                make_directory(&parent, name).map_err(failed)?;
                self.directory_times.push((shown.clone(), mtime(entry)));
                if replaced {
                    set_opaque(&openat(&parent, name, DIRECTORY, Mode::empty()).map_err(failed)?).map_err(failed)?;
                }
                let directory = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                self.finish(entry, &directory, &shown)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_room(&parent, name).map_err(failed)?;
                self.write_file(entry, &parent, name, &shown)?;
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                make_room(&parent, name).map_err(failed)?;
                symlinkat(target.as_str(), &parent, name.as_str()).map_err(failed)?;
                let (uid, gid) = owner(entry)?;
                chownat(&parent, name.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let times = times(mtime(entry));
                utimensat(&parent, name.as_str(), &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            EntryType::Link => {
                let target = components(link_name(entry)?.as_bytes())?;
                let Some((target_name, target_parents)) = target.split_last() else {
                    return Err(ImageError::Invalid(format!("hard link {shown} leads to the root")));
                };
                let target_parent = self.open(&target_parents.join("/")).map_err(failed)?;
                make_room(&parent, name).map_err(failed)?;
                linkat(&target_parent, target_name, &parent, name, AtFlags::empty()).map_err(failed)?;
            }
            EntryType::Fifo => {
                make_room(&parent, name).map_err(failed)?;
                mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(mode(entry)?), 0).map_err(failed)?;
                let (uid, gid) = owner(entry)?;
                chownat(&parent, name.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            EntryType::Char | EntryType::Block => {
                return Err(ImageError::Invalid(format!("layer holds a device, {shown}: devices are refused")));
            }
            other => return Err(ImageError::Invalid(format!("layer holds {shown} of unknown type {other:?}"))),
        }
        Ok(())
    }

    fn set_root_mode<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ImageError> {
        let root = openat(&self.root, ".", DIRECTORY, Mode::empty()).map_err(|error| ImageError::entry("/", error))?;
        self.finish(entry, &root, "/")
    }

    fn write_file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        name: &str,
        shown: &str,
    ) -> Result<(), ImageError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(|error| ImageError::entry(shown, error))?;
        let mut file = File::from(file);
        let room = self.bytes_max - self.written;
        let copied =
            io::copy(&mut entry.by_ref().take(room + 1), &mut file).map_err(|error| match error.raw_os_error() {
                Some(_) => ImageError::io(&format!("failed to unpack {shown}"), error),
                None => ImageError::archive(error),
            })?;
        if copied > room {
            return Err(ImageError::Invalid(format!("layer exceeds {} bytes", self.bytes_max)));
        }
        self.written += copied;
        self.finish(entry, &file.into(), shown)
    }

    /// Sets owner, mode, attributes and time, in this order: changing the owner clears mode bits and capabilities.
    fn finish<R: Read>(&self, entry: &mut tar::Entry<'_, R>, file: &OwnedFd, shown: &str) -> Result<(), ImageError> {
        let failed = |error: Errno| ImageError::entry(shown, error);
        let (uid, gid) = owner(entry)?;
        fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        fchmod(file, Mode::from_raw_mode(mode(entry)?)).map_err(failed)?;
        for (name, value) in attributes(entry)? {
            fsetxattr(file, name.as_str(), &value, XattrFlags::empty()).map_err(failed)?;
        }
        rustix::fs::futimens(file, &times(mtime(entry))).map_err(failed)
    }

    /// Opens a directory below the root, strictly.
    fn open(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.root, if path.is_empty() { "." } else { path }, flags, Mode::empty(), resolve)
    }

    /// Opens the directory of an entry, and creates it if the archive did not.
    fn parent(&mut self, path: &str) -> Result<OwnedFd, ImageError> {
        let failed = |error: Errno| match error {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
                ImageError::Invalid(format!("layer holds an entry below {path}, which is no directory of it"))
            }
            error => ImageError::entry(path, error),
        };
        if let Some((known, directory)) = &self.parent
            && known == path
        {
            return directory.try_clone().map_err(|error| ImageError::io("failed to unpack layer", error));
        }
        let directory = match self.open(path) {
            Err(Errno::NOENT) => {
                let mut so_far = String::new();
                for name in path.split('/') {
                    let above = self.open(&so_far).map_err(failed)?;
                    make_directory(&above, name).map_err(failed)?;
                    so_far = if so_far.is_empty() { name.to_owned() } else { format!("{so_far}/{name}") };
                }
                self.open(path).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        let copy = directory.try_clone().map_err(|error| ImageError::io("failed to unpack layer", error))?;
        self.parent = Some((path.to_owned(), copy));
        Ok(directory)
    }

    /// Last, because creating entries changes the times of their directories. What was replaced meanwhile is skipped.
    fn set_directory_times(&self) {
        for (path, time) in self.directory_times.iter().rev() {
            if let Ok(directory) = self.open(path) {
                let _ = utimensat(&directory, ".", &times(*time), AtFlags::SYMLINK_NOFOLLOW);
            }
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Splits a path of the archive; empty is the root.
fn components(path: &[u8]) -> Result<Vec<String>, ImageError> {
    let text = std::str::from_utf8(path)
        .map_err(|_| ImageError::Invalid(format!("layer holds a path that is not UTF-8: {}", path.escape_ascii())))?;
    if text.starts_with('/') {
        return Err(ImageError::Invalid(format!("layer holds an absolute path: {text}")));
    }
    let names: Vec<String> =
        text.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect();
    if names.iter().any(|name| name == ".." || name.contains('\0')) {
        return Err(ImageError::Invalid(format!("layer holds a path that leads out of it: {}", text.escape_debug())));
    }
    Ok(names)
}

fn make_directory(parent: impl AsFd, name: &str) -> rustix::io::Result<()> {
    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) if openat(&parent, name, DIRECTORY, Mode::empty()).is_err() => {
            unlinkat(&parent, name, AtFlags::empty())?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o755))
        }
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Removes what a later entry of the same archive replaces. Directories are not replaced: no tool writes that.
fn make_room(parent: impl AsFd, name: &str) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn is_whiteout(parent: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice)
}

fn whiteout(parent: &OwnedFd, name: &str, hidden: &str) -> rustix::io::Result<()> {
    if name == OPAQUE {
        return set_opaque(&openat(parent, ".", DIRECTORY, Mode::empty())?);
    }
    // What else begins so is bookkeeping of aufs.
    if hidden.starts_with(WHITEOUT_PREFIX) || matches!(hidden, "" | "." | "..") {
        return Ok(());
    }
    match mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        // The layer has it anew: then only what lower layers have in it is hidden.
        Err(Errno::EXIST) => match openat(parent, hidden, DIRECTORY, Mode::empty()) {
            Ok(directory) => set_opaque(&directory),
            Err(_) => Ok(()),
        },
        other => other,
    }
}

fn set_opaque(directory: &OwnedFd) -> rustix::io::Result<()> {
    fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, ImageError> {
    let bytes =
        entry.link_name_bytes().ok_or_else(|| ImageError::Invalid("layer holds a link to nothing".to_owned()))?;
    let text = String::from_utf8(bytes.into_owned())
        .map_err(|_| ImageError::Invalid("layer holds a link that is not UTF-8".to_owned()))?;
    if text.is_empty() || text.contains('\0') {
        return Err(ImageError::Invalid("layer holds a link to nothing".to_owned()));
    }
    Ok(text)
}

/// Reads a number of a header; an empty field is zero, as all tools have it.
fn number<T: Default>(field: &[u8], value: io::Result<T>) -> Result<T, ImageError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    value.map_err(ImageError::archive)
}

fn mode<R: Read>(entry: &tar::Entry<'_, R>) -> Result<u32, ImageError> {
    Ok(number(&entry.header().as_old().mode, entry.header().mode())? & 0o7777)
}

fn owner<R: Read>(entry: &tar::Entry<'_, R>) -> Result<(Uid, Gid), ImageError> {
    let header = entry.header();
    let id = |field: &[u8], value: io::Result<u64>| {
        u32::try_from(number(field, value)?)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| ImageError::Invalid("layer holds an owner beyond 32 bits".to_owned()))
    };
    let (uid, gid) = (id(&header.as_old().uid, header.uid())?, id(&header.as_old().gid, header.gid())?);
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// Returns the extended attributes that images may set: not those with which overlayfs would be steered.
fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    let Some(extensions) = entry.pax_extensions().map_err(ImageError::archive)? else { return Ok(Vec::new()) };
    let mut attributes = Vec::new();
    for extension in extensions {
        let extension = extension.map_err(ImageError::archive)?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(attributes)
}

fn mtime<R: Read>(entry: &tar::Entry<'_, R>) -> Timespec {
    let seconds = entry.header().mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
    Timespec { tv_sec: seconds, tv_nsec: 0 }
}

fn times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
