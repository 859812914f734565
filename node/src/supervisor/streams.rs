//! The output of a container: read from its pipes, kept in files that are rotated.
//!
//! A line of a file is `<seconds>.<nanoseconds> <F or P> <bytes>`: F if the line was finished by a line feed, P if it is a
//! part of one that was not, or was too long. What cannot be written, because the disk is full, is lost, and the
//! container goes on: it must never block on its own output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::health::Monitor;
use crate::driver::embedded::bundle::wall_now;
use crate::driver::embedded::settings::LogLimits;

/// Bytes of a line that are kept together; a longer one is kept in parts.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Reads of one stream before the other has its turn; together more than a pipe holds.
const READS_PER_TURN: usize = 32;

/// Returns the names of so many files of a stream, oldest first.
pub fn file_names(stream: &str, files: usize) -> Vec<String> {
    (1..files).rev().map(|age| format!("{stream}.log.{age}")).chain([format!("{stream}.log")]).collect()
}

/// One stream and its files.
struct Recorder {
    pipe: Option<File>,
    directory: PathBuf,
    stream: &'static str,
    limits: LogLimits,
    file: Option<File>,
    bytes: u64,
    line: Vec<u8>,
}

impl Recorder {
    fn new(directory: &Path, stream: &'static str, pipe: OwnedFd, limits: LogLimits) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let mut recorder = Self {
            pipe: Some(File::from(pipe)),
            directory: directory.to_owned(),
            stream,
            limits,
            file: None,
            bytes: 0,
            line: Vec::new(),
        };
        if limits.files > 0 {
            recorder.open()?;
        }
        Ok(recorder)
    }

    fn open(&mut self) -> io::Result<()> {
        let path = self.directory.join(format!("{}.log", self.stream));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Reads what there is, but not for ever: the other stream and the end of the container count too. Forgets the pipe at
    /// its end.
    fn read(&mut self, buffer: &mut [u8]) {
        for _ in 0..READS_PER_TURN {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) if self.limits.files > 0 => self.record(&buffer[..count]),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn record(&mut self, bytes: &[u8]) {
        let now = wall_now().0;
        let stamp = format!("{}.{:09}", now / 1_000_000_000, now % 1_000_000_000);
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while !rest.is_empty() {
                let room = LINE_BYTES_MAX - self.line.len();
                let (now, later) = rest.split_at(rest.len().min(room));
                self.line.extend_from_slice(now);
                rest = later;
                if self.line.ends_with(b"\n") || self.line.len() >= LINE_BYTES_MAX {
                    Self::finish_line(&mut self.line, &stamp, &mut text);
                }
            }
        }
        self.write(&text);
    }

    fn finish_line(line: &mut Vec<u8>, stamp: &str, text: &mut Vec<u8>) {
        let kind = if line.ends_with(b"\n") { 'F' } else { 'P' };
        text.extend_from_slice(format!("{stamp} {kind} ").as_bytes());
        text.append(line);
        if kind == 'P' {
            text.push(b'\n');
        }
    }

    fn write(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        if self.bytes + text.len() as u64 > self.limits.file_bytes {
            self.rotate();
        }
        let Some(file) = &mut self.file else { return };
        match file.write_all(text) {
            Ok(()) => self.bytes += text.len() as u64,
            // A torn line at most; readers skip it.
            Err(_) => self.bytes = file.metadata().map_or(self.bytes, |metadata| metadata.len()),
        }
    }

    fn rotate(&mut self) {
        let names = file_names(self.stream, self.limits.files);
        if let [only] = &names[..] {
            // Whoever reads it reads it to its end.
            let _ = fs::remove_file(self.directory.join(only));
        }
        for pair in names.windows(2) {
            let _ = fs::rename(self.directory.join(&pair[1]), self.directory.join(&pair[0]));
        }
        // Without a new file, the old one is still written to.
        let _ = self.open();
    }

    /// Keeps the last line though nothing finished it.
    fn close(&mut self) {
        if !self.line.is_empty() {
            let now = wall_now().0;
            let stamp = format!("{}.{:09}", now / 1_000_000_000, now % 1_000_000_000);
            let mut text = Vec::new();
            Self::finish_line(&mut self.line, &stamp, &mut text);
            self.write(&text);
        }
    }
}

