//! The program a probe runs, as its command line spells it.
//!
//! ```text
//! program = step { ";" step }
//! step    = "fill:" SIZE { "," ("zero" | "dup" | "text" | "random") "=" PERCENT | "," "seed=" NUMBER | ",churn" }
//!         | "verify"
//!         | "walk:" SIZE { ",secs=" SECONDS | ",touches=" NUMBER | ",write=" PERCENT
//!                           | ",dist=" ("uniform" | "zipf" | "sequential") }
//!         | "idle:" SECONDS [ ",touch=" SIZE [ ",every=" SECONDS ] ]
//!         | "free:" SIZE [ ",silent" ]
//!         | "balloon:" SIZE
//!         | "damage:" ("stale" | "foreign" | "flip") [ ",page=" NUMBER ]
//!         | "repeat:" ( NUMBER | "forever" | "told" ) ",(" program ")"
//!         | "exit" [ ":" NUMBER ]
//! ```
//! A SIZE is a number of bytes, or of K, M or G, rounded up to pages. SECONDS may have a fraction. A fill whose kinds
//! are not given is random. With `churn` pages are of all kinds in turn: every write makes its page anew, of the next kind,
//! and first compares all of it with what it must be; duplicates are shared inside the guest. A walk ends after its
//! seconds, one unless it says otherwise, or after so many touches of all processors together. `repeat:told` goes on until a
//! byte has come on the serial port, which is looked at after each round; a byte ends one loop. After `balloon` the balloon is
//! slow: it gives at most SIZE during each step. `damage` spoils a filled page, so that a test can see `verify` report it.
//! `exit:N` writes N to port 0xf4 before the reset.

use core::fmt;

use crate::distribution::Distribution;
use crate::fills::Recipe;
use crate::options::{damage, fill, free, idle, no_options, walk};
use crate::quantity::{milliseconds, number, size};

/// Steps a program may have, loops and their ends included.
const MAX_STEPS: usize = 64;
/// Loops inside loops.
const MAX_DEPTH: usize = 8;

/// How `damage` spoils a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoil {
    /// Puts back what the page held one write ago.
    Stale,
    /// Puts the content of its neighbour there.
    Foreign,
    /// Flips one bit.
    Flip,
}

/// How long a walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// For a time.
    Milliseconds(u64),
    /// For so many touches of all processors together.
    Touches(u64),
}

/// How often a loop goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    /// So often, at least once.
    Times(u32),
    /// Until somebody says that it is enough, at least once.
    UntilTold,
    /// Without an end.
    Forever,
}

/// One thing to do. Sizes are in pages, times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fill the next pages.
    Fill {
        /// How many.
        pages: u32,
        /// With what.
        recipe: Recipe,
        /// Made from this.
        seed: u64,
    },
    /// Compare every filled page with what it must be.
    Verify,
    /// Touch a working set.
    Walk {
        /// The first so many filled pages.
        pages: u32,
        /// For how long.
        span: Span,
        /// In which order.
        distribution: Distribution,
        /// Share of touches that write.
        write_percent: u8,
    },
    /// Do nothing.
    Idle {
        /// For how long.
        milliseconds: u64,
        /// Pages to read now and then; 0 for none.
        touch_pages: u32,
        /// How often.
        every_milliseconds: u64,
    },
    /// Free the end of what is filled.
    Free {
        /// How many.
        pages: u32,
        /// Without telling the host.
        silent: bool,
    },
    /// Have a slow balloon from here on.
    Balloon {
        /// The most it gives during a step.
        pages: u32,
    },
    /// Spoil a page, so that a verify has something to find.
    Damage {
        /// In which way.
        spoil: Spoil,
        /// The page.
        page: u32,
    },
    /// Do everything up to the matching [`Step::End`] this often.
    Repeat {
        /// How many times that is.
        rounds: Rounds,
    },
    /// The end of a loop.
    End,
    /// Stop here.
    Exit {
        /// Written to port 0xf4, where the VMM may take it for an exit status.
        code: Option<u8>,
    },
}

/// Why a program was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseError<'a> {
    /// The part of the program that cannot be understood.
    pub near: &'a str,
    /// What is wrong with it.
    pub cause: &'static str,
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        // A whole command line would bury the cause.
        let near = self.near.char_indices().nth(40).map_or(self.near, |(end, _)| &self.near[..end]);
        write!(formatter, "program: {} at \"{near}\"", self.cause)
    }
}

