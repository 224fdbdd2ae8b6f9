//! What a member tells the others of its pages, and learns from them, now and then.

use std::time::{Duration, Instant};

use super::chore::{Chore, News, Terms};
use super::copies::StablePages;
use super::fingerprint::Salt;
use super::folder::{FolderError, failed};
use super::known::KnownPages;
use super::published;
use super::scanner::PoolPlace;
use super::sketch::{LiveMember, SketchStatistics, Sketches};
use crate::cpu_time::thread_cpu_time;

/// How often is looked whether others have published, and for which part of the CPU budget.
const WATCH: (Duration, f64) = (Duration::from_secs(1), 1.0 / 100.0);

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Exchange {
    place: PoolPlace,
    /// A part of a core.
    cpu_budget: f64,
    sketches: Sketches,
    salt: Option<Salt>,
    /// The bits of fingerprints that count: all.
    mask: u32,
    chore: Chore,
    watch: Chore,
    /// Of what others had published when it was read, and at the last look.
    read_version: u64,
    seen_version: u64,
    is_published: bool,
    stable_pages: u64,
}

/// What an exchange has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Exchanged {
    pub stable_pages: u64,
    pub copied_pages: u64,
    pub sketches: SketchStatistics,
}

impl Exchange {
    /// With this part of a core as the budget of the whole scanner.
    pub fn new(place: &PoolPlace, cpu_budget: f64) -> Self {
        Self {
            sketches: Sketches::new(&place.folder, place.id),
            place: place.clone(),
            cpu_budget,
            salt: None,
            mask: u32::MAX,
            chore: Chore::default(),
            watch: Chore::default(),
            read_version: 0,
            seen_version: 0,
            is_published: false,
            stable_pages: 0,
        }
    }

    /// From now on this part of a core is the budget of the whole scanner.
    pub fn set_cpu_budget(&mut self, cpu_budget: f64) {
        self.cpu_budget = cpu_budget;
    }

    /// Lets only these bits of fingerprints count.
    #[cfg(all(test, not(loom)))]
    pub fn set_mask(&mut self, mask: u32) {
        self.mask = mask;
    }

    /// What fingerprints are made with until the next exchange.
    pub fn salt(&mut self) -> Result<&Salt, FolderError> {
        match &mut self.salt {
            Some(salt) => Ok(salt),
            none => Ok(none.insert(salt_of(&self.place, self.mask)?)),
        }
    }

    /// On which terms there should be an exchange, if that can change anything. `turned_pages` is what others would be told,
    /// `pressing_pages` those of them on which advice may depend, the less so where all is advised.
    pub fn terms(
        &mut self,
        turned_pages: u64,
        pressing_pages: u64,
        is_all_advised: bool,
        now: Instant,
    ) -> Result<Option<Terms>, FolderError> {
        let (least, part) = WATCH;
        if self.watch.may(now, Terms { least, cpu_part: part * self.cpu_budget }) {
            let before = thread_cpu_time();
            let folder = &self.place.folder;
            self.seen_version =
                published::version(folder, self.place.id.slot).map_err(failed(folder, "reading the folder"))?;
            self.watch.note(now, thread_cpu_time().saturating_sub(before));
        }
        let news = News {
            turned_pages,
            pressing_pages,
            stable_pages: self.stable_pages,
            of_others: self.seen_version != self.read_version,
            is_all_advised,
        };
        Ok(news.terms(self.cpu_budget))
    }

    /// Whether these terms allow one now.
    pub fn may(&self, terms: Terms, now: Instant) -> bool {
        self.chore.may(now, terms)
    }

    /// Publishes what is stable, if that has changed, and calls `learn` with each stable page's gfn and how many copies it has
    /// in the pool. `None` if the pool has another salt: then nothing that is known says anything to anybody.
    pub fn run(
        &mut self,
        pages: &mut KnownPages,
        has_turned: bool,
        live: &[LiveMember],
        now: Instant,
        learn: impl FnMut(&mut KnownPages, u64, u32),
    ) -> Result<Option<Exchanged>, FolderError> {
        let before = thread_cpu_time();
        let exchanged = self.try_run(pages, has_turned, live, learn);
        self.chore.note(now, thread_cpu_time().saturating_sub(before));
        exchanged
    }

    fn try_run(
        &mut self,
        pages: &mut KnownPages,
        has_turned: bool,
        live: &[LiveMember],
        mut learn: impl FnMut(&mut KnownPages, u64, u32),
    ) -> Result<Option<Exchanged>, FolderError> {
        let salt = salt_of(&self.place, self.mask)?;
        if self.salt.as_ref() != Some(&salt) {
            (self.salt, self.is_published) = (Some(salt), false);
            return Ok(None);
        }
        // What is published while it is read is read again.
        self.read_version = self.seen_version;
        let stable = StablePages::new(pages.stable());
        if has_turned || !self.is_published {
            stable.publish(&mut self.sketches, &salt)?;
            self.is_published = true;
        }
        self.stable_pages = stable.count() as u64;
        let survey = stable.survey(&self.sketches, &salt, live)?;
        let mut copied_pages = 0;
        for (gfn, copies) in survey.copies() {
            copied_pages += u64::from(copies > 0);
            learn(pages, gfn.into(), copies);
        }
        Ok(Some(Exchanged { stable_pages: self.stable_pages, copied_pages, sketches: survey.statistics }))
    }

    /// Takes back what was published.
    pub fn withdraw(&mut self) -> Result<(), FolderError> {
        self.is_published = false;
        self.sketches.withdraw()
    }
}

fn salt_of(place: &PoolPlace, mask: u32) -> Result<Salt, FolderError> {
    Ok(Salt::of_pool(&place.folder, place.id)?.with_mask(mask))
}
