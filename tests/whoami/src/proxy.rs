//! The header by which a proxy tells who its client is. Source: HAProxy, `doc/proxy-protocol.txt`, sections 2.1 and 2.2.
//!
//! Written from the specification and not from what shoal writes, which it is there to check.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;

/// What a header said.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// 1 or 2.
    pub version: u8,
    /// Who connected.
    pub client: SocketAddr,
    /// To which address.
    pub server: SocketAddr,
}

/// Reads a header and not a byte more.
pub fn read(stream: &mut impl Read) -> io::Result<Told> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start)?;
    if start == SIGNATURE { read_binary(stream) } else { read_line(stream, start.to_vec()) }
}

fn read_line(stream: &mut impl Read, mut line: Vec<u8>) -> io::Result<Told> {
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(invalid("a line of version 1 has no end"));
        }
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let line = std::str::from_utf8(&line).map_err(io::Error::other)?;
    let words: Vec<&str> = line.trim_end_matches("\r\n").split(' ').collect();
    let ["PROXY", family, from, to, from_port, to_port] = words[..] else {
        return Err(invalid("not a line of version 1"));
    };
    let address = |ip: &str, port: &str| -> io::Result<SocketAddr> {
        let ip: IpAddr = ip.parse().map_err(io::Error::other)?;
        if ip.is_ipv4() != (family == "TCP4") || ip.is_ipv6() != (family == "TCP6") {
            return Err(invalid("an address is of another family"));
        }
        Ok(SocketAddr::new(ip, port.parse().map_err(io::Error::other)?))
    };
    Ok(Told { version: 1, client: address(from, from_port)?, server: address(to, to_port)? })
}

fn read_binary(stream: &mut impl Read) -> io::Result<Told> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let [command, family, length @ ..] = head;
    if command != 0x21 {
        return Err(invalid("not a connection that is passed on in version 2"));
    }
    let mut rest = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut rest)?;
    let (client, server) = match family {
        0x11 => {
            let [from, to]: [[u8; 4]; 2] = addresses(&rest).ok_or_else(|| invalid("too short"))?;
            (IpAddr::from(Ipv4Addr::from(from)), IpAddr::from(Ipv4Addr::from(to)))
        }
        0x21 => {
            let [from, to]: [[u8; 16]; 2] = addresses(&rest).ok_or_else(|| invalid("too short"))?;
            (IpAddr::from(Ipv6Addr::from(from)), IpAddr::from(Ipv6Addr::from(to)))
        }
        _ => return Err(invalid("not TCP over IPv4 or IPv6")),
    };
    let ports = rest.get(if family == 0x11 { 8..12 } else { 32..36 }).ok_or_else(|| invalid("too short"))?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Ok(Told { version: 2, client: SocketAddr::new(client, port(0)), server: SocketAddr::new(server, port(2)) })
}

fn addresses<const BYTES: usize>(bytes: &[u8]) -> Option<[[u8; BYTES]; 2]> {
    Some([*bytes.first_chunk()?, *bytes.get(BYTES..)?.first_chunk()?])
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_to_their_end() {
        let mut v4 = SIGNATURE.to_vec();
        v4.extend([0x21, 0x11, 0, 12, 192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb]);
        let mut v6 = SIGNATURE.to_vec();
        v6.extend([0x21, 0x21, 0, 36]);
        v6.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
        v6.extend([0, 7, 0, 80]);
        for (header, version, client, server) in [
            (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n".to_vec(), 1, "192.168.0.1:56324", "192.168.0.11:443"),
            (b"PROXY TCP6 fd00::1 ::1 1 2\r\n".to_vec(), 1, "[fd00::1]:1", "[::1]:2"),
            (v4, 2, "192.168.0.1:56324", "192.168.0.11:443"),
            (v6, 2, "[::1]:7", "[::1]:80"),
        ] {
            let bytes = [&header[..], b"GET /"].concat();
            let mut rest = &bytes[..];
            let told = read(&mut rest).unwrap();
            let want = Told { version, client: client.parse().unwrap(), server: server.parse().unwrap() };
            assert_eq!((told, rest), (want, &b"GET /"[..]));
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04abcd",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            &long,
        ] {
            assert!(read(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
