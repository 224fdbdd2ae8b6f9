//! What came of a scenario: figures beside the published ones, what must hold, and what was drawn.

use std::fmt;
use std::path::PathBuf;

/// In place of a figure that the literature does not have.
pub const NOT_PUBLISHED: &str = "not published";

/// See the top of this file. Displayed, it is a table and what follows from it.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<[String; 3]>,
    claims: Vec<Claim>,
    charts: Vec<PathBuf>,
    difference: String,
}

/// What must hold, on a busy machine too: an order or a level, no speed.
#[derive(Debug)]
struct Claim {
    what: String,
    holds: bool,
    found: String,
}

impl Report {
    /// Empty, with a line on what differs from what was published.
    pub fn new(difference: impl Into<String>) -> Self {
        Self { difference: difference.into(), ..Self::default() }
    }

    /// Adds a figure: of what, what was published, what came out here.
    pub fn row(&mut self, what: impl Into<String>, published: impl Into<String>, here: impl Into<String>) {
        self.rows.push([what.into(), published.into(), here.into()]);
    }

    /// Adds what must hold, whether it does, and what was found.
    pub fn claim(&mut self, what: impl Into<String>, holds: bool, found: impl fmt::Display) {
        self.claims.push(Claim { what: what.into(), holds, found: found.to_string() });
    }

    /// Adds what was waited for, and came.
    pub fn reached(&mut self, what: impl Into<String>, found: impl fmt::Display) {
        self.claim(what, true, found);
    }

    /// Adds a drawing.
    pub fn drawn(&mut self, chart: PathBuf) {
        self.charts.push(chart);
    }

    /// Whether all holds that must.
    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["", "published", "here"].map(str::to_owned);
        let rows = || std::iter::once(&heading).chain(&self.rows);
        let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        for [what, published, here] in rows() {
            writeln!(formatter, "  {what:<first$}  {published:<second$}  {here}")?;
        }
        for Claim { what, holds, found } in &self.claims {
            writeln!(formatter, "  {} {what}: {found}", if *holds { "holds:" } else { "FAILS:" })?;
        }
        writeln!(formatter, "  differs: {}", self.difference)?;
        self.charts.iter().try_for_each(|chart| writeln!(formatter, "  drawn: {}", chart.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_fails_is_seen() {
        let mut report = Report::new("nothing");
        report.row("memory", NOT_PUBLISHED, "5 MiB");
        report.reached("there is some", "5");
        assert!(report.holds());
        report.claim("there is more", 5 > 6, "5");
        assert!(!report.holds());
        let expected = "          published      here\n  memory  not published  5 MiB\n  holds: there is some: 5\n  \
                        FAILS: there is more: 5\n  differs: nothing\n";
        assert_eq!(report.to_string(), expected);
    }
}
