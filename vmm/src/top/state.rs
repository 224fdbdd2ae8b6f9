//! What the live view shows, and how keys change it.

use std::path::PathBuf;

use cistern_memory::ledger::{MemberView, PoolView};

use super::column::{Row, Sort};
use super::keys::{Action, Page, Step};
use super::rates::{Courses, MemberKey};

/// The pool as last seen, and where in it the user is.
#[derive(Debug)]
pub struct State {
    /// The pool's directory.
    pub dir: PathBuf,
    /// What rows are sorted by.
    pub sort: Sort,
    /// What is shown.
    pub page: Page,
    /// What there is to see, above everything else.
    pub caption: Option<String>,
    /// Why the pool cannot be read now; what is shown is older then.
    pub failure: Option<String>,
    pool: PoolView,
    courses: Courses,
    selected: Option<Selected>,
}

/// A selected guest, and the row it was in: that of the guest to select when it has left.
#[derive(Debug, Clone, Copy)]
struct Selected {
    key: MemberKey,
    index: usize,
}

impl State {
    /// The view of a pool in `dir`.
    pub fn new(dir: PathBuf, pool: PoolView) -> Self {
        let mut courses = Courses::default();
        courses.take(&pool);
        let (sort, page) = (Sort::DEFAULT, Page::Guests);
        let mut state = Self { dir, sort, page, caption: None, failure: None, pool, courses, selected: None };
        state.select(|_| 0);
        state
    }

    /// Takes another look, or why there is none.
    pub fn take(&mut self, look: Result<PoolView, impl ToString>) {
        match look {
            Ok(pool) => {
                self.courses.take(&pool);
                self.pool = pool;
                self.failure = None;
                self.keep_selection();
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    /// Does what a key asks for; false when that is to leave.
    pub fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Leave => return false,
            Action::Sort(column) => self.sort = self.sort.by(column),
            Action::Select(Step::Up(rows)) => self.select(|index| index.saturating_sub(rows)),
            Action::Select(Step::Down(rows)) => self.select(|index| index.saturating_add(rows)),
            Action::Select(Step::First) => self.select(|_| 0),
            Action::Select(Step::Last) => self.select(|_| usize::MAX),
            Action::Open if self.selected.is_some() => self.page = Page::Guest,
            Action::Open => {}
            Action::Close => self.page = Page::Guests,
        }
        // Rows may have moved.
        self.keep_selection();
        true
    }

    /// The pool.
    pub fn pool(&self) -> &PoolView {
        &self.pool
    }

    /// The guests as sorted.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let row = |member| Row { member, course: self.courses.of(member) };
        let mut rows: Vec<_> = self.pool.members.iter().map(row).collect();
        self.sort.apply(&mut rows);
        rows
    }

    /// The index of the selected row in [`Self::rows`].
    pub fn selected_index(&self) -> Option<usize> {
        self.selected.map(|selected| selected.index)
    }

    /// Selects the row that `step` leads to from the present one, or the nearest there is.
    fn select(&mut self, step: impl FnOnce(usize) -> usize) {
        let index = step(self.selected_index().unwrap_or(0));
        let rows = self.rows();
        let index = index.min(rows.len().saturating_sub(1));
        self.selected = rows.get(index).map(|row| Selected { key: row.member.into(), index });
    }

    /// Stays with the selected guest wherever its row is now. When it has left, its page closes.
    fn keep_selection(&mut self) {
        let is_selected = |member: &MemberView| self.selected.is_some_and(|selected| selected.key == member.into());
        match self.rows().iter().position(|row| is_selected(row.member)) {
            Some(index) => self.select(|_| index),
            None => {
                self.page = Page::Guests;
                self.select(|index| index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::column::Column;
    use super::super::fixtures::{member, pool};
    use super::*;

    fn state(members: Vec<MemberView>) -> State {
        State::new(PathBuf::from("/p"), pool(members))
    }

    fn look(members: Vec<MemberView>) -> Result<PoolView, String> {
        Ok(pool(members))
    }

    fn names(state: &State) -> Vec<&str> {
        state.rows().iter().map(|row| row.member.identity.name.as_str()).collect()
    }

    fn selected(state: &State) -> Option<&str> {
        state.selected_index().map(|index| names(state)[index])
    }

    #[test]
    fn the_selection_stays_with_its_guest() {
        let mut state = state(vec![member("a", 0), member("b", 1), member("c", 2)]);
        assert_eq!((names(&state), selected(&state)), (vec!["c", "b", "a"], Some("c")));
        assert!(state.act(Action::Select(Step::Down(1))));
        assert_eq!(selected(&state), Some("b"));
        state.act(Action::Sort(Column::Charge));
        assert_eq!((names(&state), selected(&state)), (vec!["a", "b", "c"], Some("b")));
        state.act(Action::Sort(Column::Name));
        state.take(look(vec![member("0", 3), member("b", 1), member("c", 2)]));
        assert_eq!((names(&state), selected(&state)), (vec!["0", "b", "c"], Some("b")));
    }

    #[test]
    fn the_selection_stays_in_the_table() {
        let mut state = state(vec![member("a", 0), member("b", 1), member("c", 2)]);
        for (step, name) in
            [(Step::Last, "a"), (Step::Down(3), "a"), (Step::Up(9), "c"), (Step::Down(2), "a"), (Step::First, "c")]
        {
            state.act(Action::Select(step));
            assert_eq!(selected(&state), Some(name), "{step:?}");
        }
    }

    #[test]
    fn a_page_closes_when_its_guest_leaves() {
        let mut state = state(vec![member("a", 0), member("b", 1), member("c", 2)]);
        state.act(Action::Select(Step::Down(1)));
        state.act(Action::Open);
        state.take(look(vec![member("b", 1), member("c", 2)]));
        assert_eq!((state.page, selected(&state)), (Page::Guest, Some("b")));
        // Another of the same name in the same slot is not it.
        let mut other = member("b", 1);
        other.id.generation += 1;
        state.take(look(vec![other, member("c", 2)]));
        assert_eq!((state.page, selected(&state)), (Page::Guests, Some("b")), "the row is still there");
        state.take(look(vec![member("c", 2)]));
        assert_eq!(selected(&state), Some("c"));
    }

    #[test]
    fn an_empty_pool_waits_for_guests() {
        let mut state = state(vec![]);
        for action in [Action::Open, Action::Select(Step::Down(1)), Action::Sort(Column::Name), Action::Close] {
            assert!(state.act(action));
            assert_eq!((state.page, selected(&state)), (Page::Guests, None));
        }
        state.take(look(vec![member("a", 0)]));
        assert_eq!(selected(&state), Some("a"));
        assert!(!state.act(Action::Leave));
    }

    #[test]
    fn a_failed_look_keeps_the_last_one() {
        let mut state = state(vec![member("a", 0)]);
        state.take(Err("gone"));
        assert_eq!((state.failure.as_deref(), names(&state)), (Some("gone"), vec!["a"]));
        state.take(look(vec![]));
        assert_eq!((state.failure.as_deref(), names(&state)), (None, vec![]));
    }
}
