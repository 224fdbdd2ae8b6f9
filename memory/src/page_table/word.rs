//! The state word: everything known about one page in 64 bits.
//!
//! | bits | field |
//! |---|---|
//! | 0..4 | [`State`] |
//! | 4 | wanted: somebody waits for the page while its owner works on it |
//! | 5 | discard: the page was freed while its owner works on it |
//! | 6 | copying: a copier still reads the page through the guest mapping |
//! | 7..20 | pin count |
//! | 20..64 | payload: the [`Location`] of a stored page, the stamp of a resident or aside one |

/// Highest pin count of one page. A virtqueue has at most 32768 entries, but a device takes far fewer in flight.
pub const PINS_MAX: u32 = (1 << 13) - 1;

const STATE_MASK: u64 = 0xf;
const WANTED: u64 = 1 << 4;
const DISCARD: u64 = 1 << 5;
const COPYING: u64 = 1 << 6;
const PINS_SHIFT: u32 = 7;
const PINS_MASK: u64 = (PINS_MAX as u64) << PINS_SHIFT;
const PAYLOAD_SHIFT: u32 = 20;

/// Where a page is in its life.
///
/// The first eight are at rest, the others transient: one thread owns the page and will take it to its next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing is known: every page of an open VM, and of an armed one until it is classified. Resident or untouched.
    Unknown,
    /// Known to hold nothing: it was given back since the VM was armed. Reads as zero.
    Untouched,
    /// In host memory, mapped where the guest reaches it.
    Resident,
    /// In the side mapping, uncompressed, out of the guest's reach.
    Aside,
    /// Stored as nothing but the fact that it is all zero.
    Zero,
    /// Stored as a reference to content held once for several pages.
    Duplicate,
    /// Stored in the compressed store.
    Compressed,
    /// Stored in the swap file.
    Swapped,
    /// On its way aside.
    Evicting,
    /// On its way from aside or a store to another store.
    Storing,
    /// On its way into guest RAM.
    Refaulting,
    /// Copied aside; the guest's page is about to be dropped (kernels without `UFFDIO_MOVE`).
    Dropping,
    /// Being given back in whatever form it is held.
    Freeing,
}

impl State {
    /// Number of states.
    pub const COUNT: usize = 13;

    /// Every state, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Unknown,
        Self::Untouched,
        Self::Resident,
        Self::Aside,
        Self::Zero,
        Self::Duplicate,
        Self::Compressed,
        Self::Swapped,
        Self::Evicting,
        Self::Storing,
        Self::Refaulting,
        Self::Dropping,
        Self::Freeing,
    ];

    /// Whether one thread owns the page at the moment.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Evicting | Self::Storing | Self::Refaulting | Self::Dropping | Self::Freeing)
    }

    /// Whether the page is held in a store.
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Zero | Self::Duplicate | Self::Compressed | Self::Swapped)
    }
}

/// Where a store keeps a page: a number of 44 bits that only the store understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location(u64);

impl Location {
    /// Width of a location in bits.
    pub const BITS: u32 = 64 - PAYLOAD_SHIFT;

    /// `None` when the number does not fit.
    pub fn new(number: u64) -> Option<Self> {
        (number >> Self::BITS == 0).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A store's hold on a page: what [`finish_store`](super::PageTable::finish_store) records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// All zero.
    Zero,
    /// Content shared with other pages.
    Duplicate(Location),
    /// In the compressed store.
    Compressed(Location),
    /// In the swap file.
    Swapped(Location),
}

/// Where the content of a page is: the states at rest, with the location of a stored page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In guest RAM, or nowhere: see [`State::Unknown`].
    Unknown,
    /// Nowhere: reads as zero.
    Untouched,
    /// In guest RAM.
    Resident,
    /// In the side mapping.
    Aside,
    /// In a store.
    Stored(Stored),
}

/// What the table says about one page at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Where the page is in its life.
    pub state: State,
    /// Where a stored page is kept.
    pub location: Option<Location>,
    /// When a resident or aside page came, in the unit of whoever passed it in.
    pub stamp: Option<u32>,
    /// How many pins hold it.
    pub pins: u32,
    /// Somebody waits for it.
    pub wanted: bool,
    /// It was freed while in flight.
    pub discard: bool,
    /// A copier still reads it through the guest mapping.
    pub copying: bool,
}

