//! The guests of the demo and what each of them does.

use cistern::size::Size;

/// What all of them may use together.
pub const BUDGET: Size = Size::mebibytes(384);

/// What each believes it has, and what it fills of that.
pub const MEMORY: Size = Size::mebibytes(128);
pub const FILLED: Size = Size::mebibytes(96);

/// Time between two arrivals, in seconds.
pub const ARRIVAL_SECONDS: usize = 1;

/// Time a guest works, in seconds, and how many turns there are. Two work at a time: the others are idle.
const TURN_SECONDS: usize = 4;
const TURNS: usize = 4;

/// What a guest does about memory that it does not need for a while.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spare {
    /// It needs all.
    None,
    /// Half is free, but the host is not told: that is what a balloon is for.
    Silent,
    /// Half is free, and reported to the host.
    Reported,
}

/// A guest of the demo.
pub struct Act {
    /// Its name.
    pub name: &'static str,
    /// When it works.
    turn: usize,
    spare: Spare,
    /// Where in its memory it works.
    distribution: &'static str,
}

const fn act(name: &'static str, turn: usize, spare: Spare, distribution: &'static str) -> Act {
    Act { name, turn, spare, distribution }
}

/// In the order they arrive. The first has memory to spare while there is no need for it yet, so that the host still has
/// all of that when the others come.
pub const ACTS: [Act; 8] = [
    act("batch", 3, Spare::Silent, "sequential"),
    act("web", 0, Spare::None, "zipf"),
    act("db", 0, Spare::None, "uniform"),
    act("cache", 1, Spare::None, "zipf"),
    act("mail", 1, Spare::None, "uniform"),
    act("build", 2, Spare::Reported, "sequential"),
    act("search", 2, Spare::None, "zipf"),
    act("backup", 3, Spare::None, "sequential"),
];

impl Act {
    /// Its program; it has arrived as the `nth`. Half of its pages take turns at being zero, equal to others, text and
    /// random. Without a swap file what does not compress has nowhere to go: then the other half has none of it.
    pub fn program(&self, nth: usize, has_swap: bool) -> String {
        let half = Size { bytes: FILLED.bytes / 2 };
        let kinds = if has_swap { "zero=20,text=70,random=10" } else { "zero=60,text=40" };
        let first = format!("fill:{half},churn,seed={}", nth + 1);
        let second = format!("fill:{half},{kinds},seed={}", nth + 101);
        let (free, again) = match self.spare {
            Spare::None => (String::new(), String::new()),
            Spare::Silent => (format!("free:{half},silent;"), format!("{second};")),
            Spare::Reported => (format!("free:{half};"), format!("{second};")),
        };
        let before = (ACTS.len() - nth) * ARRIVAL_SECONDS + self.turn * TURN_SECONDS;
        let after = (TURNS - 1 - self.turn) * TURN_SECONDS;
        format!(
            "{first};{second};{free}idle:{before};{again}\
             walk:64M,secs={TURN_SECONDS},dist={},write=30;idle:{after};verify;{LAST_IDLE}",
            self.distribution
        )
    }
}

/// Time for a last look at a guest's counters.
const LAST_IDLE: &str = "idle:1.5";

/// What a guest is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Not heard of yet.
    Booting,
    /// Filling memory.
    Filling,
    /// Nothing.
    Idle,
    /// Touching its working set.
    Working,
    /// Looking at every page.
    Verifying,
    /// All is done.
    Done,
}

/// What a program is at after so many steps.
pub fn doing(program: &str, steps: usize) -> Doing {
    let mut left = program.split(';').skip(steps);
    match left.next().map(|step| step.split(':').next().unwrap_or(step)) {
        Some("fill" | "free") => Doing::Filling,
        Some("walk") => Doing::Working,
        Some("verify") => Doing::Verifying,
        Some(_) if left.next().is_some() => Doing::Idle,
        _ => Doing::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_work_in_every_turn_and_all_get_ready_together() {
        for turn in 0..TURNS {
            assert_eq!(ACTS.iter().filter(|act| act.turn == turn).count(), 2, "{turn}");
        }
        for (nth, act) in ACTS.iter().enumerate() {
            let program = act.program(nth, true);
            // The last idle is for the counters.
            let idle = |step: &str| step.strip_prefix("idle:").and_then(|seconds| seconds.parse::<usize>().ok());
            let seconds = program.split(';').filter_map(idle).sum::<usize>();
            assert_eq!(nth * ARRIVAL_SECONDS + seconds, ACTS.len() * ARRIVAL_SECONDS + (TURNS - 1) * TURN_SECONDS);
            assert_eq!(program.split(';').filter(|step| *step == "verify").count(), 1, "{program}");
        }
    }

    #[test]
    fn a_program_says_what_is_next() {
        let program = ACTS[0].program(0, true);
        let all: Vec<_> = (0..=program.split(';').count()).map(|steps| doing(&program, steps)).collect();
        use Doing::*;
        assert_eq!(all, [Filling, Filling, Filling, Idle, Filling, Working, Idle, Verifying, Done, Done]);
    }
}
