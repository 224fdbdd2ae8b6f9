//! What the keys mean.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::column::Column;

/// Where the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The table of all guests.
    Guests,
    /// All numbers of the selected one.
    Guest,
}

/// Where the selection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// This many rows up.
    Up(usize),
    /// This many rows down.
    Down(usize),
    /// To the first row.
    First,
    /// To the last row.
    Last,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the program.
    Leave,
    /// Sort by this column, or the other way round.
    Sort(Column),
    /// Select another guest.
    Select(Step),
    /// Show the selected guest.
    Open,
    /// Back to the table.
    Close,
}

/// Rows of a page up or down.
const PAGE_ROWS: usize = 10;

/// What a key asks for on a page, if anything.
pub fn action(key: &KeyEvent, page: Page) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
        let leaves = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        return leaves.then_some(Action::Leave);
    }
    match (key.code, page) {
        (KeyCode::Char('q' | 'Q'), _) | (KeyCode::Esc, Page::Guests) => Some(Action::Leave),
        (KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace, Page::Guest) => Some(Action::Close),
        (KeyCode::Enter, Page::Guests) => Some(Action::Open),
        (KeyCode::Up, _) => Some(Action::Select(Step::Up(1))),
        (KeyCode::Down, _) => Some(Action::Select(Step::Down(1))),
        (KeyCode::PageUp, _) => Some(Action::Select(Step::Up(PAGE_ROWS))),
        (KeyCode::PageDown, _) => Some(Action::Select(Step::Down(PAGE_ROWS))),
        (KeyCode::Home, _) => Some(Action::Select(Step::First)),
        (KeyCode::End, _) => Some(Action::Select(Step::Last)),
        (KeyCode::Char(letter), Page::Guests) => Column::of_key(letter).map(Action::Sort),
        _ => None,
    }
}

/// What the user can do, in lines of at most 80 cells, the most important first.
pub fn help(page: Page) -> Vec<String> {
    match page {
        Page::Guests => {
            let headings = Column::ALL.into_iter().filter(|column| column.heading().1.is_some());
            let headings: Vec<_> = headings.map(Column::key_heading).collect();
            vec![
                "q leave  ↑↓ select  Enter all of a guest  a capital letter sorts, again reverses".to_owned(),
                format!("sort: {}", headings.join(" ")),
            ]
        }
        Page::Guest => vec!["q leave  Esc all guests  ↑↓ another guest".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(code: KeyCode, page: Page) -> Option<Action> {
        action(&KeyEvent::new(code, KeyModifiers::NONE), page)
    }

    #[test]
    fn there_is_always_a_way_out() {
        for page in [Page::Guests, Page::Guest] {
            assert_eq!(pressed(KeyCode::Char('q'), page), Some(Action::Leave));
            assert_eq!(action(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), page), Some(Action::Leave));
        }
        assert_eq!(pressed(KeyCode::Esc, Page::Guests), Some(Action::Leave));
        assert_eq!(pressed(KeyCode::Esc, Page::Guest), Some(Action::Close));
    }

    #[test]
    fn letters_sort_the_table_and_nothing_else() {
        assert_eq!(pressed(KeyCode::Char('c'), Page::Guests), Some(Action::Sort(Column::Charge)));
        assert_eq!(pressed(KeyCode::Char('C'), Page::Guests), Some(Action::Sort(Column::Charge)));
        assert_eq!(pressed(KeyCode::Char('c'), Page::Guest), None);
        assert_eq!(pressed(KeyCode::Char('z'), Page::Guests), None);
        assert_eq!(action(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::ALT), Page::Guests), None);
        let release = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(action(&release, Page::Guests), None);
    }

    #[test]
    fn the_help_fits_and_names_every_sort_key() {
        for line in help(Page::Guests).iter().chain(&help(Page::Guest)) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let sorts = &help(Page::Guests)[1];
        let keys: String = sorts.chars().filter(char::is_ascii_uppercase).collect();
        assert_eq!(keys, "NSGCABFHPWRT");
    }
}
