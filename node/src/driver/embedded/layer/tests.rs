//! Archives as they should be, and as an attacker would write them. Needs root, as unpacking does.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

const BYTES_MAX: u64 = 1 << 20;

enum Entry<'a> {
    Dir(&'a str),
    File(&'a str, &'a str),
    Mode(&'a str, u32),
    Symlink(&'a str, &'a str),
    Link(&'a str, &'a str),
    Device(&'a str),
    Attribute(&'a str, &'a str, &'a str),
}

use Entry::{Attribute, Device, Dir, File as Regular, Link, Mode as WithMode, Symlink};

/// Writes what the library's own builder would refuse to write.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let (path, kind, target, content, mode) = match *entry {
            Dir(path) => (path, EntryType::Directory, "", "", 0o755),
            Regular(path, content) => (path, EntryType::Regular, "", content, 0o644),
            WithMode(path, mode) => (path, EntryType::Regular, "", "", mode),
            Symlink(path, target) => (path, EntryType::Symlink, target, "", 0o777),
            Link(path, target) => (path, EntryType::Link, target, "", 0o644),
            Device(path) => (path, EntryType::Char, "", "", 0o666),
            Attribute(path, name, value) => {
                builder.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value.as_bytes())]).unwrap();
                (path, EntryType::Regular, "", "", 0o644)
            }
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1_000_000);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn refusal(entries: &[Entry<'_>]) -> String {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("layer");
    fs::create_dir(&target).unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    let result = unpack(archive(entries).as_slice(), &target, BYTES_MAX);
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(fs::metadata(outside.path().join("victim")).unwrap().nlink(), 1);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "something was created outside");
    result.unwrap_err().to_string()
}

#[test]
fn nothing_outside_the_layer_is_touched() {
    for (name, entries, want) in [
        ("a path upwards", vec![Regular("../victim", "x")], "leads out of it"),
        ("a path down and upwards", vec![Dir("a"), Regular("a/../../victim", "x")], "leads out of it"),
        ("an absolute path", vec![Regular("/tmp/victim", "x")], "absolute path"),
        ("through a link upwards", vec![Symlink("a", ".."), Regular("a/victim", "x")], "no directory of it"),
        ("through an absolute link", vec![Symlink("a", "/"), Dir("a/evil")], "no directory of it"),
        ("through a link inside", vec![Dir("b"), Symlink("a", "b"), Regular("a/x", "x")], "no directory of it"),
        ("through a replaced directory", vec![Dir("a"), Symlink("a", ".."), Regular("a/victim", "x")], "a:"),
        ("below a file", vec![Regular("a", "x"), Regular("a/b", "x")], "no directory of it"),
        ("a hard link upwards", vec![Link("a", "../victim")], "leads out of it"),
        ("a hard link through a link", vec![Symlink("a", ".."), Link("b", "a/victim")], "cannot unpack b"),
        ("a hard link to what is not there", vec![Link("a", "lower/file")], "cannot unpack a"),
        ("a device", vec![Device("dev/sda")], "devices are refused"),
        ("a whiteout upwards", vec![Regular("../.wh.victim", "")], "leads out of it"),
        ("a whiteout through a link", vec![Symlink("a", ".."), Regular("a/.wh.victim", "")], "no directory of it"),
    ] {
        let got = refusal(&entries);
        assert!(got.contains(want), "{name}: {got}");
    }
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("layer");
    fs::create_dir(&target).unwrap();
    let entries = [Symlink("a", "../victim"), Regular("a", "mine"), Symlink("d", ".."), Dir("d"), Regular("d/x", "y")];
    unpack(archive(&entries).as_slice(), &target, BYTES_MAX).unwrap();
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(target.join("d/x")).unwrap(), "y");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_layer_cannot_be_endless() {
    let target = tempfile::tempdir().unwrap();
    let big = "x".repeat(BYTES_MAX as usize);
    let got = unpack(archive(&[Regular("a", &big)]).as_slice(), target.path(), BYTES_MAX).unwrap_err();
    assert!(got.to_string().contains("exceeds"), "{got}");
    let mut endless = archive(&[Regular("a", "x")]);
    endless.truncate(1024);
    let got = unpack(endless.as_slice().chain(std::io::repeat(0)), target.path(), BYTES_MAX).unwrap_err();
    assert!(got.to_string().contains("exceeds"), "{got}");
}

#[test]
fn a_damaged_archive_is_refused() {
    let whole = archive(&[Regular("a", "some content"), Regular("b", "more")]);
    for (name, bytes) in
        [("garbage", vec![7; 4096]), ("cut short", whole[..700].to_vec()), ("cut in the header", whole[..100].to_vec())]
    {
        let target = tempfile::tempdir().unwrap();
        let result = unpack(bytes.as_slice(), target.path(), BYTES_MAX);
        assert!(matches!(result, Err(ImageError::Invalid(_))), "{name}: {result:?}");
    }
}

#[test]
fn owners_modes_times_links_and_attributes_arrive() {
    let target = tempfile::tempdir().unwrap();
    let entries = [
        Dir("./"),
        Regular("deep/down/file", "content"),
        WithMode("su", 0o4755),
        Symlink("link", "/etc/passwd"),
        Link("hard", "deep/down/file"),
        Attribute("attributed", "user.kind", "test"),
        Attribute("steering", "trusted.overlay.redirect", "/etc"),
        Dir("dir"),
        Regular("dir/late", ""),
    ];
    let bytes = archive(&entries);
    let unpacked = unpack(bytes.as_slice(), target.path(), BYTES_MAX).unwrap();
    assert_eq!(
        unpacked,
        Unpacked { diff_id: super::super::images::hex(&Sha256::digest(&bytes)), bytes: bytes.len() as u64 }
    );
    let status = |name: &str| fs::symlink_metadata(target.path().join(name)).unwrap();
    assert_eq!(
        (status("su").uid(), status("su").gid(), status("su").permissions().mode() & 0o7777),
        (1234, 5678, 0o4755)
    );
    assert_eq!(status("hard").ino(), status("deep/down/file").ino());
    assert_eq!(fs::read_link(target.path().join("link")).unwrap(), Path::new("/etc/passwd"));
    for name in ["su", "link", "dir"] {
        assert_eq!(status(name).mtime(), 1_000_000, "{name}");
    }
    let attribute = |file: &str, name: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(target.path().join(file), name, &mut value).map(|count| value[..count].to_vec())
    };
    assert_eq!(attribute("attributed", "user.kind").unwrap(), b"test");
    assert!(attribute("steering", "trusted.overlay.redirect").is_err());
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let target = tempfile::tempdir().unwrap();
    let entries = [
        Dir("opaque"),
        Regular("opaque/.wh..wh..opq", ""),
        Regular("gone/.wh.file", ""),
        Regular(".wh.replaced", ""),
        Dir("replaced"),
        Dir("renewed"),
        Regular(".wh.renewed", ""),
        Regular(".wh..wh.plnk", ""),
        Regular(".wh...", ""),
    ];
    unpack(archive(&entries).as_slice(), target.path(), BYTES_MAX).unwrap();
    let gone = fs::symlink_metadata(target.path().join("gone/file")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for name in ["opaque", "replaced", "renewed"] {
        let mut value = [0; 8];
        let count = rustix::fs::lgetxattr(target.path().join(name), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..count], b"y", "{name}");
    }
    let mut names: Vec<String> =
        fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["gone", "opaque", "renewed", "replaced"]);
}
