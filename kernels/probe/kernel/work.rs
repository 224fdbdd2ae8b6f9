//! What processors do with pages, each with its share of them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cistern_probe::content::{self, Damage, Fault, Identity, Kind, Page};
use cistern_probe::distribution::{Chooser, Distribution};
use cistern_probe::fills::Fills;
use cistern_probe::histogram::Histogram;
use cistern_probe::json::Line;
use cistern_probe::pool::Pool;
use cistern_probe::random::{Generator, mix};

use crate::clock::Clock;
use crate::console::print;
use crate::cpu::time_stamp;
use crate::memory::{PageTables, WriteCounts};

/// All that is known about pages. Changed by the boot processor between jobs only.
pub struct World {
    /// Which pages there are.
    pub pool: Pool,
    /// What was filled with what.
    pub fills: Fills,
    /// How often each was written.
    pub counts: WriteCounts,
    /// How they are mapped.
    pub tables: PageTables,
    /// The time.
    pub clock: Clock,
}

impl World {
    /// What the filled page must be now.
    #[inline]
    fn identity(&self, page: u32) -> Identity {
        self.fills.identity(page, self.counts.get(page))
    }

    fn content(&self, page: u32) -> *mut Page {
        self.pool.address(page) as *mut Page
    }
}

/// Something all processors do together.
#[derive(Clone, Copy)]
pub enum Job {
    /// Write these pages for the first time.
    Fill {
        /// The first of them.
        first: u32,
        /// How many.
        pages: u32,
    },
    /// Compare every filled page with what it must be.
    Verify,
    /// Touch the first pages until a time.
    Walk {
        /// How many pages.
        pages: u32,
        /// In which order.
        distribution: Distribution,
        /// Share of touches that write.
        write_percent: u8,
        /// Counter value at which to stop.
        deadline: u64,
        /// Touches after which to stop, all processors' together.
        touches: u64,
        /// Sets this walk apart from others.
        seed: u64,
    },
    /// Read each of the first pages once.
    Touch {
        /// How many.
        pages: u32,
    },
}

/// Which part of a job is whose.
#[derive(Clone, Copy)]
pub struct Share {
    /// The processor, from 0.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Share {
    /// This processor's pages of the first `pages`: where they start, and how many.
    fn slice(self, pages: u32) -> (u32, u32) {
        (self.border(pages.into(), self.number) as u32, self.part(pages.into()) as u32)
    }

    /// How much of a whole is this processor's.
    fn part(self, whole: u64) -> u64 {
        self.border(whole, self.number + 1) - self.border(whole, self.number)
    }

    fn border(self, whole: u64, number: u32) -> u64 {
        (u128::from(whole) * u128::from(number) / u128::from(self.of)) as u64
    }
}

/// What a processor has to tell after a job. All zero is a worker that has nothing to tell.
#[repr(C)]
pub struct Worker {
    /// Ticks each touch took.
    pub latencies: Histogram,
    /// Wrong pages, or touches of wrong pages, that were found.
    pub bad: u64,
    /// Writes by a walk; in a verify, the sum of all write counts.
    pub writes: u64,
}

impl Worker {
    fn clear(&mut self) {
        self.latencies.clear();
        (self.bad, self.writes) = (0, 0);
    }

    /// Adds what another processor has to tell.
    pub fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.bad += other.bad;
        self.writes += other.writes;
    }
}

/// A processor's share of a walk.
struct Walk {
    start: u32,
    write_percent: u8,
    deadline: u64,
    touches: u64,
    chooser: Chooser,
    random: Generator,
}

/// A processor's share of a job.
pub struct Work<'a> {
    /// The pages.
    pub world: &'a World,
    /// Which of them.
    pub share: Share,
    /// Where to note what comes out.
    pub worker: &'a mut Worker,
}

