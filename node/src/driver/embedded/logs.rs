//! Reading back what supervisors kept of a container's output, and going on as they write.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use shoal_protocol::WallTime;

use super::settings::LOG_FILES_MAX;
use crate::driver::{LogLine, LogQuery, LogStream};
use crate::supervisor::streams::{LINE_BYTES_MAX, file_names};

/// Bytes of a line with its time and kind, at most; what is longer was not written by a supervisor.
const STAMPED_BYTES_MAX: usize = LINE_BYTES_MAX + 40;

/// Lines that are read at once.
const BATCH_LINES: usize = 256;

/// How often files that are followed are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// Streams the output in `directory`. Following, it ends when everything was read after `has_ended` said so.
pub async fn stream(
    directory: PathBuf,
    query: LogQuery,
    has_ended: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<BoxStream<'static, io::Result<LogLine>>> {
    struct State<F> {
        reader: Option<Reader>,
        lines: std::vec::IntoIter<LogLine>,
        has_ended: F,
    }
    let reader = tokio::task::spawn_blocking(move || Reader::open(&directory, query)).await??;
    let state = State { reader: Some(reader), lines: Vec::new().into_iter(), has_ended };
    let lines = stream::unfold(state, move |mut state| async move {
        loop {
            if let Some(line) = state.lines.next() {
                return Some((Ok(line), state));
            }
            let mut reader = state.reader.take()?;
            // Asked before reading: what was written before the end is then read after it.
            let is_last = !query.follow || (state.has_ended)();
            let read = tokio::task::spawn_blocking(move || reader.batch().map(|lines| (lines, reader))).await;
            match read.map_err(io::Error::from).flatten() {
                Ok((lines, _)) if lines.is_empty() && is_last => return None,
                Ok((lines, reader)) => {
                    if lines.is_empty() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    state.lines = lines.into_iter();
                    state.reader = Some(reader);
                }
                Err(error) => return Some((Err(error), state)),
            }
        }
    });
    Ok(lines.boxed())
}

/// Both streams in the order of time, as far as they are written.
struct Reader {
    query: LogQuery,
    /// What there was of the last lines asked for when reading began.
    backlog: VecDeque<LogLine>,
    stdout: Lines,
    stderr: Lines,
    next_out: Option<LogLine>,
    next_err: Option<LogLine>,
}

impl Reader {
    fn open(directory: &Path, query: LogQuery) -> io::Result<Self> {
        let lines = |stream, name| Lines {
            stream,
            name,
            directory: directory.to_owned(),
            files: VecDeque::new(),
            newest: None,
            line: Vec::new(),
        };
        let mut reader = Self {
            query,
            backlog: VecDeque::new(),
            stdout: lines(LogStream::Stdout, "stdout"),
            stderr: lines(LogStream::Stderr, "stderr"),
            next_out: None,
            next_err: None,
        };
        if let Some(tail) = query.tail {
            while let Some(line) = reader.next()? {
                reader.backlog.push_back(line);
                if reader.backlog.len() > tail {
                    reader.backlog.pop_front();
                }
            }
        }
        Ok(reader)
    }

    /// Reads some lines; none if there are no more at this moment.
    fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_LINES {
            let line = match self.backlog.pop_front() {
                Some(line) => line,
                None if self.query.tail.is_some() && !self.query.follow => break,
                None => match self.next()? {
                    Some(line) => line,
                    None => break,
                },
            };
            batch.push(line);
        }
        Ok(batch)
    }

    fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.next_out.is_none() {
                self.next_out = self.stdout.next()?;
            }
            if self.next_err.is_none() {
                self.next_err = self.stderr.next()?;
            }
            let line = match (&self.next_out, &self.next_err) {
                (Some(out), Some(err)) if out.time > err.time => self.next_err.take(),
                (Some(_), _) => self.next_out.take(),
                (None, _) => self.next_err.take(),
            };
            let Some(line) = line else { return Ok(None) };
            if self.query.since.is_none_or(|since| line.time >= since) {
                return Ok(Some(line));
            }
        }
    }
}

/// The lines of one stream, oldest first. Files are few and bounded, so those that are still to be read are open.
struct Lines {
    stream: LogStream,
    name: &'static str,
    directory: PathBuf,
    files: VecDeque<BufReader<File>>,
    /// The inode of the newest file that was opened. It is not given to another one while the file is open.
    newest: Option<u64>,
    /// What was read of a line that is not finished.
    line: Vec<u8>,
}

