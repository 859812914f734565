//! The output of one task, from this node or the one it is on, read again where it broke off.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use shoal_protocol::{NodeId, WallTime};
use tokio::sync::Semaphore;

use super::resume::{Last, Progress, Standing, Step};
use super::{FORWARDED, Wanted};
use crate::api::frames::{self, Frames};
use crate::api::snapshot::TaskView;
use crate::api::{Api, ApiError, no_body};
use crate::driver::embedded::time::parse_time;
use crate::driver::{LogLine, LogQuery, LogStream};

/// How long another node may take until it begins to answer, and for each line that is not waited for; then it broke off.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Lines with their details before them, or why there are no more.
pub(super) type Lines = BoxStream<'static, Result<LogLine, String>>;

/// The output of one task.
pub(super) struct Output {
    api: Api,
    me: NodeId,
    task: TaskView,
    wanted: Wanted,
    /// How many are begun at the same time.
    room: Arc<Semaphore>,
    progress: Progress,
    state: State,
}

enum State {
    /// Lines come, since then.
    Reading(Lines, WallTime),
    /// What is next is to be decided.
    Idle(Last),
    /// The task is looked at again after this.
    Waiting(Duration),
    Ended,
}

impl Output {
    /// Returns the output of a task, of which nothing is read yet.
    pub(super) fn new(api: Api, me: NodeId, task: TaskView, wanted: Wanted, room: Arc<Semaphore>) -> Self {
        let progress = Progress::new(wanted.query);
        Self { api, me, task, wanted, room, progress, state: State::Idle(Last::Nothing) }
    }

    /// Begins to read, so that a reason why there is nothing to read becomes the answer's status.
    pub(super) async fn begun(mut self) -> Result<Self, ApiError> {
        if self.task.task.node.is_some() && !self.task.node_down {
            self.state = self.begin().await?;
        }
        Ok(self)
    }

    /// Returns what is passed on to whoever asked.
    pub(super) fn frames(self) -> Frames {
        stream::unfold(self, |mut output| async move {
            let frame = output.next().await?;
            Some((Ok(frame), output))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let last = match &mut self.state {
                State::Reading(lines, begun) => match next_line(lines, self.wanted.query).await {
                    Next::Line(line) if self.progress.take(&line) => return Some(render(&line, self.wanted)),
                    Next::Line(_) => continue,
                    Next::Break(reason) => {
                        let lasted = Duration::from_nanos(self.api.backend.now().0.saturating_sub(begun.0));
                        Last::Break { reason, lasted }
                    }
                    Next::End => Last::End,
                },
                State::Idle(last) => std::mem::replace(last, Last::Nothing),
                State::Waiting(pause) => {
                    tokio::time::sleep(*pause).await;
                    self.look().await;
                    continue;
                }
                State::Ended => return None,
            };
            if let Some(reason) = self.go_on(last).await {
                let missing = note(&self.task, self.wanted, self.api.backend.now(), &reason);
                return Some(render(&missing, self.wanted));
            }
        }
    }

    /// Does what is to be done about a task whose output is not being read. Returns what is to be said of it.
    async fn go_on(&mut self, last: Last) -> Option<String> {
        match self.progress.step(self.standing(), last) {
            Step::Read => {
                self.state = match self.begin().await {
                    Ok(reading) => reading,
                    Err(error) if error.status == StatusCode::NOT_FOUND => State::Idle(Last::NoContainer),
                    Err(error) => State::Idle(Last::Break { reason: error.message, lasted: Duration::ZERO }),
                };
                None
            }
            Step::Wait { pause, tell } => {
                self.state = State::Waiting(pause);
                tell
            }
            Step::End { tell } => {
                self.state = State::Ended;
                tell
            }
        }
    }

    /// Looks at the task as it is now.
    async fn look(&mut self) {
        match self.api.task(&self.task.task.id.to_string()).await {
            Ok((_, task)) => self.task = task,
            // The task is forgotten, or this node is no member any more.
            Err(_) => self.state = State::Ended,
        }
        if !matches!(self.state, State::Ended) {
            self.state = State::Idle(Last::Nothing);
        }
    }

    /// Returns how the task is; nothing if no node has it.
    fn standing(&self) -> Option<Standing> {
        let has_ended = self.task.state().is_terminal();
        self.task.task.node.map(|_| Standing { node_down: self.task.node_down, has_ended })
    }

    async fn begin(&mut self) -> Result<State, ApiError> {
        let _permit = self.room.acquire().await;
        let wanted = Wanted { query: self.progress.query(), ..self.wanted };
        let lines = self.api.lines(self.me, &self.task, wanted).await?;
        let now = self.api.backend.now();
        self.progress.begin(now);
        Ok(State::Reading(lines, now))
    }
}

/// What comes next of the lines that are being read.
enum Next {
    Line(LogLine),
    Break(String),
    End,
}

/// Reads a line. What is not followed does not have to be waited for; what is may be silent for as long as the link to its node
/// lasts.
async fn next_line(lines: &mut Lines, query: LogQuery) -> Next {
    let line = match query.follow {
        true => Ok(lines.next().await),
        false => tokio::time::timeout(ANSWER_MAX, lines.next()).await,
    };
    match line {
        Ok(Some(Ok(line))) => Next::Line(line),
        Ok(Some(Err(reason))) => Next::Break(reason),
        Ok(None) => Next::End,
        Err(_) => Next::Break(format!("nothing came for {} s", ANSWER_MAX.as_secs())),
    }
}

impl Api {
    /// Returns the lines of a task as one reading of them gives them, from this node or the one it is on.
    async fn lines(&self, me: NodeId, task: &TaskView, wanted: Wanted) -> Result<Lines, ApiError> {
        match task.task.node {
            None => Ok(stream::empty().boxed()),
            Some(node) if node == me => self.own_lines(task, wanted).await,
            Some(node) => {
                let asked = tokio::time::timeout(ANSWER_MAX, self.lines_of(node, task, wanted)).await;
                asked.unwrap_or_else(|_| {
                    Err(ApiError::unavailable(format!("its node did not answer for {} s", ANSWER_MAX.as_secs())))
                })
            }
        }
    }