impl core::error::Error for ParseError<'_> {}

/// A program that was understood.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    steps: [Step; MAX_STEPS],
    count: usize,
}

impl Program {
    /// Reads a program.
    ///
    /// # Errors
    /// The first part that is not as the grammar says, or more steps or deeper loops than there is room for.
    pub fn parse(text: &str) -> Result<Self, ParseError<'_>> {
        let mut program = Self { steps: [Step::End; MAX_STEPS], count: 0 };
        program.parse_steps(text, 0)?;
        Ok(program)
    }

    /// The steps, loops not unrolled.
    pub fn steps(&self) -> &[Step] {
        &self.steps[..self.count]
    }

    fn parse_steps<'a>(&mut self, text: &'a str, depth: usize) -> Result<(), ParseError<'a>> {
        let mut rest = text;
        loop {
            let (step, more) = split_outside_parentheses(rest, b';');
            self.parse_step(step.trim(), depth)?;
            match more {
                // A semicolon may also end a program.
                Some(more) if !more.trim().is_empty() => rest = more,
                _ => return Ok(()),
            }
        }
    }

    fn parse_step<'a>(&mut self, text: &'a str, depth: usize) -> Result<(), ParseError<'a>> {
        let (head, options) = split_outside_parentheses(text, b',');
        let (name, argument) = match head.split_once(':') {
            Some((name, argument)) => (name.trim(), Some(argument.trim())),
            None => (head.trim(), None),
        };
        let needed = argument.filter(|argument| !argument.is_empty());
        let needed = needed.ok_or(ParseError { near: text, cause: "a value is missing after the colon" });
        let step = match name {
            "fill" => fill(size(needed?)?, options)?,
            "verify" if argument.is_none() => no_options(options, Step::Verify)?,
            "walk" => walk(size(needed?)?, options)?,
            "idle" => idle(milliseconds(needed?)?, options)?,
            "free" => free(size(needed?)?, options)?,
            "balloon" => no_options(options, Step::Balloon { pages: size(needed?)? })?,
            "damage" => damage(needed?, options)?,
            "exit" => {
                let code = argument.map(|code| number(code, 255).map(|code| code as u8)).transpose()?;
                no_options(options, Step::Exit { code })?
            }
            "repeat" => return self.repeat(rounds(needed?)?, text, options, depth),
            "" => return Err(ParseError { near: text, cause: "a step is missing" }),
            _ => return Err(ParseError { near: text, cause: "unknown step" }),
        };
        self.push(step, text)
    }

    fn repeat<'a>(
        &mut self,
        rounds: Rounds,
        text: &'a str,
        options: Option<&'a str>,
        depth: usize,
    ) -> Result<(), ParseError<'a>> {
        let body = options.map(str::trim).and_then(|body| body.strip_prefix('(')?.strip_suffix(')'));
        let body = body.ok_or(ParseError { near: text, cause: "repeat needs a program in parentheses" })?;
        if rounds == Rounds::Times(0) {
            return Err(ParseError { near: text, cause: "repeat needs at least one round" });
        }
        if depth == MAX_DEPTH {
            return Err(ParseError { near: text, cause: "too many loops inside each other" });
        }
        self.push(Step::Repeat { rounds }, text)?;
        self.parse_steps(body, depth + 1)?;
        self.push(Step::End, text)
    }

    fn push<'a>(&mut self, step: Step, text: &'a str) -> Result<(), ParseError<'a>> {
        let slot = self.steps.get_mut(self.count).ok_or(ParseError { near: text, cause: "too many steps" })?;
        *slot = step;
        self.count += 1;
        Ok(())
    }
}

/// Where a running program is.
#[derive(Debug)]
pub struct Cursor {
    next: usize,
    /// First step of each loop we are in, and the rounds it has left.
    loops: [(usize, Rounds); MAX_DEPTH],
    depth: usize,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { next: 0, loops: [(0, Rounds::Forever); MAX_DEPTH], depth: 0 }
    }
}

