//! Charts as SVG, which a browser shows without anything from elsewhere.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 46.0;
const BELOW: f64 = 44.0;

/// Parts of an axis.
const TICKS: u32 = 4;

/// How values stand on the upright axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero on.
    Linear,
    /// By their logarithms, between powers of ten.
    Logarithmic,
}

/// What is drawn, in order: areas stand on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Area,
    Line,
}

#[derive(Debug, Clone)]
struct Series {
    name: String,
    colour: &'static str,
    shape: Shape,
    points: Vec<(f64, f64)>,
}

/// A chart of several series.
#[derive(Debug, Clone)]
pub struct Chart {
    title: String,
    across: String,
    scale: Scale,
    series: Vec<Series>,
}

impl Chart {
    /// An empty chart; `across` says what the level axis is.
    pub fn new(title: &str, across: &str, scale: Scale) -> Self {
        Self { title: title.to_owned(), across: across.to_owned(), scale, series: Vec::new() }
    }

    fn add(&mut self, shape: Shape, name: &str, colour: &'static str, points: Vec<(f64, f64)>) {
        self.series.push(Series { name: name.to_owned(), colour, shape, points });
    }

    /// Adds values that stand on those of the areas before; all areas have their points at the same places.
    pub fn area(&mut self, name: &str, colour: &'static str, points: Vec<(f64, f64)>) {
        self.add(Shape::Area, name, colour, points);
    }

    /// Adds values of their own.
    pub fn line(&mut self, name: &str, colour: &'static str, points: Vec<(f64, f64)>) {
        self.add(Shape::Line, name, colour, points);
    }

    /// Each series as it is drawn: its lower and upper values.
    fn stacked(&self) -> Vec<Vec<(f64, f64, f64)>> {
        let mut ground: Vec<f64> = Vec::new();
        let stack = |series: &Series| match series.shape {
            Shape::Line => series.points.iter().map(|&(x, y)| (x, y, y)).collect(),
            Shape::Area => {
                ground.resize(ground.len().max(series.points.len()), 0.0);
                let lift = |(&(x, y), ground): (&(f64, f64), &mut f64)| {
                    let low = std::mem::replace(ground, *ground + y);
                    (x, low, *ground)
                };
                series.points.iter().zip(&mut ground).map(lift).collect()
            }
        };
        self.series.iter().map(stack).collect()
    }

