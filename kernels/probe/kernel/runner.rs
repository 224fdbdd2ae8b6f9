//! Runs a program: one phase after the other, one JSON object a line for each.
//!
//! | line | members |
//! |---|---|
//! | `boot` | cpus, ram_bytes, first_page (gfn of page 0), fill_base (its address), pages (there are), clock, tsc_khz |
//! | `fill` | pages, first (page), ns |
//! | `verify` | pages, bad, writes (sum of all write counts), ns |
//! | `walk`, `touch` | pages, bytes, touches, writes, bad, touches_per_s, p50_ns, p99_ns, p999_ns, max_ns, ns |
//! | `idle` | ms; a `touch` line before it for each time pages were touched |
//! | `free` | pages, reported_pages |
//! | `damage` | page, gpa |
//! | `bad` | page, gpa, kind, expected, found, what (stale, foreign, corrupt), offset; at most 16 in a run |
//! | `balloon` | inflated_pages, reported_pages, target_pages, freed_pages, clean_pages; after an idle and at the end |
//! | `exit` | bad (of the whole run) |
//!
//! What goes wrong is `{"error":"..."}`, and the guest ends. A VMM that takes an exit status from port 0xf4 is told 1
//! after bad pages and 2 after an error.

use cistern_probe::PAGE_SIZE;
use cistern_probe::fills::{MAX_FILLS, Recipe};
use cistern_probe::holdings::{Holding, Holdings};
use cistern_probe::json::Line;
use cistern_probe::program::{Cursor, Program, Span, Spoil, Step};

use crate::balloon::Balloon;
use crate::console::{fail, print};
use crate::cpu::{self, event, time_stamp};
use crate::processors::Processors;
use crate::work::{self, Job, Worker, World};

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// What goes on beside the program.
struct Background {
    holdings: Holdings,
    balloon: Option<Balloon>,
    /// The most that a slow balloon gives during a step.
    pages_a_step: Option<u32>,
}

impl Background {
    fn serve(&mut self, world: &World) {
        if let Some(balloon) = &mut self.balloon {
            balloon.serve(&mut self.holdings, &world.pool);
        }
    }

    fn begin_step(&mut self, world: &World) {
        if let (Some(balloon), Some(pages)) = (&mut self.balloon, self.pages_a_step) {
            balloon.allow(pages, &mut self.holdings, &world.pool);
        }
    }

    /// After the holdings changed: what the balloon could not have before it may have now.
    fn proceed(&mut self, world: &World) {
        if let Some(balloon) = &mut self.balloon {
            balloon.proceed(&mut self.holdings, &world.pool);
        }
    }
}

/// A running program.
pub struct Runner {
    world: World,
    processors: Processors,
    background: Background,
    /// Sum of the write counts of all filled pages, kept apart from them.
    writes: u64,
    bad: u64,
    walks: u64,
}

impl Runner {
    /// Nothing filled, the balloon begins.
    pub fn new(world: World, processors: Processors, balloon: Option<Balloon>) -> Self {
        let mut background = Background { holdings: Holdings::new(world.pool.pages()), balloon, pages_a_step: None };
        if let Some(balloon) = &mut background.balloon {
            balloon.begin(&mut background.holdings, &world.pool);
        }
        Self { world, processors, background, writes: 0, bad: 0, walks: 0 }
    }

