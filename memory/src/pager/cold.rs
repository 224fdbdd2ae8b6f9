//! Pages that are taken although nobody needs the room: only those that nobody has missed for a while.
//!
//! The hands of the clock are for a VM that must give: a page is aside as long as it takes them to come round, which is
//! moments where little is wanted. Here the caller lets time pass between the two steps.

use std::ops::Range;

use super::evict::Choice;
use super::handler::CLUSTER_PAGES;
use super::homes::Workbench;
use super::store::Storer;
use super::{Pager, PagerError};

/// Clusters looked at for each that is wanted, where most are not in guest RAM.
const TRIES_PER_CLUSTER: u64 = 16;

impl Pager {
    /// Moves random clusters of guest RAM aside, until `pages` pages or a few more have gone or few are found. Returns where
    /// they were, in ascending order. Nothing happens in an open VM.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn set_aside(&self, pages: u64) -> Result<Vec<Range<u64>>, PagerError> {
        let (mut clusters, mut moved) = (Vec::new(), 0);
        if !self.paged.table.is_armed() {
            return Ok(clusters);
        }
        let mut bench = Workbench::new(&self.paged.config)?;
        let ram = self.paged.kernel().frames.ram();
        for _ in 0..pages.div_ceil(CLUSTER_PAGES).saturating_mul(TRIES_PER_CLUSTER) {
            if moved >= pages {
                break;
            }
            let gfn = ram.random_gfn();
            let region = ram.regions().iter().map(|region| region.gfns()).find(|gfns| gfns.contains(&gfn));
            let end = region.expect("a page of RAM is in a region").end;
            // Regions start at a multiple of more.
            let start = gfn - gfn % CLUSTER_PAGES;
            let cluster = start..end.min(start + CLUSTER_PAGES);
            let gone = self.paged.move_aside(cluster.clone(), Choice::UNMERGED, &mut bench);
            if gone > 0 {
                moved += gone;
                clusters.push(cluster);
            }
        }
        clusters.sort_unstable_by_key(|cluster| cluster.start);
        Ok(clusters)
    }

    /// Stores those pages of some clusters that are still aside, until `pages` pages or a few more have found a home. Returns
    /// how many have.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn store_aside(&self, clusters: &[Range<u64>], pages: u64) -> Result<u64, PagerError> {
        if !self.paged.table.is_armed() {
            return Ok(0);
        }
        let mut bench = Workbench::new(&self.paged.config)?;
        let mut storer = Storer::default();
        for cluster in clusters {
            if storer.gathered().stored >= pages {
                break;
            }
            storer.store(&self.paged, cluster.clone(), &mut bench);
        }
        Ok(storer.finish(&self.paged, &mut bench).stored)
    }
}
