//! The output of a container that does not exist.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use super::wall_now;
use crate::driver::{DriverError, Exit, LogLine, LogQuery, LogStream};

/// Lines that a container keeps; older ones are dropped.
const LINES_MAX: usize = 1_000;

/// How often output that is followed is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The last lines, and how many there were before them.
#[derive(Debug, Default)]
pub(super) struct Output {
    lines: VecDeque<LogLine>,
    dropped: usize,
}

/// Keeps a line.
pub(super) fn keep(output: &Mutex<Output>, stream: LogStream, text: String) {
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    if output.lines.len() == LINES_MAX {
        output.lines.pop_front();
        output.dropped += 1;
    }
    output.lines.push_back(LogLine { stream, time: wall_now(), bytes: Bytes::from(text + "\n") });
}

/// Streams the lines that a query asks for.
pub(super) fn stream(
    output: Arc<Mutex<Output>>,
    exit: watch::Receiver<Option<Exit>>,
    query: LogQuery,
) -> BoxStream<'static, Result<LogLine, DriverError>> {
    let since = query.since.unwrap_or_default();
    let (first, end) = {
        let output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = output.lines.iter().filter(|line| line.time >= since).count();
        let wanted = query.tail.map_or(fitting, |tail| tail.min(fitting));
        let end = output.dropped + output.lines.len();
        (end - wanted, end)
    };
    let lines = stream::unfold(first, move |next| {
        let (output, exit) = (output.clone(), exit.clone());
        async move {
            loop {
                // Asked before reading: what was written before the end is then read after it.
                let is_last = exit.borrow().is_some();
                let line = {
                    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    output.lines.get(next.saturating_sub(output.dropped)).cloned()
                };
                match line {
                    Some(line) if query.follow || next < end => return Some((Ok(line), next + 1)),
                    Some(_) => return None,
                    None if is_last || !query.follow => return None,
                    None => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        }
    });
    lines.boxed()
}
