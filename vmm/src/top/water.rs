//! The pool as a cistern: how much of its budget is free, as a line of text and as a level of water with its marks.

use std::path::Path;

use cistern_memory::ledger::{Level, PoolView};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::text;

/// Eighths of a cell, from the left.
const PARTS: [&str; 8] = [EMPTY, "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Where no water is.
const EMPTY: &str = "·";

/// The mark of a watermark.
const MARK: &str = "│";

/// What a path is not cut below.
const PATH_CELLS: usize = 8;

/// A leader that is silent for longer is worth a word.
const SILENT_MS: u64 = 3000;

fn is_deserted(pool: &PoolView) -> bool {
    pool.members.is_empty() && pool.unreadable_members == 0
}

/// What is free of the budget, as far as is known. Negative when more is used.
fn free_bytes(pool: &PoolView) -> Option<i64> {
    // The last round of a pool that is over says nothing of now.
    if is_deserted(pool) { Some(pool.settings.budget_bytes as i64) } else { pool.free_bytes }
}

/// The free part of the budget, at most 1.
fn free_share(pool: &PoolView) -> Option<f64> {
    Some(free_bytes(pool)? as f64 / pool.settings.budget_bytes.max(1) as f64)
}

/// The pool in a line of text.
pub fn summary(pool: &PoolView, dir: &Path) -> String {
    summary_parts(pool, &text::printable(&dir.to_string_lossy())).concat()
}

/// The same in colours, with a path that is cut before anything else is.
pub fn summary_line(pool: &PoolView, dir: &Path, cells: usize) -> Line<'static> {
    let others = summary_parts(pool, "").concat().chars().count();
    let dir_cells = cells.saturating_sub(others).max(PATH_CELLS);
    let dir = text::shorten(&text::printable(&dir.to_string_lossy()), dir_cells);
    let [before, level, after] = summary_parts(pool, &dir);
    let style = Style::new().fg(color(pool.level)).add_modifier(Modifier::BOLD);
    Line::from(vec![Span::raw(before), Span::styled(level, style), Span::raw(after)])
}

/// What stands before the level, the level, and the rest.
fn summary_parts(pool: &PoolView, dir: &str) -> [String; 3] {
    let budget_bytes = pool.settings.budget_bytes;
    let start = format!("pool {dir}  budget {}", text::bytes(budget_bytes));
    if is_deserted(pool) {
        return [start, "  no guests".to_owned(), damage(pool)];
    }
    let amounts = free_bytes(pool).map(|free_bytes| {
        let used_bytes = (i128::from(budget_bytes) - i128::from(free_bytes)).max(0) as u64;
        let sign = if free_bytes < 0 { "-" } else { "" };
        let (used, free) = (text::bytes(used_bytes), text::bytes(free_bytes.unsigned_abs()));
        format!("  used {used}  free {sign}{free} {}", text::percent(free_share(pool).unwrap_or(0.0)))
    });
    let leader = match (&pool.leader, pool.leader_pid) {
        (Some(name), Some(pid)) => format!("  leader {} ({pid})", text::printable(name)),
        _ => "  no leader".to_owned(),
    };
    let silence = match pool.round_age_ms {
        Some(age_ms) if age_ms > SILENT_MS => format!(", silent for {}", text::time(age_ms)),
        _ => String::new(),
    };
    let level = format!("  {}", text::level(pool.level));
    [start + &amounts.unwrap_or_default(), level, leader + &silence + &damage(pool)]
}

fn damage(pool: &PoolView) -> String {
    let guests = match pool.unreadable_members {
        0 => String::new(),
        1 => ", 1 guest cannot be read".to_owned(),
        guests => format!(", {guests} guests cannot be read"),
    };
    let records = match pool.corrupt_slots {
        0 => String::new(),
        1 => "  1 damaged record".to_owned(),
        damaged => format!("  {damaged} damaged records"),
    };
    records + &guests
}

fn color(level: Option<Level>) -> Color {
    match level {
        None => Color::Reset,
        Some(Level::High) => Color::Blue,
        Some(Level::Soft) => Color::Cyan,
        Some(Level::Hard) => Color::Yellow,
        Some(Level::Low) => Color::Magenta,
        Some(Level::Stop) => Color::Red,
    }
}

/// Where a share of the budget is on a scale of this many cells. The scale is one of square roots: what happens below the
/// first mark is most of what there is to see.
fn position(share: f64, cells: usize) -> f64 {
    share.clamp(0.0, 1.0).sqrt() * cells as f64
}

/// The cell of a mark.
fn mark_cell(share: f64, cells: usize) -> usize {
    (position(share, cells) as usize).min(cells.saturating_sub(1))
}

fn watermarks(pool: &PoolView) -> [f64; 4] {
    pool.settings.watermarks_millipercent.map(|mark| f64::from(mark) / 100_000.0)
}

/// The water that is left, with the watermarks in it.
pub fn bar(pool: &PoolView, cells: usize) -> Line<'static> {
    let marks = watermarks(pool).map(|share| mark_cell(share, cells));
    let water = Style::new().fg(color(pool.level.filter(|_| !is_deserted(pool)).or(Some(Level::High))));
    let eighths = (position(free_share(pool).unwrap_or(0.0), cells) * 8.0).round() as usize;
    let cell = |cell: usize| {
        let filled = eighths.saturating_sub(cell * 8).min(8);
        match (marks.contains(&cell), filled) {
            (true, 8) => Span::styled(MARK, water.fg(Color::White).bg(water.fg.unwrap_or_default())),
            (true, _) => Span::styled(MARK, Style::new().add_modifier(Modifier::DIM)),
            (false, 8) => Span::styled("█", water),
            (false, 0) => Span::styled(EMPTY, Style::new().add_modifier(Modifier::DIM)),
            (false, filled) => Span::styled(PARTS[filled], water),
        }
    };
    Line::from((0..cells).map(cell).collect::<Vec<_>>())
}

