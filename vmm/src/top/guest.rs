//! The page of one guest: all it says of itself, what it was told, and the course of the last minutes.

use cistern_memory::ledger::{BalloonHealth, MemberView, Orders, Report};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{RenderDirection, Sparkline};

use super::column::Row;
use super::rates::{Course, said};
use super::screen::take_top;
use super::text::{self, UNKNOWN};

/// Cells of what a number is called, of the number, and of both with the gap to the next group.
const LABEL_CELLS: usize = 14;
const VALUE_CELLS: usize = 9;
const GROUP_CELLS: u16 = 26;

/// Rows of a course at most, and cells of its label.
const COURSE_ROWS: u16 = 8;
const COURSE_LABEL_CELLS: u16 = 20;

/// Numbers that belong together.
struct Group {
    title: &'static str,
    facts: Vec<(&'static str, String)>,
}

/// Draws the page.
pub fn draw(frame: &mut Frame, mut area: Rect, row: &Row) {
    let member = row.member;
    let heading = format!("guest {}  pid {}", text::printable(&member.identity.name), member.identity.pid);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Line::styled(heading, bold), take_top(&mut area, 1));
    take_top(&mut area, 1);
    draw_groups(frame, &mut area, &[memory(member), orders(member), history(row)]);
    take_top(&mut area, 1);
    let course = row.course;
    let rows = (area.height / 2).min(COURSE_ROWS);
    let charge: Vec<u64> = course.into_iter().flat_map(Course::charge_bytes).collect();
    draw_course(frame, take_top(&mut area, rows), "charge", &charge, text::bytes);
    let refaults: Vec<u64> = course.into_iter().flat_map(Course::refaults_per_second).collect();
    draw_course(frame, take_top(&mut area, rows), "refaults/s", &refaults, |number| text::count(number as f64));
}

fn known(bytes: Option<u64>) -> String {
    bytes.map_or(UNKNOWN.to_owned(), text::bytes)
}

