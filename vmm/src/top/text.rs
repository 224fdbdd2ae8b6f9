//! Numbers and names in a few cells of a terminal.

use cistern_memory::ledger::Level;
use ratatui::text::Span;

/// What stands for a value that is not known.
pub const UNKNOWN: &str = "-";

/// A size of at most five cells: `0`, `512B`, `9.5M`, `23.5M`, `512M`.
pub fn bytes(bytes: u64) -> String {
    if bytes == 0 { "0".to_owned() } else { scaled(bytes as f64, 1024.0, &["B", "K", "M", "G", "T", "P", "E"]) }
}

/// A number of at most five cells: `0`, `7.3`, `850`, `12.3k`.
pub fn count(number: f64) -> String {
    scaled(number, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// A part of a whole, in percent, of at most five cells: `0%`, `6.3%`, `42%`, `>999%`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0%".to_owned(),
        _ if percent >= 999.5 => ">999%".to_owned(),
        _ if percent.abs() >= 9.95 => format!("{percent:.0}%"),
        _ => format!("{percent:.1}%"),
    }
}

/// A time that has passed: `0.4s`, `42s`, `7m`, `3h`, `12d`.
pub fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{:.1}s", milliseconds as f64 / 1000.0),
        10..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A level, if there was a round that set one.
pub fn level(level: Option<Level>) -> &'static str {
    level.map_or("no round yet", Level::name)
}

fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let mut number = number;
    let mut unit = 0;
    // What would round up to a full step is one of the next unit.
    while number >= step - 0.5 && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let name = units[unit];
    let is_whole = number.fract() == 0.0 || (step == 1024.0 && unit == 0);
    if is_whole || number >= 99.95 { format!("{number:.0}{name}") } else { format!("{number:.1}{name}") }
}

/// Text of others as a terminal may show it: every character takes exactly one cell and is no command; `?` stands for the
/// others.
pub fn printable(text: &str) -> String {
    let takes_one_cell = |c: char| {
        let is_blank = c.is_whitespace() && c != ' ';
        !c.is_control() && !is_blank && Span::raw(c.encode_utf8(&mut [0; 4]) as &str).width() == 1
    };
    text.chars().map(|c| if takes_one_cell(c) { c } else { '?' }).collect()
}

/// JSON without anything a terminal could take for a command: what is not ASCII is escaped.
pub fn ascii_json(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            ' '..='~' => ascii.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    ascii
}

/// Printable text in at most `cells`: names that differ at their ends still differ when what is left out is in the
/// middle.
pub fn shorten(text: &str, cells: usize) -> String {
    let length = text.chars().count();
    if length <= cells {
        return text.to_owned();
    }
    let Some(kept) = cells.checked_sub(1) else { return String::new() };
    let (head, tail) = (kept.div_ceil(2), kept / 2);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_short() {
        let sizes = [
            (0, "0"),
            (1023, "1023B"),
            (1536, "1.5K"),
            (384 << 20, "384M"),
            ((23 << 20) + (1 << 19), "23.5M"),
            ((1 << 30) - 1, "1.0G"),
            ((1 << 30) - (1 << 20), "1023M"),
            (1 << 52, "4P"),
        ];
        for (number, text) in sizes {
            assert_eq!(bytes(number), text);
        }
        for (number, text) in [(0.0, "0"), (7.25, "7.2"), (850.4, "850"), (12_345.0, "12.3k"), (999_999.0, "1.0M")] {
            assert_eq!(count(number), text);
        }
        for (share, text) in [(0.0, "0%"), (0.063, "6.3%"), (0.42, "42%"), (10.0, ">999%"), (-0.5, "-50%")] {
            assert_eq!(percent(share), text);
        }
        for (milliseconds, text) in [(420, "0.4s"), (42_000, "42s"), (420_000, "7m"), (u64::MAX, "213503982334d")] {
            assert_eq!(time(milliseconds), text);
        }
    }

    #[test]
    fn names_are_no_commands() {
        for (name, text) in [
            ("web-1", "web-1"),
            ("bjørn", "bjørn"),
            ("\x1b[2J\x07", "?[2J?"),
            ("\u{9b}2J", "?2J"),
            ("a\u{202e}b", "a?b"),
            ("a\tb\u{2028}c", "a?b?c"),
            ("e\u{301}\u{200b}", "e??"),
            ("日本", "??"),
        ] {
            assert_eq!(printable(name), text);
        }
    }

    #[test]
    fn json_is_ascii_and_says_the_same() {
        let name = serde_json::json!({"name": "a\u{1b}[2J\u{7f}\u{9b}ø日😀\"\\"});
        let text = ascii_json(&name.to_string());
        assert!(text.chars().all(|c| (' '..='~').contains(&c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).ok(), Some(name));
    }

    #[test]
    fn short_names_keep_both_ends() {
        assert_eq!(shorten("web-frontend-1", 9), "web-…nd-1");
        assert_eq!(shorten("web", 3), "web");
        assert_eq!((shorten("web", 1), shorten("web", 0)), ("…".to_owned(), String::new()));
    }

    proptest! {
        #[test]
        fn numbers_fit(number in 0u64.., share in 0.0f64..1e12, cells in 0usize..12, name in ".{0,40}") {
            prop_assert!(bytes(number).len() <= 5, "{}", bytes(number));
            prop_assert!(count(number as f64).len() <= 5, "{}", count(number as f64));
            prop_assert!(percent(share).len() <= 5, "{}", percent(share));
            let name = shorten(&printable(&name), cells);
            prop_assert!(name.chars().count() <= cells && Span::raw(name.as_str()).width() == name.chars().count());
        }
    }
}