/// Both streams of a container.
pub struct Streams([Recorder; 2]);

impl Streams {
    /// Reads from these pipes into the directory of the container.
    pub fn new(directory: &Path, stdout: OwnedFd, stderr: OwnedFd, limits: LogLimits) -> io::Result<Self> {
        let recorder = |stream, pipe| Recorder::new(directory, stream, pipe, limits);
        Ok(Self([recorder("stdout", stdout)?, recorder("stderr", stderr)?]))
    }

    /// Records until `ended` (a process handle) becomes readable, and what was written until then. Lets the container's
    /// health be checked beside.
    pub fn record_until(mut self, ended: BorrowedFd<'_>, mut health: Option<Monitor>) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut waiting = vec![PollFd::from_borrowed_fd(ended, PollFlags::IN)];
            for recorder in &self.0 {
                waiting
                    .extend(recorder.pipe.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
            }
            waiting.extend(
                health.as_ref().and_then(Monitor::waits_for).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            );
            let timeout = health.as_ref().and_then(|health| Timespec::try_from(health.timeout()).ok());
            match poll(&mut waiting, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let over = !waiting[0].revents().is_empty();
            drop(waiting);
            for recorder in &mut self.0 {
                recorder.read(&mut buffer);
            }
            if over {
                self.0.iter_mut().for_each(Recorder::close);
                return Ok(());
            }
            if let Some(health) = &mut health {
                health.turn();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;

    fn record(directory: &Path, limits: LogLimits, chunks: &[&[u8]]) {
        let (reader, _writer) = pipe().unwrap();
        let mut recorder = Recorder::new(directory, "stdout", reader.into(), limits).unwrap();
        for chunk in chunks {
            recorder.record(chunk);
        }
        recorder.close();
    }

    fn kinds_and_lengths(directory: &Path) -> Vec<(String, usize)> {
        let text = fs::read_to_string(directory.join("stdout.log")).unwrap();
        text.lines()
            .map(|line| {
                let mut words = line.splitn(3, ' ').skip(1);
                (words.next().unwrap().to_owned(), words.next().unwrap().len())
            })
            .collect()
    }

    #[test]
    fn lines_are_kept_whole_whatever_the_chunks() {
        let directory = tempfile::tempdir().unwrap();
        record(directory.path(), LogLimits::default(), &[b"one\ntw", b"o\n", b"\n", b"rest"]);
        let got = kinds_and_lengths(directory.path());
        let want = [("F", 3), ("F", 3), ("F", 0), ("P", 4)].map(|(kind, length)| (kind.to_owned(), length));
        assert_eq!(got, want);
    }

    #[test]
    fn long_lines_are_kept_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        record(directory.path(), LogLimits::default(), &[&vec![b'x'; LINE_BYTES_MAX + 5], b"\n"]);
        let got = kinds_and_lengths(directory.path());
        assert_eq!(got, [("P".to_owned(), LINE_BYTES_MAX), ("F".to_owned(), 5)]);
    }

    #[test]
    fn files_are_rotated_and_the_oldest_forgotten() {
        let block = [b'x'; 1023].iter().chain(b"\n").copied().cycle().take(64 * 1024).collect::<Vec<u8>>();
        for (files, want) in [
            (3, &["stdout.log", "stdout.log.1", "stdout.log.2"][..]),
            (1, &["stdout.log"]),
            (2, &["stdout.log", "stdout.log.1"]),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let limits = LogLimits { file_bytes: 1 << 20, files };
            record(directory.path(), limits, &vec![block.as_slice(); 5 * limits.file_bytes as usize / block.len()]);
            let mut names: Vec<String> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, want);
            for name in names {
                assert!(fs::metadata(directory.path().join(name)).unwrap().len() <= limits.file_bytes);
            }
        }
    }
}
