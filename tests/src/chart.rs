//! Line charts as SVG: something to look at beside a test.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::target_folder;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;

const COLOURS: [&str; 8] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e", "#17becf", "#7f7f7f"];

/// What a name takes in the legend, where there is room.
const NAME_WIDTH: f64 = 150.0;

/// Values over time, or over another quantity, in one unit.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    title: String,
    across: Option<String>,
    lines: Vec<(String, Vec<(f64, f64)>)>,
    bands: Vec<(f64, f64, u8)>,
    marks: Vec<(f64, String)>,
}

impl Chart {
    /// An empty chart.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    /// An empty chart over another quantity than seconds.
    pub fn over(title: &str, quantity: &str) -> Self {
        Self { across: Some(quantity.to_owned()), ..Self::new(title) }
    }

    /// Adds a line of points (time, value).
    pub fn line(&mut self, name: &str, points: Vec<(f64, f64)>) {
        self.lines.push((name.to_owned(), points));
    }

    /// Shades a span of time, the darker the higher the number is.
    pub fn band(&mut self, from: f64, to: f64, darkness: u8) {
        self.bands.push((from, to, darkness));
    }

    /// Marks a moment.
    pub fn mark(&mut self, time: f64, name: &str) {
        self.marks.push((time, name.to_owned()));
    }

    /// Writes it to cargo's target folder.
    pub fn write(&self, file: &str) -> PathBuf {
        self.write_to(&target_folder(), file)
    }

    /// Writes it to a folder.
    pub fn write_to(&self, folder: &Path, file: &str) -> PathBuf {
        let path = folder.join(file);
        fs::write(&path, self.svg()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    fn svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|(_, points)| points);
        let end = all().map(|point| point.0).fold(1.0, f64::max);
        let most = all().map(|point| point.1).fold(1.0, f64::max);
        let least = all().map(|point| point.1).fold(0.0, f64::min);
        let x = |time: f64| LEFT + time / end * WIDTH;
        let y = |value: f64| TOP + (most - value) / (most - least) * HEIGHT;
        let (width, height) = (WIDTH + LEFT + 20.0, HEIGHT + TOP + 40.0);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' \
             font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n<text x='{LEFT}' y='18' font-size='14'>{}\
             </text>\n",
            self.title
        );
        // Writing to a string does not fail.
        for &(from, to, darkness) in &self.bands {
            let (left, across, opacity) = (x(from), x(to) - x(from), f64::from(darkness) * 0.08);
            let _ = writeln!(
                svg,
                "<rect x='{left:.1}' y='{TOP}' width='{across:.1}' height='{HEIGHT}' opacity='{opacity:.2}'/>"
            );
        }
        for part in 0..=4 {
            let (value, time) = (least + (most - least) * f64::from(part) / 4.0, end * f64::from(part) / 4.0);
            let (at, under) = (y(value), TOP + HEIGHT + 18.0);
            let _ = writeln!(
                svg,
                "<path d='M{LEFT} {at:.1}h{WIDTH}' stroke='#ccc'/><text x='4' y='{at:.1}'>{value:.0}</text>\
                 <text x='{:.1}' y='{under}'>{time:.1} {}</text>",
                x(time),
                self.across.as_deref().unwrap_or("s")
            );
        }
        for (time, name) in &self.marks {
            let at = x(*time);
            let _ = writeln!(
                svg,
                "<path d='M{at:.1} {TOP}v{HEIGHT}' stroke='#444' stroke-dasharray='4 4'/><text x='{:.1}' y='{:.1}' \
                 font-weight='bold'>{name}</text>",
                at + 3.0,
                TOP + 12.0
            );
        }
        let apart = NAME_WIDTH.min(WIDTH / self.lines.len().max(1) as f64);
        for (at, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let path: String = points.iter().map(|&(time, value)| format!("{:.1},{:.1} ", x(time), y(value))).collect();
            let across = LEFT + apart * at as f64;
            let _ = writeln!(
                svg,
                "<polyline points='{path}' fill='none' stroke='{colour}'/><text x='{across}' y='38' fill='{colour}'>{name}\
                 </text>"
            );
        }
        svg + "</svg>\n"
    }
}