/// What the cells of the bar stand for, in percent of the budget.
pub fn scale(pool: &PoolView, cells: usize) -> String {
    let mut line = vec![' '; cells];
    let percent = |share: f64| (share * 100_000.0).round() / 1000.0;
    let marks = watermarks(pool).map(|share| (mark_cell(share, cells), percent(share).to_string()));
    let end = (cells.saturating_sub(4), "100%".to_owned());
    let rest = [0.0, 0.5, 0.25].map(|share| (mark_cell(share, cells), percent(share).to_string()));
    // The watermarks come first: what has no room is left out.
    for (start, label) in marks.into_iter().chain([end]).chain(rest) {
        let around = start.saturating_sub(1)..(start + label.len() + 1).min(cells);
        if start + label.len() <= cells && line[around].iter().all(|c| *c == ' ') {
            line[start..start + label.len()].copy_from_slice(&label.chars().collect::<Vec<_>>());
        }
    }
    line.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{MIB, member, pool};
    use super::*;

    fn web() -> PoolView {
        pool(vec![member("web", 0)])
    }

    fn drawn(pool: &PoolView, cells: usize) -> String {
        bar(pool, cells).spans.iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn the_level_falls_with_what_is_free() {
        let mut pool = web();
        let level = |pool: &PoolView| drawn(pool, 40).chars().filter(|c| *c == '█').count();
        pool.free_bytes = Some(384 * MIB as i64);
        assert_eq!(level(&pool), 36, "all but the four marks");
        pool.free_bytes = Some(96 * MIB as i64);
        assert_eq!(drawn(&pool, 40), format!("████││██││{}{}", "█".repeat(10), "·".repeat(20)));
        pool.free_bytes = Some(4 * MIB as i64);
        assert_eq!(drawn(&pool, 40), format!("████││··││{}", "·".repeat(30)));
        pool.free_bytes = Some(0);
        assert_eq!(level(&pool), 0);
        for free_bytes in [Some(i64::MIN), Some(-1), None] {
            pool.free_bytes = free_bytes;
            assert_eq!(level(&pool), 0, "{free_bytes:?}");
        }
        pool.free_bytes = Some(i64::MAX);
        assert_eq!(level(&pool), 36);
    }

    #[test]
    fn marks_stand_over_their_numbers() {
        let pool = web();
        for cells in [60, 76, 196] {
            let (bar, scale): (Vec<_>, Vec<_>) =
                (drawn(&pool, cells).chars().collect(), scale(&pool, cells).chars().collect());
            assert_eq!((bar.len(), scale.len()), (cells, cells));
            for mark in ['6', '4', '2', '1'] {
                let cell = scale.iter().position(|c| *c == mark).expect("a number");
                assert_eq!(bar[cell], '│', "{mark} of {cells}");
            }
        }
        assert_eq!(scale(&pool, 76), "0      1  2    4  6                   25             50                 100%");
    }

    #[test]
    fn every_width_has_a_bar() {
        let mut odd = web();
        odd.settings.watermarks_millipercent = [99_999, 50_500, 500, 0];
        for pool in [web(), odd] {
            for cells in 0..210 {
                assert_eq!(drawn(&pool, cells).chars().count(), cells);
                assert_eq!(scale(&pool, cells).chars().count(), cells);
            }
        }
    }

    #[test]
    fn the_summary_tells_what_is_unusual() {
        let dir = Path::new("/p");
        let usual = "pool /p  budget 384M  used 360M  free 24M 6.2%  soft  leader web (1000)";
        assert_eq!(summary(&web(), dir), usual);
        let line = |dir: &str| -> String {
            summary_line(&web(), Path::new(dir), 80).spans.iter().map(|span| span.content.as_ref()).collect()
        };
        assert_eq!(line("/p"), usual);
        assert_eq!(line("/run/pools/of/everybody"), usual.replace("/p", "/run/…ybody"));
        let mut pool = web();
        pool.free_bytes = Some(-(4 * MIB as i64));
        pool.level = Some(Level::Stop);
        pool.round_age_ms = Some(65_000);
        pool.corrupt_slots = 2;
        assert_eq!(
            summary(&pool, dir),
            "pool /p  budget 384M  used 388M  free -4M -1.0%  stop  leader web (1000), silent for 65s  2 damaged records"
        );
        pool.unreadable_members = 1;
        assert!(summary(&pool, dir).ends_with("  2 damaged records, 1 guest cannot be read"));
        (pool.free_bytes, pool.level, pool.leader, pool.round_age_ms) = (None, None, None, None);
        pool.members.clear();
        let unread = "pool /p  budget 384M  no round yet  no leader  2 damaged records, 1 guest cannot be read";
        assert_eq!(summary(&pool, dir), unread);
        (pool.corrupt_slots, pool.unreadable_members) = (0, 0);
        assert_eq!(summary(&pool, dir), "pool /p  budget 384M  no guests");
    }
}