    /// Runs the program to its end, which is the guest's.
    pub fn run(&mut self, program: &Program) -> ! {
        let mut cursor = Cursor::default();
        while let Some(step) = cursor.next(program, cpu::take_byte) {
            self.background.begin_step(&self.world);
            match step {
                Step::Fill { pages, recipe, seed } => self.fill(pages, recipe, seed),
                Step::Verify => self.verify(),
                Step::Walk { pages, span, distribution, write_percent } => {
                    self.walks += 1;
                    let (deadline, touches) = match span {
                        Span::Milliseconds(milliseconds) => {
                            (self.world.clock.after(milliseconds * NANOSECONDS_PER_MILLISECOND), u64::MAX)
                        }
                        Span::Touches(touches) => (u64::MAX, touches),
                    };
                    self.need_filled("walk", pages);
                    let job = Job::Walk { pages, distribution, write_percent, deadline, touches, seed: self.walks };
                    let mut line = Line::phase("walk");
                    line.text("dist", distribution.name());
                    self.measure(job, pages, &mut line);
                }
                Step::Idle { milliseconds, touch_pages, every_milliseconds } => {
                    self.idle(milliseconds, touch_pages, every_milliseconds);
                }
                Step::Free { pages, silent } => self.free(pages, silent),
                Step::Balloon { pages } => self.background.pages_a_step = Some(pages),
                Step::Damage { spoil, page } => self.damage(spoil, page),
                Step::Exit { code } => self.exit(code),
                // The cursor resolves these.
                Step::Repeat { .. } | Step::End => {}
            }
        }
        self.exit(None)
    }

    fn job(&mut self, job: Job) -> &Worker {
        let (world, background) = (&self.world, &mut self.background);
        let worker = self.processors.run(job, world, || background.serve(world));
        self.bad += worker.bad;
        work::print_bad_pages();
        worker
    }

    fn need_filled(&self, step: &str, pages: u32) {
        let filled = self.world.fills.pages();
        if pages > filled {
            fail(format_args!("{step}: {pages} pages asked, {filled} are filled"));
        }
    }

    fn fill(&mut self, pages: u32, recipe: Recipe, seed: u64) {
        let (world, background) = (&mut self.world, &mut self.background);
        let first = world.fills.pages();
        let left = world.pool.pages() - first;
        if pages > left {
            fail(format_args!("fill: {pages} pages asked, {left} are left"));
        }
        let border = first + pages;
        if !background.holdings.fill(pages) {
            let (holdings, cpu) = (&mut background.holdings, &self.processors.cpu);
            let taken = background
                .balloon
                .as_mut()
                .is_some_and(|balloon| balloon.take_back(border, holdings, &world.pool, cpu, &world.clock));
            if !taken || !background.holdings.fill(pages) {
                fail(format_args!("fill: {pages} pages asked, the balloon does not give them back"));
            }
        }
        if !world.fills.push(pages, recipe, seed) {
            fail(format_args!("fill: more than {MAX_FILLS} fills"));
        }
        for range in world.pool.prefix(border) {
            if !world.tables.map(range) {
                fail(format_args!("fill: no page tables for {:#x}", range.end));
            }
        }
        // The balloon may want other pages instead of those it gave back.
        background.proceed(world);
        let start = time_stamp();
        self.job(Job::Fill { first, pages });
        self.writes += u64::from(pages);
        let nanoseconds = self.world.clock.since(start);
        print(
            Line::phase("fill").number("pages", pages.into()).number("first", first.into()).number("ns", nanoseconds),
        );
    }

    fn verify(&mut self) {
        let start = time_stamp();
        let worker = self.job(Job::Verify);
        let (mut bad, writes) = (worker.bad, worker.writes);
        if writes != self.writes {
            // Pages and counts agree with each other, but not with the sum: both went back in time.
            let mut line = Line::phase("bad");
            line.text("kind", "counts").hex("expected", self.writes).hex("found", writes).text("what", "stale");
            print(&mut line);
            (bad, self.bad) = (bad + 1, self.bad + 1);
            self.writes = writes;
        }
        let mut line = Line::phase("verify");
        line.number("pages", self.world.fills.pages().into())
            .number("bad", bad)
            .number("writes", writes)
            .number("ns", self.world.clock.since(start));
        print(&mut line);
    }

