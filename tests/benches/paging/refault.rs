//! A page that is not there, as the guest's CPU sees it: from the compressed store, and from a bare userfaultfd.

use serde_json::Value;

use super::bare::Bare;
use super::table::{heading, median, note, row};
use super::vm::{FILL_PAGES, Vm};

/// Walks so short that most touches find no page, with time before each to take all pages out.
const UNIFORM: &str = "idle:0.6;walk:64M,secs=0.25";
/// Shorter: a walk in order gets further, and one that no other work on the machine has held up is wanted.
const SEQUENTIAL: &str = "idle:0.6;walk:64M,secs=0.02,dist=sequential";

/// Walks of both kinds.
#[derive(Default)]
struct Walks {
    uniform_p50_us: Vec<f64>,
    uniform_p99_us: Vec<f64>,
    sequential_us: Vec<f64>,
}

impl Walks {
    fn note(&mut self, walk: &Value) {
        let number = |name: &str| walk[name].as_f64().expect("a number");
        if walk["dist"] == "uniform" {
            self.uniform_p50_us.push(number("p50_ns") / 1000.0);
            self.uniform_p99_us.push(number("p99_ns") / 1000.0);
        } else {
            // When it has come round it finds its pages.
            assert!(number("touches") < FILL_PAGES as f64, "the walk in order is too long: {walk}");
            self.sequential_us.push(1e6 / number("touches_per_s"));
        }
    }
}

/// See the top of this file.
pub fn refault(rounds: usize) {
    heading(
        "refault seen by the guest, us; guest and handlers on one CPU; baseline: a bare userfaultfd, COPY of a ready page",
    );
    super::stay_on_one_cpu();
    let (mut text, mut zero, mut bare) = (Walks::default(), Walks::default(), Walks::default());
    let (mut text_pager_us, mut seen) = (0.0, String::new());
    for _ in 0..2 {
        through_the_store("text=100", rounds, &mut text, |refaults| {
            text_pager_us = refaults["compressed"]["latency"]["p50_ns"].as_f64().expect("a number") / 1000.0;
            let joined = &refaults["joined"];
            let (pages, around) = (&refaults["compressed"]["pages"], &refaults["compressed"]["around_pages"]);
            seen = format!("{pages} pages asked for, {around} brought along, {joined} faults joined another");
        });
        through_the_store("zero=100", rounds, &mut zero, |_| ());
        through_nothing(rounds, &mut bare);
    }
    let (single, bare_single) = (median(text.uniform_p50_us), median(bare.uniform_p50_us));
    row("compressed text, random touches, p50", single, bare_single, "<= 1.15");
    row("compressed text, random touches, p99", median(text.uniform_p99_us), median(bare.uniform_p99_us), "-");
    row("zero pages, random touches, p50", median(zero.uniform_p50_us), bare_single, "-");
    let best = |times: Vec<f64>| times.into_iter().fold(f64::INFINITY, f64::min);
    let sequential = best(text.sequential_us);
    row("compressed text in order, best mean", sequential, best(bare.sequential_us), "-");
    row("the same, beside a single refault of ours", sequential, single, "<= 0.2");
    note(&format!("split of {single:.1}: the pager, from reading the fault to noting its end, {text_pager_us:.1};"));
    note(&format!("the guest's exit, the way to the pager and back {:.1}", single - text_pager_us));
    note(&seen);
}

fn program(kinds: &str, rounds: usize) -> String {
    format!("fill:64M,{kinds};repeat:{rounds},({UNIFORM};{SEQUENTIAL});idle:1")
}

/// Pages go to the pager's stores before each walk.
fn through_the_store(kinds: &str, rounds: usize, walks: &mut Walks, look: impl FnOnce(&Value)) {
    let mut vm = Vm::start(&program(kinds, rounds));
    vm.wait_for("fill");
    vm.pager.arm().expect("userfaultfd");
    let gfns = vm.ram.regions()[0].gfns();
    for _ in 0..2 * rounds {
        vm.pager.evict(gfns.clone()).expect("a codec");
        vm.pager.store(gfns.clone()).expect("a codec");
        let pages = vm.pager.statistics().pages;
        let out = pages.zero + pages.duplicate + pages.compressed;
        assert!(out >= FILL_PAGES * 99 / 100, "not everything is stored: {pages:?}");
        walks.note(&vm.wait_for("walk"));
    }
    look(&serde_json::to_value(vm.pager.statistics().refaults).expect("plain numbers"));
}

/// Pages are dropped before each walk, and copied back from where they are ready.
fn through_nothing(rounds: usize, walks: &mut Walks) {
    let mut vm = Vm::start(&program("text=100", rounds));
    let fill_base = vm.wait_for("boot")["fill_base"].as_u64().expect("an address");
    vm.wait_for("fill");
    let bare = Bare::serve(&vm, fill_base);
    for _ in 0..2 * rounds {
        bare.drop_pages();
        walks.note(&vm.wait_for("walk"));
    }
    // Before the one who answers.
    drop(vm);
}
