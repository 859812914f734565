//! A node that speaks the right transport (TCP, Noise, Yamux) with a key of its own, and has no credential.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, noise, tcp, yamux};
use shoal_tests::http;

/// How long a node may take to throw a stranger out.
const DEADLINE: Duration = Duration::from_secs(60);

/// What nodes say to each other, and something that they do not.
const PROTOCOLS: [&str; 8] = [
    "/shoal/hello/1",
    "/shoal/join/1",
    "/shoal/control/1",
    "/shoal/tunnel/1",
    "/shoal/api/1",
    "/shoal/renew/1",
    "/shoal/secret/2",
    "/shoal/nonsense/1",
];

/// What is said: frames are their length in four bytes, big-endian, and so many bytes.
fn sayings() -> [(&'static str, Vec<u8>); 4] {
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    [
        ("nothing", Vec::new()),
        ("an empty body of a known version", frame(&[1])),
        (
            "a frame of noise",
            frame(&(0..8192u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>()),
        ),
        ("an oversized frame", [&u32::MAX.to_be_bytes()[..], &[0xff; 1 << 20]].concat()),
    ]
}

/// Says everything to a node on every protocol, each on a connection and under a name of its own, all at once. The node must
/// answer nothing and hang up each time. Returns how often it did.
pub(crate) fn intrude(namespace: Option<PathBuf>, address: SocketAddr) -> Result<usize> {
    http::in_namespace(namespace.as_deref(), || {
        // On this thread alone: only it is in the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sayings = sayings();
        let visits = PROTOCOLS.iter().flat_map(|protocol| sayings.iter().map(move |saying| (protocol, saying)));
        let visits = visits.map(|(protocol, (name, bytes))| async move {
            let context = || format!("{name} on {protocol}");
            let said = tokio::time::timeout(DEADLINE, say(address, protocol, bytes)).await;
            let answer = said.with_context(context)?.with_context(context)?;
            ensure!(answer.is_empty(), "{} was answered: {answer:?}", context());
            Ok(())
        });
        let results = runtime.block_on(futures::future::join_all(visits));
        let count = results.len();
        results.into_iter().collect::<Result<()>>().map(|()| count)
    })
}

/// Connects, opens a stream, says something on it and waits until the node closes the connection. Returns what it answered.
async fn say(address: SocketAddr, protocol: &'static str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut swarm = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| libp2p_stream::Behaviour::new())?
        .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE * 2))
        .build();
    let target: Multiaddr = format!("/ip4/{}/tcp/{}", address.ip(), address.port()).parse()?;
    swarm.dial(target)?;
    let peer = connected(&mut swarm).await?;
    let mut control = swarm.behaviour().new_control();
    let talk = async {
        // A node that does not know the protocol, or has hung up already, opens no stream.
        let Ok(mut stream) = control.open_stream(peer, StreamProtocol::new(protocol)).await else {
            return Vec::new();
        };
        let mut answer = Vec::new();
        let said = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        let _ = said.await;
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let (answer, ()) = futures::join!(talk, closed(&mut swarm));
    Ok(answer)
}

async fn connected(swarm: &mut Swarm<libp2p_stream::Behaviour>) -> Result<PeerId> {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
            SwarmEvent::OutgoingConnectionError { error, .. } => bail!("the handshake failed: {error}"),
            _ => {}
        }
    }
}

async fn closed(swarm: &mut Swarm<libp2p_stream::Behaviour>) {
    while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionClosed { .. }) {}
}
