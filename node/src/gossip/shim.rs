//! chitchat's transport over bytes of our own.
//!
//! chitchat 0.13 keeps its wire codec to itself, and only its own UDP socket can use it. So two sockets on the loopback
//! interface do the encoding: what chitchat sends goes through its socket to ours and comes out as bytes, what is received
//! goes from ours through its socket and comes out decoded. Both check whom datagrams come from, since any local process may
//! send some.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use chitchat::ChitchatEnvelope;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a datagram may take from one loopback socket to the other; longer means that it could not be decoded.
const LOOPBACK_TIMEOUT: Duration = Duration::from_millis(100);

/// Bytes of the largest datagram over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

type Frame = (SocketAddr, Vec<u8>);

/// Makes the one socket that chitchat opens.
pub(super) struct Shim {
    advertise: SocketAddr,
    channels: Mutex<Option<(mpsc::Receiver<Frame>, mpsc::Sender<Frame>)>>,
}

impl Shim {
    pub(super) fn new(advertise: SocketAddr, inbound: mpsc::Receiver<Frame>, outbound: mpsc::Sender<Frame>) -> Self {
        Self { advertise, channels: Mutex::new(Some((inbound, outbound))) }
    }
}

#[async_trait]
impl Transport for Shim {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let channels = self.channels.lock().map(|mut channels| channels.take()).ok().flatten();
        let (inbound, outbound) = channels.context("the transport was opened before")?;
        let codec = UdpSocket::open(LOOPBACK).await?;
        let codec_address = codec.local_addr()?;
        let ours = tokio::net::UdpSocket::bind(LOOPBACK).await.context("failed to bind a loopback socket")?;
        // A connected socket takes datagrams from its peer only.
        ours.connect(codec_address).await.context("failed to connect two loopback sockets")?;
        let own_address = ours.local_addr().context("failed to read a socket's address")?;
        Ok(Box::new(ShimSocket {
            advertise: self.advertise,
            codec,
            ours,
            own_address,
            inbound,
            outbound,
            decoding: None,
            decoded: VecDeque::new(),
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        }))
    }
}

struct ShimSocket {
    advertise: SocketAddr,
    codec: UdpSocket,
    ours: tokio::net::UdpSocket,
    own_address: SocketAddr,
    inbound: mpsc::Receiver<Frame>,
    outbound: mpsc::Sender<Frame>,
    /// The sender of the frame that is being decoded. It outlives a call of `recv` that is given up half way.
    decoding: Option<SocketAddr>,
    decoded: VecDeque<RecvOutcome>,
    buffer: Vec<u8>,
}

#[async_trait]
impl Socket for ShimSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.advertise)
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        // An error here would end gossip for good, so whatever goes wrong with one message loses that message only.
        let sent = match self.codec.send(self.own_address, envelope).await {
            Ok(sent) => sent,
            Err(error) => {
                tracing::warn!(%error, "a gossip message cannot be encoded: the cluster may be too large");
                return Ok(SendOutcome { num_bytes_sent: 0 });
            }
        };
        if let Ok(Ok(bytes)) = timeout(LOOPBACK_TIMEOUT, self.ours.recv(&mut self.buffer)).await {
            let _ = self.outbound.try_send((to, self.buffer[..bytes].to_vec()));
        }
        Ok(sent)
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            if let Some(outcome) = self.decoded.pop_front() {
                return Ok(outcome);
            }
            let from = match self.decoding {
                Some(from) => from,
                None => {
                    let (from, bytes) = self.inbound.recv().await.context("gossip was stopped")?;
                    if self.ours.try_send(&bytes).is_err() {
                        continue; // Too long, or the loopback's buffer is full.
                    }
                    self.decoding = Some(from);
                    from
                }
            };
            let outcome = timeout(LOOPBACK_TIMEOUT, self.codec.recv()).await;
            match outcome {
                Ok(Ok(outcome)) if outcome.from_addr != self.own_address => {} // Some local process; go on waiting.
                Ok(Ok(outcome)) => {
                    self.decoding = None;
                    self.decoded.push_back(RecvOutcome { from_addr: from, ..outcome });
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.decoding = None;
                    tracing::debug!(address = %from, "a gossip message cannot be decoded");
                }
            }
        }
    }
}