impl Work<'_> {
    /// Does it. `pause` is called every few microseconds.
    pub fn perform(mut self, job: Job, pause: &mut impl FnMut()) {
        self.worker.clear();
        match job {
            Job::Fill { first, pages } => self.fill(first, pages, pause),
            Job::Verify => self.verify(pause),
            Job::Touch { pages } => self.touch(pages, pause),
            Job::Walk { pages, distribution, write_percent, deadline, touches, seed } => {
                let (start, count) = self.share.slice(pages);
                let walk = Walk {
                    start,
                    write_percent,
                    deadline,
                    touches: if count == 0 { 0 } else { self.share.part(touches) },
                    chooser: Chooser::new(distribution, count),
                    random: Generator::new(mix(seed, self.share.number.into())),
                };
                self.walk(walk, pause);
            }
        }
    }

    fn fill(&mut self, first: u32, pages: u32, pause: &mut impl FnMut()) {
        let (start, count) = self.share.slice(pages);
        for page in first + start..first + start + count {
            pause();
            self.world.counts.set(page, 1);
            // SAFETY: a page of the pool, mapped, and this processor's alone for this job.
            content::write(unsafe { &mut *self.world.content(page) }, &self.world.identity(page));
        }
    }

    fn verify(&mut self, pause: &mut impl FnMut()) {
        let (start, count) = self.share.slice(self.world.fills.pages());
        for page in start..start + count {
            pause();
            let identity = self.world.identity(page);
            self.worker.writes += u64::from(identity.writes);
            // SAFETY: a filled page; nobody writes during this job.
            if !content::matches(unsafe { &*self.world.content(page) }, &identity) {
                self.diagnose(page, &identity);
            }
        }
    }

    fn touch(&mut self, pages: u32, pause: &mut impl FnMut()) {
        let (start, count) = self.share.slice(pages);
        for page in start..start + count {
            pause();
            self.read(page);
        }
    }

    fn walk(&mut self, mut walk: Walk, pause: &mut impl FnMut()) {
        let mut now = 0;
        while now < walk.deadline && walk.touches > 0 {
            pause();
            let page = walk.start + walk.chooser.next(&mut walk.random);
            let writes = walk.random.below(100) < walk.write_percent.into();
            now = if writes { self.write(page) } else { self.read(page) };
            walk.touches -= 1;
        }
    }

    /// Reads the first word of a page and checks it; answers the counter after the access.
    #[inline]
    fn read(&mut self, page: u32) -> u64 {
        let identity = self.world.identity(page);
        let word = self.world.content(page).cast::<u64>();
        let before = time_stamp();
        // SAFETY: a filled page, this processor's alone for this job. Volatile: the access is what is measured.
        let found = unsafe { word.read_volatile() };
        let after = time_stamp();
        self.worker.latencies.record(after - before);
        if found != identity.first_word() {
            self.diagnose(page, &identity);
        }
        after
    }

    /// Writes a page once more. The first access is an exchange: it faults as a write does, and what was there before
    /// is still seen, so that a write cannot cover up a page that was wrong.
    #[inline]
    fn write(&mut self, page: u32) -> u64 {
        let old = self.world.identity(page);
        // Counts never come back to 0, which would be a page that was never filled.
        let new = self.world.fills.identity(page, old.writes.checked_add(1).unwrap_or(1));
        let header = new.header();
        let word = self.world.content(page).cast::<u64>();
        // SAFETY: as in `read`; aligned.
        let first = unsafe { AtomicU64::from_ptr(word) };
        let before = time_stamp();
        let found = first.swap(header[0], Ordering::Relaxed);
        let after = time_stamp();
        self.worker.latencies.record(after - before);
        if old.churned {
            self.remake(page, found, &old, &new);
        } else if found != old.first_word() {
            first.store(found, Ordering::Relaxed);
            self.diagnose(page, &old);
            first.store(header[0], Ordering::Relaxed);
        }
        for (at, value) in header.iter().enumerate().skip(1) {
            // SAFETY: as above.
            unsafe { word.add(at).write_volatile(*value) };
        }
        self.world.counts.set(page, new.writes);
        self.worker.writes += 1;
        after
    }

    /// Makes a churned page anew, of which the first word was `found`. Nothing of the old one would be left for a verify to
    /// find fault with, so all of it is looked at here.
    fn remake(&mut self, page: u32, found: u64, old: &Identity, new: &Identity) {
        let content = self.world.content(page);
        // SAFETY: a filled page, this processor's alone for this job.
        unsafe { (*content)[0] = found };
        // SAFETY: as above; each reference is gone before the next.
        if !content::matches(unsafe { &*content }, old) {
            self.diagnose(page, old);
        }
        // SAFETY: as above.
        content::write(unsafe { &mut *content }, new);
    }

    #[cold]
    fn diagnose(&mut self, page: u32, identity: &Identity) {
        self.worker.bad += 1;
        // SAFETY: a filled page that nobody else writes during this job.
        let fault = content::diagnose(unsafe { &*self.world.content(page) }, identity);
        // A page that is right when looked at again was wrong when it was touched.
        let fault = fault.unwrap_or(Fault {
            damage: Damage::Corrupt,
            offset_bytes: 0,
            expected: identity.first_word(),
            found: identity.first_word(),
        });
        BAD_PAGES.note(BadPage { page, address: self.world.pool.address(page), kind: identity.kind, fault });
    }
}