/// A state word. The all-zero word is a page nothing is known of, unpinned: a lazily zeroed table is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    pub(super) fn state(self) -> State {
        match self.0 & STATE_MASK {
            0 => State::Unknown,
            1 => State::Untouched,
            2 => State::Resident,
            3 => State::Aside,
            4 => State::Zero,
            5 => State::Duplicate,
            6 => State::Compressed,
            7 => State::Swapped,
            8 => State::Evicting,
            9 => State::Storing,
            10 => State::Refaulting,
            11 => State::Dropping,
            _ => State::Freeing,
        }
    }

    pub(super) fn wanted(self) -> bool {
        self.0 & WANTED != 0
    }

    pub(super) fn discard(self) -> bool {
        self.0 & DISCARD != 0
    }

    pub(super) fn copying(self) -> bool {
        self.0 & COPYING != 0
    }

    pub(super) fn pins(self) -> u32 {
        ((self.0 & PINS_MASK) >> PINS_SHIFT) as u32
    }

    fn payload(self) -> u64 {
        self.0 >> PAYLOAD_SHIFT
    }

    /// Another state, everything else kept.
    pub(super) fn with_state(self, state: State) -> Self {
        Self(self.0 & !STATE_MASK | state as u64)
    }

    pub(super) fn with_wanted(self, wanted: bool) -> Self {
        Self(if wanted { self.0 | WANTED } else { self.0 & !WANTED })
    }

    pub(super) fn with_discard(self, discard: bool) -> Self {
        Self(if discard { self.0 | DISCARD } else { self.0 & !DISCARD })
    }

    pub(super) fn with_copying(self, copying: bool) -> Self {
        Self(if copying { self.0 | COPYING } else { self.0 & !COPYING })
    }

    /// The caller has checked that `pins` is at most [`PINS_MAX`].
    pub(super) fn with_pins(self, pins: u32) -> Self {
        Self(self.0 & !PINS_MASK | (u64::from(pins) << PINS_SHIFT & PINS_MASK))
    }

    fn with_payload(self, payload: u64) -> Self {
        Self(self.0 & ((1 << PAYLOAD_SHIFT) - 1) | payload << PAYLOAD_SHIFT)
    }

    /// The time a page came to rest in guest RAM or aside.
    pub(super) fn with_stamp(self, stamp: u32) -> Self {
        self.with_payload(u64::from(stamp))
    }

    /// At rest in `place`. Stamp and flags of a page that stays in or returns to guest RAM or aside are kept.
    pub(super) fn at(self, place: Place) -> Self {
        match place {
            Place::Unknown => self.with_state(State::Unknown).with_payload(0),
            Place::Untouched => self.with_state(State::Untouched).with_payload(0),
            Place::Resident => self.with_state(State::Resident),
            Place::Aside => self.with_state(State::Aside),
            Place::Stored(Stored::Zero) => self.with_state(State::Zero).with_payload(0),
            Place::Stored(Stored::Duplicate(location)) => self.with_state(State::Duplicate).with_payload(location.0),
            Place::Stored(Stored::Compressed(location)) => self.with_state(State::Compressed).with_payload(location.0),
            Place::Stored(Stored::Swapped(location)) => self.with_state(State::Swapped).with_payload(location.0),
        }
    }

    /// Where the content of a page at rest is; `None` while it is in flight.
    pub(super) fn place(self) -> Option<Place> {
        let location = Location(self.payload());
        Some(match self.state() {
            State::Unknown => Place::Unknown,
            State::Untouched => Place::Untouched,
            State::Resident => Place::Resident,
            State::Aside => Place::Aside,
            State::Zero => Place::Stored(Stored::Zero),
            State::Duplicate => Place::Stored(Stored::Duplicate(location)),
            State::Compressed => Place::Stored(Stored::Compressed(location)),
            State::Swapped => Place::Stored(Stored::Swapped(location)),
            State::Evicting | State::Storing | State::Refaulting | State::Dropping | State::Freeing => return None,
        })
    }

    pub(super) fn page(self) -> Page {
        let state = self.state();
        let stamped = matches!(state, State::Resident | State::Aside | State::Evicting);
        let located = matches!(state, State::Duplicate | State::Compressed | State::Swapped);
        Page {
            state,
            location: located.then(|| Location(self.payload())),
            stamp: stamped.then(|| self.payload() as u32),
            pins: self.pins(),
            wanted: self.wanted(),
            discard: self.discard(),
            copying: self.copying(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let far = Location::new((1 << Location::BITS) - 1).expect("44 bits fit");
        let word = Word(0).at(Place::Stored(Stored::Swapped(far))).with_pins(PINS_MAX);
        assert_eq!(word.place(), Some(Place::Stored(Stored::Swapped(far))));
        assert_eq!((word.pins(), word.wanted(), word.discard(), word.copying()), (PINS_MAX, false, false, false));
        let flagged = word.with_wanted(true).with_discard(true).with_copying(true);
        assert_eq!(flagged.place(), word.place());
        assert_eq!(flagged.pins(), PINS_MAX);
        assert_eq!(flagged.with_wanted(false).with_discard(false).with_copying(false), word);
        assert_eq!(word.with_pins(0).at(Place::Unknown), Word(0));
        assert_eq!(Location::new(1 << Location::BITS), None);
    }

    #[test]
    fn every_state_has_its_number() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(Word(number as u64).state(), state);
            assert_eq!(state as usize, number);
            assert_eq!(Word(0).with_state(state).place().is_none(), state.is_transient());
        }
    }
}
