//! HTTP on the connections of clients, and an end for those on which nothing comes.
//!
//! What is limited is the wait for a request's head. How long a body may take is the gate's business, an answer goes on for as
//! long as the client stays, and a connection that has left HTTP belongs to whoever took it over.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Hangup;

/// How long the head of a request may take, the first of a connection or a further one; then the connection is closed.
///
/// It is longer than clients keep a connection that they do not use (Docker's 30 s, hyper's 90 s), so that no request is sent
/// into one that is being closed here.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection whose other end can be seen to go away.
pub(super) trait Client: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Returns how to tell that the client is gone.
    fn hangup(&self) -> Hangup;
}

/// Returns how HTTP is spoken to clients and to other nodes.
pub fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http
}

/// Serves the API until `shutdown` resolves and the requests under way are answered.
pub(super) async fn serve<L>(mut listener: L, router: Router, shutdown: impl Future<Output = ()> + Send)
where
    L: Listener<Io: Client>,
{
    let (ending, connections, mut shutdown) = (CancellationToken::new(), TaskTracker::new(), pin!(shutdown));
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            (stream, _) = listener.accept() => stream,
        };
        let hangup = stream.hangup();
        connections.spawn(talk(http(), stream, Some(hangup), router.clone(), ending.clone()));
    }
    drop(listener);
    ending.cancel();
    connections.close();
    connections.wait().await;
}

