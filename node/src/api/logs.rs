//! What tasks have written, from whichever nodes they ran on.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use shoal_protocol::{ServiceId, TaskId, WallTime};
use tokio::sync::Semaphore;

use super::frames::Frames;
use super::query::is_on;
use super::snapshot::{PickTasks, TaskView, Want};
use super::{Api, ApiError};
use crate::driver::{DriverError, LogLine, LogQuery, LogStream};
use output::Output;

mod output;
mod resume;

/// Marks a request that another node passed on, so that it is never passed on again.
const FORWARDED: &str = "x-shoal-forwarded";
/// Tasks whose output one request collects at most; the newest are taken.
const TASKS_MAX: usize = 1000;
/// Tasks whose output is begun at the same time.
const BEGUN_AT_ONCE: usize = 16;
/// How often new tasks are looked for while a service is followed.
const SEARCH_EVERY: Duration = Duration::from_millis(500);

/// Parameters of Docker's `logs` calls.
#[derive(Debug, Deserialize)]
pub(super) struct LogsQuery {
    follow: Option<String>,
    stdout: Option<String>,
    stderr: Option<String>,
    since: Option<String>,
    timestamps: Option<String>,
    tail: Option<String>,
    details: Option<String>,
    until: Option<String>,
}

/// The same, read.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    details: bool,
    query: LogQuery,
    /// Nothing that was written later; `None` means no end.
    until: Option<WallTime>,
}

impl Wanted {
    fn parse(query: &LogsQuery) -> Result<Self, ApiError> {
        let (stdout, stderr) = (is_on(query.stdout.as_deref()), is_on(query.stderr.as_deref()));
        if !stdout && !stderr {
            return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
        }
        let tail = match query.tail.as_deref().unwrap_or("all") {
            "" | "all" => None,
            number => Some(number.parse().map_err(|_| ApiError::invalid(format!("invalid value for tail: {number}")))?),
        };
        let since = moment("since", query.since.as_deref())?;
        Ok(Self {
            stdout,
            stderr,
            timestamps: is_on(query.timestamps.as_deref()),
            details: is_on(query.details.as_deref()),
            query: LogQuery { tail, since, follow: is_on(query.follow.as_deref()) },
            until: moment("until", query.until.as_deref())?,
        })
    }

    /// Reads the parameters of calls about tasks and services, which know no end. Source: Docker Engine API v1.50.
    fn of_tasks(query: &LogsQuery) -> Result<Self, ApiError> {
        let wanted = Self::parse(query)?;
        match wanted.until {
            None => Ok(wanted),
            Some(_) => Err(ApiError::invalid("until is not supported for the logs of services and tasks")),
        }
    }

    fn wants(&self, stream: LogStream) -> bool {
        match stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        }
    }

    /// Returns the parameters as another node reads them.
    fn to_query(self) -> String {
        let since = self.query.since.unwrap_or_default().0;
        format!(
            "follow={}&stdout={}&stderr={}&timestamps={}&details={}&since={}.{:09}&tail={}",
            u8::from(self.query.follow),
            u8::from(self.stdout),
            u8::from(self.stderr),
            u8::from(self.timestamps),
            u8::from(self.details),
            since / 1_000_000_000,
            since % 1_000_000_000,
            self.query.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string())
        )
    }
}

/// Reads a moment; nothing and zero are none.
pub(super) fn moment(name: &str, text: Option<&str>) -> Result<Option<WallTime>, ApiError> {
    let moment = text.filter(|text| !text.is_empty()).map(|text| parse_seconds(name, text)).transpose()?;
    Ok(moment.filter(|moment| moment.0 > 0))
}

