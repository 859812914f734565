//! The header by which a task learns who its client is. Source: HAProxy, `doc/proxy-protocol.txt`, sections 2.1 and 2.2.

use std::net::{IpAddr, SocketAddr};

use shoal_protocol::spec::ProxyVersion;

/// What a header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY: the connection is another one's.
const VERSION_2_PROXY: u8 = 0x21;

/// TCP over IPv4, TCP over IPv6.
const TCP: (u8, u8) = (0x11, 0x21);

/// Returns what comes before the first byte of `client`, who connected to `server`, an address of this node.
///
/// An IPv4 client of a socket for both families is shown as one of IPv4.
pub fn header(version: ProxyVersion, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (from, to) = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V6(to)) => (from.to_ipv6_mapped().into(), to.into()),
        (IpAddr::V6(from), IpAddr::V4(to)) => (from.into(), to.to_ipv6_mapped().into()),
        same => same,
    };
    match version {
        ProxyVersion::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), server.port()).into_bytes()
        }
        ProxyVersion::V2 => {
            let mut addresses = Vec::new();
            for address in [from, to] {
                match address {
                    IpAddr::V4(address) => addresses.extend(address.octets()),
                    IpAddr::V6(address) => addresses.extend(address.octets()),
                }
            }
            addresses.extend(client.port().to_be_bytes());
            addresses.extend(server.port().to_be_bytes());
            let length = u16::try_from(addresses.len()).expect("two addresses and two ports are at most 36 bytes");
            let mut header = SIGNATURE.to_vec();
            header.extend([VERSION_2_PROXY, if from.is_ipv4() { TCP.0 } else { TCP.1 }]);
            header.extend(length.to_be_bytes());
            header.extend(addresses);
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(version: ProxyVersion, client: &str, server: &str) -> Vec<u8> {
        header(version, client.parse().unwrap(), server.parse().unwrap())
    }

    #[test]
    fn version_1_is_the_line_of_the_specification() {
        for (client, server, want) in [
            // The example of section 2.1.
            ("192.168.0.1:56324", "192.168.0.11:443", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
            ("[2001:db8::1]:1", "[::1]:65535", "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"),
            ("[::ffff:10.0.0.1]:5", "[::ffff:10.0.0.2]:80", "PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n"),
        ] {
            assert_eq!(String::from_utf8(bytes(ProxyVersion::V1, client, server)).unwrap(), want);
        }
        let longest = "[2001:1db8:1db8:1db8:1db8:1db8:1db8:1db8]:65535";
        assert_eq!(bytes(ProxyVersion::V1, longest, longest).len(), 104, "the longest that receivers must take");
    }

    #[test]
    fn version_2_is_as_the_specification_lays_it_out() {
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let v4 =
            [&signature[..], &[0x21, 0x11, 0, 12, 192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb]].concat();
        assert_eq!(bytes(ProxyVersion::V2, "192.168.0.1:56324", "192.168.0.11:443"), v4);
        assert_eq!(bytes(ProxyVersion::V2, "[::ffff:192.168.0.1]:56324", "192.168.0.11:443"), v4);
        let mut v6 = [&signature[..], &[0x21, 0x21, 0, 36]].concat();
        v6.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        v6.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        v6.extend([0x00, 0x01, 0xff, 0xff]);
        assert_eq!(bytes(ProxyVersion::V2, "[2001:db8::1]:1", "[::1]:65535"), v6);
    }
}
