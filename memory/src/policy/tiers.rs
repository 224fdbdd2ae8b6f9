//! Memory that waits in two ways: pages in guest RAM, and compressed ones. Under pressure that goes which is worth less.
//!
//! A page that was not touched for a time is taken to be touched at one over that time: nothing else is known of it. To
//! compress it saves what compression leaves of a page and costs a refault from there; to write a compressed one to the swap
//! file saves what it takes compressed and costs how much longer it takes from the file. zswap shrinks its pool by what
//! comes back from the file in the same sense (Linux, Documentation/admin-guide/mm/zswap).

use std::time::Duration;

use super::brake::SOON;

/// What a refault takes as long as it has not been seen often enough, from the compressed store and from the file.
const USUAL_COMPRESSED: Duration = Duration::from_micros(10);
const USUAL_SWAPPED: Duration = Duration::from_micros(80);

/// How much longer the file takes, in refaults from the compressed store. A file in the page cache of a disk takes little more;
/// then the write is what it costs.
const LONGER: std::ops::RangeInclusive<f64> = 1.0..=10_000.0;

/// What is known of a VM's pages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiers {
    /// How long a page stays in guest RAM before it has to leave, in this VM or, where that is shorter, in the one of its pool
    /// that lacks memory most ([`Turnover`](super::turnover::Turnover)).
    pub residence: Duration,
    /// The size of a page.
    pub page_bytes: u64,
    /// What one takes compressed, on average.
    pub compressed_page_bytes: u64,
    /// What a refault from the compressed store takes, where that is known.
    pub compressed_refault: Option<Duration>,
    /// What one from the swap file takes.
    pub swapped_refault: Option<Duration>,
}

impl Tiers {
    /// How long a compressed page lies there until it is worth less than the page in guest RAM that would have to go in its
    /// stead; at most `most`, and no less than what is [soon](SOON): how long pages stay is what a second tells, in which a guest
    /// may just have filled its memory.
    pub fn demotion_age(&self, most: Duration) -> Duration {
        let compressed_bytes = self.compressed_page_bytes.clamp(1, self.page_bytes.saturating_sub(1).max(1));
        let saved = self.page_bytes.saturating_sub(compressed_bytes) as f64 / compressed_bytes as f64;
        let compressed = self.compressed_refault.unwrap_or(USUAL_COMPRESSED).as_secs_f64().max(1e-9);
        let swapped = self.swapped_refault.unwrap_or(USUAL_SWAPPED).as_secs_f64();
        let longer = ((swapped - compressed) / compressed).clamp(*LONGER.start(), *LONGER.end());
        let seconds = self.residence.as_secs_f64() * longer * saved;
        Duration::try_from_secs_f64(seconds).map_or(most, |age| age.max(SOON).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(1200);

    /// Pages stay for twenty seconds and compress to half.
    const TIERS: Tiers = Tiers {
        residence: Duration::from_secs(20),
        page_bytes: 4096,
        compressed_page_bytes: 2048,
        compressed_refault: None,
        swapped_refault: None,
    };

    fn age_seconds(tiers: Tiers) -> f64 {
        tiers.demotion_age(MOST).as_secs_f64().round()
    }

    #[test]
    fn it_is_so_much_later_as_the_file_takes_longer() {
        assert_eq!(age_seconds(TIERS), 140.0, "seven times as much longer");
        let refault = |us| Some(Duration::from_micros(us));
        assert_eq!(age_seconds(Tiers { swapped_refault: refault(30), ..TIERS }), 40.0);
        assert_eq!(
            age_seconds(Tiers { swapped_refault: refault(400), compressed_refault: refault(100), ..TIERS }),
            60.0
        );
        assert_eq!(age_seconds(Tiers { swapped_refault: refault(10_000), ..TIERS }), 1200.0, "a slow disk");
        assert_eq!(age_seconds(Tiers { swapped_refault: refault(5), ..TIERS }), 20.0, "no sooner than the page itself");
    }

    #[test]
    fn what_compresses_well_stays_longer() {
        assert_eq!(age_seconds(Tiers { compressed_page_bytes: 1024, ..TIERS }), 420.0);
        assert_eq!(age_seconds(Tiers { compressed_page_bytes: 3072, ..TIERS }), 47.0);
    }

    #[test]
    fn who_keeps_his_pages_keeps_them() {
        assert_eq!(Tiers { residence: Duration::ZERO, ..TIERS }.demotion_age(MOST), SOON);
        assert_eq!(
            Tiers { residence: Duration::ZERO, ..TIERS }.demotion_age(SOON / 2),
            SOON / 2,
            "cold by then anyway"
        );
        assert_eq!(Tiers { residence: Duration::MAX, ..TIERS }.demotion_age(MOST), MOST);
        assert_eq!(Tiers { compressed_page_bytes: 0, ..TIERS }.demotion_age(MOST), MOST);
        assert_eq!(Tiers { page_bytes: 0, compressed_page_bytes: 9, ..TIERS }.demotion_age(MOST), SOON);
    }
}
