//! Names of images, as Docker reads them. Source: Docker, distribution reference.

use std::fmt;

/// Characters of a reference; a longer one is none.
const REFERENCE_CHARS_MAX: usize = 512;

/// Characters of a tag.
const TAG_CHARS_MAX: usize = 128;

/// What Docker Hub is called in names.
pub const HUB: &str = "docker.io";

/// `name`, `name:tag`, `name@digest` or `name:tag@digest`, in Docker's familiar form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a reference. `docker.io/library/busybox` and `busybox` mean the same.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > REFERENCE_CHARS_MAX {
            return None;
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon before the last slash belongs to a registry's port.
        let name_start = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[name_start..].split_once(':') {
            Some((last, tag)) => (format!("{}{last}", &rest[..name_start]), Some(tag.to_owned())),
            None => (rest.to_owned(), None),
        };
        let name = name.strip_prefix("docker.io/").or(name.strip_prefix("index.docker.io/")).unwrap_or(&name);
        let short = name.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        let name = short.unwrap_or(name).to_owned();
        let (host, path) = split_host(&name);
        // Sixty-four hexadecimal digits are taken for the identifier of an image.
        let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let good = host.is_none_or(is_host)
            && path.split('/').all(is_path_part)
            && tag.as_deref().is_none_or(is_tag)
            && !is_id;
        (good && digest.as_deref().is_none_or(is_digest)).then_some(Self { name, tag, digest })
    }

    /// Returns `name:tag`, with `latest` for no tag; `None` if it names a digest alone.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (None, Some(_)) => None,
            (tag, _) => Some(format!("{}:{}", self.name, tag.as_deref().unwrap_or("latest"))),
        }
    }

    /// Returns the same reference, with the tag `latest` if it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Returns the registry: `HOST` or `HOST:PORT`, [`HUB`] if none is named.
    pub fn registry(&self) -> &str {
        split_host(&self.name).0.unwrap_or(HUB)
    }

    /// Returns the repository within the registry, such as `library/busybox`.
    pub fn repository(&self) -> String {
        match split_host(&self.name) {
            (Some(_), path) => path.to_owned(),
            (None, path) if path.contains('/') => path.to_owned(),
            (None, path) => format!("library/{path}"),
        }
    }

    /// Returns what a registry finds the manifest by: the digest, else the tag, else `latest`.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Returns whether this is `sha256:` with 64 hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns whether this is lower-case letters and digits, in groups parted by a dot, one or two underscores, or dashes.
fn is_path_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    part.starts_with(is_word) && part.ends_with(is_word) && part.split(is_word).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_CHARS_MAX && tag.starts_with(is_word) && tag.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

/// Splits a name into the registry's host, if there is one, and the rest. Without a dot or a colon, what comes first is a user
/// of Docker Hub.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    }
}

/// Returns whether this is `NAME`, `NAME:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => match rest.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if rest.is_empty() => ("v6", None),
            None => return false,
        },
        _ => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_one_normal_form() {
        for (text, want) in [
            ("busybox", Some("busybox:latest")),
            ("docker.io/library/busybox:1", Some("busybox:1")),
            ("docker.io/shoal/whoami", Some("shoal/whoami:latest")),
            ("registry:5000/a/b", Some("registry:5000/a/b:latest")),
            ("registry:5000/a/b:2", Some("registry:5000/a/b:2")),
            ("[::1]:5000/a:2", Some("[::1]:5000/a:2")),
            ("../etc/passwd", None),
            ("", None),
            ("a b", None),
            ("a:", None),
            ("a//b", None),
            ("a@sha256:12", None),
            ("host:port/a", None),
            ("host:0/a", None),
            ("[::1/a", None),
            ("[x]:5000/a", None),
            ("-a.b/c", None),
            ("a:b:c", None),
            ("a__b/c--d.e:V1_.-", Some("a__b/c--d.e:V1_.-")),
            ("Nginx", None),
            ("a/B", None),
            ("a..b", None),
            ("a___b", None),
            ("a-", None),
            ("a:-1", None),
            (&"0123456789abcdef".repeat(4), None),
            (&format!("a:{}", "1".repeat(129)), None),
        ] {
            assert_eq!(Reference::parse(text).and_then(|reference| reference.tagged()).as_deref(), want, "{text:?}");
        }
        let digest = format!("sha256:{}", "ab".repeat(32));
        let reference = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!((reference.tagged(), reference.digest), (None, Some(digest)));
    }

    #[test]
    fn references_lead_to_registries_as_with_docker() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let pinned = format!("a.example/b/c:1@{digest}");
        for (text, registry, repository, version, shown) in [
            ("nginx", HUB, "library/nginx", "latest", "nginx:latest"),
            ("docker.io/library/nginx:1", HUB, "library/nginx", "1", "nginx:1"),
            ("index.docker.io/nginx", HUB, "library/nginx", "latest", "nginx:latest"),
            ("grafana/grafana:10", HUB, "grafana/grafana", "10", "grafana/grafana:10"),
            ("library/a/b", HUB, "library/a/b", "latest", "library/a/b:latest"),
            ("localhost/a", "localhost", "a", "latest", "localhost/a:latest"),
            ("127.0.0.1:5000/a/b:2", "127.0.0.1:5000", "a/b", "2", "127.0.0.1:5000/a/b:2"),
            (&pinned, "a.example", "b/c", &digest, &pinned),
        ] {
            let reference = Reference::parse(text).unwrap().with_default_tag();
            let got = (reference.registry(), &*reference.repository(), reference.version(), &*reference.to_string());
            assert_eq!(got, (registry, repository, version, shown), "{text}");
        }
    }
}