impl Cursor {
    /// The next step to do; `None` at the end. Never a [`Step::Repeat`] or [`Step::End`]. `is_told` is asked at the end of
    /// each round of a loop that goes on until it is told.
    pub fn next(&mut self, program: &Program, mut is_told: impl FnMut() -> bool) -> Option<Step> {
        loop {
            let step = *program.steps().get(self.next)?;
            self.next += 1;
            match step {
                Step::Repeat { rounds } => {
                    let left = match rounds {
                        Rounds::Times(times) => Rounds::Times(times - 1),
                        endless => endless,
                    };
                    self.loops[self.depth] = (self.next, left);
                    self.depth += 1;
                }
                Step::End => {
                    let (first, left) = &mut self.loops[self.depth - 1];
                    let is_over = match left {
                        Rounds::Times(0) => true,
                        Rounds::Times(times) => {
                            *times -= 1;
                            false
                        }
                        Rounds::UntilTold => is_told(),
                        Rounds::Forever => false,
                    };
                    if is_over {
                        self.depth -= 1;
                    } else {
                        self.next = *first;
                    }
                }
                step => return Some(step),
            }
        }
    }
}

fn rounds(text: &str) -> Result<Rounds, ParseError<'_>> {
    match text {
        "told" => Ok(Rounds::UntilTold),
        "forever" => Ok(Rounds::Forever),
        _ => number(text, u32::MAX.into()).map(|times| Rounds::Times(times as u32)),
    }
}

