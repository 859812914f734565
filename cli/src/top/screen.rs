//! The terminal: taken over at the beginning, given back however it ends.

use std::io::{self, IsTerminal};
use std::thread;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::error::CliError;
use crate::top::picture::{Theme, draw, height_of_list};
use crate::top::state::{Key, State};

/// Keys that wait to be acted on; while there are as many, none is read.
const WAITING_MAX: usize = 64;

/// A terminal that shows nothing else. Dropping it, and a panic anywhere, gives the terminal back as it was.
pub(crate) struct Screen {
    terminal: DefaultTerminal,
    theme: Theme,
}

/// What the user did.
pub(crate) enum Input {
    /// Pressed a key.
    Key(Key),
    /// Something that only needs another picture, such as another size.
    Other,
    /// The terminal cannot be read any more.
    Lost(io::Error),
}

/// Refuses where there is no terminal to draw on.
pub(crate) fn check_terminal() -> Result<(), CliError> {
    let is_dumb = std::env::var("TERM").is_ok_and(|term| term.is_empty() || term == "dumb");
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() || is_dumb {
        let why = if is_dumb { "this one draws no pictures (TERM)" } else { "input or output is none" };
        let message =
            format!("shoal top needs a terminal, and {why}; scripts use shoal status, node ls, service ps and events");
        return Err(CliError::Failed(message));
    }
    Ok(())
}

impl Screen {
    /// Takes the terminal over.
    pub(crate) fn open() -> Result<Self, CliError> {
        // The hook that this sets gives the terminal back before a panic is reported.
        let terminal = ratatui::try_init().map_err(|error| {
            ratatui::restore();
            failed(error)
        })?;
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { terminal, theme: Theme { colours } })
    }

    /// Draws the state, which learns how much fits.
    pub(crate) fn show(&mut self, state: &mut State) -> Result<(), CliError> {
        self.terminal.autoresize().map_err(failed)?;
        let size = self.terminal.size().map_err(failed)?;
        state.fit(height_of_list(ratatui::layout::Rect::from((ratatui::layout::Position::ORIGIN, size)), state));
        self.terminal.draw(|frame| draw(frame, state, self.theme)).map(drop).map_err(failed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn failed(error: io::Error) -> CliError {
    CliError::Failed(format!("the terminal failed: {error}"))
}

/// Reads what the user does, in a thread that ends with the process: nothing can wake it while no key is pressed.
pub(crate) fn inputs() -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    thread::spawn(move || {
        loop {
            let (input, is_last) = match event::read() {
                Ok(Event::Key(pressed)) => (key(pressed).map_or(Input::Other, Input::Key), false),
                Ok(_) => (Input::Other, false),
                Err(error) => (Input::Lost(error), true),
            };
            if sender.blocking_send(input).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// Returns what a key means here; `None` if nothing.
fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let is_control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if is_control => Key::Interrupt,
        KeyCode::Char('f' | 'd') if is_control => Key::PageDown,
        KeyCode::Char('b' | 'u') if is_control => Key::PageUp,
        KeyCode::Char('n') if is_control => Key::Down,
        KeyCode::Char('p') if is_control => Key::Up,
        KeyCode::Char(_) if is_control || pressed.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(char) => Key::Char(char),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::F(1) => Key::Help,
        KeyCode::F(10) => Key::Interrupt,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the terminal is told when it is taken over and when it is given back.
    const TAKEN: &str = "\u{1b}[?1049h";
    const GIVEN_BACK: &str = "\u{1b}[?1049l";

    #[test]
    #[ignore = "another test runs it in a terminal of its own"]
    fn panics_with_the_screen_open() {
        let _screen = Screen::open().unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_reported() {
        let program = std::env::current_exe().unwrap();
        let inner = "top::screen::tests::panics_with_the_screen_open";
        // `script` makes the terminal; `stty` says how it was left.
        let line = format!("'{}' --exact {inner} --ignored --nocapture; stty -a", program.display());
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("RUST_BACKTRACE", "0");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        assert!(place(TAKEN) < place(GIVEN_BACK), "{text:?}");
        assert!(place(GIVEN_BACK) < place("on purpose"), "{text:?}");
        let settings: Vec<&str> = text.split_whitespace().collect();
        for setting in ["icanon", "echo", "isig"] {
            assert!(settings.contains(&setting), "{setting}: {text}");
        }
    }

    #[test]
    fn keys_mean_what_users_expect() {
        let with = |code, modifiers| key(KeyEvent::new(code, modifiers));
        for (code, modifiers, want) in [
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Key::Interrupt)),
            (KeyCode::Char('c'), KeyModifiers::NONE, Some(Key::Char('c'))),
            (KeyCode::Char('G'), KeyModifiers::SHIFT, Some(Key::Char('G'))),
            (KeyCode::Char('x'), KeyModifiers::CONTROL, None),
            (KeyCode::F(1), KeyModifiers::NONE, Some(Key::Help)),
            (KeyCode::F(5), KeyModifiers::NONE, None),
        ] {
            assert_eq!(with(code, modifiers), want, "{code:?}");
        }
        let mut released = KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(key(released), None);
    }
}