    /// Runs a job that touches pages, and prints how long the touches took.
    fn measure(&mut self, job: Job, pages: u32, line: &mut Line) {
        let start = time_stamp();
        let worker = self.job(job);
        let (latencies, bad, writes) = (&worker.latencies, worker.bad, worker.writes);
        let (touches, max) = (latencies.total(), latencies.max());
        let [p50, p99, p999] = [500, 990, 999].map(|per_mille| latencies.quantile(per_mille));
        let clock = &self.world.clock;
        let nanoseconds = clock.since(start);
        let per_second = u128::from(touches) * 1_000_000_000 / u128::from(nanoseconds.max(1));
        line.number("pages", pages.into())
            .number("bytes", u64::from(pages) * PAGE_SIZE)
            .number("touches", touches)
            .number("writes", writes)
            .number("bad", bad)
            .number("touches_per_s", per_second as u64)
            .number("p50_ns", clock.scale.nanoseconds(p50))
            .number("p99_ns", clock.scale.nanoseconds(p99))
            .number("p999_ns", clock.scale.nanoseconds(p999))
            .number("max_ns", clock.scale.nanoseconds(max))
            .number("ns", nanoseconds);
        print(line);
        self.writes += writes;
    }

    fn idle(&mut self, milliseconds: u64, touch_pages: u32, every_milliseconds: u64) {
        self.need_filled("idle", touch_pages);
        let deadline = self.world.clock.after(milliseconds * NANOSECONDS_PER_MILLISECOND);
        if touch_pages == 0 {
            self.sleep(deadline);
        }
        while touch_pages != 0 && time_stamp() < deadline {
            let next = self.world.clock.after(every_milliseconds * NANOSECONDS_PER_MILLISECOND);
            self.measure(Job::Touch { pages: touch_pages }, touch_pages, &mut Line::phase("touch"));
            self.sleep(next.min(deadline));
        }
        print(Line::phase("idle").number("ms", milliseconds));
        self.print_balloon();
    }

    /// Sleeps until the counter has this value, serving the balloon meanwhile.
    fn sleep(&mut self, deadline: u64) {
        let (world, background, cpu) = (&self.world, &mut self.background, &self.processors.cpu);
        world.clock.wait(cpu, deadline, || {
            if cpu.take_events(event::DEVICE | event::WAKE) & event::DEVICE != 0 {
                background.serve(world);
            }
            false
        });
    }

    fn free(&mut self, pages: u32, silent: bool) {
        self.need_filled("free", pages);
        let (world, background) = (&mut self.world, &mut self.background);
        let freed = background.holdings.free(pages);
        for page in freed.first..freed.end() {
            self.writes -= u64::from(world.counts.get(page));
            world.counts.set(page, 0);
        }
        world.fills.truncate(freed.first);
        let mut reported = 0;
        if let Some(balloon) = background.balloon.as_mut().filter(|_| !silent) {
            let before = balloon.reported_pages();
            balloon.report(freed, &mut background.holdings, &world.pool, &self.processors.cpu, &world.clock);
            reported = balloon.reported_pages() - before;
        }
        background.proceed(world);
        print(Line::phase("free").number("pages", freed.count.into()).number("reported_pages", reported));
    }

    fn damage(&mut self, spoil: Spoil, page: u32) {
        self.need_filled("damage", page.saturating_add(1));
        self.writes += work::spoil(&self.world, page, spoil);
        print(Line::phase("damage").number("page", page.into()).hex("gpa", self.world.pool.address(page)));
    }

    fn print_balloon(&self) {
        let Some(balloon) = &self.background.balloon else { return };
        let holdings = &self.background.holdings;
        let mut line = Line::phase("balloon");
        line.number("inflated_pages", balloon.inflated_pages().into())
            .number("reported_pages", balloon.reported_pages())
            .number("target_pages", balloon.target_pages().into())
            .number("freed_pages", holdings.count(Holding::Freed).into())
            .number("clean_pages", holdings.count(Holding::Clean).into());
        print(&mut line);
    }

    fn exit(&mut self, code: Option<u8>) -> ! {
        self.print_balloon();
        print(Line::phase("exit").number("bad", self.bad));
        match code {
            Some(code) => cpu::end(code),
            None if self.bad > 0 => cpu::end(cpu::END_BAD_PAGES),
            None => cpu::reset(),
        }
    }
}
