//! Where a registry is, how far it has to prove that, and where it may send a question. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;
use shoal_protocol::image::Reference;

const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// A registry that need not prove who it is, as names of images have it: `HOST` or `HOST:PORT`. Source: Docker, `dockerd
/// --insecure-registry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insecure(String);

impl FromStr for Insecure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") || text.contains('/') {
            return Err(format!("'{text}' is not HOST[:PORT]: leave out the scheme; ranges are not supported"));
        }
        // Whatever can stand before an image's path.
        let is_host = |host: &str| Reference::parse(&format!("{host}/x")).is_some_and(|name| name.registry() == host);
        let with_port = if text.contains(':') { text.to_owned() } else { format!("{text}:{HTTPS_PORT}") };
        if is_host(&with_port) || is_host(text) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!("'{text}' is not HOST[:PORT]"))
        }
    }
}

/// A host that questions are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// A name or an address, an IPv6 address without brackets.
    pub(super) host: String,
    /// `None` means that of the scheme, which is not known before something answers.
    pub(super) port: Option<u16>,
    /// Whether it is believed whoever it says it is, and may speak without TLS.
    pub(super) is_trusted: bool,
}

impl Place {
    /// Returns where a registry is.
    pub(super) fn of_registry(registry: &str, insecure: &[Insecure]) -> Self {
        let (host, port) = split(registry);
        let is_listed = insecure.iter().any(|Insecure(listed)| registry.eq_ignore_ascii_case(listed));
        let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        Self { host, port, is_trusted: is_listed || is_loopback }
    }

    /// Returns the place of an address that this place named. Whoever proves who it is must not lead to somebody who does not.
    pub(super) fn beside(&self, uri: &Uri) -> Result<Self, String> {
        let authority = uri.authority().ok_or_else(|| format!("{uri} names no host"))?;
        if authority.as_str().contains('@') {
            return Err(format!("it leads to {uri}, which names a user"));
        }
        let (host, port) = split(authority.as_str());
        match uri.scheme_str() {
            Some("https") if self.is_trusted && (&host, port) == (&self.host, self.port) => Ok(self.clone()),
            Some("https") => Ok(Self { host, port, is_trusted: false }),
            Some("http") if self.is_trusted => Ok(Self { host, port: port.or(Some(HTTP_PORT)), is_trusted: true }),
            Some("http") => Err(format!("it leads to {uri}, which is not encrypted")),
            _ => Err(format!("it leads to {uri}, which is neither HTTPS nor HTTP")),
        }
    }

    /// Returns where an answer of this place sends a question.
    pub(super) fn resolve(&self, location: &str) -> Result<(Self, String), String> {
        let uri: Uri =
            location.parse().map_err(|_| format!("it sends a question to '{location}', which makes no sense"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if uri.scheme().is_none() && location.starts_with('/') && !location.starts_with("//") {
            return Ok((self.clone(), path));
        }
        Ok((self.beside(&uri)?, path))
    }

    /// Returns whether both are one host.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host) && self.port == other.port && self.is_trusted == other.is_trusted
    }

    /// Returns what a request names as its host.
    pub(super) fn authority(&self) -> String {
        self.to_string()
    }

    /// Returns the port, given whether TLS is spoken.
    pub(super) fn port(&self, is_tls: bool) -> u16 {
        self.port.unwrap_or(if is_tls { HTTPS_PORT } else { HTTP_PORT })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(&host),
        }
    }
}

/// Splits `HOST[:PORT]`, where an IPv6 address is in brackets.
fn split(authority: &str) -> (String, Option<u16>) {
    if let Some((address, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address.to_owned(), rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), port.parse().ok()),
        None => (authority.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_need_not_prove_anything_is_listed_or_here() {
        let listed: Vec<Insecure> = ["a.example", "b.example:5000"].iter().map(|text| text.parse().unwrap()).collect();
        for (registry, want) in [
            ("a.example", true),
            ("A.example", true),
            ("a.example:443", false),
            ("b.example:5000", true),
            ("b.example", false),
            ("localhost", true),
            ("localhost:5000", true),
            ("127.3.2.1:5000", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
        ] {
            assert_eq!(Place::of_registry(registry, &listed).is_trusted, want, "{registry}");
        }
        for text in ["http://a", "a/b", "10.0.0.0/8", "", "a:b", "a b"] {
            assert!(text.parse::<Insecure>().is_err(), "{text}");
        }
        assert!("registry".parse::<Insecure>().is_ok() && "registry:5000".parse::<Insecure>().is_ok());
    }

    #[test]
    fn who_proves_who_it_is_leads_only_to_others_that_do() {
        let secure = Place::of_registry("a.example", &[]);
        let here = Place::of_registry("127.0.0.1:5000", &[]);
        for (from, location, want) in [
            (&secure, "https://cdn.example/x?a=b", Some(("cdn.example", "/x?a=b", false))),
            (&secure, "/elsewhere", Some(("a.example", "/elsewhere", false))),
            (&secure, "http://cdn.example/x", None),
            (&secure, "//cdn.example/x", None),
            (&secure, "https://user:password@cdn.example/x", None),
            (&secure, "ftp://cdn.example/x", None),
            (&secure, "", None),
            (&secure, "x", None),
            (&here, "http://127.0.0.1:5000/x", Some(("127.0.0.1:5000", "/x", true))),
            (&here, "http://other.example/x", Some(("other.example:80", "/x", true))),
            (&here, "https://other.example/x", Some(("other.example", "/x", false))),
        ] {
            let got = from.resolve(location).ok().map(|(place, path)| (place.to_string(), path, place.is_trusted));
            let want = want.map(|(place, path, trusted)| (place.to_owned(), path.to_owned(), trusted));
            assert_eq!(got, want, "{location}");
        }
    }
}
