//! A terminal of our own: a program that draws pictures runs in it, and what it shows is read as text.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::wait::wait_until;

/// A program in a terminal. Dropping it kills the program.
pub struct Terminal {
    ours: File,
    /// Kept open, so that the terminal outlives the program and can be looked at.
    _theirs: OwnedFd,
    child: Child,
    written: Arc<Mutex<Vec<u8>>>,
    size: (u16, u16),
}

impl Terminal {
    /// Runs a command in a terminal of so many columns and rows. Needs `setsid` of util-linux.
    pub fn run(program: &Command, columns: u16, rows: u16) -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("open a terminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg("--wait").arg(program.get_program()).args(program.get_args());
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs.try_clone()?);
        let mut terminal = Self {
            child: {
                tcsetwinsize(&ours, window(columns, rows))?;
                command.spawn().with_context(|| format!("run {command:?}"))?
            },
            ours: File::from(ours),
            _theirs: theirs,
            written: Arc::default(),
            size: (columns, rows),
        };
        terminal.read()?;
        Ok(terminal)
    }

    fn read(&mut self) -> Result<()> {
        let (mut from, written) = (self.ours.try_clone()?, self.written.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(())
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.ours.write_all(keys.as_bytes()).context("press keys")
    }

    /// Makes it another size. What was on the screen before is forgotten.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.size = (columns, rows);
        tcsetwinsize(&self.ours, window(columns, rows)).context("resize")
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process")?;
        rustix::process::kill_process(pid, signal).context("send a signal")
    }

    /// Returns everything that was written, with what moves the cursor.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Returns what is on the screen.
    pub fn text(&self) -> String {
        picture(&self.written(), self.size)
    }

    /// Waits until the screen is as it should be.
    pub fn wait(&self, what: &str, limit: Duration, is_so: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, limit, || {
            let text = self.text();
            if is_so(&text) { Ok(true) } else { bail!("the screen shows\n{text}") }
        })
        .map(drop)
    }

    /// Waits until the program has ended.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_until("the program ends", limit, || Ok(self.child.try_wait()?.is_some()))?;
        Ok(self.child.wait()?)
    }

    /// Returns whether keys are shown and lines are edited, as in a terminal that no program has taken over.
    pub fn is_as_found(&self) -> Result<bool> {
        let modes = tcgetattr(&self.ours)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Draws what was written: letters, lines, moves of the cursor and clearing; colours and everything else are passed over.
fn picture(written: &str, (columns, rows): (u16, u16)) -> String {
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let mut screen = vec![vec![' '; columns]; rows];
    let (mut x, mut y) = (0, 0);
    let mut characters = written.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                if characters.next() != Some('[') {
                    continue;
                }
                let mut numbers = String::new();
                let end = characters.by_ref().find(|character| {
                    let is_end = character.is_ascii_alphabetic();
                    if !is_end {
                        numbers.push(*character);
                    }
                    is_end
                });
                match end {
                    Some('H') => {
                        let mut at =
                            numbers.split(';').map(|number| number.parse().unwrap_or(1usize).saturating_sub(1));
                        (y, x) = (at.next().unwrap_or(0), at.next().unwrap_or(0));
                    }
                    Some('J') => screen = vec![vec![' '; columns]; rows],
                    _ => {}
                }
            }
            '\r' => x = 0,
            '\n' => y += 1,
            character if character.is_control() => {}
            character => {
                if let Some(cell) = screen.get_mut(y).and_then(|row| row.get_mut(x)) {
                    *cell = character;
                }
                x += 1;
            }
        }
    }
    screen.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn what_is_written_is_drawn() {
        let written = "lost\u{1b}[2J\u{1b}[1;1Hone\r\n\u{1b}[31mtwo\u{1b}[0m\u{1b}[2;6Hx\u{1b}[9;9Houtside\u{1b}[?25l";
        assert_eq!(picture(written, (6, 2)), "one\ntwo  x\n");
    }

    #[test]
    fn a_program_has_a_terminal_of_its_own() {
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 0 && stty size </dev/tty; stty raw -echo; read key; stty size; exit 3"]);
        let mut terminal = Terminal::run(&command, 50, 7).unwrap();
        terminal.wait("it knows its size", LIMIT, |text| text.contains("7 50")).unwrap();
        wait_until("it takes the terminal over", LIMIT, || Ok(!terminal.is_as_found()?)).unwrap();
        terminal.resize(60, 8).unwrap();
        terminal.press("x\n").unwrap();
        assert_eq!(terminal.wait_end(LIMIT).unwrap().code(), Some(3));
        terminal.wait("it knows its new size", LIMIT, |text| text.contains("8 60")).unwrap();
    }
}
