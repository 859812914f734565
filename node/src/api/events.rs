//! `GET /events`: what happens, as it happens, and what happened lately.
//!
//! Events of the cluster come from this node's own replica: any node tells them, each at the moment that it learns of it. What
//! happens to containers is told by the engine behind this node, if there is one, else by this node itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::Deserialize;
use shoal_protocol::WallTime;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::filters::Filters;
use super::logs::moment;
use super::{Api, ApiError, Engine};

mod behind;
pub mod difference;
mod event;
mod hub;

pub use event::{Event, Scope};
pub use hub::Hub;

use behind::Behind;
use event::FILTERS;

#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    since: Option<String>,
    until: Option<String>,
    filters: Option<String>,
}

/// What somebody wants to hear.
#[derive(Debug, Clone)]
struct Wanted {
    filters: Filters,
    /// The same as it was sent, for the engine.
    text: String,
    since: Option<WallTime>,
    until: Option<WallTime>,
}

impl Wanted {
    fn parse(query: &EventsQuery) -> Result<Self, ApiError> {
        let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
        let wanted = Self {
            filters,
            text: query.filters.clone().unwrap_or_default(),
            since: moment("since", query.since.as_deref())?,
            until: moment("until", query.until.as_deref())?,
        };
        match (wanted.since, wanted.until) {
            (Some(since), Some(until)) if since > until => {
                Err(ApiError::invalid(format!("`since` time ({since}) cannot be after `until` time ({until})")))
            }
            _ => Ok(wanted),
        }
    }

    /// Returns whether an event of before belongs to the answer: only if moments were named at all.
    fn is_remembered(&self, event: &Event) -> bool {
        let asked = self.since.is_some() || self.until.is_some();
        let in_time =
            self.since.is_none_or(|since| event.time >= since) && self.until.is_none_or(|until| event.time <= until);
        asked && in_time && event.fits(&self.filters)
    }

    /// Returns whether anything that happens on this node alone can be in the answer.
    fn may_be_local(&self) -> bool {
        self.filters.any("scope", |scope| scope == Scope::Local.name())
    }
}

/// A line of an answer; nothing comes after the last one.
enum Line {
    Next(Bytes),
    Last(Bytes),
}

/// `GET /events`.
pub(super) async fn show(State(api): State<Api>, Query(query): Query<EventsQuery>) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(&query)?;
    let listening = api.backend.events().listen();
    // What is told later than this moment comes from those who listen, what was told before from those who remember.
    let now = api.backend.now();
    let remembered: Vec<(WallTime, Bytes)> = listening
        .before
        .iter()
        .filter(|event| wanted.is_remembered(event))
        .map(|event| (event.time, event.line().into()))
        .collect();
    let behind =
        api.backend.engine().filter(|_| wanted.may_be_local()).map(|engine| Behind::new(engine, wanted.text.clone()));
    let asks_for_past = wanted.since.is_some() || wanted.until.is_some();
    let mut past = remembered;
    if let (Some(behind), true) = (&behind, asks_for_past) {
        past.extend(behind.past(wanted.since, wanted.until.unwrap_or(now).min(now)).await?);
        past.sort_by_key(|(time, _)| *time);
    }
    let past = stream::iter(past).map(|(_, line)| Line::Next(line));
    if wanted.until.is_some_and(|until| until <= now) {
        return Ok(answer(past.boxed()));
    }
    let ours = live(listening.from_now_on, wanted.clone());
    let lines = match behind {
        Some(behind) => {
            let theirs = behind.from(now).await?.map(Line::Next);
            past.chain(stream::select(ours, theirs)).boxed()
        }
        None => past.chain(ours).boxed(),
    };
    Ok(answer(match wanted.until {
        Some(until) => {
            let left = Duration::from_nanos(until.0.saturating_sub(now.0));
            lines.take_until(tokio::time::sleep(left)).boxed()
        }
        None => lines,
    }))
}

/// Events of this node as they happen, until the reader is too far behind.
fn live(events: Receiver<Arc<Event>>, wanted: Wanted) -> impl futures::Stream<Item = Line> {
    stream::unfold((Some(events), wanted), |(events, wanted)| async move {
        let mut events = events?;
        loop {
            match events.recv().await {
                Ok(event) if event.fits(&wanted.filters) => {
                    return Some((Line::Next(event.line().into()), (Some(events), wanted)));
                }
                Ok(_) => {}
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(count)) => {
                    tracing::warn!(count, "a reader of events was too slow and is dropped");
                    return Some((Line::Last(overflow(count).into()), (None, wanted)));
                }
            }
        }
    })
}

/// The last line for a reader that was too slow, so that it does not take what it has for everything.
fn overflow(missed: u64) -> String {
    let attributes = [
        ("name".to_owned(), "shoal".to_owned()),
        ("error".to_owned(), format!("this reader was too slow: {missed} events are missing, and no more come")),
    ];
    let time = WallTime::default();
    let (kind, action, id, scope) = ("daemon", "overflow", String::new(), Scope::Local);
    Event { kind, action, id, attributes: attributes.into(), scope, time }.line()
}

fn answer(lines: BoxStream<'static, Line>) -> Response {
    let bytes = lines.scan(false, |ended, line| {
        let line = if *ended { None } else { Some(line) };
        std::future::ready(line.map(|line| match line {
            Line::Next(bytes) => bytes,
            Line::Last(bytes) => {
                *ended = true;
                bytes
            }
        }))
    });
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (json, Body::from_stream(bytes.map(Ok::<_, io::Error>))).into_response()
}
