//! What there is to measure of a program, from its steps.

use std::time::Duration;

use cistern_probe::program::{Program, Rounds, Step};

/// A loop of this many rounds is not waited for.
const ENDLESS_ROUNDS: u32 = 100_000;

/// A program as the measurement sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workload {
    /// It goes on until it is stopped.
    pub is_endless: bool,
    /// Fills before anything else: then its memory is what it will be.
    pub fills: usize,
    /// It walks: what counts is how much it touches.
    pub walks: bool,
    /// It touches pages now and then, this far apart: what counts is how soon it is done.
    pub touch_interval: Option<Duration>,
}

impl Workload {
    /// Reads a program.
    ///
    /// # Errors
    /// What the probe would say to it.
    pub fn of(program: &str) -> Result<Self, String> {
        let program = Program::parse(program).map_err(|error| error.to_string())?;
        let steps = program.steps();
        let is_fill = |step: &&Step| matches!(step, Step::Fill { .. });
        let touch = steps.iter().find_map(|step| match step {
            Step::Idle { touch_pages: 1.., every_milliseconds, .. } => Some(Duration::from_millis(*every_milliseconds)),
            _ => None,
        });
        Ok(Self {
            is_endless: steps.iter().any(|step| matches!(step, Step::Repeat { rounds } if is_endless(*rounds))),
            fills: steps.iter().take_while(is_fill).count(),
            walks: steps.iter().any(|step| matches!(step, Step::Walk { .. })),
            touch_interval: touch,
        })
    }

    /// A guest of whom nothing is known: it is stopped after its time, and may print what a probe prints.
    pub const UNKNOWN: Self = Self { is_endless: true, fills: 0, walks: false, touch_interval: None };

    /// Whether its goodput can be told.
    pub fn is_measured(&self) -> bool {
        self.walks || self.touch_interval.is_some()
    }
}

/// Whether the end of a loop is not waited for. Nobody tells guests to end one.
fn is_endless(rounds: Rounds) -> bool {
    match rounds {
        Rounds::Times(times) => times >= ENDLESS_ROUNDS,
        Rounds::UntilTold | Rounds::Forever => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_say_what_is_measured() {
        let of = |program: &str| Workload::of(program).expect("a program");
        assert_eq!(of("fill:4M;verify"), Workload { fills: 1, ..Workload::default() });
        let active = of("fill:4M;fill:1M;verify;repeat:forever,(walk:4M;fill:4K;idle:0.5)");
        assert_eq!(active, Workload { is_endless: true, fills: 2, walks: true, touch_interval: None });
        let idle = of("repeat:99999,(idle:60,touch=1M,every=2)");
        assert_eq!(idle, Workload { touch_interval: Some(Duration::from_secs(2)), ..Workload::default() });
        assert!(of("repeat:100000,(verify)").is_endless);
        assert!(!of("idle:5").is_measured());
        assert!(Workload::of("fill:4M;dance").is_err_and(|error| error.contains("unknown step")));
    }
}