/// A page that was found wrong.
#[derive(Clone, Copy)]
struct BadPage {
    page: u32,
    address: u64,
    kind: Kind,
    fault: Fault,
}

/// Wrong pages described in full; later ones are only counted.
const DESCRIBED: usize = 16;

struct BadPages {
    found: AtomicU32,
    /// The pages of this job that are described already, so that one wrong page a walk likes does not fill all lines.
    numbers: [AtomicU32; DESCRIBED],
    pages: [UnsafeCell<Option<BadPage>>; DESCRIBED],
}

// SAFETY: each slot is written by the one processor that drew its number, and read after its job.
unsafe impl Sync for BadPages {}

static BAD_PAGES: BadPages = BadPages {
    found: AtomicU32::new(0),
    numbers: [const { AtomicU32::new(NO_PAGE) }; DESCRIBED],
    pages: [const { UnsafeCell::new(None) }; DESCRIBED],
};

/// A number no page has.
const NO_PAGE: u32 = u32::MAX;

impl BadPages {
    fn note(&self, page: BadPage) {
        if self.numbers.iter().any(|number| number.load(Ordering::Relaxed) == page.page) {
            return;
        }
        // Stops counting where it stops describing, so that it cannot wrap round.
        let slot = self.found.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |found| {
            ((found as usize) < DESCRIBED).then_some(found + 1)
        });
        if let Ok(slot) = slot {
            self.numbers[slot as usize].store(page.page, Ordering::Relaxed);
            // SAFETY: the number was drawn by this processor alone.
            unsafe { *self.pages[slot as usize].get() = Some(page) };
        }
    }
}

/// Prints the wrong pages that were found since the last call. On the boot processor, between jobs.
pub fn print_bad_pages() {
    for (slot, number) in BAD_PAGES.pages.iter().zip(&BAD_PAGES.numbers) {
        number.store(NO_PAGE, Ordering::Relaxed);
        // SAFETY: no job is running, so nobody writes.
        let Some(bad) = (unsafe { (*slot.get()).take() }) else { continue };
        let mut line = Line::phase("bad");
        line.number("page", bad.page.into())
            .hex("gpa", bad.address)
            .text("kind", bad.kind.name())
            .hex("expected", bad.fault.expected)
            .hex("found", bad.fault.found)
            .text("what", bad.fault.damage.name())
            .number("offset", bad.fault.offset_bytes.into());
        print(&mut line);
    }
}

/// Spoils a filled page on purpose. On the boot processor, between jobs. Answers how many writes the counts have more
/// than the pages.
pub fn spoil(world: &World, page: u32, spoil: cistern_probe::program::Spoil) -> u64 {
    use cistern_probe::program::Spoil;
    let identity = world.identity(page);
    // SAFETY: a filled page, and no job is running.
    let content = unsafe { &mut *world.content(page) };
    match spoil {
        // Whatever the page holds is now what it held one write ago.
        Spoil::Stale => {
            world.counts.set(page, identity.writes + 1);
            return 1;
        }
        Spoil::Foreign => {
            content::write(
                content,
                &Identity { kind: Kind::Text, page: page ^ 1, duplicate: 0, writes: 2, ..identity },
            );
        }
        Spoil::Flip => content[content::PAGE_WORDS / 2] ^= 1 << 20,
    }
    0
}