/// Answers the requests of one connection until it ends, or `ending` is cancelled and the one under way is answered.
async fn talk<S>(http: http1::Builder, stream: S, hangup: Option<Hangup>, router: Router, ending: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(hangup) = &hangup {
            request.extensions_mut().insert(hangup.clone());
        }
        router.call(request.map(Body::new))
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of a client of the API broke off");
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};
    use std::time::Instant;

    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use futures::future::BoxFuture;
    use futures::{StreamExt, stream};
    use hyper::header::{self, HeaderName};
    use hyper::rt::{Sleep, Timer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;

    /// How long anything here may take.
    const WAIT: Duration = Duration::from_secs(20);
    /// Longer than any limit of the API.
    const LONG: Duration = Duration::from_secs(24 * 3600);
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// A clock that only the test moves.
    #[derive(Clone)]
    struct Clock(Arc<watch::Sender<Instant>>);

    struct Alarm(Mutex<BoxFuture<'static, ()>>);

    impl Future for Alarm {
        type Output = ();
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.0.lock().unwrap().as_mut().poll(context)
        }
    }

    impl Sleep for Alarm {}

    impl Timer for Clock {
        fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
            self.sleep_until(self.now() + duration)
        }
        fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
            let mut now = self.0.subscribe();
            let rings = async move {
                let _ = now.wait_for(|now| *now >= deadline).await;
            };
            Box::pin(Alarm(Mutex::new(Box::pin(rings))))
        }
        fn now(&self) -> Instant {
            *self.0.borrow()
        }
    }

    /// A connection, seen by its client.
    struct Line {
        stream: DuplexStream,
        clock: Clock,
        ending: CancellationToken,
        /// Lets `/follow` say its next piece.
        next: watch::Sender<usize>,
    }

    impl Line {
        fn open() -> Self {
            let (next, may) = watch::channel(0);
            let follow = move || {
                let pieces = stream::iter(["one", "two", "end"].into_iter().enumerate()).then(move |(place, piece)| {
                    let mut may = may.clone();
                    async move {
                        may.wait_for(|said| *said > place).await.unwrap();
                        std::io::Result::Ok(Bytes::from_static(piece.as_bytes()))
                    }
                });
                std::future::ready(Body::from_stream(pieces))
            };
            let router = Router::new()
                .route("/", get(|| async { "well" }))
                .route("/follow", get(follow))
                .route("/leave", post(leave_http));
            let (stream, theirs) = duplex(4096);
            let (clock, ending) = (Clock(Arc::new(watch::channel(Instant::now()).0)), CancellationToken::new());
            let mut http = http();
            http.timer(clock.clone());
            tokio::spawn(talk(http, theirs, None, router, ending.clone()));
            Self { stream, clock, ending, next }
        }

        async fn say(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        /// Reads up to something that has to come.
        async fn hear(&mut self, wanted: &str) {
            let mut text = String::new();
            while !text.ends_with(wanted) {
                let byte = timeout(WAIT, self.stream.read_u8()).await;
                let byte = byte.ok().and_then(Result::ok).unwrap_or_else(|| panic!("no '{wanted}' in: {text}"));
                text.push(char::from(byte));
            }
        }

        /// Lets time pass once all that was said has been taken in.
        async fn pass(&self, time: Duration) {
            // Everything happens in one thread, and a task that was woken runs before one that yields many times.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            self.clock.0.send_modify(|now| *now += time);
        }

        /// Waits for the end of the connection, without another word of it.
        async fn end(&mut self) {
            let mut rest = Vec::new();
            timeout(WAIT, self.stream.read_to_end(&mut rest)).await.expect("it goes on for ever").unwrap();
            assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        }
    }

    /// Leaves HTTP, and says back whatever is said from then on.
    async fn leave_http(mut request: axum::extract::Request) -> (StatusCode, [(HeaderName, &'static str); 2]) {
        let client = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(client.await.unwrap()));
            tokio::io::copy(&mut from, &mut to).await
        });
        (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")])
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_whole_is_waited_for_no_longer_than_the_limit() {
        for sent in [&b""[..], b"G", b"GET / HTTP/1.1\r\nhost:"] {
            let mut line = Line::open();
            line.say(sent).await;
            line.pass(HEAD_TIMEOUT - Duration::from_secs(1)).await;
            // Another byte gains no time.
            line.say(b"x").await;
            line.pass(Duration::from_secs(1)).await;
            line.end().await;
        }
        let mut line = Line::open();
        line.say(&HEAD[..20]).await;
        line.pass(HEAD_TIMEOUT - Duration::from_secs(1)).await;
        line.say(&HEAD[20..]).await;
        line.hear("well").await;
    }

    #[tokio::test]
    async fn a_connection_is_kept_between_requests_and_then_given_up() {
        let mut line = Line::open();
        for _ in 0..5 {
            line.say(HEAD).await;
            line.hear("well").await;
            line.pass(HEAD_TIMEOUT - Duration::from_secs(1)).await;
        }
        line.pass(Duration::from_secs(1)).await;
        line.end().await;
    }

    #[tokio::test]
    async fn requests_may_be_sent_before_their_turn() {
        let mut line = Line::open();
        line.say(&HEAD.repeat(3)).await;
        for _ in 0..3 {
            line.hear("well").await;
        }
    }

    #[tokio::test]
    async fn an_answer_and_what_is_no_http_any_more_take_as_long_as_they_want() {
        let mut line = Line::open();
        line.say(b"GET /follow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        for (said, piece) in [(1, "one"), (2, "two"), (3, "end\r\n0\r\n\r\n")] {
            line.pass(LONG).await;
            line.next.send_replace(said);
            line.hear(piece).await;
        }
        line.say(b"POST /leave HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n").await;
        line.hear("\r\n\r\n").await;
        line.pass(LONG).await;
        line.ending.cancel();
        line.say(b"still there").await;
        line.hear("still there").await;
    }

    #[tokio::test]
    async fn who_is_told_to_end_answers_first() {
        let mut idle = Line::open();
        idle.ending.cancel();
        idle.end().await;
        let mut busy = Line::open();
        busy.say(b"GET /follow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        busy.next.send_replace(1);
        busy.hear("one").await;
        busy.ending.cancel();
        busy.next.send_replace(3);
        busy.hear("end\r\n0\r\n\r\n").await;
        busy.end().await;
    }
}
