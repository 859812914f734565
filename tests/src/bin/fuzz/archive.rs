//! Archives of images: good ones, ones that were cut, and ones that mean harm.
//!
//! Headers are written here, byte by byte, as libraries refuse to write what is wanted. Source: POSIX.1-2017, pax, "ustar
//! Interchange Format"; the GNU tar manual for long names and sparse files.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_tests::lab::IMAGE;

use super::mutate::document;

/// Bytes of a block of an archive.
const BLOCK: usize = 512;

/// Paths that lead out of an archive, or somewhere strange.
const PATHS: [&str; 12] = [
    "a",
    "a/b",
    "/etc/passwd",
    "../../../etc/passwd",
    "a/../../b",
    "./",
    "",
    ".wh.a",
    ".wh..wh..opq",
    ".wh.",
    "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t",
    "\u{1b}[2J",
];

/// A member of an archive.
#[derive(Debug, Clone)]
struct Member {
    path: String,
    kind: u8,
    link: String,
    bytes: Vec<u8>,
    /// What the header says of the size, if that is not true.
    claimed: Option<[u8; 12]>,
}

/// Draws an archive, or what calls itself one.
pub fn any(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = match random.random_range(0..10) {
        0 => (0..random.random_range(0..4096)).map(|_| random.random()).collect(),
        1 => write(&members(random)),
        _ => write(&image(random)),
    };
    match random.random_range(0..8) {
        0 => {
            let length = random.random_range(0..=bytes.len());
            bytes.truncate(length);
        }
        1 => {
            for _ in 0..random.random_range(1..20) {
                if !bytes.is_empty() {
                    let place = random.random_range(0..bytes.len());
                    bytes[place] = random.random();
                }
            }
        }
        // The beginning of something compressed.
        2 => {
            const MAGIC: [&[u8]; 3] = [b"\x1f\x8b\x08\0\0\0\0\0", b"\x28\xb5\x2f\xfd", b"BZh9"];
            bytes = [MAGIC[random.random_range(0..MAGIC.len())], &bytes].concat();
        }
        _ => {}
    }
    bytes
}

/// An image as engines save it, with something wrong in every second one.
fn image(random: &mut StdRng) -> Vec<Member> {
    let layers: Vec<Vec<u8>> = (0..random.random_range(1..4)).map(|_| write(&members(random))).collect();
    let digests: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Cmd": ["/a"], "Env": ["A=1"], "WorkingDir": "/", "User": "", "Labels": {"a": "b"},
            "Healthcheck": {"Test": ["NONE"]}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}},
        "rootfs": {"type": "layers", "diff_ids": digests}, "history": []});
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let tag = *["fuzz:1", "fuzz:1", "fuzz", "a/b:c", "", "..", IMAGE].choose(random).unwrap_or(&"fuzz:1");
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]);
    let spoiled = random.random::<bool>();
    let text = |value: &Value, random: &mut StdRng| if spoiled { document(value, random) } else { value.to_string() };
    let mut members = vec![
        file("config.json", text(&config, random).into_bytes()),
        file("manifest.json", text(&manifest, random).into_bytes()),
    ];
    members.extend(names.iter().zip(layers).map(|(name, layer)| file(name, layer)));
    if spoiled {
        let place = random.random_range(0..members.len());
        match random.random_range(0..5) {
            // Links instead of members, to themselves among others.
            0 => {
                members[place] = Member {
                    kind: b"12"[random.random_range(0..2)],
                    link: path(random),
                    bytes: Vec::new(),
                    ..members[place].clone()
                }
            }
            1 => members[place].claimed = Some(size(random)),
            2 => members.push(members[place].clone()),
            3 => {
                members.remove(place);
            }
            _ => members[place].path = path(random),
        }
    }
    members
}

/// What a layer may hold, and what it must not.
fn members(random: &mut StdRng) -> Vec<Member> {
    (0..random.random_range(0..8)).map(|_| member(random)).collect()
}

fn member(random: &mut StdRng) -> Member {
    // Files, links, devices, directories, FIFOs, contiguous files, headers of pax and GNU, sparse files, and nonsense.
    const KINDS: [u8; 19] = *b"0000123456755gxLKSz";
    let kind = KINDS[random.random_range(0..KINDS.len())];
    let bytes = match kind {
        b'x' | b'g' => pax(random),
        b'L' | b'K' => path(random).repeat(random.random_range(1..100)).into_bytes(),
        b'0' | b'7' | b'S' => vec![b'x'; random.random_range(0..3000)],
        _ => Vec::new(),
    };
    let claimed = random.random_ratio(1, 6).then(|| size(random));
    Member { path: path(random), kind, link: path(random), bytes, claimed }
}

fn pax(random: &mut StdRng) -> Vec<u8> {
    const RECORDS: [&str; 8] = [
        "path=../../etc/passwd",
        "size=99999999999999999999",
        "size=18446744073709551615",
        "linkpath=/etc",
        "mtime=1e999",
        "uid=-1",
        "GNU.sparse.realsize=99999999999999",
        "SCHILY.xattr.trusted.overlay.opaque=y",
    ];
    let record = RECORDS.choose(random).copied().unwrap_or_default();
    let length = if random.random() { record.len() + 4 } else { random.random_range(0..100_000) };
    format!("{length} {record}\n").into_bytes()
}

fn path(random: &mut StdRng) -> String {
    PATHS.choose(random).map_or_else(String::new, |path| (*path).to_owned())
}

/// A size that is not true: too large for the archive, for any disk, for a number, or no number.
fn size(random: &mut StdRng) -> [u8; 12] {
    const SIZES: [[u8; 12]; 7] = [
        *b"77777777777\0",
        *b"00000777777\0",
        *b"00000000001\0",
        *b"-0000000001\0",
        *b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        *b"xyz\0\0\0\0\0\0\0\0\0",
    ];
    SIZES[random.random_range(0..SIZES.len())]
}

fn file(path: &str, bytes: Vec<u8>) -> Member {
    Member { path: path.to_owned(), kind: b'0', link: String::new(), bytes, claimed: None }
}

fn write(members: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    for member in members {
        archive.extend(header(member));
        archive.extend(&member.bytes);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn header(member: &Member) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let bytes = &bytes[..bytes.len().min(most)];
        header[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, member.path.as_bytes(), 100);
    put(100, b"0000755\0", 8);
    put(108, b"0000000\0", 8);
    put(116, b"0000000\0", 8);
    put(
        124,
        &member
            .claimed
            .unwrap_or(*format!("{:011o}\0", member.bytes.len()).as_bytes().first_chunk().unwrap_or(&[0; 12])),
        12,
    );
    put(136, b"00000000000\0", 12);
    put(148, b"        ", 8);
    put(156, &[member.kind], 1);
    put(157, member.link.as_bytes(), 100);
    put(257, b"ustar\x0000", 8);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_what_a_library_reads() {
        let members =
            [file("a/b", b"hello".to_vec()), Member { kind: b'2', link: "a/b".into(), ..file("l", Vec::new()) }];
        let bytes = write(&members);
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<(String, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), entry.size()))
            .collect();
        assert_eq!(found, [("a/b".to_owned(), 5), ("l".to_owned(), 0)]);
    }
}
