//! Streams by protocol, each on a connection of the caller's choice.
//!
//! `libp2p-stream` does nearly this, but it opens streams on any connection to a peer and drops inbound streams whenever one
//! is waiting already. Admission is per connection here, and a burst of tunnels must not lose any, so the behaviour is our
//! own: inbound streams come as events that name their connection, outbound ones are asked for by connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, StreamUpgradeError,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, Stream, StreamProtocol, SubstreamProtocol, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

/// Inbound streams that wait on one connection for the loop to take them; more are dropped, which the opener sees.
const INBOUND_WAITING_MAX: usize = 512;

/// Where an opened stream, or the reason why there is none, goes.
pub(super) type OpenReply = oneshot::Sender<io::Result<Stream>>;

/// A request to open a stream.
pub(super) struct Open {
    protocol: StreamProtocol,
    reply: OpenReply,
}

/// A stream that a peer opened.
pub(super) struct Inbound {
    /// On which connection.
    pub(super) connection: ConnectionId,
    /// For which of the accepted protocols.
    pub(super) protocol: StreamProtocol,
    /// The stream itself.
    pub(super) stream: Stream,
}

/// The network behaviour: accepts streams of the given protocols and opens streams on request.
pub(super) struct Streams {
    accepted: Vec<StreamProtocol>,
    requests: VecDeque<(PeerId, ConnectionId, Open)>,
    arrived: VecDeque<Inbound>,
}

impl Streams {
    /// Makes a behaviour that accepts `accepted`.
    pub(super) fn new(accepted: Vec<StreamProtocol>) -> Self {
        Self { accepted, requests: VecDeque::new(), arrived: VecDeque::new() }
    }

    /// Opens a stream on a connection. If the connection goes away first, the reply's sender is dropped.
    pub(super) fn open(&mut self, peer: PeerId, connection: ConnectionId, protocol: StreamProtocol, reply: OpenReply) {
        self.requests.push_back((peer, connection, Open { protocol, reply }));
    }

    fn handler(&self) -> Handler {
        Handler { accepted: self.accepted.clone(), requests: VecDeque::new(), arrived: VecDeque::new() }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, connection: ConnectionId, event: Negotiated) {
        let Negotiated { protocol, stream } = event;
        self.arrived.push_back(Inbound { connection, protocol, stream });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Inbound, Open>> {
        if let Some((peer_id, connection, event)) = self.requests.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
        }
        match self.arrived.pop_front() {
            Some(inbound) => Poll::Ready(ToSwarm::GenerateEvent(inbound)),
            None => Poll::Pending,
        }
    }
}

/// One connection's part of the behaviour.
pub(super) struct Handler {
    accepted: Vec<StreamProtocol>,
    requests: VecDeque<Open>,
    arrived: VecDeque<Negotiated>,
}

/// A stream that a peer opened on one connection.
pub(super) struct Negotiated {
    protocol: StreamProtocol,
    stream: Stream,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Negotiated;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenReply;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols, ()> {
        SubstreamProtocol::new(Protocols(self.accepted.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true // The swarm's loop decides which connections end, and when.
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Protocols, OpenReply, Negotiated>> {
        if let Some(Open { protocol, reply }) = self.requests.pop_front() {
            let protocol = SubstreamProtocol::new(Protocols(vec![protocol]), reply);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        match self.arrived.pop_front() {
            Some(negotiated) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(negotiated)),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.requests.push_back(open);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), OpenReply>) {
        // The replies' receivers may have given up; then the stream is dropped here, which closes it.
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => {
                self.arrived.push_back(Negotiated { protocol, stream });
                self.arrived.truncate(INBOUND_WAITING_MAX);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info }) => {
                let _ = info.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.send(Err(match error {
                    StreamUpgradeError::Timeout => io::ErrorKind::TimedOut.into(),
                    StreamUpgradeError::NegotiationFailed => io::ErrorKind::Unsupported.into(),
                    StreamUpgradeError::Io(error) => error,
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {} // The enum is non-exhaustive and foreign; the rest concerns other protocols.
        }
    }
}

/// Negotiates one of several protocols and returns the bare stream.
pub(super) struct Protocols(Vec<StreamProtocol>);

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Open({})", self.protocol)
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbound({}, {})", self.connection, self.protocol)
    }
}

impl fmt::Debug for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Negotiated({})", self.protocol)
    }
}
