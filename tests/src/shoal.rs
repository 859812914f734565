//! Runs the command line client against one daemon and reads what it prints.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long a command may take; the longest one waits for a service to converge.
const COMMAND_WAIT: Duration = Duration::from_secs(120);

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Returns standard output, or an error that shows what the command said.
    pub fn success(self) -> Result<String> {
        match self.code {
            0 => Ok(self.stdout),
            code => bail!("exit status {code}: {}{}", self.stdout, self.stderr.trim()),
        }
    }
}

/// Runs a command to its end, with a limit; kills it beyond.
pub fn run(command: Command, limit: Duration) -> Result<Output> {
    run_with(command, String::new(), limit)
}

/// As [`run`], with something on standard input.
pub fn run_with(mut command: Command, input: String, limit: Duration) -> Result<Output> {
    let start = Instant::now();
    let mut child = command
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    let (mut out, mut err) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read what it is given says why. The thread ends with the command.
        std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let read = |stream: &mut dyn Read| {
        let mut bytes = Vec::new();
        // What a broken pipe held back is not there to be read.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    std::thread::scope(|scope| {
        let (stdout, stderr) = (scope.spawn(move || read(&mut out)), scope.spawn(move || read(&mut err)));
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit && !late {
                late = true;
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = start.elapsed();
        let (stdout, mut stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        if late {
            stderr.push_str(&format!("killed after {limit:?}"));
        }
        Ok(Output { code: status.code().unwrap_or(-1), stdout, stderr, took })
    })
}

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Shoal {
    /// The client's executable.
    pub binary: std::path::PathBuf,
    /// The daemon's socket.
    pub socket: std::path::PathBuf,
}

impl Shoal {
    /// Runs `shoal ARGS` and returns what it did, whatever that was.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.run_within(args, COMMAND_WAIT)
    }

    /// Runs `shoal ARGS`, killing it beyond `limit`.
    pub fn run_within(&self, args: &[&str], limit: Duration) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.arg("-H").arg(format!("unix://{}", self.socket.display())).args(args).env("NO_COLOR", "1");
        run(command, limit).with_context(|| format!("shoal {}", args.join(" ")))
    }

    /// Runs `shoal ARGS`, which must succeed, and returns what it printed.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        self.run(args)?.success().with_context(|| format!("shoal {}", args.join(" ")))
    }

    /// Runs `shoal ARGS --format json`, which must succeed, and returns its objects.
    pub fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let args: Vec<&str> = args.iter().copied().chain(["--format", "json"]).collect();
        parse_lines(&self.ok(&args)?)
    }

    /// Returns `status`, which exits with 1 when the cluster is not well and prints it nevertheless.
    pub fn status(&self) -> Result<Value> {
        let output = self.run_within(&["status", "--format", "json"], Duration::from_secs(10))?;
        let mut lines = parse_lines(&output.stdout)?;
        lines.pop().with_context(|| format!("status printed nothing: {}", output.stderr.trim()))
    }
}

fn parse_lines(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// Returns a text field of an object, empty if it is not there.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_taken() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let output = run(command, Duration::from_secs(20)).unwrap();
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err\n"));
        assert!(output.success().unwrap_err().to_string().contains("exit status 3: out\nerr"));
    }

    #[test]
    fn input_is_given() {
        let output = run_with(Command::new("cat"), "in\n".to_owned(), Duration::from_secs(20)).unwrap();
        assert_eq!(output.success().unwrap(), "in\n");
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("100");
        let output = run(command, Duration::from_millis(50)).unwrap();
        assert_eq!(output.code, -1);
        assert!(output.stderr.contains("killed after"));
    }

    #[test]
    fn json_is_read_line_by_line() {
        let lines = parse_lines("{\"ID\":\"a\"}\n\n{\"ID\":\"b\"}\n").unwrap();
        assert_eq!(lines.iter().map(|line| text(line, "ID")).collect::<Vec<_>>(), ["a", "b"]);
        assert!(parse_lines("no").is_err());
    }
}
