//! Pools in which somebody grows: slowly, fast, and faster than memory can be taken from others.

use cistern_memory::ledger::Level;

use crate::course::{Course, Recorder};
use crate::storm::{PoolPeak, Storm};

/// What became of a pool while somebody grew. Its members live, and have verified what they hold.
pub struct Ramp {
    /// The pool.
    pub storm: Storm,
    /// Its course.
    pub course: Course,
    /// The most that all have taken.
    pub peak: PoolPeak,
}

/// Half a dozen MiB a second, all of it in use, until there are 60, beside a guest whose free memory the host still holds, most
/// of the budget.
pub fn slow() -> Ramp {
    let steps = (1..=30).map(|step| format!("fill:2M,seed={step};walk:{}M,secs=0.3", 2 * step));
    let program = format!("{};verify;idle:1000000", steps.collect::<Vec<_>>().join(";"));
    let mut storm = Storm::new(224);
    storm.start(192, "fill:152M;free:152M,silent;idle:1000000", &["--sample-period", "1s"]);
    storm.members[0].running.wait_for_phase("free");
    let (watch, recorder) = (storm.watch(), Recorder::start(&storm.pool()));
    storm.start(96, &program, &["--sample-period", "1s"]);
    storm.members[1].wait_for_verify();
    Ramp { course: recorder.finish(), peak: watch.finish(), storm }
}

/// Two guests without anything that balloons could take, the second growing as fast as it may.
pub fn fast(arguments: &[&str]) -> Ramp {
    let mut storm = Storm::new(144);
    // Zero pages would be found before they are in the way.
    let arguments = &[&["--sharing", "off"], arguments].concat();
    storm.start(128, "fill:96M,zero=50,text=50;idle:1000000", arguments);
    storm.members[0].running.wait_for_phase("fill");
    let (watch, recorder) = (storm.watch(), Recorder::start(&storm.pool()));
    storm.start(128, "fill:96M,zero=50,text=50,seed=2;verify;idle:1000000", arguments);
    storm.members[1].wait_for_verify();
    // Then the pager has nothing more to do.
    storm.wait_for("rest", |view| view.level.is_some_and(|level| level <= Level::Soft));
    Ramp { course: recorder.finish(), peak: watch.finish(), storm }
}

/// Reclaim that is slower than [`NEWCOMER`] grows.
pub const SLOW_RECLAIM: [&str; 4] = ["--reclaim-cpu", "4", "--sample-period", "1s"];

/// Grows as fast as it may in what [`crowd`] leaves. For a guest of 96 MiB.
pub const NEWCOMER: &str = "idle:3;fill:64M,text=100,seed=2;verify;idle:1000000";

/// A pool of two: one that holds much, uses little, and grows all the while, and frees a page in the end; and one that walks.
pub fn crowd() -> Storm {
    let mut storm = Storm::new(160);
    let grows = "fill:104M,text=100;idle:3;repeat:60,(fill:256K,text=100;idle:0.1);free:4K;idle:1000000";
    storm.start(160, grows, &SLOW_RECLAIM);
    storm.members[0].running.wait_for_phase("fill");
    storm.start(32, "fill:8M;repeat:1000000,(walk:8M,secs=0.2)", &SLOW_RECLAIM);
    storm.members[1].running.wait_for_phase("walk");
    storm
}
