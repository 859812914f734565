//! Reading back what supervisors kept of a container's output.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::iter::Peekable;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use shoal_protocol::WallTime;

use crate::driver::{LogLine, LogQuery, LogStream};
use crate::supervisor::streams::{LINE_BYTES_MAX, file_names};

/// Bytes of time and kind before a line, at most.
const STAMP_BYTES_MAX: usize = 40;

/// Opens the output of a container. Files are few and bounded, so they are open at once; reading is up to the iterator.
pub fn open(directory: &Path, query: LogQuery) -> io::Result<Box<dyn Iterator<Item = LogLine> + Send>> {
    let stdout = Lines::open(directory, LogStream::Stdout, "stdout")?.peekable();
    let stderr = Lines::open(directory, LogStream::Stderr, "stderr")?.peekable();
    let lines = Merged { stdout, stderr }.filter(move |line| query.since.is_none_or(|since| line.time >= since));
    let Some(tail) = query.tail else { return Ok(Box::new(lines)) };
    let mut last = VecDeque::new();
    for line in lines {
        if last.len() >= tail {
            last.pop_front();
        }
        if tail > 0 {
            last.push_back(line);
        }
    }
    Ok(Box::new(last.into_iter()))
}

/// Both streams in the order of time.
struct Merged {
    stdout: Peekable<Lines>,
    stderr: Peekable<Lines>,
}

impl Iterator for Merged {
    type Item = LogLine;
    fn next(&mut self) -> Option<LogLine> {
        match (self.stdout.peek(), self.stderr.peek()) {
            (Some(out), Some(err)) if out.time > err.time => self.stderr.next(),
            (Some(_), _) => self.stdout.next(),
            (None, _) => self.stderr.next(),
        }
    }
}

/// The lines of one stream, oldest first.
struct Lines {
    stream: LogStream,
    files: VecDeque<BufReader<File>>,
}

impl Lines {
    fn open(directory: &Path, stream: LogStream, name: &str) -> io::Result<Self> {
        let mut files: VecDeque<File> = VecDeque::new();
        let mut known = Vec::new();
        // Newest first: a file that is renamed meanwhile is then met twice, and not missed.
        for name in file_names(name).iter().rev() {
            match File::open(directory.join(name)) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    if !known.contains(&inode) {
                        known.push(inode);
                        files.push_front(file);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { stream, files: files.into_iter().map(BufReader::new).collect() })
    }
}

impl Iterator for Lines {
    type Item = LogLine;
    fn next(&mut self) -> Option<LogLine> {
        let limit = (LINE_BYTES_MAX + STAMP_BYTES_MAX) as u64;
        let mut line = Vec::new();
        while let Some(file) = self.files.front_mut() {
            line.clear();
            match file.take(limit).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => {
                    self.files.pop_front();
                }
                // A line that was being written, or that a full disk tore.
                Ok(_) => {
                    if let Some(line) = parse(self.stream, &line) {
                        return Some(line);
                    }
                }
            }
        }
        None
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
    use super::*;

    fn read(directory: &Path, query: LogQuery) -> Vec<(u64, String)> {
        open(directory, query)
            .unwrap()
            .map(|line| (line.time.0, String::from_utf8_lossy(&line.bytes).into_owned()))
            .collect()
    }

    #[test]
    fn streams_and_files_come_in_the_order_of_time() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(read(directory.path(), LogQuery::default()), []);
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
            let query = LogQuery { tail, since: since.map(WallTime) };
            assert_eq!(read(directory.path(), query), want, "{query:?}");
        }
    }
}
