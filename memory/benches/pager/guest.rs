//! Guest RAM with a pager, and a plain thread in the guest's place.

use std::hint::black_box;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use cistern_memory::pager::{Pager, PagerConfig};
use cistern_memory::store::{PAGE_BYTES, Page};
use cistern_memory::{GuestRam, PAGE_SIZE};
use cistern_probe::random::Generator;
use vm_memory::{Bytes, GuestAddress};

/// A folder for a swap file on a disk: the build's own.
pub fn disk() -> PathBuf {
    let program = std::env::current_exe().expect("a bench knows its path");
    program.parent().expect("it lies in a folder").to_owned()
}

/// A pager that finds text of the probe's worth storing, all of it: that needs up to 0.55 of a page.
pub fn all_text() -> PagerConfig {
    PagerConfig { compressed_limit_bytes: PAGE_BYTES * 3 / 4, ..PagerConfig::default() }
}

/// See the top of this file.
pub struct Guest {
    pub ram: Arc<GuestRam>,
    pub pager: Arc<Pager>,
    pages: u64,
}

impl Guest {
    /// Nothing is touched and nothing armed.
    pub fn new(pages: u64, config: PagerConfig) -> Self {
        let ram = GuestRam::new(&[0..pages * PAGE_SIZE]).expect("address space");
        let fail = |failure: &cistern_memory::pager::PagerFailure| panic!("{failure}");
        let pager = Pager::new(Arc::clone(&ram), config, Box::new(fail)).expect("a pager");
        Self { ram, pager, pages }
    }

    /// All of its pages.
    pub fn gfns(&self) -> Range<u64> {
        0..self.pages
    }

    /// Writes a page.
    pub fn write(&self, gfn: u64, page: &Page) {
        self.ram.memory().write_slice(page, GuestAddress(gfn * PAGE_SIZE)).expect("it is RAM");
    }

    /// Writes a word of a page.
    pub fn touch(&self, gfn: u64) {
        self.ram.memory().write_obj(gfn | 1, GuestAddress(gfn * PAGE_SIZE)).expect("it is RAM");
    }

    /// Reads a word of a page.
    pub fn read(&self, gfn: u64) {
        black_box(self.ram.memory().read_obj::<u64>(GuestAddress(gfn * PAGE_SIZE)).expect("it is RAM"));
    }

    /// Address of a page in this process.
    pub fn address(&self, gfn: u64) -> u64 {
        self.ram.regions()[0].host_address + gfn * PAGE_SIZE
    }

    /// Waits until the pager has noted of all pages that they came: a thread goes on before that.
    pub fn rest(&self) {
        while self.pager.statistics().pages.in_flight > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pager.shut_down();
    }
}

/// The pages below `pages` in a random order.
pub fn shuffled(pages: u64) -> Vec<u64> {
    let (mut order, mut random) = ((0..pages).collect::<Vec<_>>(), Generator::new(1));
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    order
}
