//! The files by which a container resolves names: hosts(5), hostname(5) and resolv.conf(5).

use std::fs;
use std::io;
use std::path::Path;

use shoal_protocol::spec::settings::{Dns, HOST_GATEWAY};

use super::NETWORK_FILES;
use crate::driver::embedded::bundle::Bundle;

/// What every container knows. Source: Docker.
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                           ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Writes the files into the container's directory, from where they are mounted.
pub fn write(directory: &Path, bundle: &Bundle) -> io::Result<()> {
    let mut hosts = LOCAL_HOSTS.to_owned();
    for entry in &bundle.plan.settings.hosts {
        hosts.push_str(&host_entry(entry, &bundle.gateway.to_string()));
    }
    hosts.push_str(&format!("{}\t{}\n", bundle.address, bundle.hostname));
    let mut resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // A resolver on the host's loopback is out of the container's reach; systemd keeps the real list elsewhere.
    if resolv.lines().any(is_local) {
        resolv = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(resolv);
    }
    let resolv = resolver(&resolv, &bundle.plan.settings.dns);
    for (name, text) in NETWORK_FILES.iter().zip([hosts, format!("{}\n", bundle.hostname), resolv]) {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

fn host_entry(entry: &str, gateway: &str) -> String {
    let words: Vec<&str> = entry.split_whitespace().collect();
    match words.split_first() {
        Some((&address, names)) => {
            let address = if address == HOST_GATEWAY { gateway } else { address };
            format!("{address}\t{}\n", names.join(" "))
        }
        None => String::new(),
    }
}

fn is_local(line: &str) -> bool {
    line.starts_with("nameserver 127.") || line.starts_with("nameserver ::1")
}

/// Replaces in the node's file what the container has of its own. Source: moby, `libnetwork/internal/resolvconf`.
fn resolver(node: &str, dns: &Dns) -> String {
    let replaced = [
        ("nameserver", !dns.nameservers.is_empty()),
        ("search", !dns.search.is_empty()),
        ("domain", !dns.search.is_empty()),
        ("options", !dns.options.is_empty()),
    ];
    let is_kept = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        !is_local(line) && !replaced.contains(&(word, true))
    };
    let mut text: String = node.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
    text.extend(dns.nameservers.iter().map(|server| format!("nameserver {server}\n")));
    // A single dot asks for no search at all.
    match dns.search.iter().filter(|domain| *domain != ".").cloned().collect::<Vec<_>>() {
        domains if domains.is_empty() => {}
        domains => text.push_str(&format!("search {}\n", domains.join(" "))),
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_container_has_replaces_what_the_node_has() {
        let node = "# of the node\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch a.b\noptions edns0\n";
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (servers, search, options, want) in [
            (&[][..], &[][..], &[][..], "# of the node\nnameserver 10.0.0.1\nsearch a.b\noptions edns0\n"),
            (
                &["1.1.1.1", "::2"],
                &[],
                &[],
                "# of the node\nsearch a.b\noptions edns0\nnameserver 1.1.1.1\nnameserver ::2\n",
            ),
            (&[], &["c", "d"], &["ndots:1"], "# of the node\nnameserver 10.0.0.1\nsearch c d\noptions ndots:1\n"),
            (&[], &["."], &[], "# of the node\nnameserver 10.0.0.1\noptions edns0\n"),
        ] {
            let dns = Dns { nameservers: texts(servers), search: texts(search), options: texts(options) };
            assert_eq!(resolver(node, &dns), want, "{dns:?}");
        }
        assert_eq!(host_entry("1.2.3.4  a b", "10.0.0.1"), "1.2.3.4\ta b\n");
        assert_eq!(host_entry("host-gateway me", "10.0.0.1"), "10.0.0.1\tme\n");
    }
}
