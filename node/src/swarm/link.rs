//! One link: the control stream to an admitted peer, its bounded queues, and the two tasks that read and write it.
//!
//! Links of one node follow each other strictly: a link's reader waits for its predecessor's before it reports anything, so
//! what the owner sees of a node is always `Up`, its messages, `Down`, in this order.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use shoal_protocol::NodeId;
use shoal_protocol::codec::{self, FRAME_BYTES_MAX};
use shoal_protocol::message::PeerMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stream::PeerStream;
use super::wire::{self, LENGTH_BYTES};
use super::{Priority, SwarmEvent};
use crate::identity::Credential;

/// Frames that wait for one peer in each of the two queues; more are dropped.
const QUEUE_FRAMES_MAX: usize = 1024;

/// Bytes that wait for one peer; own messages beyond are dropped.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Bytes that wait for one peer; bulk messages beyond are dropped.
const BULK_BYTES_MAX: usize = 8 << 20;

/// Bytes gathered before they are handed to the stream.
const BATCH_BYTES: usize = 64 << 10;

/// Bytes read at once, unless a longer frame has begun.
const READ_BYTES: usize = 8 << 10;

/// A link on which nothing was sent for so long gets a sign of life.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(1);

/// A link on which nothing was received for so long is closed and dialled anew.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(4);

/// A link heard within this time is thought to work.
const FRESH: Duration = Duration::from_millis(2500);

/// Streams beside the control stream that one side opens on a link at most. Both sides together stay below what yamux allows
/// on a connection, where one more would end the connection.
pub(super) const STREAMS_MAX: usize = 1536;

/// What is known of the peer at the other end, from its hello.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Its verified credential.
    pub(super) credential: Credential,
    /// Its process.
    pub(super) incarnation: u64,
    /// Where it can be dialled.
    pub(super) advertise: SocketAddr,
    /// Whether this node dialled.
    pub(super) dialled: bool,
}

/// A link as its users see it.
#[derive(Debug)]
pub(super) struct Link {
    /// The connection that carries it.
    pub(super) connection: ConnectionId,
    /// The connection's peer.
    pub(super) peer_id: PeerId,
    /// Who is there, as the link began.
    pub(super) peer: Peer,
    /// The credential that the peer showed last.
    shown: Mutex<Credential>,
    /// Limits the streams that this side opens.
    pub(super) opened: Arc<Semaphore>,
    /// Limits the streams that the other side opens.
    pub(super) accepted: Arc<Semaphore>,
    own: mpsc::Sender<Queued>,
    bulk: mpsc::Sender<Queued>,
    queued: Arc<AtomicUsize>,
    closing: CancellationToken,
    replaced: AtomicBool,
    started: Instant,
    heard_ms: AtomicU64,
}

/// A frame in a queue; dropping it returns its bytes to the budget.
#[derive(Debug)]
struct Queued {
    frame: Bytes,
    budget: Arc<AtomicUsize>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.frame.len(), Ordering::Relaxed);
    }
}

/// The receiving ends of a link's queues.
pub(super) struct Queues {
    own: mpsc::Receiver<Queued>,
    bulk: mpsc::Receiver<Queued>,
}

impl Link {
    /// Makes a link and the queues for [`Link::run`].
    pub(super) fn new(connection: ConnectionId, peer_id: PeerId, peer: Peer) -> (Arc<Self>, Queues) {
        let (own, own_queue) = mpsc::channel(QUEUE_FRAMES_MAX);
        let (bulk, bulk_queue) = mpsc::channel(QUEUE_FRAMES_MAX);
        let link = Self {
            connection,
            peer_id,
            peer,
            shown: Mutex::new(peer.credential),
            opened: Arc::new(Semaphore::new(STREAMS_MAX)),
            accepted: Arc::new(Semaphore::new(STREAMS_MAX)),
            own,
            bulk,
            queued: Arc::default(),
            closing: CancellationToken::new(),
            replaced: AtomicBool::new(false),
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
        };
        (Arc::new(link), Queues { own: own_queue, bulk: bulk_queue })
    }

    /// Returns the credential that the peer showed last.
    pub(super) fn credential(&self) -> Credential {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the peer has shown another credential of its own.
    pub(super) fn shows(&self, credential: Credential) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = credential;
    }

    /// Queues a frame, or drops it when too much waits already. Returns whether it was queued.
    pub(super) fn send(&self, frame: Bytes, priority: Priority) -> bool {
        let (queue, limit) = match priority {
            Priority::Own => (&self.own, QUEUE_BYTES_MAX),
            Priority::Bulk => (&self.bulk, BULK_BYTES_MAX),
        };
        let before = self.queued.fetch_add(frame.len(), Ordering::Relaxed);
        let queued = Queued { frame, budget: self.queued.clone() };
        before < limit && queue.try_send(queued).is_ok()
    }

