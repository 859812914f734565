//! What tasks have written, from whichever nodes they ran on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use shoal_protocol::{NodeId, ServiceId, TaskId, WallTime};

use super::frames::{self, Frames};
use super::query::is_on;
use super::snapshot::{PickTasks, TaskView, Want};
use super::{Api, ApiError, no_body};
use crate::driver::{DriverError, LogLine, LogQuery, LogStream};

/// Marks a request that another node passed on, so that it is never passed on again.
const FORWARDED: &str = "x-shoal-forwarded";
/// Tasks whose output one request collects at most; the newest are taken.
const TASKS_MAX: usize = 1000;
/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
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
    if headers.contains_key(FORWARDED) && task.task.node != Some(me) {
        return Err(ApiError::not_found("task", &name));
    }
    let output = api.output(me, &task, wanted).await?;
    Ok(answer(output))
}

/// `GET /services/{id}/logs`.
pub(super) async fn of_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of_tasks(&query)?;
    let (_, service) = api.service(&name, false).await?;
    let mut search = Search { api, service: service.id, wanted, seen: BTreeSet::new() };
    let first = search.outputs().await?;
    if !wanted.query.follow {
        return Ok(answer(stream::select_all(first).boxed()));
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
    let outputs = stream::iter(first).chain(later.flat_map(stream::iter));
    Ok(answer(outputs.flatten_unordered(TASKS_MAX).boxed()))
}

/// Answers `GET /containers/{id}/logs` for a container of this node's own.
pub(super) async fn of_container(api: &Api, task: TaskId, query: &LogsQuery) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(query)?;
    let lines = api.backend.logs(task, wanted.query).await?;
    let is_in_time = move |line: &LogLine| wanted.until.is_none_or(|until| line.time <= until);
    // What is read comes in the order of time, so the first line that is too late is the last one.
    let lines = lines.take_while(move |line| std::future::ready(line.as_ref().map_or(true, is_in_time)));
    let frames = lines.filter_map(move |line| {
        let piece = match line {
            // The engine's drivers of logs can add words of their own to a line; here there are none.
            Ok(line) => render(&line, " ", wanted),
            Err(error) => Some(note(&format!("reading failed: {error}"))),
        };
        std::future::ready(piece.map(Ok))
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
        let (api, me, wanted) = (&self.api, snapshot.me, self.wanted);
        let outputs: Vec<(TaskId, Option<Frames>)> = stream::iter(snapshot.tasks)
            .map(|task| async move {
                let output = match api.output(me, &task, wanted).await {
                    Ok(output) => Some(output),
                    // There is no container yet, or none any more, and its output is gone with it.
                    Err(error) if error.status == StatusCode::NOT_FOUND => None,
                    Err(error) => Some(missing(&task, &error.message)),
                };
                (task.task.id, output)
            })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        let found: BTreeMap<TaskId, Frames> =
            outputs.into_iter().filter_map(|(task, output)| Some((task, output?))).collect();
        self.seen.extend(found.keys());
        Ok(found.into_values().collect())
    }
}

impl Api {
    /// Returns the output of a task, from this node or the one it is on.
    async fn output(&self, me: NodeId, task: &TaskView, wanted: Wanted) -> Result<Frames, ApiError> {
        let Some(node) = task.task.node else {
            return Ok(stream::empty().boxed());
        };
        if node == me {
            return self.own_output(task, wanted).await;
        }
        if task.node_down {
            return Ok(missing(task, "its node is down"));
        }
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("/tasks/{}/logs?{}", task.task.id, wanted.to_query()))
            .header(header::HOST, "shoal")
            .header(FORWARDED, "1")
            .body(no_body())
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let response = self.backend.forward(node, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(ApiError::not_found("task", &task.task.id.to_string()));
        }
        if !response.status().is_success() {
            return Ok(missing(task, &format!("its node answered {}", response.status())));
        }
        let lost = missing_text(task, "its node broke off");
        let frames = frames::split(response.into_body())
            .map(move |piece| piece.or_else(|error| Ok(note(&format!("{lost}: {error}")))));
        Ok(frames.boxed())
    }

    async fn own_output(&self, task: &TaskView, wanted: Wanted) -> Result<Frames, ApiError> {
        let lines = self.backend.logs(task.task.id, wanted.query).await?;
        let details = details(task);
        let lost = missing_text(task, "reading failed");
        let frames = lines.filter_map(move |line| {
            let piece = match line {
                Ok(line) => render(&line, &details, wanted),
                Err(error) => Some(note(&format!("{lost}: {error}"))),
            };
            std::future::ready(piece.map(Ok))
        });
        Ok(frames.boxed())
    }
}

fn render(line: &LogLine, details: &str, wanted: Wanted) -> Option<bytes::Bytes> {
    let is_wanted = match line.stream {
        LogStream::Stdout => wanted.stdout,
        LogStream::Stderr => wanted.stderr,
    };
    let time = if wanted.timestamps { format!("{} ", line.time) } else { String::new() };
    let details = if wanted.details { details } else { "" };
    is_wanted.then(|| frames::frame(line.stream, &[time.as_bytes(), details.as_bytes(), &line.bytes]))
}

/// What Docker's clients build the name before each line from.
fn details(task: &TaskView) -> String {
    let node = task.task.node.map_or_else(String::new, |node| node.to_string());
    format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={},com.docker.swarm.task.id={} ",
        task.service, task.task.id
    )
}

fn missing_text(task: &TaskView, reason: &str) -> String {
    let node = task.task.node.map_or_else(String::new, |node| format!(" on node {node}"));
    format!("output of task {}{node} is missing: {reason}", task.task.id)
}

/// Says in the output itself that a part of it is missing.
fn missing(task: &TaskView, reason: &str) -> Frames {
    let piece = note(&missing_text(task, reason));
    stream::once(std::future::ready(Ok(piece))).boxed()
}

fn note(text: &str) -> bytes::Bytes {
    frames::frame(LogStream::Stderr, &[b"shoal: ", text.as_bytes(), b"\n"])
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
