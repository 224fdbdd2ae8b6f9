//! The table of guests: which columns fit, and its lines.

use std::fmt::Write;
use std::path::Path;

use cistern_memory::ledger::PoolView;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::column::{Column, Row, Sort, Value};
use super::rates::is_stale;
use super::{text, water};

/// A name gets this many cells before any other column does.
const NAME_CELLS: usize = 16;

/// Columns and how many cells each has, with one between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<(Column, usize)>,
}

impl Layout {
    /// As many of these columns as `width` has room for.
    pub fn fit(columns: &[Column], rows: &[Row], width: usize) -> Self {
        let longest_name = rows.iter().map(|row| name_of(row).chars().count()).max().unwrap_or(0);
        let name_cells = longest_name.clamp(Column::Name.width(), NAME_CELLS);
        let mut columns = columns.to_vec();
        let others = |columns: &[Column]| -> usize {
            columns.iter().filter(|column| **column != Column::Name).map(|column| 1 + column.width()).sum()
        };
        let mut dispensable = Column::DISPENSABLE.iter();
        while name_cells + others(&columns) > width
            && let Some(left_out) = dispensable.next()
        {
            columns.retain(|column| column != left_out);
        }
        let name_cells = longest_name.max(Column::Name.width()).min(width - others(&columns).min(width));
        let cells = |column: Column| if column == Column::Name { name_cells } else { column.width() };
        Self { columns: columns.into_iter().map(|column| (column, cells(column))).collect() }
    }

    /// A line of these texts: names to the left, numbers to the right.
    fn line(&self, mut text: impl FnMut(Column) -> String) -> Vec<String> {
        let cell = |(index, (column, cells)): (usize, &(Column, usize))| {
            let text = text::shorten(&text(*column), *cells);
            let gap = if index > 0 { " " } else { "" };
            match column {
                Column::Name => format!("{gap}{text:<cells$}"),
                _ => format!("{gap}{text:>cells$}"),
            }
        };
        self.columns.iter().enumerate().map(cell).collect()
    }

    /// The headings, each with the key that sorts by it as a capital letter.
    pub fn heading_line(&self, sort: Sort) -> Line<'static> {
        let cells = self.line(Column::key_heading);
        let style = |column| match column == sort.column {
            true => Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            false => Style::new().add_modifier(Modifier::BOLD),
        };
        let spans = cells.into_iter().zip(&self.columns).flat_map(|(cell, (column, _))| {
            // The gap is not underlined.
            let start = cell.len() - cell.trim_start().len();
            let (gap, heading) = cell.split_at(start);
            [Span::raw(gap.to_owned()), Span::styled(heading.to_owned(), style(*column))]
        });
        Line::from(spans.collect::<Vec<_>>())
    }

    /// A guest.
    pub fn row_line(&self, row: &Row) -> Line<'static> {
        let line = Line::from(self.row(row).concat());
        if is_stale(row.member) { line.style(Style::new().add_modifier(Modifier::DIM)) } else { line }
    }

    fn row(&self, row: &Row) -> Vec<String> {
        self.line(|column| column.value(row).map_or(text::UNKNOWN.to_owned(), |value| value.text()))
    }
}

fn name_of(row: &Row) -> String {
    Column::Name.value(row).map(|name: Value| name.text()).unwrap_or_default()
}

/// The pool and its guests as plain text.
pub fn plain(pool: &PoolView, dir: &Path, columns: &[Column], rows: &[Row], width: usize) -> String {
    let layout = Layout::fit(columns, rows, width);
    let mut table = format!("{}\n", water::summary(pool, dir));
    let headings = layout.line(|column| column.heading().0.to_owned());
    for line in std::iter::once(headings).chain(rows.iter().map(|row| layout.row(row))) {
        writeln!(table, "{}", line.concat().trim_end()).expect("a string takes all text");
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{member, pool};
    use super::*;

    fn headings(names: &[&str], width: usize) -> String {
        let members: Vec<_> = names.iter().zip(0..).map(|(name, slot)| member(name, slot)).collect();
        let rows: Vec<_> = members.iter().map(|member| Row { member, course: None }).collect();
        Layout::fit(&Column::ALL, &rows, width).line(|column| column.heading().0.to_owned()).concat()
    }

    #[test]
    fn eighty_cells_have_room_for_all_that_moves() {
        let all = "name       size grant charge active balloon gfree shared compr  swap ref/s stall";
        assert_eq!(headings(&["web", "batch-run"], 80), all);
        assert_eq!(headings(&["web"], 80), all.replacen("name      ", "name ", 1));
        // A long name is worth more than what is shared.
        let without_shared = "name              size grant charge active balloon gfree compr  swap ref/s stall";
        assert_eq!(headings(&["web-frontend-001"], 80), without_shared);
        assert_eq!(headings(&["web-frontend-0001-of-many"], 80), without_shared);
    }

    #[test]
    fn what_matters_most_stays_longest() {
        assert_eq!(headings(&["web"], 200).split_whitespace().count(), Column::ALL.len());
        assert_eq!(headings(&["web"], 40), "name grant charge active ref/s stall");
        assert_eq!(headings(&["web"], 20), "name grant charge");
        assert_eq!(headings(&["web"], 12), "name charge");
        assert_eq!(headings(&["web"], 5), "name");
        assert_eq!(headings(&["web"], 2), "n…");
        assert_eq!(headings(&["web"], 0), "");
        assert_eq!(headings(&[], 12), "name charge");
    }

    #[test]
    fn plain_text_is_plain() {
        let mut pool = pool(vec![member("web\x1b[2J\u{9b}1m", 0), member("db", 1)]);
        pool.members[1].grant_bytes = None;
        pool.leader = Some("\x1b]0;x\x07".to_owned());
        let rows: Vec<_> = pool.members.iter().map(|member| Row { member, course: None }).collect();
        let text = plain(&pool, Path::new("/p\x1b"), &Column::ALL[..5], &rows, 80);
        assert_eq!(
            text,
            "pool /p?  budget 384M  used 360M  free 24M 6.2%  soft  leader ?]0;x? (1000)\n\
             name        size grant charge active\n\
             web?[2J?1m  512M  128M   120M    80M\n\
             db          513M     -   121M    81M\n"
        );
    }

    proptest! {
        #[test]
        fn lines_never_wrap(names in proptest::collection::vec(".{0,30}", 0..5), width in 0usize..250) {
            let members: Vec<_> = names.iter().zip(0..).map(|(name, slot)| member(name, slot)).collect();
            let rows: Vec<_> = members.iter().map(|member| Row { member, course: None }).collect();
            let layout = Layout::fit(&Column::ALL, &rows, width);
            prop_assert!(layout.heading_line(Sort::DEFAULT).width() <= width);
            for row in &rows {
                prop_assert!(layout.row_line(row).width() <= width);
                prop_assert_eq!(layout.row_line(row).width(), layout.heading_line(Sort::DEFAULT).width());
            }
        }
    }
}
