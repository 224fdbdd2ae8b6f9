//! The live view as a picture.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;

use super::column::Column;
use super::keys::{Page, help};
use super::state::State;
use super::table::Layout;
use super::{guest, text, water};

/// A screen of fewer rows shows the water without its scale, and one line of help.
const ROOMY_ROWS: u16 = 12;

/// A screen of fewer rows shows guests and nothing else.
const TINY_ROWS: u16 = 6;

/// A screen of at least as many rows has a deep cistern.
const TALL_ROWS: u16 = 30;

/// Draws what `state` is.
pub fn draw(frame: &mut Frame, state: &State) {
    let mut area = frame.area();
    draw_help(frame, &mut area, state);
    draw_caption(frame, &mut area, state);
    let rows = state.rows();
    match (state.page, state.selected_index().and_then(|index| rows.get(index))) {
        (Page::Guest, Some(row)) => guest::draw(frame, area, row),
        _ => {
            draw_water(frame, &mut area, state);
            draw_guests(frame, area, state);
        }
    }
}

/// Cuts `rows` rows off the top of what is left, or as many as there are.
pub fn take_top(area: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(area.height);
    let top = Rect { height: rows, ..*area };
    area.y += rows;
    area.height -= rows;
    top
}

/// At the bottom, with what is wrong above it.
fn draw_help(frame: &mut Frame, area: &mut Rect, state: &State) {
    let lines = match area.height {
        ROOMY_ROWS.. => 2,
        TINY_ROWS.. => 1,
        _ => 0,
    };
    let dim = Style::new().add_modifier(Modifier::DIM);
    let mut lines: Vec<_> = help(state.page).into_iter().take(lines).map(|line| Line::styled(line, dim)).collect();
    if let Some(failure) = &state.failure {
        let red = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        lines.insert(0, Line::styled(text::printable(failure), red));
    }
    let rows = (lines.len() as u16).min(area.height);
    area.height -= rows;
    let mut bottom = Rect { y: area.y + area.height, height: rows, ..*area };
    for line in lines {
        frame.render_widget(line, take_top(&mut bottom, 1));
    }
}

fn draw_caption(frame: &mut Frame, area: &mut Rect, state: &State) {
    if let Some(caption) = state.caption.as_ref().filter(|_| frame.area().height >= TINY_ROWS) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Line::styled(text::printable(caption), bold), take_top(area, 1));
    }
}

fn draw_water(frame: &mut Frame, area: &mut Rect, state: &State) {
    let (pool, screen_rows) = (state.pool(), frame.area().height);
    if screen_rows >= TINY_ROWS {
        let row = take_top(area, 1);
        frame.render_widget(water::summary_line(pool, &state.dir, row.width.into()), row);
        for _ in 0..if screen_rows >= TALL_ROWS { 3 } else { 1 } {
            let row = take_top(area, 1);
            frame.render_widget(water::bar(pool, row.width.into()), row);
        }
    }
    if screen_rows >= ROOMY_ROWS {
        let row = take_top(area, 1);
        frame.render_widget(Line::raw(water::scale(pool, row.width.into())), row);
        take_top(area, 1);
    }
}

