//! One JSON object on one line, written into a buffer of fixed size.

use core::fmt::{self, Write};

/// Bytes a line may have, its end included.
const CAPACITY: usize = 1024;
/// Bytes kept back so that a line that is full can still be closed.
const CLOSING: usize = 4;

/// A line being written. A value that does not fit is cut (text) or left out (numbers); the line stays valid JSON.
pub struct Line {
    bytes: [u8; CAPACITY],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    /// An object without members.
    pub const fn new() -> Self {
        let mut bytes = [0; CAPACITY];
        bytes[0] = b'{';
        Self { bytes, length: 1 }
    }

    /// Starts the report of a phase.
    pub fn phase(name: &str) -> Self {
        let mut line = Self::new();
        line.text("phase", name);
        line
    }

    /// Adds a number.
    pub fn number(&mut self, key: &str, value: u64) -> &mut Self {
        self.member(key, format_args!("{value}"))
    }

    /// Adds a number as a string of hexadecimal digits: JSON numbers lose bits above 2^53 in many readers.
    pub fn hex(&mut self, key: &str, value: u64) -> &mut Self {
        self.member(key, format_args!("\"{value:#x}\""))
    }

    /// Adds a text, escaped.
    pub fn text(&mut self, key: &str, value: impl fmt::Display) -> &mut Self {
        let start = self.length;
        if self.key(key).is_err() || self.push(b"\"").is_err() {
            self.length = start;
            return self;
        }
        // A text that is too long is cut where it was full.
        let _ = write!(Escaped(self), "{value}");
        self.bytes[self.length] = b'"';
        self.length += 1;
        self
    }

    /// Closes the object and returns the line with its line feed.
    pub fn finish(&mut self) -> &[u8] {
        self.bytes[self.length] = b'}';
        self.bytes[self.length + 1] = b'\n';
        &self.bytes[..self.length + 2]
    }

    fn member(&mut self, key: &str, value: fmt::Arguments) -> &mut Self {
        let start = self.length;
        if self.key(key).is_err() || write!(Plain(self), "{value}").is_err() {
            self.length = start;
        }
        self
    }

    fn key(&mut self, key: &str) -> fmt::Result {
        if self.length > 1 {
            self.push(b",")?;
        }
        self.push(b"\"")?;
        self.push(key.as_bytes())?;
        self.push(b"\":")
    }

    fn push(&mut self, bytes: &[u8]) -> fmt::Result {
        let end = self.length + bytes.len();
        if end > CAPACITY - CLOSING {
            return Err(fmt::Error);
        }
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }
}

struct Plain<'a>(&'a mut Line);

impl Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push(text.as_bytes())
    }
}

struct Escaped<'a>(&'a mut Line);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' => self.0.push(b"\\\"")?,
                '\\' => self.0.push(b"\\\\")?,
                '\n' => self.0.push(b"\\n")?,
                control if control.is_control() => self.0.push(b" ")?,
                other => self.0.push(other.encode_utf8(&mut [0; 4]).as_bytes())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &mut Line) -> String {
        String::from_utf8(line.finish().to_vec()).expect("lines are UTF-8")
    }

    #[test]
    fn members_are_separated_and_escaped() {
        let mut line = Line::phase("verify");
        line.number("pages", 16384).number("bad", 0);
        assert_eq!(text(&mut line), "{\"phase\":\"verify\",\"pages\":16384,\"bad\":0}\n");
        let mut line = Line::new();
        line.text("error", "a \"b\" \\ c\n\td").hex("gpa", 0xfee0_0000);
        assert_eq!(text(&mut line), "{\"error\":\"a \\\"b\\\" \\\\ c\\n d\",\"gpa\":\"0xfee00000\"}\n");
        assert_eq!(text(&mut Line::new()), "{}\n");
    }

    #[test]
    fn a_line_that_is_full_stays_valid() {
        for padding in CAPACITY - 40..CAPACITY + 10 {
            let mut line = Line::new();
            line.text("error", "é".repeat(padding / 2)).text("more", "x").number("n", u64::MAX).hex("h", u64::MAX);
            let text = text(&mut line);
            assert!(text.len() <= CAPACITY && text.ends_with("}\n"));
            assert_eq!(text.matches('"').count() % 2, 0, "{text}");
        }
    }
}