    /// Ends the link; its owner is told that the node is down.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Returns what is cancelled when the link has ended, for the other streams of its connection.
    pub(super) fn ending(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Ends the link because another one to the same process takes its place, which its owner need not know.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::SeqCst);
        self.closing.cancel();
    }

    /// Decides whether a new connection to the same node takes over from this link.
    ///
    /// A new process always does, and so does a newer connection from the same side: whoever dials has no other. When both
    /// sides dialled at once, both keep the connection that the lower identifier dialled, unless that seems to be dead.
    pub(super) fn yields_to(&self, new: &Peer, own: NodeId) -> bool {
        if new.incarnation != self.peer.incarnation || new.dialled == self.peer.dialled {
            return true;
        }
        new.dialled == (own < new.credential.node) || self.silence() > FRESH
    }

    /// Spawns the link's tasks. The returned one ends after the last event of the link was delivered, and says whether that
    /// was `Down`.
    pub(super) fn run<E, F>(
        self: &Arc<Self>,
        stream: PeerStream,
        queues: Queues,
        predecessor: Option<JoinHandle<bool>>,
        events: mpsc::Sender<SwarmEvent>,
        ended: E,
    ) -> JoinHandle<bool>
    where
        E: FnOnce(Arc<Link>, Option<String>) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let (reader, writer) = tokio::io::split(stream);
        let link = self.clone();
        let writing = tokio::spawn(link.clone().write(writer, queues));
        tokio::spawn(async move {
            let is_new = match predecessor {
                Some(predecessor) => predecessor.await.unwrap_or(true),
                None => true,
            };
            if is_new {
                let Peer { credential, advertise, .. } = link.peer;
                let up = SwarmEvent::Up { node: credential.node, granted: credential.granted, address: advertise };
                let _ = events.send(up).await;
            }
            let closing = link.closing.clone();
            let violation = tokio::select! {
                violation = link.read(reader, &events) => violation,
                () = closing.cancelled() => None,
            };
            closing.cancel();
            writing.abort();
            let node = link.peer.credential.node;
            ended(link.clone(), violation).await;
            let is_down = !link.replaced.load(Ordering::SeqCst);
            if is_down {
                let _ = events.send(SwarmEvent::Down { node }).await;
            }
            is_down
        })
    }

    /// Reads messages until the stream ends. Returns how the peer broke the protocol, if it did.
    async fn read(&self, mut reader: ReadHalf<PeerStream>, events: &mpsc::Sender<SwarmEvent>) -> Option<String> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match tokio::time::timeout(SILENCE_MAX, reader.read_buf(&mut buffer)).await {
                Err(_) | Ok(Err(_)) | Ok(Ok(0)) => return None,
                Ok(Ok(_)) => {}
            }
            self.heard_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
            loop {
                match take_message(&mut buffer) {
                    Ok(Some(message)) => {
                        let message = SwarmEvent::Message { from: self.peer.credential.node, message };
                        if events.send(message).await.is_err() {
                            return None;
                        }
                    }
                    Ok(None) => break,
                    Err(violation) => return Some(violation),
                }
            }
        }
    }

    async fn write(self: Arc<Self>, mut writer: WriteHalf<PeerStream>, mut queues: Queues) {
        // The far side learns of the stream with its first bytes.
        let mut batch = BytesMut::from(&[0; LENGTH_BYTES][..]);
        loop {
            if writer.write_all(&batch).await.is_err() || writer.flush().await.is_err() {
                return self.close();
            }
            batch.clear();
            if batch.capacity() > BATCH_BYTES * 4 {
                batch = BytesMut::new();
            }
            let mut next = tokio::select! {
                biased;
                queued = queues.own.recv() => queued,
                queued = queues.bulk.recv() => queued,
                () = tokio::time::sleep(SIGN_OF_LIFE_EVERY) => {
                    batch.extend_from_slice(&[0; LENGTH_BYTES]);
                    None
                }
            };
            while let Some(queued) = next {
                batch.extend_from_slice(&wire::length(&queued.frame));
                batch.extend_from_slice(&queued.frame);
                next = match batch.len() {
                    ..BATCH_BYTES => queues.own.try_recv().or_else(|_| queues.bulk.try_recv()).ok(),
                    BATCH_BYTES.. => None,
                };
            }
        }
    }

    fn silence(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }
}

/// Takes the next whole message from the front of what was read.
fn take_message(buffer: &mut BytesMut) -> Result<Option<PeerMessage>, String> {
    while let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a frame of {length} bytes is over the limit of {FRAME_BYTES_MAX}"));
        }
        if buffer.len() < LENGTH_BYTES + length {
            buffer.reserve((LENGTH_BYTES + length - buffer.len()).min(BATCH_BYTES));
            return Ok(None);
        }
        buffer.advance(LENGTH_BYTES);
        if length > 0 {
            let frame = buffer.split_to(length);
            return codec::decode(&frame).map(Some).map_err(|error| error.to_string());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_whole_and_in_order() {
        let mut buffer = BytesMut::new();
        let frame = codec::encode(&PeerMessage::Gossip(vec![7; 100])).unwrap();
        buffer.extend_from_slice(&[0; LENGTH_BYTES]);
        buffer.extend_from_slice(&wire::length(&frame));
        buffer.extend_from_slice(&frame[..50]);
        assert_eq!(take_message(&mut buffer), Ok(None));
        buffer.extend_from_slice(&frame[50..]);
        assert_eq!(take_message(&mut buffer), Ok(Some(PeerMessage::Gossip(vec![7; 100]))));
        assert_eq!(take_message(&mut buffer), Ok(None));
        assert!(buffer.is_empty());
    }

    #[test]
    fn oversized_and_malformed_frames_are_violations() {
        let mut buffer = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert!(take_message(&mut buffer).is_err());
        let mut buffer = BytesMut::from(&[0, 0, 0, 2, 1, 255][..]);
        assert!(take_message(&mut buffer).is_err());
    }
}
