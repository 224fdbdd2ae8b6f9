//! Which faults are part of a walk through memory, and how far to run ahead of it. Pure.

use std::ops::Range;

/// Walks followed at a time: a guest's CPUs and a few more.
const STREAMS: usize = 8;

/// The most pages brought in with one fault: two clusters.
pub(super) const WINDOW_PAGES_MAX: u64 = 32;

/// A walk: it is expected to go on at `next`, and was given `window` pages the last time.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    next: u64,
    window: u64,
    used: u64,
}

/// The walks seen lately. Random touches get just their page: what comes along would push out something else.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: [Stream; STREAMS],
    clock: u64,
}

impl Streams {
    /// A page was touched that is not there: which pages to bring in.
    pub fn observe(&mut self, gfn: u64) -> Range<u64> {
        self.clock += 1;
        // A walk that was slower than another one's pages may skip some that are there already.
        let follows =
            |stream: &Stream| stream.used > 0 && (stream.next..stream.next + stream.window.max(2)).contains(&gfn);
        let stream = match self.streams.iter().position(follows) {
            Some(found) => {
                let stream = &mut self.streams[found];
                stream.window = (stream.window * 4).clamp(4, WINDOW_PAGES_MAX);
                stream
            }
            None => {
                let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used).expect("there are some");
                oldest.window = 1;
                oldest
            }
        };
        stream.next = gfn + stream.window;
        stream.used = self.clock;
        gfn..stream.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_gets_ahead_and_random_touches_do_not() {
        let mut streams = Streams::default();
        let windows: Vec<_> = [10, 11, 15, 31, 63].map(|gfn| streams.observe(gfn)).to_vec();
        assert_eq!(windows, [10..11, 11..15, 15..31, 31..63, 63..95]);
        for gfn in [1000, 5000, 3000, 9000, 2000] {
            assert_eq!(streams.observe(gfn), gfn..gfn + 1);
        }
        // Not forgotten meanwhile.
        assert_eq!(streams.observe(95), 95..127);
    }

    #[test]
    fn old_walks_are_forgotten_first() {
        let mut streams = Streams::default();
        assert_eq!(streams.observe(0), 0..1);
        for gfn in 1..=STREAMS as u64 {
            streams.observe(gfn * 1000);
        }
        assert_eq!(streams.observe(1), 1..2);
    }
}