    /// Returns the lines of one of this node's own tasks.
    pub(super) async fn own_lines(&self, task: &TaskView, wanted: Wanted) -> Result<Lines, ApiError> {
        let lines = self.backend.logs(task.task.id, wanted.query).await?;
        let details = if wanted.details { details(task) } else { String::new() };
        let lines = lines.filter_map(move |line| {
            let line = match line {
                Ok(line) if !wanted.wants(line.stream) => None,
                Ok(line) => Some(Ok(LogLine { bytes: behind(&details, line.bytes), ..line })),
                Err(error) => Some(Err(format!("reading failed: {error}"))),
            };
            std::future::ready(line)
        });
        Ok(lines.boxed())
    }

    async fn lines_of(&self, node: NodeId, task: &TaskView, wanted: Wanted) -> Result<Lines, ApiError> {
        // Times are what reading goes on from after a break, whether the user wants to see them or not.
        let wanted = Wanted { timestamps: true, ..wanted };
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
            return Err(ApiError::unavailable(format!("its node answered {}", response.status())));
        }
        let frames = frames::split(response.into_body());
        let lines = frames.map(|frame| match frame {
            Ok(frame) => parse(&frame).ok_or_else(|| "its node sent what is no line of output".to_owned()),
            Err(error) => Err(format!("its node broke off: {error}")),
        });
        Ok(lines.boxed())
    }
}

/// Puts details before the bytes of a line.
pub(super) fn behind(details: &str, bytes: Bytes) -> Bytes {
    if details.is_empty() { bytes } else { [details.as_bytes(), &bytes].concat().into() }
}

/// Takes apart what another node sent of a line: a timestamp, a space, and the rest.
fn parse(frame: &Bytes) -> Option<LogLine> {
    let (stream, piece) = frames::unframe(frame)?;
    let space = piece.iter().position(|byte| *byte == b' ')?;
    let time = parse_time(std::str::from_utf8(&piece[..space]).ok()?)?;
    Some(LogLine { stream, time, bytes: piece.slice(space + 1..) })
}

/// Returns a line as whoever asked wants to see it.
pub(super) fn render(line: &LogLine, wanted: Wanted) -> Bytes {
    let time = if wanted.timestamps { format!("{} ", line.time) } else { String::new() };
    frames::frame(line.stream, &[time.as_bytes(), &line.bytes])
}

/// Returns a line that says that a part of a task's output is missing. It has details like any other: without them Docker's
/// client gives up.
pub(super) fn note(task: &TaskView, wanted: Wanted, time: WallTime, reason: &str) -> LogLine {
    let node = task.task.node.map_or_else(String::new, |node| format!(" on node {node}"));
    let details = if wanted.details { details(task) } else { String::new() };
    let text = format!("{details}shoal: output of task {}{node} is missing: {reason}\n", task.task.id);
    LogLine { stream: LogStream::Stderr, time, bytes: text.into() }
}

/// What Docker's clients build the name before each line from.
fn details(task: &TaskView) -> String {
    let node = task.task.node.map_or_else(String::new, |node| node.to_string());
    format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={},com.docker.swarm.task.id={} ",
        task.service, task.task.id
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_nodes_are_taken_apart() {
        let frame = frames::frame(LogStream::Stderr, &[b"2026-11-23T01:51:42.500000000Z a=b  hello \n"]);
        let line = parse(&frame).unwrap();
        assert_eq!((line.stream, line.time), (LogStream::Stderr, WallTime(1_795_398_702_500_000_000)));
        assert_eq!(&line.bytes[..], b"a=b  hello \n");
        for piece in [&b"hello\n"[..], b"shoal: no\n", b""] {
            assert_eq!(parse(&frames::frame(LogStream::Stdout, &[piece])), None, "{piece:?}");
        }
    }
}