/// Cuts at the first separator that is not inside parentheses.
fn split_outside_parentheses(text: &str, separator: u8) -> (&str, Option<&str>) {
    let mut depth = 0i32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ if byte == separator && depth == 0 => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fills::KindMix;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Vec<Step> {
        Program::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).steps().to_vec()
    }

    #[test]
    fn the_whole_grammar_is_understood() {
        let text = "fill:64M,zero=20,dup=20,text=40,random=20,seed=7; verify;walk:32M,secs=5,dist=zipf,write=30;\
                    idle:2; idle:0.25,touch=4K,every=1.5;free:1G,silent;free:1;repeat:3,(verify;repeat:told,(idle:1));\
                    balloon:256K;damage:flip,page=3;fill:4K,churn,seed=2;walk:4K,touches=9,write=100;walk:4K;exit:7";
        let kinds = KindMix { zero: 20, dup: 20, text: 40, random: 20 };
        let walk = |pages, span, distribution, write_percent| Step::Walk { pages, span, distribution, write_percent };
        let idle = |milliseconds, touch_pages, every_milliseconds| Step::Idle {
            milliseconds,
            touch_pages,
            every_milliseconds,
        };
        let expected = [
            Step::Fill { pages: 16_384, recipe: kinds.into(), seed: 7 },
            Step::Verify,
            walk(8_192, Span::Milliseconds(5_000), Distribution::Zipf, 30),
            idle(2_000, 0, 1_000),
            idle(250, 1, 1_500),
            Step::Free { pages: 262_144, silent: true },
            Step::Free { pages: 1, silent: false },
            Step::Repeat { rounds: Rounds::Times(3) },
            Step::Verify,
            Step::Repeat { rounds: Rounds::UntilTold },
            idle(1_000, 0, 1_000),
            Step::End,
            Step::End,
            Step::Balloon { pages: 64 },
            Step::Damage { spoil: Spoil::Flip, page: 3 },
            Step::Fill { pages: 1, recipe: Recipe::Churn, seed: 2 },
            walk(1, Span::Touches(9), Distribution::Uniform, 100),
            walk(1, Span::Milliseconds(1_000), Distribution::Uniform, 0),
            Step::Exit { code: Some(7) },
        ];
        assert_eq!(parsed(text), expected);
        assert_eq!(parsed("verify;"), [Step::Verify]);
    }

    #[test]
    fn loops_run_as_often_as_they_say() {
        let program = Program::parse("repeat:2,(verify;repeat:3,(exit));verify").expect("the program is right");
        let mut cursor = Cursor::default();
        let mut run = String::new();
        while let Some(step) = cursor.next(&program, || unreachable!("no loop waits")) {
            run.push(if step == Step::Verify { 'v' } else { 'e' });
        }
        assert_eq!(run, "veeeveeev");
    }

    #[test]
    fn loops_go_on_until_they_are_told() {
        let program = Program::parse("repeat:2,(repeat:told,(verify);exit)").expect("the program is right");
        let (mut cursor, mut run, mut asked) = (Cursor::default(), String::new(), 0);
        let mut is_told = || {
            asked += 1;
            asked % 3 == 0
        };
        while let Some(step) = cursor.next(&program, &mut is_told) {
            run.push(if step == Step::Verify { 'v' } else { 'e' });
        }
        assert_eq!(run, "vvvevvve");
    }

    #[test]
    fn an_endless_loop_has_no_last_round() {
        let program = Program::parse("verify;repeat:forever,(exit:1;exit:2)").expect("the program is right");
        let mut cursor = Cursor::default();
        assert_eq!(cursor.next(&program, || true), Some(Step::Verify));
        for _ in 0..1000 {
            for code in [1, 2] {
                assert_eq!(cursor.next(&program, || true), Some(Step::Exit { code: Some(code) }));
            }
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (text, near, cause) in [
            ("", "", "a step is missing"),
            ("verify;;verify", "", "a step is missing"),
            ("fill", "fill", "a value is missing after the colon"),
            ("fill:64X", "64X", "not a size (bytes, or a number and K, M or G)"),
            ("fill:0", "0", "not a size (bytes, or a number and K, M or G)"),
            ("fill:99999999999G", "99999999999G", "not a size (bytes, or a number and K, M or G)"),
            ("fill:1M,zero=50", "zero=50", "the kinds do not sum to 100 percent"),
            ("fill:1M,zero=50,pink=50", "pink=50", "unknown option"),
            ("fill:1M,zero", "zero", "a value is missing"),
            ("fill:1M,zero=+100", "+100", "not a number in range"),
            ("fill:1M,churn=1", "churn=1", "unknown option"),
            ("fill:1M,churn,zero=100", "churn,zero=100", "churned pages have all kinds in turn"),
            ("walk:1M,secs=1,touches=5", "touches=5", "a walk has one end"),
            ("walk:1M,touches=", "", "not a number in range"),
            ("verify:3", "verify:3", "unknown step"),
            ("walk:1M,dist=poisson", "dist=poisson", "unknown distribution"),
            ("walk:1M,secs=1.", "1.", "not a number of seconds"),
            ("idle:1,every=0", "every=0", "every=0 is not idle"),
            ("repeat:3,verify", "repeat:3,verify", "repeat needs a program in parentheses"),
            ("repeat:0,(verify)", "repeat:0,(verify)", "repeat needs at least one round"),
            ("repeat:2,(verify", "repeat:2,(verify", "repeat needs a program in parentheses"),
            ("repeat:2,(dance)", "dance", "unknown step"),
            ("balloon", "balloon", "a value is missing after the colon"),
            ("balloon:0", "0", "not a size (bytes, or a number and K, M or G)"),
            ("balloon:1M,every=1", "every=1", "unknown option"),
            ("exit:256", "256", "not a number in range"),
            ("dance", "dance", "unknown step"),
        ] {
            assert_eq!(Program::parse(text).map(|_| ()), Err(ParseError { near, cause }), "{text}");
        }
        let long = "x".repeat(1_000);
        let message = Program::parse(&long).expect_err("not a step").to_string();
        assert_eq!(message, format!("program: unknown step at \"{}\"", &long[..40]));
    }

    #[test]
    fn programs_are_bounded() {
        let steps = vec!["verify"; MAX_STEPS].join(";");
        assert_eq!(parsed(&steps).len(), MAX_STEPS);
        assert!(Program::parse(&(steps + ";verify")).is_err());
        let deep = |depth| "repeat:1,(".repeat(depth) + "verify" + &")".repeat(depth);
        assert_eq!(parsed(&deep(MAX_DEPTH)).len(), 2 * MAX_DEPTH + 1);
        assert!(Program::parse(&deep(MAX_DEPTH + 1)).is_err());
        assert!(Program::parse(&deep(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[a-z0-9:;,=().é ]{0,60}") {
            if let Ok(program) = Program::parse(&text) {
                let mut cursor = Cursor::default();
                for _ in 0..1_000 {
                    cursor.next(&program, || true);
                }
            }
        }

        #[test]
        fn broken_programs_do_not_panic(cut in 0..200usize, with in "[;:,=()0-9.GMé]?") {
            let good = "fill:64M,zero=20,dup=20,text=40,random=20,seed=7;repeat:2,(walk:32M,secs=5,dist=zipf,write=30;\
                        verify);idle:2,touch=1M,every=0.5;free:1M,silent;exit:3";
            let cut = cut.min(good.len());
            let _ = Program::parse(&(good[..cut].to_string() + &with + &good[cut..]));
        }
    }
}
