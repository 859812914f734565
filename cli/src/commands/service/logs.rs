//! `shoal service logs`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use http_body_util::BodyExt;

use crate::client::{Client, escape};
use crate::commands::tasks::slot_name;
use crate::error::CliError;
use crate::model::{Node, Service, Task};
use crate::output::{short_id, written};
use crate::time;

/// Bytes before each piece of output: the stream, three zeros, and the length, most significant byte first.
const HEADER_BYTES: usize = 8;
/// Bytes of one piece of output at most; more is not the daemon's format.
const PIECE_BYTES_MAX: usize = 4 << 20;

/// Flags of `service logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all", value_parser = tail, value_name = "N")]
    tail: String,
    /// Show logs since timestamp (e.g. 2013-01-02T13:23:37Z) or relative (e.g. 42m for 42 minutes)
    #[arg(long, value_parser = time::api_moment, value_name = "TIME")]
    since: Option<String>,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not map IDs to Names in output
    #[arg(long)]
    no_resolve: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// The service, by name or ID, or the ID of a task
    #[arg(value_name = "SERVICE|TASK")]
    name: String,
}

fn tail(text: &str) -> Result<String, String> {
    if text == "all" || text.parse::<u64>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("expected a number of lines or 'all'".to_owned())
    }
}

/// Prints what tasks have written.
pub(crate) async fn run(client: &Client, args: LogsArgs) -> Result<(), CliError> {
    let path = match client.get::<Service>(&format!("/services/{}", escape(&args.name))).await {
        Ok(service) => format!("/services/{}/logs", escape(&service.id)),
        Err(error) if error.is_not_found() => {
            match client.get::<Task>(&format!("/tasks/{}", escape(&args.name))).await {
                Ok(task) => format!("/tasks/{}/logs", escape(&task.id)),
                Err(error) if error.is_not_found() => {
                    return Err(CliError::Failed(format!("no such task or service: {}", args.name)));
                }
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let query = format!(
        "?follow={}&stdout=1&stderr=1&details={}&timestamps={}&tail={}&since={}",
        u8::from(args.follow),
        u8::from(!args.raw),
        u8::from(args.timestamps),
        args.tail,
        args.since.as_deref().unwrap_or("0")
    );
    let mut body = client.stream(&(path + &query)).await?;
    let mut prefixes = Prefixes { client, args: &args, known: BTreeMap::new() };
    let mut pieces = Pieces::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::Failed(format!("the daemon broke the output off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        pieces.buffer.extend_from_slice(&data);
        while let Some((stream, bytes)) = pieces.next()? {
            let bytes = if args.raw { bytes } else { prefixes.replace(&bytes).await? };
            let result = match stream {
                Stream::Stdout => io::stdout().lock().write_all(&bytes),
                Stream::Stderr => io::stderr().lock().write_all(&bytes),
            };
            written(result)?;
        }
    }
    written(io::stdout().lock().flush())?;
    if pieces.buffer.is_empty() { Ok(()) } else { Err(CliError::Failed("the output ends in the middle".to_owned())) }
}

#[derive(Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// Takes the daemon's answer apart into pieces of output.
#[derive(Default)]
struct Pieces {
    buffer: Vec<u8>,
}

impl Pieces {
    fn next(&mut self) -> Result<Option<(Stream, Vec<u8>)>, CliError> {
        let Some((header, _)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [stream, _, _, _, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        let stream = match stream {
            0 | 1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return Err(CliError::Failed("the daemon's answer is not a stream of output".to_owned())),
        };
        if length > PIECE_BYTES_MAX {
            return Err(CliError::Failed(format!("a piece of output has {length} bytes")));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(HEADER_BYTES + length);
        let mut piece = std::mem::replace(&mut self.buffer, rest);
        piece.drain(..HEADER_BYTES);
        Ok(Some((stream, piece)))
    }
}

/// Who wrote a line, for people; each task is looked up once.
struct Prefixes<'a> {
    client: &'a Client,
    args: &'a LogsArgs,
    known: BTreeMap<String, String>,
}

impl Prefixes<'_> {
    /// Replaces the details before a line (and behind its timestamp) by the task's name and node.
    async fn replace(&mut self, line: &[u8]) -> Result<Vec<u8>, CliError> {
        let Some(parts) = split_details(line, self.args.timestamps) else { return Ok(line.to_vec()) };
        let (time, details, text) = parts;
        if !self.known.contains_key(details) {
            let prefix = self.look_up(details).await;
            self.known.insert(details.to_owned(), prefix);
        }
        let mut out = Vec::with_capacity(line.len());
        // The time comes first, as with Docker's client.
        if !time.is_empty() {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(self.known[details].as_bytes());
        out.extend_from_slice(b"    | ");
        out.extend_from_slice(text);
        Ok(out)
    }

    async fn look_up(&self, details: &str) -> String {
        let detail = |name: &str| {
            let mut pairs = details.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
        };
        let (node_id, service_id, task_id) = (
            detail("com.docker.swarm.node.id"),
            detail("com.docker.swarm.service.id"),
            detail("com.docker.swarm.task.id"),
        );
        let shown = |id: &str| if self.args.no_trunc { id.to_owned() } else { short_id(id).to_owned() };
        // An object that is gone meanwhile is shown by its ID: the line itself matters more.
        let (service, node) = if self.args.no_resolve {
            (service_id.to_owned(), node_id.to_owned())
        } else {
            let service = self.client.get::<Service>(&format!("/services/{}", escape(service_id))).await;
            let node = self.client.get::<Node>(&format!("/nodes/{}", escape(node_id))).await;
            (
                service.map_or_else(|_| shown(service_id), |service| service.spec.name),
                node.map_or_else(|_| shown(node_id), |node| node.description.hostname),
            )
        };
        let slot = match self.client.get::<Task>(&format!("/tasks/{}", escape(task_id))).await {
            Ok(task) => format!(".{}", if task.slot.is_none() { shown(&task.node_id) } else { slot_name(&task) }),
            Err(_) => String::new(),
        };
        let task = if self.args.no_task_ids { String::new() } else { format!(".{}", shown(task_id)) };
        format!("{service}{slot}{task}@{node}")
    }
}

/// Splits a line into timestamp (empty unless asked for), details and text.
fn split_details(line: &[u8], has_time: bool) -> Option<(&str, &str, &[u8])> {
    let blank = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b' ');
    let (time, rest) = if has_time {
        let at = blank(line)?;
        (std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..])
    } else {
        ("", line)
    };
    let at = blank(rest)?;
    let details = std::str::from_utf8(&rest[..at]).ok()?;
    details.contains("com.docker.swarm.task.id=").then_some((time, details, &rest[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_multiplex_is_taken_apart_wherever_it_was_cut() {
        let bytes = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x01x";
        for cut in 0..bytes.len() {
            let mut pieces = Pieces::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                pieces.buffer.extend_from_slice(part);
                while let Some(piece) = pieces.next().unwrap() {
                    got.push(piece);
                }
            }
            assert_eq!(got, [(Stream::Stdout, b"abc".to_vec()), (Stream::Stderr, b"x".to_vec())]);
        }
        let mut pieces = Pieces { buffer: b"{\"message\"".to_vec() };
        assert!(pieces.next().is_err());
    }

    #[test]
    fn details_are_found_before_the_text() {
        let details = "com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t";
        let line = format!("2026-11-23T01:52:37.3Z {details} listening on 8080\n");
        let (time, found, text) = split_details(line.as_bytes(), true).unwrap();
        assert_eq!((time, found, text), ("2026-11-23T01:52:37.3Z", details, b"listening on 8080\n".as_slice()));
        assert!(split_details(b"plain text\n", false).is_none());
    }
}
