//! How the demo shows itself: a picture that changes on a terminal, plain lines elsewhere, JSON on request.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use cistern::size::Size;
use serde_json::json;

use super::progress::Progress;

/// How often the picture changes.
const FRAME: Duration = Duration::from_millis(200);
const BAR_CELLS: usize = 32;
/// A bar's full length stands for this much memory.
const BAR_BYTES: u64 = 192 << 20;

/// One guest as shown.
pub struct Row<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its virtual CPUs.
    pub cpus: u8,
    /// The memory it believes it has.
    pub size: Size,
    /// What it has told.
    pub progress: &'a Progress,
}

#[derive(PartialEq)]
enum Mode {
    Picture,
    Lines,
    Json,
}

/// Draws on stdout. With stdout gone there is nobody to show anything: errors are ignored.
pub struct View {
    mode: Mode,
    last_frame: Instant,
    drawn_rows: usize,
}

impl View {
    /// A view for what stdout is.
    pub fn new(json: bool) -> Self {
        let mode = match (json, io::stdout().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Picture,
            (false, false) => Mode::Lines,
        };
        Self { mode, last_frame: Instant::now(), drawn_rows: 0 }
    }

    /// Before the first guest speaks.
    pub fn begin(&self, guests: usize) {
        if self.mode != Mode::Json {
            let _ = writeln!(
                io::stdout(),
                "{guests} microVMs on this host, each a process of its own; they fill memory, walk it and verify every page."
            );
        }
    }

    /// True when it is time for the next frame.
    pub fn is_due(&mut self) -> bool {
        let due = self.last_frame.elapsed() >= FRAME;
        if due {
            self.last_frame = Instant::now();
        }
        due
    }

    /// A guest has printed a line.
    pub fn line(&self, name: &str, progress: &Progress) {
        if self.mode == Mode::Lines {
            let _ = writeln!(io::stdout(), "{name:10} {}", sentence(progress));
        }
    }

    /// Draws all guests over the picture drawn before.
    pub fn draw(&mut self, rows: &[Row]) {
        if self.mode != Mode::Picture {
            return;
        }
        let mut picture = String::new();
        if self.drawn_rows > 0 {
            // Up to the first row of the last picture.
            picture.push_str(&format!("\x1b[{}A", self.drawn_rows));
        }
        picture.push_str(&format!(
            "\x1b[K{:10} {:>4} {:>6}  {:<w$} {:>7}  now\n",
            "guest",
            "cpus",
            "size",
            "memory it costs the host",
            "",
            w = BAR_CELLS
        ));
        for row in rows {
            let cells = (row.progress.memory_bytes as usize * BAR_CELLS).div_ceil(BAR_BYTES as usize).min(BAR_CELLS);
            let bar: String = "█".repeat(cells) + &"·".repeat(BAR_CELLS - cells);
            picture.push_str(&format!(
                "\x1b[K{:10} {:>4} {:>6}  {bar} {:>6}M  {}\n",
                row.name,
                row.cpus,
                row.size.to_string(),
                row.progress.memory_bytes >> 20,
                sentence(row.progress)
            ));
        }
        self.drawn_rows = rows.len() + 1;
        let _ = io::stdout().write_all(picture.as_bytes());
        let _ = io::stdout().flush();
    }

    /// All guests have ended.
    pub fn end(&mut self, rows: &[Row], elapsed: Duration) {
        if self.mode == Mode::Json {
            for row in rows {
                let progress = row.progress;
                let report = json!({
                    "guest": row.name,
                    "cpus": row.cpus,
                    "size_bytes": row.size.bytes,
                    "peak_pss_bytes": progress.peak_bytes,
                    "verified_pages": progress.verified_pages,
                    "touches_per_s": progress.touches_per_second,
                    "status": progress.status.flatten(),
                    "failure": progress.failure,
                });
                let _ = writeln!(io::stdout(), "{report}");
            }
            return;
        }
        self.draw(rows);
        let size = Size { bytes: rows.iter().map(|row| row.size.bytes).sum() };
        let peak_bytes: u64 = rows.iter().map(|row| row.progress.peak_bytes).sum();
        let pages: u64 = rows.iter().map(|row| row.progress.verified_pages).sum();
        let failed = rows.iter().filter(|row| row.progress.failure.is_some()).count();
        let _ = writeln!(
            io::stdout(),
            "{} guests of {size} in {:.1} s; at their peaks they cost {}M; {pages} pages verified at the end, {}.",
            rows.len(),
            elapsed.as_secs_f64(),
            peak_bytes >> 20,
            if failed == 0 { "none bad".to_owned() } else { format!("{failed} guests failed") }
        );
    }
}

/// What a guest does, in a few words.
fn sentence(progress: &Progress) -> String {
    if let Some(failure) = &progress.failure {
        return format!("FAILED: {failure}");
    }
    match progress.phase.as_str() {
        "" => "booting".to_owned(),
        "boot" => "filling memory".to_owned(),
        "fill" => "filled; verifying".to_owned(),
        "walk" => match (progress.touches_per_second, progress.p50_ns) {
            (Some(rate), Some(p50)) => format!("walked: {:.2} M touches/s, median {p50} ns", rate / 1e6),
            _ => "walked".to_owned(),
        },
        "verify" => format!("verified {} pages, 0 bad", progress.verified_pages),
        "free" => "gave memory back".to_owned(),
        phase => phase.to_owned(),
    }
}