fn yes_or_no(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

/// Where its memory is.
fn memory(member: &MemberView) -> Group {
    let report = said(member);
    let bytes = |of: fn(&Report) -> u64| known(report.map(of));
    let health = |health| match health {
        BalloonHealth::Working => "working",
        BalloonHealth::Absent => "absent",
        BalloonHealth::Stalled => "stalled",
    };
    Group {
        title: "memory",
        facts: vec![
            ("charge", bytes(|report| report.charge_bytes)),
            ("resident", bytes(|report| report.resident_bytes)),
            ("shared", bytes(|report| report.shared_bytes)),
            ("merged of it", bytes(|report| report.merged_bytes)),
            ("compressed", bytes(|report| report.compressed_bytes)),
            ("swapped", bytes(|report| report.swapped_bytes)),
            ("zero", bytes(|report| report.zero_bytes)),
            ("touched", bytes(|report| report.touched_bytes)),
            ("active", bytes(|report| report.active_bytes)),
            ("active, fast", known(report.and_then(|report| report.active_fast_bytes))),
            ("active, slow", known(report.and_then(|report| report.active_slow_bytes))),
            ("guest's free", known(report.and_then(|report| report.guest_free_bytes))),
            ("ballooned", bytes(|report| report.ballooned_bytes)),
            ("target", bytes(|report| report.balloon_target_bytes)),
            ("balloon", report.map_or(UNKNOWN, |report| health(report.balloon)).to_owned()),
        ],
    }
}

/// What it is entitled to, and what the leader wants of it.
fn orders(member: &MemberView) -> Group {
    let identity = &member.identity;
    let bytes = |of: fn(&Orders) -> u64| known(member.orders.as_ref().map(of));
    Group {
        title: "entitled, ordered",
        facts: vec![
            ("size", text::bytes(identity.size_bytes)),
            ("reservation", text::bytes(identity.reservation_bytes)),
            ("limit", text::bytes(identity.limit_bytes)),
            ("shares", identity.shares.to_string()),
            ("grant", known(member.grant_bytes)),
            ("reclaim to", known(member.orders.and_then(|orders| orders.reclaim_to_bytes))),
            ("grow to", bytes(|orders| orders.grow_to_bytes)),
            ("unmerge to", bytes(|orders| orders.unmerge_to_bytes)),
            ("balloon to", bytes(|orders| orders.balloon_target_bytes)),
            ("ordered ago", member.orders_age_ms.map_or(UNKNOWN.to_owned(), text::time)),
        ],
    }
}

/// What has happened to it.
fn history(row: &Row) -> Group {
    let member = row.member;
    let rates = row.course.and_then(Course::rates);
    let mut facts = vec![
        ("refaults/s", rates.map_or(UNKNOWN.to_owned(), |rates| text::count(rates.refaults_per_second))),
        ("stall", rates.map_or(UNKNOWN.to_owned(), |rates| text::percent(rates.stall_share))),
    ];
    if let Some(report) = said(member) {
        facts.extend([
            ("refaults", text::count(report.refaults as f64)),
            ("came back", text::bytes(report.refaulted_bytes)),
            ("stalled", text::time(report.stall_ns / 1_000_000)),
            ("evicted pages", text::count(report.evicted_pages as f64)),
            ("beyond limit", text::count(report.over_limit_pages as f64)),
            ("wants growth", yes_or_no(report.wants_growth)),
            ("can reclaim", yes_or_no(report.can_reclaim)),
            ("flags", format!("{:#x}", report.flags)),
            ("reported ago", text::time(member.report_age_ms)),
        ]);
    }
    Group { title: "since its start", facts }
}

/// Side by side as far as there is room, the others below.
fn draw_groups(frame: &mut Frame, area: &mut Rect, groups: &[Group]) {
    let columns = usize::from(area.width / GROUP_CELLS).clamp(1, groups.len());
    for groups in groups.chunks(columns) {
        let rows = groups.iter().map(|group| group.facts.len() + 1).max().unwrap_or(0);
        let line = take_top(area, rows as u16);
        for (group, column) in groups.iter().zip(0..) {
            let left = Rect { x: line.x + column * GROUP_CELLS, width: GROUP_CELLS, ..line }.intersection(line);
            draw_group(frame, left, group);
        }
    }
}

fn draw_group(frame: &mut Frame, mut area: Rect, group: &Group) {
    let underlined = Style::new().add_modifier(Modifier::UNDERLINED);
    frame.render_widget(Line::styled(group.title, underlined), take_top(&mut area, 1));
    for (label, value) in &group.facts {
        let value = text::shorten(value, VALUE_CELLS);
        let line = format!("{label:LABEL_CELLS$}{value:>VALUE_CELLS$}");
        frame.render_widget(Line::raw(line), take_top(&mut area, 1));
    }
}

/// A course, the newest to the right. `points` has the newest first.
fn draw_course(frame: &mut Frame, area: Rect, name: &str, points: &[u64], text: impl Fn(u64) -> String) {
    let shown = usize::from(area.width.saturating_sub(COURSE_LABEL_CELLS));
    let points = &points[..points.len().min(shown)];
    let mut label = Rect { width: COURSE_LABEL_CELLS.min(area.width), ..area };
    let value = |point: Option<&u64>| point.map_or(UNKNOWN.to_owned(), |point| text(*point));
    let newest = format!("{name:12}{:>6}", value(points.first()));
    frame.render_widget(Line::raw(newest), take_top(&mut label, 1));
    let dim = Style::new().add_modifier(Modifier::DIM);
    let highest = format!("{:12}{:>6}", "highest", value(points.iter().max()));
    frame.render_widget(Line::styled(highest, dim), take_top(&mut label, 1));
    let mut bars = area;
    bars.x += label.width;
    bars.width -= label.width;
    let bars_widget = Sparkline::default().data(points.iter().copied()).direction(RenderDirection::RightToLeft);
    frame.render_widget(bars_widget, bars);
}
