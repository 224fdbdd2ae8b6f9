//! How a member's totals grow: rates, and the course of the last minutes.

use std::collections::{HashMap, VecDeque};

use cistern_memory::ledger::{MemberId, MemberView, PoolView, Report};

/// Points of the course that are kept: four minutes at one a second.
const COURSE_POINTS: usize = 240;

/// What was said longer ago than this is no present rate.
const STALE_MS: u64 = 10_000;

/// A member, told apart from whoever has its slot later. Generations start anew with a pool that is made anew; processes
/// do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberKey {
    id: MemberId,
    pid: u32,
    start_ticks: u64,
}

impl From<&MemberView> for MemberKey {
    fn from(member: &MemberView) -> Self {
        let identity = &member.identity;
        Self { id: member.id, pid: identity.pid, start_ticks: identity.start_ticks }
    }
}

/// What a member has said of itself by now, if anything.
pub fn said(member: &MemberView) -> Option<&Report> {
    Some(&member.report).filter(|report| report.time_ns > 0)
}

/// Whether what is known of a member is old: it is stopped, or its host is.
pub fn is_stale(member: &MemberView) -> bool {
    said(member).is_some() && member.report_age_ms > STALE_MS
}

/// Differences of two reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Faults on pages that had left guest RAM.
    pub refaults_per_second: f64,
    /// Time from fault to answer over time passed; above 1 when several faults wait at once.
    pub stall_share: f64,
}

impl Rates {
    /// From one report to a later one of the same member; `None` when it is not later, or a total has shrunk.
    fn between(before: &Report, after: &Report) -> Option<Self> {
        let passed_ns = after.time_ns.checked_sub(before.time_ns).filter(|passed_ns| *passed_ns > 0)? as f64;
        let refaults = after.refaults.checked_sub(before.refaults)? as f64;
        let stall_ns = after.stall_ns.checked_sub(before.stall_ns)? as f64;
        Some(Self { refaults_per_second: refaults / (passed_ns / 1e9), stall_share: stall_ns / passed_ns })
    }
}

/// One member over time.
#[derive(Debug, Default)]
pub struct Course {
    last: Option<Report>,
    rates: Option<Rates>,
    charge_bytes: VecDeque<u64>,
    refaults_per_second: VecDeque<u64>,
}

impl Course {
    /// How fast its totals grew between the last two reports that were seen.
    pub fn rates(&self) -> Option<Rates> {
        self.rates
    }

    /// Its charge, the newest first.
    pub fn charge_bytes(&self) -> impl Iterator<Item = u64> {
        self.charge_bytes.iter().copied()
    }

    /// Its refaults a second, the newest first.
    pub fn refaults_per_second(&self) -> impl Iterator<Item = u64> {
        self.refaults_per_second.iter().copied()
    }

    fn take(&mut self, member: &MemberView) {
        let Some(report) = said(member) else { return };
        if is_stale(member) {
            self.rates = None;
        }
        if self.last.is_some_and(|last| last.time_ns == report.time_ns) {
            return;
        }
        self.rates = self.last.and_then(|last| Rates::between(&last, report)).filter(|_| !is_stale(member));
        self.last = Some(*report);
        push(&mut self.charge_bytes, report.charge_bytes);
        if let Some(rates) = self.rates {
            push(&mut self.refaults_per_second, rates.refaults_per_second as u64);
        }
    }
}

fn push(points: &mut VecDeque<u64>, point: u64) {
    points.truncate(COURSE_POINTS - 1);
    points.push_front(point);
}

/// All live members over time.
#[derive(Debug, Default)]
pub struct Courses {
    members: HashMap<MemberKey, Course>,
}

impl Courses {
    /// Takes a look at the pool; who is not in it any more is forgotten.
    pub fn take(&mut self, pool: &PoolView) {
        let mut before = std::mem::take(&mut self.members);
        for member in &pool.members {
            let key = MemberKey::from(member);
            let mut course = before.remove(&key).unwrap_or_default();
            course.take(member);
            self.members.insert(key, course);
        }
    }

