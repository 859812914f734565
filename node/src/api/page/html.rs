//! A page as it is written: markup comes from this program alone, everything else is escaped.

use std::fmt::{Display, Write};

/// Characters of one text at most; longer ones end with an ellipsis.
const TEXT_CHARS_MAX: usize = 200;

/// A part of a page.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// Adds markup. It is a literal, so nothing that anybody sent can become markup.
    pub(super) fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds a text, whatever is in it; also between the quotation marks of an attribute.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a text cannot fail.
        let _ = write!(Escaped { html: &mut self.0, left: TEXT_CHARS_MAX }, "{text}");
        self
    }

    /// Adds a part that was written before.
    pub(super) fn part(&mut self, part: &Html) -> &mut Self {
        self.0.push_str(&part.0);
        self
    }

    /// Returns the whole as text.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Escapes what is written to it, and cuts it off.
struct Escaped<'a> {
    html: &'a mut String,
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match self.left {
                0 => return Ok(()),
                1 => self.html.push('…'),
                _ => self.push(character),
            }
            self.left -= 1;
        }
        Ok(())
    }
}

impl Escaped<'_> {
    fn push(&mut self, character: char) {
        match character {
            '&' => self.html.push_str("&amp;"),
            '<' => self.html.push_str("&lt;"),
            '>' => self.html.push_str("&gt;"),
            '"' => self.html.push_str("&quot;"),
            '\'' => self.html.push_str("&#39;"),
            // Neither these nor what turns the direction of writing around belongs into a name.
            character if character.is_control() || is_direction(character) => self.html.push('\u{fffd}'),
            character => self.html.push(character),
        }
    }
}

/// Source: Unicode, `Bidi_Control`.
fn is_direction(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        let mut html = Html::default();
        html.text(text);
        html.into_text()
    }

    #[test]
    fn texts_cannot_become_markup() {
        assert_eq!(text("<script>\"&'"), "&lt;script&gt;&quot;&amp;&#39;");
        assert_eq!(text("a\0b\nc\u{202e}d"), "a\u{fffd}b\u{fffd}c\u{fffd}d");
        assert_eq!(text("é漢"), "é漢");
    }

    #[test]
    fn texts_are_cut() {
        assert_eq!(text(&"x".repeat(199)).chars().count(), 199);
        let long = text(&"<".repeat(5000));
        assert_eq!(long.matches("&lt;").count(), TEXT_CHARS_MAX - 1);
        assert!(long.ends_with('…'));
    }
}