fn draw_guests(frame: &mut Frame, mut area: Rect, state: &State) {
    let rows = state.rows();
    let layout = Layout::fit(&Column::ALL, &rows, area.width.into());
    frame.render_widget(layout.heading_line(state.sort), take_top(&mut area, 1));
    let selected = state.selected_index();
    // The selected row is in the middle where rows are above and below.
    let height = usize::from(area.height);
    let first = selected.unwrap_or(0).saturating_sub(height / 2).min(rows.len().saturating_sub(height));
    for (index, row) in rows.iter().enumerate().skip(first).take(height) {
        let mut line = layout.row_line(row);
        if selected == Some(index) {
            line = line.patch_style(Style::new().add_modifier(Modifier::REVERSED));
        }
        frame.render_widget(line, take_top(&mut area, 1));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cistern_memory::ledger::{PoolView, Report};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::fixtures::{MIB, member, pool};
    use super::super::keys::{Action, Step};
    use super::*;

    fn eight() -> PoolView {
        let names = ["web", "db", "cache", "batch-run", "idle", "giver", "zipf", "walker"];
        let mut pool = pool(names.iter().zip(0..).map(|(name, slot)| member(name, slot)).collect());
        for (member, step) in pool.members.iter_mut().zip(1..) {
            member.report.charge_bytes = 100 * MIB * step % (451 * MIB);
        }
        pool
    }

    fn state(pool: PoolView) -> State {
        State::new(PathBuf::from("/run/pool"), pool)
    }

    fn drawn(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, state)).expect("a picture");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    /// Two looks a second apart.
    fn busy() -> State {
        let mut state = state(eight());
        let mut later = eight();
        for (member, step) in later.members.iter_mut().zip(0..) {
            member.report.time_ns += 1_000_000_000;
            member.report.refaults += 150 * step;
            member.report.stall_ns += 20_000_000 * step;
        }
        state.take(Ok::<_, String>(later));
        state
    }

    #[test]
    fn a_screen_of_eighty_by_twenty_four() {
        let screen = drawn(&busy(), 80, 24);
        assert_eq!(screen[0], "pool /run/pool  budget 384M  used 360M  free 24M 6.2%  soft  leader web (1000)");
        assert!(screen[1].starts_with("████████│██│████│██│····"), "{}", screen[1]);
        assert_eq!(screen[2].split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "4", "6", "25", "50", "100%"]);
        assert_eq!(screen[4], "Name       Size Grant Charge Active Balloon gFree sHared comPr  sWap Ref/s sTall");
        assert_eq!(screen[5], "batch-run  515M  131M   400M    83M     63M   73M    23M   33M   43M   450  6.0%");
        assert_eq!(screen[23], "sort: Name Size Grant Charge Active Balloon gFree sHared comPr sWap Ref/s sTall");
        assert!(screen[22].starts_with("q leave"));
    }

    #[test]
    fn a_large_screen_has_every_column() {
        let screen = drawn(&busy(), 200, 50);
        let heading = screen.iter().find(|line| line.starts_with("Name")).expect("headings");
        assert_eq!(heading.split_whitespace().count(), Column::ALL.len());
        assert_eq!(screen.iter().filter(|line| line.starts_with("███")).count(), 3);
    }

    #[test]
    fn a_guest_has_a_page() {
        let mut state = busy();
        state.act(Action::Open);
        let screen = drawn(&state, 80, 24);
        assert_eq!(screen[0], "guest batch-run  pid 1003");
        let text = screen.join("\n");
        for fact in [
            "charge             400M   size               515M   refaults/s          450",
            "active, slow          -",
            "reclaim to            -   evicted pages        3k",
        ] {
            assert!(text.contains(fact), "no '{fact}' in:\n{text}");
        }
        assert!(screen.iter().any(|line| line.starts_with("charge        400M") && line.ends_with("██")), "{text}");
        state.act(Action::Select(Step::Down(1)));
        assert_eq!(drawn(&state, 80, 24)[0], "guest walker  pid 1007");
        state.act(Action::Close);
        assert!(drawn(&state, 80, 24)[0].starts_with("pool"));
        // All of it is somewhere on a narrow screen that is long enough.
        state.act(Action::Open);
        let narrow = drawn(&state, 30, 50).join("\n");
        assert!(narrow.contains("charge") && narrow.contains("grow to") && narrow.contains("reported ago"), "{narrow}");
    }

    #[test]
    fn the_selected_guest_is_always_on_the_screen() {
        let mut state = busy();
        for row in state.rows().iter().map(|row| row.member.identity.name.clone()).collect::<Vec<_>>() {
            for height in [2, 3, 8, 12] {
                let screen = drawn(&state, 80, height);
                assert!(screen.iter().any(|line| line.starts_with(&row)), "{row} of {height}: {screen:?}");
                let chrome = screen.iter().filter(|line| line.is_empty()).count();
                assert_eq!(chrome, usize::from(height >= ROOMY_ROWS), "all rows are used: {screen:?}");
            }
            state.act(Action::Select(Step::Down(1)));
        }
    }

    #[test]
    fn no_size_is_too_small() {
        let mut hostile = eight();
        hostile.members[0].identity.name = "\x1b[2J\u{9b}".repeat(20);
        hostile.members[1].report = Report::default();
        hostile.members[2].report_age_ms = u64::MAX;
        (hostile.settings.budget_bytes, hostile.free_bytes) = (0, Some(i64::MIN));
        let mut broken = state(hostile);
        broken.take(Err::<PoolView, _>("\x1b[2J gone"));
        for mut state in [busy(), state(pool(vec![])), broken] {
            for _page in 0..2 {
                for width in (0..12).chain([20, 30, 40, 53, 79, 80, 200]) {
                    for height in (0..16).chain([24, 50]) {
                        drawn(&state, width, height);
                    }
                }
                state.act(Action::Open);
            }
        }
    }

    #[test]
    fn hostile_names_stay_names() {
        let mut hostile = eight();
        for member in &mut hostile.members {
            member.identity.name = "a\x1b[31m\u{202e}\r\n\u{7f}\u{85}z".to_owned();
        }
        hostile.leader = Some("\x07\u{9b}2J".to_owned());
        let mut state = state(hostile);
        let mut screen = drawn(&state, 80, 24);
        state.act(Action::Open);
        screen.extend(drawn(&state, 80, 24));
        let text = screen.concat();
        assert!(text.contains("a?[31m?????z") && text.contains("leader ??2J"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    }

    #[test]
    fn a_pool_that_cannot_be_read_is_still_shown() {
        let mut state = busy();
        state.take(Err::<PoolView, _>("pool /run/pool: gone"));
        let screen = drawn(&state, 80, 24);
        assert_eq!(screen[21], "pool /run/pool: gone");
        assert!(screen[5].starts_with("batch-run"));
    }

    #[test]
    fn a_caption_is_above_everything() {
        let mut state = busy();
        state.caption = Some("eight guests".to_owned());
        let screen = drawn(&state, 80, 24);
        assert_eq!(screen[0], "eight guests");
        assert!(screen[1].starts_with("pool") && screen[6].starts_with("batch-run"), "{screen:?}");
        state.act(Action::Open);
        let screen = drawn(&state, 80, 24);
        assert!(screen[0] == "eight guests" && screen[1].starts_with("guest batch-run"), "{screen:?}");
        assert!(drawn(&state, 80, 5)[0].starts_with("guest"), "guests and nothing else");
    }

    #[test]
    fn an_empty_pool_has_an_empty_table() {
        let screen = drawn(&state(pool(vec![])), 80, 24);
        assert_eq!(screen[0], "pool /run/pool  budget 384M  no guests");
        assert!(screen[4].starts_with("Name  Size Grant"), "{}", screen[4]);
        assert!(screen[5..21].iter().all(String::is_empty));
    }
}
