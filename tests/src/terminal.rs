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
        Screen::draw(&self.written(), self.size).text()
    }

    /// Returns what is on the screen as a page for browsers.
    pub fn html(&self) -> String {
        Screen::draw(&self.written(), self.size).html()
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

/// What a program has drawn.
struct Screen {
    columns: usize,
    cells: Vec<Vec<Cell>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    letter: char,
    style: Style,
}

/// How a letter looks. Colours are of the 256 that terminals number.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Style {
    colour: Option<u8>,
    is_bold: bool,
    is_dim: bool,
    is_reversed: bool,
}

impl Screen {
    const EMPTY: Cell =
        Cell { letter: ' ', style: Style { colour: None, is_bold: false, is_dim: false, is_reversed: false } };

    /// Draws what was written: letters, lines, moves of the cursor, clearing and colours; everything else is passed over.
    fn draw(written: &str, (columns, rows): (u16, u16)) -> Self {
        let columns = usize::from(columns);
        let mut screen = Self { columns, cells: Vec::new() };
        screen.cells.resize(usize::from(rows), vec![Self::EMPTY; columns]);
        let (mut x, mut y, mut style) = (0, 0, Style::default());
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
                    let numbers: Vec<usize> = numbers.split(';').map(|number| number.parse().unwrap_or(0)).collect();
                    let place = |index: usize| numbers.get(index).map_or(0, |number| number.saturating_sub(1));
                    match end {
                        Some('H') => (y, x) = (place(0), place(1)),
                        Some('J') => screen.cells.fill(vec![Self::EMPTY; columns]),
                        Some('m') => style.change(&numbers),
                        _ => {}
                    }
                }
                '\r' => x = 0,
                '\n' => y += 1,
                character if character.is_control() => {}
                letter => {
                    if let Some(cell) = screen.cells.get_mut(y).and_then(|row| row.get_mut(x)) {
                        *cell = Cell { letter, style };
                    }
                    x += 1;
                }
            }
        }
        screen
    }

    fn text(&self) -> String {
        let line =
            |row: &Vec<Cell>| row.iter().map(|cell| cell.letter).collect::<String>().trim_end().to_owned() + "\n";
        self.cells.iter().map(line).collect()
    }

    /// Writes the screen as a page for browsers, which can make a picture of it.
    fn html(&self) -> String {
        let mut html = format!(
            "<!DOCTYPE html><meta charset=utf-8><style>body{{margin:0;background:#11181d}}pre{{margin:0;padding:12px;\
             color:#d6e0e5;font:14px/1.25 'DejaVu Sans Mono',monospace;width:{}ch}}</style><pre>",
            self.columns
        );
        for row in &self.cells {
            for run in row.chunk_by(|a, b| a.style == b.style) {
                let letters: String = run.iter().map(|cell| cell.letter).collect();
                let letters = letters.replace('&', "&amp;").replace('<', "&lt;");
                html += &format!("<span style=\"{}\">{letters}</span>", run[0].style.css());
            }
            html.push('\n');
        }
        html
    }
}

impl Style {
    /// Source: ECMA-48, select graphic rendition; 38;5 is xterm's.
    fn change(&mut self, numbers: &[usize]) {
        let mut numbers = numbers.iter();
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                2 => self.is_dim = true,
                7 => self.is_reversed = true,
                22 => (self.is_bold, self.is_dim) = (false, false),
                27 => self.is_reversed = false,
                38 => self.colour = numbers.nth(1).and_then(|colour| u8::try_from(*colour).ok()),
                39 => self.colour = None,
                48 => drop(numbers.nth(1)), // the ground stays what it is
                _ => {}
            }
        }
    }

    fn css(self) -> String {
        const COLOURS: [&str; 8] =
            ["#11181d", "#ff8a80", "#4ccf9c", "#e3b341", "#7aa7ff", "#c79bff", "#67c3e6", "#d6e0e5"];
        let colour = self.colour.map_or(COLOURS[7], |colour| COLOURS[usize::from(colour % 8)]);
        let mut css = match self.is_reversed {
            true => format!("background:{colour};color:{}", COLOURS[0]),
            false => format!("color:{colour}"),
        };
        if self.is_bold {
            css += ";font-weight:bold";
        }
        if self.is_dim {
            css += ";opacity:.65";
        }
        css
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn what_is_written_is_drawn() {
        let written =
            "lost\u{1b}[2J\u{1b}[1;1Hone\r\n\u{1b}[38;5;1;49mtwo\u{1b}[0m\u{1b}[2;6Hx\u{1b}[9;9Houtside\u{1b}[?25l";
        let screen = Screen::draw(written, (6, 2));
        assert_eq!(screen.text(), "one\ntwo  x\n");
        assert_eq!(screen.html().matches("<span").count(), 3);
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