    /// The course of a member that was in the last look.
    pub fn of(&self, member: &MemberView) -> Option<&Course> {
        self.members.get(&MemberKey::from(member))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{member, pool};
    use super::*;

    /// A member whose totals are these, after this time.
    fn at(slot: u16, milliseconds: u64, refaults: u64, stall_ms: u64) -> MemberView {
        let mut member = member("web", slot);
        member.report.time_ns = 1 + milliseconds * 1_000_000;
        member.report.refaults = refaults;
        member.report.stall_ns = stall_ms * 1_000_000;
        member
    }

    fn rates_after(looks: Vec<Vec<MemberView>>) -> Vec<Option<Rates>> {
        let mut courses = Courses::default();
        let mut last = pool(vec![]);
        for members in looks {
            last = pool(members);
            courses.take(&last);
        }
        last.members.iter().map(|member| courses.of(member).and_then(Course::rates)).collect()
    }

    const TEN: Option<Rates> = Some(Rates { refaults_per_second: 10.0, stall_share: 0.25 });

    #[test]
    fn rates_are_differences_of_two_reports() {
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 0)]]), [None]);
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 0)], vec![at(0, 2000, 120, 500)]]), [TEN]);
        // A look that finds nothing new does not make it zero.
        let same = || vec![at(0, 2000, 120, 500)];
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 0)], same(), same(), same()]), [TEN]);
        let several_at_once = rates_after(vec![vec![at(0, 0, 0, 0)], vec![at(0, 1000, 0, 3000)]]);
        assert_eq!(several_at_once[0].map(|rates| rates.stall_share), Some(3.0));
    }

    #[test]
    fn nothing_runs_backwards() {
        assert_eq!(rates_after(vec![vec![at(0, 2000, 100, 0)], vec![at(0, 1000, 120, 0)]]), [None]);
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 0)], vec![at(0, 1000, 99, 0)]]), [None]);
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 9)], vec![at(0, 1000, 100, 8)]]), [None]);
        // And goes on from there.
        let looks = vec![vec![at(0, 0, 900, 0)], vec![at(0, 1000, 100, 0)], vec![at(0, 3000, 120, 500)]];
        assert_eq!(rates_after(looks), [TEN]);
    }

    #[test]
    fn a_slot_that_another_takes_starts_anew() {
        let first = || at(3, 0, 100, 0);
        let mut other = at(3, 2000, 120, 500);
        other.id.generation += 1;
        assert_eq!(rates_after(vec![vec![first()], vec![other]]), [None]);
        // The first member of a pool made anew has the generation of the one before it.
        let mut other = at(3, 2000, 120, 500);
        other.identity.pid += 1;
        assert_eq!(rates_after(vec![vec![first()], vec![other]]), [None]);
        let mut other = at(3, 2000, 120, 500);
        other.identity.start_ticks += 1;
        assert_eq!(rates_after(vec![vec![first()], vec![other]]), [None]);
        // Slots of others do not matter.
        assert_eq!(rates_after(vec![vec![at(0, 0, 0, 0), first()], vec![at(3, 2000, 120, 500)]]), [TEN]);
        // One that was away is not known any more.
        assert_eq!(rates_after(vec![vec![first()], vec![], vec![at(3, 2000, 120, 500)]]), [None]);
    }

    #[test]
    fn old_reports_have_no_rate() {
        let mut old = at(0, 2000, 120, 500);
        old.report_age_ms = STALE_MS + 1;
        assert_eq!(rates_after(vec![vec![at(0, 0, 100, 0)], vec![at(0, 2000, 120, 500)], vec![old]]), [None]);
        let mut silent = member("web", 0);
        silent.report = Report::default();
        silent.report_age_ms = u64::MAX;
        assert!(!is_stale(&silent) && said(&silent).is_none());
        // What a member has before it says anything is no report to start from.
        assert_eq!(rates_after(vec![vec![silent], vec![at(0, 2000, 120, 500)]]), [None]);
    }

    #[test]
    fn the_course_is_bounded() {
        let mut courses = Courses::default();
        let mut last = pool(vec![]);
        for second in 0..2 * COURSE_POINTS as u64 {
            last = pool(vec![at(0, second * 1000, second * second, 0)]);
            courses.take(&last);
        }
        let course = courses.of(&last.members[0]).expect("a course");
        assert_eq!(
            (course.charge_bytes().count(), course.refaults_per_second().count()),
            (COURSE_POINTS, COURSE_POINTS)
        );
        assert_eq!(course.refaults_per_second().next(), Some(4 * COURSE_POINTS as u64 - 3));
    }
}