/// Reads seconds since 1970 with an optional fraction.
fn parse_seconds(name: &str, text: &str) -> Result<WallTime, ApiError> {
    let invalid = || ApiError::invalid(format!("invalid value for {name}: {text}"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = whole.parse().map_err(|_| invalid())?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    seconds.checked_mul(1_000_000_000).and_then(|value| value.checked_add(nanos)).map(WallTime).ok_or_else(invalid)
}

/// `GET /tasks/{id}/logs`.
pub(super) async fn of_task(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of_tasks(&query)?;
    let (me, task) = api.task(&name).await?;
    if !headers.contains_key(FORWARDED) {
        let output = Output::new(api, me, task, wanted, Arc::new(Semaphore::new(1))).begun().await?;
        return Ok(answer(output.frames()));
    }
    if task.task.node != Some(me) {
        return Err(ApiError::not_found("task", &name));
    }
    let lines = api.own_lines(&task, wanted).await?;
    let frames = lines.map(move |line| match line {
        Ok(line) => Ok(output::render(&line, wanted)),
        // Whoever follows tries again, which it is told by an answer that has no end.
        Err(reason) if wanted.query.follow => Err(io::Error::other(reason)),
        Err(reason) => Ok(output::render(&output::note(&task, wanted, api.backend.now(), &reason), wanted)),
    });
    Ok(answer(frames.boxed()))
}

/// `GET /services/{id}/logs`.
pub(super) async fn of_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of_tasks(&query)?;
    let (_, service) = api.service(&name, false).await?;
    let room = Arc::new(Semaphore::new(BEGUN_AT_ONCE));
    let mut search = Search { api, service: service.id, wanted, room, seen: BTreeSet::new() };
    let first = stream::iter(search.outputs().await?);
    if !wanted.query.follow {
        return Ok(answer(first.flatten_unordered(BEGUN_AT_ONCE).boxed()));
    }
    // Tasks come and go while their service is followed. What a new one has written from its start is all new.
    search.wanted.query.tail = None;
    let later = stream::unfold(search, |mut search| async move {
        tokio::time::sleep(SEARCH_EVERY).await;
        match search.outputs().await {
            Ok(outputs) => Some((outputs, search)),
            Err(_) => None, // the service is gone, or this node is no member any more
        }
    });
    Ok(answer(first.chain(later.flat_map(stream::iter)).flatten_unordered(TASKS_MAX).boxed()))
}

/// Answers `GET /containers/{id}/logs` for a container of this node's own.
pub(super) async fn of_container(api: &Api, task: TaskId, query: &LogsQuery) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(query)?;
    let lines = api.backend.logs(task, wanted.query).await?;
    let is_in_time = move |line: &LogLine| wanted.until.is_none_or(|until| line.time <= until);
    // What is read comes in the order of time, so the first line that is too late is the last one.
    let lines = lines.take_while(move |line| std::future::ready(line.as_ref().map_or(true, is_in_time)));
    let now = api.backend.now();
    let frames = lines.filter_map(move |line| {
        // The engine's drivers of logs can add words of their own to a line; here there are none.
        let with_details = |bytes| output::behind(if wanted.details { " " } else { "" }, bytes);
        let line = match line {
            Ok(line) if !wanted.wants(line.stream) => None,
            Ok(line) => Some(LogLine { bytes: with_details(line.bytes), ..line }),
            Err(error) => {
                let text = format!("shoal: reading failed: {error}\n");
                Some(LogLine { stream: LogStream::Stderr, time: now, bytes: with_details(text.into()) })
            }
        };
        std::future::ready(line.map(|line| Ok(output::render(&line, wanted))))
    });
    let left = wanted.until.map(|until| Duration::from_nanos(until.0.saturating_sub(api.backend.now().0)));
    Ok(answer(match left.filter(|_| wanted.query.follow) {
        Some(left) => frames.take_until(tokio::time::sleep(left)).boxed(),
        None => frames.boxed(),
    }))
}

/// Looks for tasks of a service whose output is not in the answer yet.
struct Search {
    api: Api,
    service: ServiceId,
    wanted: Wanted,
    room: Arc<Semaphore>,
    seen: BTreeSet<TaskId>,
}

impl Search {
    /// Returns the output of tasks that were not seen before.
    async fn outputs(&mut self) -> Result<Vec<Frames>, ApiError> {
        let (_, service) = self.api.service(&self.service.to_string(), false).await?;
        let pick = PickTasks::Of { services: vec![service.id.to_string()], nodes: Vec::new() };
        let mut snapshot = self.api.backend.snapshot(Want { tasks: pick, ..Want::default() }).await?;
        let listed: BTreeSet<TaskId> = snapshot.tasks.iter().map(|task| task.task.id).collect();
        self.seen.retain(|task| listed.contains(task));
        snapshot.tasks.retain(|task| task.task.node.is_some() && !self.seen.contains(&task.task.id));
        snapshot.tasks.sort_by_key(|task| std::cmp::Reverse(task.task.created));
        snapshot.tasks.truncate(TASKS_MAX);
        self.seen.extend(snapshot.tasks.iter().map(|task| task.task.id));
        let me = snapshot.me;
        let output = |task: TaskView| Output::new(self.api.clone(), me, task, self.wanted, self.room.clone()).frames();
        Ok(snapshot.tasks.into_iter().map(output).collect())
    }
}

fn answer(output: Frames) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/vnd.docker.multiplexed-stream")];
    (headers, Body::from_stream(output)).into_response()
}

impl From<DriverError> for ApiError {
    fn from(error: DriverError) -> Self {
        let status = match &error {
            DriverError::NoSuchImage { .. } | DriverError::NotPulled { .. } | DriverError::NoSuchTask(_) => {
                StatusCode::NOT_FOUND
            }
            DriverError::Refused(_) => StatusCode::CONFLICT,
            DriverError::Invalid(_) => StatusCode::BAD_REQUEST,
            DriverError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            DriverError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_passed_on() {
        assert_eq!(parse_seconds("since", "1795398702.5").unwrap(), WallTime(1_795_398_702_500_000_000));
        assert_eq!(parse_seconds("since", "0").unwrap(), WallTime(0));
        for text in ["x", "1.x", "-1", "1.0123456789", "99999999999999999999"] {
            assert!(parse_seconds("since", text).is_err(), "{text}");
        }
        let wanted = Wanted {
            stdout: true,
            stderr: false,
            timestamps: true,
            details: false,
            query: LogQuery { tail: Some(3), since: Some(WallTime(1_500_000_000)), follow: true },
            until: None,
        };
        assert_eq!(wanted.to_query(), "follow=1&stdout=1&stderr=0&timestamps=1&details=0&since=1.500000000&tail=3");
    }
}