    /// The chart as an `svg` element. `label` says a value of the upright axis.
    pub fn svg(&self, label: impl Fn(f64) -> String) -> String {
        let stacked = self.stacked();
        let all = || stacked.iter().flatten();
        let right = all().map(|point| point.0).fold(0.0, f64::max).max(0.01);
        let (low, high) = self.bounds(all().map(|point| point.2));
        let ratio = |value: f64| match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value.max(low) / low).log10() / (high / low).log10(),
        };
        let x = |value: f64| LEFT + value / right * WIDTH;
        let y = |value: f64| TOP + (1.0 - ratio(value)) * HEIGHT;
        let (width, height) = (LEFT + WIDTH + 30.0, TOP + HEIGHT + BELOW);
        let title = escape(&self.title);
        // Writing to a string does not fail.
        let mut svg = format!(
            "<svg viewBox='0 0 {width} {height}' role='img' aria-label='{title}'>\n\
             <text x='{LEFT}' y='16' class='title'>{title}</text>\n"
        );
        for (series, points) in self.series.iter().zip(&stacked) {
            let upper = points.iter().map(|&(at, _, value)| format!("{:.1},{:.1} ", x(at), y(value)));
            let colour = series.colour;
            let _ = match series.shape {
                Shape::Area => {
                    let lower = points.iter().rev().map(|&(at, value, _)| format!("{:.1},{:.1} ", x(at), y(value)));
                    let outline: String = upper.chain(lower).collect();
                    writeln!(svg, "<polygon points='{outline}' fill='{colour}' fill-opacity='0.75'/>")
                }
                Shape::Line => {
                    let path: String = upper.collect();
                    writeln!(svg, "<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
                }
            };
            if series.shape == Shape::Line && points.len() <= 20 {
                for &(at, _, value) in points {
                    let _ = writeln!(svg, "<circle cx='{:.1}' cy='{:.1}' r='3' fill='{colour}'/>", x(at), y(value));
                }
            }
        }
        for tick in self.ticks(low, high) {
            let (at, text) = (y(tick), escape(&label(tick)));
            let _ = writeln!(
                svg,
                "<path d='M{LEFT} {at:.1}h{WIDTH}' class='grid'/>\
                 <text x='{:.1}' y='{:.1}' text-anchor='end'>{text}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        let step = round_step(right / f64::from(TICKS + 2));
        for value in (0..=TICKS + 2).map(|tick| f64::from(tick) * step).filter(|value| *value <= right) {
            let (at, under) = (x(value), TOP + HEIGHT + 18.0);
            let _ = writeln!(svg, "<text x='{at:.1}' y='{under}' text-anchor='middle'>{}</text>", short(value));
        }
        let (middle, under) = (LEFT + WIDTH / 2.0, TOP + HEIGHT + 36.0);
        let _ = writeln!(svg, "<text x='{middle}' y='{under}' text-anchor='middle'>{}</text>", escape(&self.across));
        let mut across = LEFT;
        for series in &self.series {
            let (name, colour) = (escape(&series.name), series.colour);
            let _ = writeln!(
                svg,
                "<rect x='{across}' y='24' width='10' height='10' fill='{colour}'/>\
                 <text x='{}' y='33'>{name}</text>",
                across + 14.0
            );
            across += 28.0 + 7.0 * series.name.chars().count() as f64;
        }
        svg + "</svg>\n"
    }

    /// What the upright axis goes from and to.
    fn bounds(&self, values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let high = values.clone().fold(0.0, f64::max);
        match self.scale {
            Scale::Linear => {
                (0.0, if high > 0.0 { round_step(high / f64::from(TICKS)) * f64::from(TICKS) } else { 1.0 })
            }
            Scale::Logarithmic => {
                let low = values.filter(|&value| value > 0.0).fold(high.max(1.0), f64::min);
                let (low, high) = (10f64.powf(low.log10().floor()), 10f64.powf(high.max(1.0).log10().ceil()));
                (low, high.max(low * 10.0))
            }
        }
    }

    fn ticks(&self, low: f64, high: f64) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=TICKS).map(|part| high * f64::from(part) / f64::from(TICKS)).collect(),
            Scale::Logarithmic => std::iter::successors(Some(low), |tick| Some(tick * 10.0))
                .take_while(|&tick| tick <= high * 1.001)
                .collect(),
        }
    }
}

/// The next number up that is 1, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0].into_iter().find(|factor| factor * power >= least);
    factor.unwrap_or(10.0) * power
}

/// A number of few digits.
fn short(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Text as it may stand in an element or an attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_stand_on_each_other_and_lines_do_not() {
        let mut chart = Chart::new("a", "s", Scale::Linear);
        chart.area("one", "red", vec![(0.0, 1.0), (1.0, 2.0)]);
        chart.line("three", "blue", vec![(0.0, 5.0)]);
        chart.area("two", "green", vec![(0.0, 3.0), (1.0, 4.0)]);
        let expected =
            [vec![(0.0, 0.0, 1.0), (1.0, 0.0, 2.0)], vec![(0.0, 5.0, 5.0)], vec![(0.0, 1.0, 4.0), (1.0, 2.0, 6.0)]];
        assert_eq!(chart.stacked(), expected);
    }

    #[test]
    fn every_chart_is_whole() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            for points in [vec![], vec![(0.0, 0.0)], vec![(1.0, 30.0)], vec![(1.0, 5.0), (100.0, 70_000.0)]] {
                let mut chart = Chart::new("<title>", "N & M", scale);
                chart.line("it's", "red", points);
                let svg = chart.svg(|value| format!("{value}"));
                assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<title"), "{svg}");
                assert!(svg.contains("N &amp; M") && svg.contains("it&#39;s"), "{svg}");
            }
        }
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!([0.7, 1.0, 1.1, 19.0, 99.0, 190.0].map(round_step), [0.8, 1.0, 1.5, 20.0, 100.0, 200.0]);
        assert_eq!(Chart::new("", "", Scale::Linear).bounds([750.0].into_iter()), (0.0, 800.0));
    }

    #[test]
    fn logarithms_lie_between_powers_of_ten() {
        let chart = Chart::new("", "", Scale::Logarithmic);
        assert_eq!(chart.bounds([300.0, 70_000.0].into_iter()), (100.0, 100_000.0));
        assert_eq!(chart.ticks(100.0, 100_000.0).len(), 4);
        assert_eq!(chart.bounds([100.0].into_iter()), (100.0, 1000.0));
    }
}
