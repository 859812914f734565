//! Where a daemon's API is, as its flags and its clients' flags name it. Source: Docker's `-H`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of the API over TCP when none is named and there is no TLS. Source: Docker.
pub const PORT_PLAIN: u16 = 2375;
/// The same with TLS.
pub const PORT_TLS: u16 = 2376;
/// The host of the API over TCP when none is named. Source: Docker.
const HOST_DEFAULT: &str = "localhost";

/// Where a daemon's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On a Unix socket, by its absolute path: `unix:///run/shoal/shoal.sock`.
    Unix(PathBuf),
    /// On a TCP port: `tcp://HOST[:PORT]`.
    Tcp(TcpEndpoint),
}

/// A host and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpEndpoint {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port, if one was named.
    pub port: Option<u16>,
}

impl TcpEndpoint {
    /// Returns the port: without one Docker's for connections with or without TLS.
    pub fn port(&self, with_tls: bool) -> u16 {
        self.port.unwrap_or(if with_tls { PORT_TLS } else { PORT_PLAIN })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(tcp) => write!(f, "tcp://{tcp}"),
        }
    }
}

impl fmt::Display for TcpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]", self.host) } else { f.write_str(&self.host) }?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(("unix", _)) => {
                Err("the path of a socket must be absolute, such as unix:///run/shoal/shoal.sock".to_owned())
            }
            Some(("tcp", rest)) => rest.parse().map(Self::Tcp),
            Some(("http" | "https", rest)) => {
                Err(format!("expected unix://PATH or tcp://HOST[:PORT]: did you mean 'tcp://{rest}'?"))
            }
            Some((scheme @ ("ssh" | "fd" | "npipe"), _)) => {
                Err(format!("{scheme}:// is not supported; use unix://PATH or tcp://HOST[:PORT]"))
            }
            None if text.starts_with('/') => {
                Err(format!("expected unix://PATH or tcp://HOST[:PORT]: did you mean 'unix://{text}'?"))
            }
            _ => Err("expected unix://PATH or tcp://HOST[:PORT]".to_owned()),
        }
    }
}

impl FromStr for TcpEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected tcp://HOST[:PORT], an IPv6 address in brackets".to_owned();
        let text = text.strip_suffix('/').unwrap_or(text);
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(expected)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| expected())?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(expected)?) })
            }
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if !text.starts_with('[') && !host.chars().all(is_plain) {
            return Err(expected());
        }
        let port = port.map(|port| port.parse::<u16>().map_err(|_| expected())).transpose()?;
        let host = if host.is_empty() { HOST_DEFAULT } else { host };
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_docker_reads_them() {
        for (text, want, port) in [
            ("unix:///run/x.sock", "unix:///run/x.sock", None),
            ("tcp://", "tcp://localhost", Some((2375, 2376))),
            ("tcp://:4", "tcp://localhost:4", Some((4, 4))),
            ("tcp://192.0.2.1", "tcp://192.0.2.1", Some((2375, 2376))),
            ("tcp://node-1.example:2377/", "tcp://node-1.example:2377", Some((2377, 2377))),
            ("tcp://[::1]", "tcp://[::1]", Some((2375, 2376))),
            ("tcp://[2001:db8::1]:99", "tcp://[2001:db8::1]:99", Some((99, 99))),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), want, "{text}");
            let ports = match endpoint {
                Endpoint::Unix(_) => None,
                Endpoint::Tcp(tcp) => Some((tcp.port(false), tcp.port(true))),
            };
            assert_eq!(ports, port, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_is_expected() {
        for (text, want) in [
            ("unix://relative", "must be absolute"),
            ("/run/x.sock", "did you mean 'unix:///run/x.sock'?"),
            ("http://h:1", "did you mean 'tcp://h:1'?"),
            ("ssh://h", "ssh:// is not supported"),
            ("fd://", "fd:// is not supported"),
            ("", "expected unix://PATH"),
            ("tcp://h:port", "expected tcp://HOST[:PORT]"),
            ("tcp://h:70000", "expected tcp://HOST[:PORT]"),
            ("tcp://h/path", "expected tcp://HOST[:PORT]"),
            ("tcp://::1", "an IPv6 address in brackets"),
            ("tcp://[::1", "an IPv6 address in brackets"),
            ("tcp://[h]:1", "an IPv6 address in brackets"),
            ("tcp://user@h", "expected tcp://HOST[:PORT]"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
