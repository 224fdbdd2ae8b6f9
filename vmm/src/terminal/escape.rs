//! Keys that mean the hypervisor and not the guest.

/// Ctrl-A, which starts an escape.
const ESCAPE: u8 = 0x01;

/// What `Ctrl-A h` prints.
pub const HELP: &str = "Ctrl-A x: quit   Ctrl-A a: send Ctrl-A   Ctrl-A h: this help";

/// What a typed byte turned out to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Nothing yet: the next byte decides.
    Pending,
    /// One byte for the guest.
    Byte(u8),
    /// Ctrl-A and then this byte, both for the guest: no escape after all.
    Escaped(u8),
    /// End the machine.
    Quit,
    /// Show [`HELP`].
    Help,
}

impl Key {
    /// What the guest gets to see of it.
    pub fn guest_bytes(self) -> impl Iterator<Item = u8> {
        let (first, second) = match self {
            Key::Byte(byte) => (Some(byte), None),
            Key::Escaped(byte) => (Some(ESCAPE), Some(byte)),
            Key::Pending | Key::Quit | Key::Help => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Finds escapes in what is typed.
#[derive(Debug, Default)]
pub struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes the next byte.
    pub fn feed(&mut self, byte: u8) -> Key {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return if self.escaped { Key::Pending } else { Key::Byte(byte) };
        }
        self.escaped = false;
        match byte {
            b'x' | b'X' => Key::Quit,
            b'h' | b'H' | b'?' => Key::Help,
            b'a' | b'A' | ESCAPE => Key::Byte(ESCAPE),
            other => Key::Escaped(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(bytes: &[u8]) -> Vec<Key> {
        let mut parser = EscapeParser::default();
        bytes.iter().map(|byte| parser.feed(*byte)).collect()
    }

    fn guest_sees(bytes: &[u8]) -> Vec<u8> {
        feed(bytes).into_iter().flat_map(Key::guest_bytes).collect()
    }

    #[test]
    fn escapes() {
        assert_eq!(feed(b"\x01x"), [Key::Pending, Key::Quit]);
        assert_eq!(feed(b"\x01h"), [Key::Pending, Key::Help]);
        assert_eq!(guest_sees(b"\x01\x01"), b"\x01");
        assert_eq!(guest_sees(b"\x01a"), b"\x01");
        // A doubled Ctrl-A does not begin another escape.
        assert_eq!(guest_sees(b"\x01\x01x"), b"\x01x");
        assert_eq!(guest_sees(b"\x01h\x01x"), b"");
    }

    #[test]
    fn everything_else_passes_through() {
        let plain: Vec<u8> = (0..=255).filter(|byte| *byte != ESCAPE).collect();
        assert_eq!(guest_sees(&plain), plain);
        assert_eq!(guest_sees(b"\x01z\x03\x1a"), b"\x01z\x03\x1a");
    }
}