impl Lines {
    /// Returns the next whole line; nothing if it is not written yet.
    fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let is_newest = self.files.len() <= 1;
            let read = match self.files.front_mut() {
                Some(file) => {
                    let room = STAMPED_BYTES_MAX - self.line.len();
                    file.take(room as u64).read_until(b'\n', &mut self.line)?
                }
                None => 0,
            };
            if self.line.ends_with(b"\n") || self.line.len() == STAMPED_BYTES_MAX {
                if let Some(line) = parse(self.stream, &std::mem::take(&mut self.line)) {
                    return Ok(Some(line));
                }
            } else if read == 0 && !is_newest {
                self.files.pop_front();
                self.line.clear(); // torn by a full disk
            } else if read == 0 && !self.open_newer()? {
                return Ok(None);
            }
        }
    }

    /// Opens the files that were begun since the newest known one. Returns whether there are any: then the present one may
    /// have grown until it was renamed, and is to be read once more.
    fn open_newer(&mut self) -> io::Result<bool> {
        let mut newer: VecDeque<(u64, File)> = VecDeque::new();
        // Newest first: a file that is renamed meanwhile is then met twice, and not missed.
        for name in file_names(self.name, LOG_FILES_MAX).iter().rev() {
            match File::open(self.directory.join(name)) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    if self.newest == Some(inode) {
                        break;
                    }
                    if !newer.iter().any(|(known, _)| *known == inode) {
                        newer.push_front((inode, file));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let Some((newest, _)) = newer.back() else { return Ok(false) };
        self.newest = Some(*newest);
        self.files.extend(newer.into_iter().map(|(_, file)| BufReader::new(file)));
        Ok(true)
    }
}

fn parse(stream: LogStream, line: &[u8]) -> Option<LogLine> {
    let line = line.strip_suffix(b"\n")?;
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (stamp, kind, text) = (parts.next()?, parts.next()?, parts.next()?);
    let (seconds, nanos) = std::str::from_utf8(stamp).ok()?.split_once('.')?;
    let (seconds, nanos): (u64, u64) = (seconds.parse().ok()?, nanos.parse().ok()?);
    let time = WallTime(seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?);
    let mut bytes = text.to_vec();
    match kind {
        b"F" => bytes.push(b'\n'),
        b"P" => {}
        _ => return None,
    }
    Some(LogLine { stream, time, bytes: Bytes::from(bytes) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    async fn read(directory: &Path, query: LogQuery) -> Vec<(u64, String)> {
        let lines = stream(directory.to_owned(), query, || true).await.unwrap();
        lines.map(|line| text(&line.unwrap())).collect().await
    }

    fn text(line: &LogLine) -> (u64, String) {
        (line.time.0, String::from_utf8_lossy(&line.bytes).into_owned())
    }

    #[tokio::test]
    async fn streams_and_files_come_in_the_order_of_time() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(read(directory.path(), LogQuery::default()).await, []);
        write("stdout.log.1", "0.000000001 F one\n0.000000003 F three\n");
        write("stdout.log", "garbage\n0.000000005 P fi\n0.000000005 F ve\n0.000000009 F torn");
        write("stderr.log", "0.000000002 F two\n0.000000004 F four  \n");
        let all = [(1, "one\n"), (2, "two\n"), (3, "three\n"), (4, "four  \n"), (5, "fi"), (5, "ve\n")];
        let all = all.map(|(time, text)| (time, text.to_owned()));
        for (tail, since, want) in [
            (None, None, &all[..]),
            (Some(2), None, &all[4..]),
            (Some(0), None, &[]),
            (None, Some(3), &all[2..]),
            (Some(1), Some(9), &[]),
        ] {
            let query = LogQuery { tail, since: since.map(WallTime), follow: false };
            assert_eq!(read(directory.path(), query).await, want, "{query:?}");
        }
    }

    #[tokio::test]
    async fn output_is_followed_across_rotation_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("stdout.log"), "0.000000001 F one\n0.000000002 F two\n").unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let query = LogQuery { tail: Some(1), since: None, follow: true };
        let has_ended = ended.clone();
        let ends = move || has_ended.load(Ordering::SeqCst);
        let mut lines = stream(directory.path().to_owned(), query, ends).await.unwrap();
        let mut next = async || lines.next().await.map(|line| text(&line.unwrap()).1);
        assert_eq!(next().await.as_deref(), Some("two\n"));
        let mut file = File::options().append(true).open(path("stdout.log")).unwrap();
        file.write_all(b"0.000000003 F thr").unwrap();
        let (line, ()) = tokio::join!(next(), async {
            tokio::time::sleep(LOOK_EVERY).await; // so that a part of the line is read alone
            file.write_all(b"ee\n0.000000004 F four\n").unwrap();
            std::fs::rename(path("stdout.log"), path("stdout.log.1")).unwrap();
            std::fs::write(path("stdout.log"), "0.000000005 F five\n").unwrap();
        });
        assert_eq!(line.as_deref(), Some("three\n"));
        assert_eq!(next().await.as_deref(), Some("four\n"));
        assert_eq!(next().await.as_deref(), Some("five\n"));
        std::fs::write(path("stderr.log"), "0.000000006 F last\n").unwrap();
        ended.store(true, Ordering::SeqCst);
        assert_eq!(next().await.as_deref(), Some("last\n"));
        assert_eq!(next().await, None);
    }
}
