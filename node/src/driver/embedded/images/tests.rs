//! Needs root, as unpacking layers does.

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::driver::conformance::TestImage;

fn layer(name: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn image(reference: &str, content: &str) -> Vec<u8> {
    TestImage::from_layer(reference, &layer("file", content)).unwrap().archive
}

/// Writes an archive anew, member by member; `None` leaves one out.
fn rewritten(archive: &[u8], change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut header = entry.header().clone();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if let Some(bytes) = change(&name, bytes) {
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Fixture {
    directory: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path(), &BTreeSet::new()).unwrap();
        Self { directory, store }
    }

    fn load(&self, archive: &[u8]) -> Result<Vec<String>, ImageError> {
        let mut incoming = self.store.incoming().unwrap();
        incoming.file.write_all(archive).unwrap();
        io::Seek::rewind(&mut incoming.file).unwrap();
        self.store.load(incoming)
    }

    fn remove(&self, image: &str) -> Result<(), ImageError> {
        self.store.remove(image, &BTreeSet::new(), &BTreeSet::new())
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn reopened(self) -> Self {
        let store = ImageStore::open(self.directory.path(), &BTreeSet::new()).unwrap();
        Self { directory: self.directory, store }
    }
}

#[test]
fn both_forms_are_loaded_compressed_or_not() {
    let whole = image("shoal-test/a:1", "one");
    let docker = rewritten(&whole, |name, bytes| (name != "index.json" && name != "oci-layout").then_some(bytes));
    let oci = rewritten(&whole, |name, bytes| (name != "manifest.json").then_some(bytes));
    for (name, archive) in [("docker-save", &docker), ("oci", &oci), ("both", &whole)] {
        for bytes in [archive.clone(), gzipped(archive)] {
            let fixture = Fixture::new();
            assert_eq!(fixture.load(&bytes).unwrap(), ["shoal-test/a:1"], "{name}");
            let found = fixture.store.find("docker.io/shoal-test/a:1").unwrap();
            assert_eq!(fs::read_to_string(found.layers[0].join("file")).unwrap(), "one", "{name}");
            assert_eq!(fixture.names("images/tmp"), [""; 0], "{name}");
            let listed = &fixture.store.list()[0];
            assert_eq!(
                (listed.tags.as_slice(), listed.id.as_str()),
                (&["shoal-test/a:1".to_owned()][..], found.id.as_str())
            );
            assert_eq!(fixture.reopened().store.find(&found.id).unwrap(), found, "{name}");
        }
    }
}

#[test]
fn compressed_layers_are_found_by_their_content() {
    let whole = image("shoal-test/a:1", "one");
    let docker = rewritten(&whole, |name, bytes| match name {
        "index.json" | "oci-layout" => None,
        name if name.starts_with("blobs/") && bytes.starts_with(b"file") => Some(gzipped(&bytes)),
        _ => Some(bytes),
    });
    assert_eq!(Fixture::new().load(&docker).unwrap(), ["shoal-test/a:1"]);
}

#[test]
fn what_does_not_match_its_digest_is_refused_and_leaves_nothing() {
    let whole = image("shoal-test/a:1", "one");
    let flipped = |what: fn(&[u8]) -> bool| {
        rewritten(&whole, |name, mut bytes| {
            if name.starts_with("blobs/") && what(&bytes) {
                let last = bytes.iter().rposition(|byte| *byte == b'e' || *byte == b'}').unwrap();
                bytes[last] ^= 1;
            }
            Some(bytes)
        })
    };
    for (name, archive) in [
        ("layer", flipped(|bytes| bytes.starts_with(b"file"))),
        (
            "configuration",
            flipped(|bytes| bytes.starts_with(b"{") && bytes.windows(6).any(|window| window == b"rootfs")),
        ),
        ("half", whole[..whole.len() / 3].to_vec()),
        ("nothing", Vec::new()),
        ("an archive of something else", layer("file", "one")),
        ("a compressed bomb of nothing", gzipped(&vec![0; 1 << 20])),
    ] {
        let fixture = Fixture::new();
        let result = fixture.load(&archive);
        assert!(matches!(result, Err(ImageError::Invalid(_))), "{name}: {result:?}");
        assert_eq!(
            (fixture.store.list(), fixture.names("layers"), fixture.names("images/tmp")),
            (vec![], vec![], vec![]),
            "{name}"
        );
    }
}

#[test]
fn layers_are_shared_and_go_with_their_last_user() {
    let fixture = Fixture::new();
    fixture.load(&image("shoal-test/a:1", "one")).unwrap();
    fixture.load(&image("shoal-test/b:1", "one")).unwrap();
    assert_eq!(fixture.store.list().len(), 1, "the same content is one image with two names");
    assert_eq!(fixture.names("layers").len(), 2, "a directory and its size");

    fixture.load(&image("shoal-test/a:1", "two")).unwrap();
    let listed: BTreeSet<Vec<String>> = fixture.store.list().into_iter().map(|image| image.tags).collect();
    let want = [vec!["shoal-test/a:1".to_owned()], vec!["shoal-test/b:1".to_owned()]];
    assert_eq!(listed, BTreeSet::from(want), "a name leads to what was loaded last");

    fixture.remove("shoal-test/b:1").unwrap();
    assert_eq!(fixture.names("layers").len(), 2);
    assert!(matches!(fixture.remove("shoal-test/b:1"), Err(ImageError::Missing(_))));
    let id = fixture.store.find("shoal-test/a:1").unwrap().id;
    let (users, layers) = (BTreeSet::from([id.clone()]), BTreeSet::new());
    assert!(matches!(fixture.store.remove(&id, &users, &layers), Err(ImageError::InUse(_))));
    fixture.remove(&id[7..20]).unwrap();
    assert_eq!((fixture.names("layers"), fixture.names("images/blobs/sha256")), (vec![], vec![]));
}

#[test]
fn opening_removes_what_a_crash_left() {
    let fixture = Fixture::new();
    fixture.load(&image("shoal-test/a:1", "one")).unwrap();
    let layers = fixture.directory.path().join("layers");
    fs::create_dir_all(layers.join("partial-7/deep")).unwrap();
    fs::create_dir_all(layers.join("ab".repeat(32))).unwrap();
    fs::write(fixture.directory.path().join("images/tmp/incoming-3"), "x").unwrap();
    fs::write(fixture.directory.path().join("images/blobs/sha256/cd"), "x").unwrap();
    let fixture = fixture.reopened();
    assert_eq!((fixture.names("layers").len(), fixture.names("images/tmp").len()), (2, 0));
    assert_eq!(fixture.names("images/blobs/sha256").len(), 1);
    assert!(fixture.store.find("shoal-test/a:1").is_ok());
}
