//! The node's side of its containers' network: a bridge, one pair of virtual interfaces a container, and the way out.
//!
//! Containers reach the world through the host's address where the `nft` program can arrange it, and nothing reaches them
//! from outside this host but answers: published ports are served by the daemon's ingress. Several nodes may share one
//! host, so everything carries the node's identifier.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest, Sha256};
use shoal_protocol::subnet::Subnet;
use shoal_protocol::{NodeId, TaskId};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::bundle::{read_json, write_json};
use super::images::hex;
use super::subnet::{Addresses, NODE_PREFIX, choose};
use crate::supervisor::INTERFACE;

/// How long other nodes of this host may take to choose their block.
const CHOICE_MAX: Duration = Duration::from_secs(10);
/// How long `nft` may take.
const NFT_MAX: Duration = Duration::from_secs(10);

const ENODEV: i32 = -libc::ENODEV;
const EEXIST: i32 = -libc::EEXIST;

/// The bridge of a node.
pub struct Network {
    node: NodeId,
    handle: Handle,
    connection: JoinHandle<()>,
    bridge: u32,
    subnet: Subnet,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Network {
    /// Creates the bridge, or finds the one that an earlier daemon of this node has left.
    pub async fn open(data_dir: &Path, node: NodeId, pool: Subnet) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut network = Self { node, handle, connection, bridge: 0, subnet: pool };
        let place = data_dir.join("network.json");
        let before: Option<Subnet> = read_json(&place)?;
        {
            let _choosing = exclusive().await?;
            let own = network.link_index(&bridge_name(node)).await?;
            let taken = network.taken(own).await?;
            let seed = Sha256::digest(node.to_string());
            let seed = u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]);
            network.subnet = choose(pool, before, seed, &taken)
                .ok_or_else(|| io::Error::other(format!("no free /{NODE_PREFIX} in the container pool {pool}")))?;
            network.create_bridge(own).await.map_err(io::Error::other)?;
        }
        write_json(&place, &network.subnet)?;
        network.connect_to_world().await;
        Ok(network)
    }

    /// Returns the node's block of addresses.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Gives the network namespace of a process an interface with the container's hardware address.
    ///
    /// That address follows from the IP address, so neighbours that remember an earlier container are not misled.
    pub async fn connect(&self, task: TaskId, address: Ipv4Addr, pid: u32) -> io::Result<()> {
        let [a, b, c, d] = address.octets();
        let peer = LinkUnspec::new_with_name(INTERFACE).address(vec![0x02, 0x42, a, b, c, d]).setns_by_pid(pid).build();
        let name = link_name(self.node, task);
        let message = LinkVeth::new(&name, INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .up()
            .build();
        match self.handle.link().add(message.clone()).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == EEXIST => {
                // Of an attempt that ended before its namespace was cleared away.
                self.disconnect(task).await?;
                self.handle.link().add(message).execute().await.map_err(io::Error::other)
            }
            other => other.map_err(io::Error::other),
        }
    }

    /// Removes a container's interface at once; without this it goes some time after the container.
    pub async fn disconnect(&self, task: TaskId) -> io::Result<()> {
        self.delete_link(&link_name(self.node, task)).await
    }

    /// Removes bridge and packet rules.
    pub async fn remove(&self) -> io::Result<()> {
        if let Err(error) = nft(&format!("table ip {0}\ndelete table ip {0}\n", table_name(self.node))).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "failed to remove packet rules");
        }
        self.delete_link(&bridge_name(self.node)).await
    }

    async fn create_bridge(&mut self, own: Option<u32>) -> Result<(), rtnetlink::Error> {
        let name = bridge_name(self.node);
        let links = self.handle.link();
        if own.is_none() {
            // An address of its own: otherwise the bridge takes that of a container, and changes it with them.
            let mut mac = Sha256::digest(&name)[..6].to_vec();
            mac[0] = 0x02;
            links.add(LinkBridge::new(&name).address(mac).build()).execute().await?;
        }
        self.bridge = self.link_index(&name).await.ok().flatten().ok_or(rtnetlink::Error::RequestFailed)?;
        let address = self.subnet.host(Addresses::GATEWAY);
        self.handle.address().add(self.bridge, address.into(), NODE_PREFIX).replace().execute().await?;
        links.set(LinkUnspec::new_with_index(self.bridge).up().build()).execute().await
    }

    /// Lists what interfaces and routes use, but for the node's own bridge.
    async fn taken(&self, own: Option<u32>) -> io::Result<Vec<Subnet>> {
        let mut taken = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(io::Error::other)? {
            for attribute in &message.attributes {
                if let AddressAttribute::Address(std::net::IpAddr::V4(address)) = attribute
                    && Some(message.header.index) != own
                {
                    taken.push(Subnet::new(*address, message.header.prefix_len));
                }
            }
        }
        let mut routes = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(message) = routes.try_next().await.map_err(io::Error::other)? {
            let is_own =
                message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if Some(*index) == own));
            for attribute in &message.attributes {
                if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute
                    && message.header.address_family == AddressFamily::Inet
                    && message.header.destination_prefix_length > 0
                    && !is_own
                {
                    taken.push(Subnet::new(*address, message.header.destination_prefix_length));
                }
            }
        }
        Ok(taken)
    }

    async fn connect_to_world(&self) {
        let table = table_name(self.node);
        let bridge = bridge_name(self.node);
        let subnet = self.subnet;
        let rules = format!(
            "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n\
             chain postrouting {{ type nat hook postrouting priority 100; policy accept;\n\
             ip saddr {subnet} oifname != \"{bridge}\" masquerade\n}}\n\
             chain forward {{ type filter hook forward priority 0; policy accept;\n\
             oifname \"{bridge}\" iifname != \"{bridge}\" ct state != {{ established, related }} drop\n}}\n}}\n"
        );
        let forwarding = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        let result = nft(&rules).await.and(forwarding);
        if let Err(error) = result {
            tracing::warn!(%error, "containers of this node cannot reach other networks: no packet rules could be set");
        }
    }

    async fn link_index(&self, name: &str) -> io::Result<Option<u32>> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute().boxed();
        match links.try_next().await {
            Ok(link) => Ok(link.filter(|link| has_name(&link.attributes, name)).map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == ENODEV => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn delete_link(&self, name: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == ENODEV => Ok(()),
            other => other.map_err(io::Error::other),
        }
    }
}

fn has_name(attributes: &[LinkAttribute], name: &str) -> bool {
    attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(found) if found == name))
}

fn bridge_name(node: NodeId) -> String {
    format!("shl-{}", &node.to_string()[..8])
}

fn table_name(node: NodeId) -> String {
    format!("shoal-{}", &node.to_string()[..8])
}

/// Names of interfaces have 15 characters, which hold neither identifier.
fn link_name(node: NodeId, task: TaskId) -> String {
    format!("shv{}", &hex(&Sha256::digest(format!("{node} {task}")))[..12])
}

/// Keeps other nodes of this network namespace from choosing at the same time. The kernel forgets it with the process.
async fn exclusive() -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name("shoal-container-pool")?;
    let deadline = Instant::now() + CHOICE_MAX;
    loop {
        match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}

async fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let run = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = timeout(NFT_MAX, run).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
