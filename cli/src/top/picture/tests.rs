use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::snapshot;
use crate::top::look::Look;
use crate::top::state::Key;
use crate::top::state::tests::{NOW, happened, look, state};

fn picture(state: &mut State, width: u16, height: u16, colours: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    state.fit(height_of_list(Rect::new(0, 0, width, height), state));
    terminal.draw(|frame| draw(frame, state, Theme { colours })).unwrap();
    terminal
}

fn text(terminal: &Terminal<TestBackend>) -> String {
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let row: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[test]
fn every_pane_is_drawn() {
    let mut state = state();
    let later = Look { at: NOW + 1_000_000_000, ..look() };
    state.take_look(later, NOW + 1_000_000_000);
    state.take_event(happened(NOW - 4_000_000_000, "web"), NOW);
    state.take_event(happened(NOW - 2_000_000_000, "db"), NOW);
    for (key, pane) in "123456".chars().zip(Pane::ALL) {
        state.press(Key::Char(key));
        let name = pane.name().to_lowercase();
        snapshot::check(&format!("top/{name}.txt"), &text(&picture(&mut state, 110, 26, true)));
    }
    state.press(Key::Char('?'));
    snapshot::check("top/help.txt", &text(&picture(&mut state, 80, 24, true)));
}

#[test]
fn a_small_window_shows_what_matters() {
    let mut state = state();
    state.press(Key::Char('3'));
    snapshot::check("top/small.txt", &text(&picture(&mut state, 40, 10, true)));
    state.press(Key::Char('/'));
    state.press(Key::Char('w'));
    state.take_failure("cannot connect to the shoal daemon", NOW + 5_000_000_000);
    snapshot::check("top/silent.txt", &text(&picture(&mut state, 80, 12, true)));
}

#[test]
fn no_window_is_too_small() {
    let mut empty = State::new(Look::default(), NOW);
    let mut full = state();
    for state in [&mut empty, &mut full] {
        for key in ['1', '2', '3', '\n', '4', '5', '6', '?'] {
            state.press(if key == '\n' { Key::Enter } else { Key::Char(key) });
            for width in [0, 1, 3, 40] {
                for height in [0, 1, 2, 3, 5, 8, 25] {
                    picture(state, width, height, true);
                }
            }
        }
        state.press(Key::Escape);
    }
}

#[test]
fn without_colours_there_are_none() {
    let mut state = state();
    for key in "123456?".chars() {
        state.press(Key::Char(key));
        let coloured = |terminal: &Terminal<TestBackend>| {
            let cells = &terminal.backend().buffer().content;
            cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(coloured(&picture(&mut state, 100, 30, true)), "{key}");
        assert!(!coloured(&picture(&mut state, 100, 30, false)), "{key}");
    }
}

#[test]
fn wide_letters_take_their_room() {
    assert_eq!(padded("漢字漢字", 5, false), "漢字…");
    assert_eq!(padded("漢字漢字", 6, false), "漢字… ");
    assert_eq!(padded("7", 3, true), "  7");
    assert_eq!(padded("abc", 0, false), "");
    assert_eq!(padded("abc", 1, false), "…");
}
