//! The columns of the table of guests.

use std::cmp::Ordering;

use cistern_memory::ledger::MemberView;

use super::rates::{Course, said};
use super::text;

/// A member and how it has changed.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// As the ledger has it.
    pub member: &'a MemberView,
    /// `None`: it has not been seen before.
    pub course: Option<&'a Course>,
}

/// A value in the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Printable text.
    Text(String),
    /// A size.
    Bytes(u64),
    /// A number, or so many a second.
    Count(f64),
    /// A number of which every digit counts.
    Number(u64),
    /// A part of a whole.
    Share(f64),
}

impl Value {
    /// As it is shown; text in full.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bytes(bytes) => text::bytes(*bytes),
            Self::Count(number) => text::count(*number),
            Self::Number(number) => number.to_string(),
            Self::Share(share) => text::percent(*share),
        }
    }

    fn number(&self) -> f64 {
        match self {
            Self::Text(_) => 0.0,
            Self::Bytes(number) | Self::Number(number) => *number as f64,
            Self::Count(number) | Self::Share(number) => *number,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(text), Self::Text(other)) => text.cmp(other),
            _ => self.number().total_cmp(&other.number()),
        }
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The VM's name.
    Name,
    /// The guest's size.
    Size,
    /// What it may use.
    Grant,
    /// What it does use.
    Charge,
    /// What it works with.
    Active,
    /// What is in its balloon.
    Balloon,
    /// What the guest itself calls free.
    GuestFree,
    /// What others have too.
    Shared,
    /// Host memory of its compressed pages.
    Compressed,
    /// What is in the swap file.
    Swapped,
    /// Refaults a second.
    Refaults,
    /// The part of time its faults waited.
    Stall,
    /// Its process.
    Pid,
    /// What it is guaranteed.
    Reservation,
    /// What it may use at most.
    Limit,
    /// Its part when active memory does not fit.
    Shares,
}

impl Column {
    /// All of them, as they stand from left to right.
    pub const ALL: [Self; 16] = [
        Self::Name,
        Self::Size,
        Self::Grant,
        Self::Charge,
        Self::Active,
        Self::Balloon,
        Self::GuestFree,
        Self::Shared,
        Self::Compressed,
        Self::Swapped,
        Self::Refaults,
        Self::Stall,
        Self::Pid,
        Self::Reservation,
        Self::Limit,
        Self::Shares,
    ];

    /// The order in which they are left out where there is no room for all. The name always stays.
    pub const DISPENSABLE: [Self; 15] = [
        Self::Shares,
        Self::Reservation,
        Self::Limit,
        Self::Pid,
        Self::Shared,
        Self::GuestFree,
        Self::Balloon,
        Self::Swapped,
        Self::Compressed,
        Self::Size,
        Self::Refaults,
        Self::Stall,
        Self::Active,
        Self::Grant,
        Self::Charge,
    ];

    /// What stands above it, and the key that sorts by it: a letter of the heading.
    pub const fn heading(self) -> (&'static str, Option<char>) {
        match self {
            Self::Name => ("name", Some('n')),
            Self::Size => ("size", Some('s')),
            Self::Grant => ("grant", Some('g')),
            Self::Charge => ("charge", Some('c')),
            Self::Active => ("active", Some('a')),
            Self::Balloon => ("balloon", Some('b')),
            Self::GuestFree => ("gfree", Some('f')),
            Self::Shared => ("shared", Some('h')),
            Self::Compressed => ("compr", Some('p')),
            Self::Swapped => ("swap", Some('w')),
            Self::Refaults => ("ref/s", Some('r')),
            Self::Stall => ("stall", Some('t')),
            Self::Pid => ("pid", None),
            Self::Reservation => ("resv", None),
            Self::Limit => ("limit", None),
            Self::Shares => ("shares", None),
        }
    }

    /// The heading with its key as a capital letter.
    pub fn key_heading(self) -> String {
        let (heading, key) = self.heading();
        match key {
            Some(key) => heading.replacen(key, &key.to_uppercase().to_string(), 1),
            None => heading.to_owned(),
        }
    }

    /// The column that a key sorts by; capital letters too.
    pub fn of_key(key: char) -> Option<Self> {
        let key = key.to_ascii_lowercase();
        Self::ALL.into_iter().find(|column| column.heading().1 == Some(key))
    }

    /// Cells it takes; [`Self::Name`] takes more where there is room.
    pub fn width(self) -> usize {
        let longest_value = match self {
            Self::Name => 4,
            Self::Pid => 7,
            _ => 5,
        };
        longest_value.max(self.heading().0.len())
    }

    /// Its value in a row; `None`: not known.
    pub fn value(self, row: &Row) -> Option<Value> {
        let MemberView { identity, grant_bytes, .. } = row.member;
        let report = said(row.member);
        let rates = row.course.and_then(Course::rates);
        match self {
            Self::Name => Some(Value::Text(text::printable(&identity.name))),
            Self::Size => Some(Value::Bytes(identity.size_bytes)),
            Self::Grant => grant_bytes.map(Value::Bytes),
            Self::Charge => report.map(|report| Value::Bytes(report.charge_bytes)),
            Self::Active => report.map(|report| Value::Bytes(report.active_bytes)),
            Self::Balloon => report.map(|report| Value::Bytes(report.ballooned_bytes)),
            Self::GuestFree => report.and_then(|report| report.guest_free_bytes).map(Value::Bytes),
            Self::Shared => report.map(|report| Value::Bytes(report.shared_bytes)),
            Self::Compressed => report.map(|report| Value::Bytes(report.compressed_bytes)),
            Self::Swapped => report.map(|report| Value::Bytes(report.swapped_bytes)),
            Self::Refaults => rates.map(|rates| Value::Count(rates.refaults_per_second)),
            Self::Stall => rates.map(|rates| Value::Share(rates.stall_share)),
            Self::Pid => Some(Value::Number(identity.pid.into())),
            Self::Reservation => Some(Value::Bytes(identity.reservation_bytes)),
            Self::Limit => Some(Value::Bytes(identity.limit_bytes)),
            Self::Shares => Some(Value::Count(identity.shares as f64)),
        }
    }
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// Whose values.
    pub column: Column,
    /// The smallest number first, or names from z to a.
    pub is_reversed: bool,
}

