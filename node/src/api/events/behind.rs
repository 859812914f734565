//! The events of the engine behind a node, line by line as it writes them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::Deserialize;
use shoal_protocol::WallTime;

use super::Engine;
use crate::api::ApiError;

/// Bytes of one event at most; an engine that sends more is asked anew.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bytes of what the engine remembers; the rest of it is left out. Docker remembers 256 events.
const PAST_BYTES_MAX: usize = 8 << 20;
/// How long the engine may take to tell what it remembers.
const PAST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before an engine that broke off is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where the events come from.
#[derive(Clone)]
pub(super) struct Behind {
    engine: Arc<Engine>,
    /// The `filters` of the query, as the client sent them.
    filters: String,
}

/// The part of an event that says when it happened.
#[derive(Deserialize)]
struct Stamp {
    #[serde(rename = "timeNano", default)]
    time: u64,
}

fn time(line: &[u8]) -> WallTime {
    WallTime(serde_json::from_slice::<Stamp>(line).map_or(0, |stamp| stamp.time))
}

impl Behind {
    pub(super) fn new(engine: Arc<Engine>, filters: String) -> Self {
        Self { engine, filters }
    }

    /// Returns what the engine remembers of the time from `since` up to `until`, which must not lie ahead.
    pub(super) async fn past(
        &self,
        since: Option<WallTime>,
        until: WallTime,
    ) -> Result<Vec<(WallTime, Bytes)>, ApiError> {
        let mut lines = self.ask(since, Some(until)).await?;
        let mut past = Vec::new();
        let mut bytes = 0;
        let collect = async {
            while let Some(line) = lines.next().await {
                bytes += line.len();
                if bytes > PAST_BYTES_MAX {
                    break;
                }
                past.push((time(&line), line));
            }
        };
        let collected = tokio::time::timeout(PAST_TIMEOUT, collect).await;
        collected.map_err(|_| ApiError::unavailable("the Docker Engine did not tell its events in time"))?;
        Ok(past)
    }

    /// Returns what happens later than `moment`, for ever: an engine that breaks off is asked again for what came since.
    pub(super) async fn from(self, moment: WallTime) -> Result<BoxStream<'static, Bytes>, ApiError> {
        struct State {
            behind: Behind,
            lines: Option<BoxStream<'static, Bytes>>,
            last: WallTime,
        }
        let lines = Some(self.ask(Some(after(moment)), None).await?);
        let state = State { behind: self, lines, last: moment };
        let all = stream::unfold(state, |mut state| async move {
            loop {
                match &mut state.lines {
                    Some(lines) => match lines.next().await {
                        Some(line) => {
                            state.last = state.last.max(time(&line));
                            return Some((line, state));
                        }
                        None => state.lines = None,
                    },
                    None => {
                        tokio::time::sleep(ASK_AGAIN).await;
                        match state.behind.ask(Some(after(state.last)), None).await {
                            Ok(lines) => state.lines = Some(lines),
                            Err(error) => tracing::debug!(%error, "the engine tells no events; asking again"),
                        }
                    }
                }
            }
        });
        Ok(all.boxed())
    }

    async fn ask(
        &self,
        since: Option<WallTime>,
        until: Option<WallTime>,
    ) -> Result<BoxStream<'static, Bytes>, ApiError> {
        let moment = |name: &str, moment: Option<WallTime>| {
            moment.map(|at| format!("{name}={}.{:09}&", at.0 / 1_000_000_000, at.0 % 1_000_000_000)).unwrap_or_default()
        };
        let filters: String = self.filters.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/events?{}{}filters={filters}", moment("since", since), moment("until", until));
        let response = self.engine.stream(&path).await?;
        Ok(lines(response.into_body().into_data_stream()))
    }
}

fn after(moment: WallTime) -> WallTime {
    WallTime(moment.0.saturating_add(1))
}

/// Cuts what the engine sends into whole lines. Ends where it breaks off, or sends what is no line.
fn lines(body: BodyDataStream) -> BoxStream<'static, Bytes> {
    stream::unfold((body, BytesMut::new()), |(mut body, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                return Some((buffer.split_to(end + 1).freeze(), (body, buffer)));
            }
            match body.next().await {
                Some(Ok(bytes)) if buffer.len() + bytes.len() <= LINE_BYTES_MAX => buffer.extend_from_slice(&bytes),
                Some(Ok(_)) => {
                    tracing::warn!("an event of the engine is larger than {LINE_BYTES_MAX} bytes");
                    return None;
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the engine broke its events off");
                    return None;
                }
                None => return None,
            }
        }
    })
    .boxed()
}