impl Sort {
    /// Who costs most comes first.
    pub const DEFAULT: Self = Self { column: Column::Charge, is_reversed: false };

    /// By this column; by the same one again: the other way round.
    pub fn by(self, column: Column) -> Self {
        Self { column, is_reversed: column == self.column && !self.is_reversed }
    }

    /// Sorts; what is not known comes last either way, and equals stay as they are.
    pub fn apply(self, rows: &mut [Row]) {
        let is_rising = matches!(self.column, Column::Name) != self.is_reversed;
        rows.sort_by(|row, other| match (self.column.value(row), self.column.value(other)) {
            (Some(value), Some(other)) if is_rising => value.compare(&other),
            (Some(value), Some(other)) => other.compare(&value),
            (value, other) => other.is_some().cmp(&value.is_some()),
        });
    }
}

#[cfg(test)]
mod tests {
    use cistern_memory::ledger::Report;

    use super::super::fixtures::{MIB, member, pool};
    use super::super::rates::Courses;
    use super::*;

    #[test]
    fn every_key_is_a_letter_of_its_own_heading() {
        let mut keys: Vec<_> = Column::ALL.into_iter().filter_map(|column| column.heading().1).collect();
        for column in Column::ALL {
            let (heading, key) = column.heading();
            assert!(key.is_none_or(|key| heading.contains(key) && Column::of_key(key) == Some(column)), "{column:?}");
        }
        assert_eq!(keys.len(), 12);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 12, "no two columns have the same key");
        assert_eq!(Column::of_key('H'), Some(Column::Shared));
        // It leaves.
        assert_eq!(Column::of_key('q'), None);
        assert_eq!(Column::Shared.key_heading(), "sHared");
    }

    #[test]
    fn all_but_the_name_can_be_left_out() {
        let mut columns = Column::DISPENSABLE.to_vec();
        columns.push(Column::Name);
        assert!(Column::ALL.into_iter().all(|column| columns.contains(&column)));
    }

    fn names(members: &[MemberView], sort: Sort) -> Vec<String> {
        let mut rows: Vec<_> = members.iter().map(|member| Row { member, course: None }).collect();
        sort.apply(&mut rows);
        rows.into_iter().map(|row| row.member.identity.name.clone()).collect()
    }

    #[test]
    fn keys_sort_and_reverse() {
        let mut members = vec![member("b", 1), member("a", 0), member("c", 2)];
        members[0].report.swapped_bytes = 900 * MIB;
        let by = |column| Sort::DEFAULT.by(column);
        assert_eq!(names(&members, Sort::DEFAULT), ["c", "b", "a"]);
        assert_eq!(names(&members, by(Column::Charge)), ["a", "b", "c"], "the same key again reverses");
        assert_eq!(names(&members, by(Column::Charge).by(Column::Charge)), ["c", "b", "a"]);
        assert_eq!(names(&members, by(Column::Name)), ["a", "b", "c"]);
        assert_eq!(names(&members, by(Column::Name).by(Column::Name)), ["c", "b", "a"]);
        assert_eq!(names(&members, by(Column::Swapped)), ["b", "c", "a"]);
        assert_eq!(by(Column::Charge).by(Column::Size), by(Column::Size), "another key starts with the largest");
    }

    #[test]
    fn the_unknown_comes_last_either_way() {
        let mut members = vec![member("silent", 0), member("b", 1), member("c", 2)];
        members[0].report = Report::default();
        let sort = Sort { column: Column::Active, is_reversed: false };
        assert_eq!(names(&members, sort), ["c", "b", "silent"]);
        assert_eq!(names(&members, sort.by(Column::Active)), ["b", "c", "silent"]);
        // What nobody has leaves the order alone.
        assert_eq!(names(&members, sort.by(Column::Refaults)), ["silent", "b", "c"]);
    }

    #[test]
    fn values_come_from_where_they_should() {
        let mut before = member("web", 0);
        before.report.time_ns = 1;
        let mut after = member("web", 0);
        after.report.refaults += 500;
        after.report.time_ns = 1_000_000_001;
        after.report.stall_ns += 125_000_000;
        let mut courses = Courses::default();
        courses.take(&pool(vec![before]));
        courses.take(&pool(vec![after.clone()]));
        let row = Row { member: &after, course: courses.of(&after) };
        let texts = Column::ALL.map(|column| column.value(&row).map_or("-".to_owned(), |value| value.text()));
        assert_eq!(
            texts,
            [
                "web", "512M", "128M", "120M", "80M", "60M", "70M", "20M", "30M", "40M", "500", "12%", "1000", "10M",
                "500M", "5.1k"
            ]
        );
    }
}
