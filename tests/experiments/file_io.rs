//! Files of a Linux guest whose own memory is nearly full: blocks of a disk written and read, past the guest's page cache and
//! through it, each word compared.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use cistern_tests::paged::MIB;

use crate::report::Report;
use crate::scenario::Plan;
use crate::stage::{Disk, Setup, Sizes, Stage};
use crate::way::Way;
use crate::workload::{Figure, Outcome, compare};

/// What is read or written at once.
const BLOCK_BYTES: u64 = 64 << 10;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    // The disk is more than the guest has left for its cache.
    let (sizes, held_mib, disk_mib, seconds) = if plan.is_short {
        (Sizes { memory_mib: 40, others: 1, other_mib: 64, other_filled_mib: 48, budget_mib: 56 }, 2, 1, 1)
    } else {
        (Sizes { memory_mib: 40, others: 3, other_mib: 64, other_filled_mib: 48, budget_mib: 112 }, 6, 8, 10)
    };
    let (held, disk) = (plan.size(held_mib), plan.size(disk_mib));
    // It begins when it is told to: once memory is short.
    let script = format!(
        "(exec -a hold /init {held} {held} 1) &\n\
         read line < /dev/ttyS0\n\
         for how in direct cached; do (exec -a blocks /init /dev/vdb {disk} {seconds} $how) || exit; done\n\
         echo all blocks done\n\
         read line < /dev/ttyS0\n"
    );
    let disk = Disk::Blank(disk_mib * plan.scale * MIB);
    let setup = Setup { script, files: Vec::new(), disk, has_network: false, sizes };
    compare(
        "file-io",
        "Blocks of 64 KiB read or written a second, past the cache, then through it",
        sizes.budget_mib,
        "a program of our own in place of fio, which brings hundreds of MiB of libraries; three of four blocks are read, the others \
         written anew, at random",
        plan,
        |way| work(plan, way, &setup, disk_mib * plan.scale * MIB / BLOCK_BYTES),
    )
}

/// What a pass over the disk came to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pass {
    blocks: u64,
    ms: u64,
    p50_us: u64,
    p99_us: u64,
}

impl Pass {
    /// From the line at its end (`kernels/linux/tools/blocks.c`).
    fn from_line(line: &str) -> Option<Self> {
        let words = line.strip_prefix("blocks: OK, ")?.split([' ', ',']);
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let [read, written, ms, p50_us, p99_us] = numbers[..] else { return None };
        Some(Self { blocks: read + written, ms, p50_us, p99_us })
    }

    fn mib_per_second(&self) -> f64 {
        (self.blocks * BLOCK_BYTES) as f64 / MIB as f64 * 1000.0 / self.ms.max(1) as f64
    }
}

fn work(plan: &Plan, way: Way, setup: &Setup, disk_blocks: u64) -> Result<Outcome> {
    let mut stage = Stage::open(plan, way, setup)?;
    stage.guest.wait_for("what it holds", |line| line.starts_with("hold: ready"));
    stage.press()?;
    stage.guest.stdin().write_all(b"go\n").context("the guest's console")?;
    let (mut passes, mut rate, mut before) = (Vec::new(), Vec::new(), None);
    while passes.len() < 2 {
        let line =
            stage.guest.wait_for("blocks", |line| line.starts_with("blocks: ") || line.starts_with("init.run: "));
        ensure!(!line.contains("BAD") && !line.starts_with("init.run: "), "the guest says {line}");
        if line.starts_with("blocks: written") {
            before = Some((stage.seconds(), 0));
        }
        let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        if let ([read, written, _], Some((then, done))) = (&numbers[..], before) {
            let now = (stage.seconds(), read + written);
            rate.push((now.0, (now.1 - done) as f64 / (now.0 - then).max(1e-3)));
            before = Some(now);
        }
        passes.extend(Pass::from_line(&line));
    }
    let ended = stage.seconds();
    let course = stage.close()?;
    let is_held = course.console.contains("hold: ") && !course.console.contains("hold: BAD");
    let figure = |name, value| Figure { name, value };
    let ms = |microseconds: u64| microseconds as f64 / 1000.0;
    let [direct, cached] = passes[..] else { bail!("{} passes of 2", passes.len()) };
    // Each pass also writes the whole disk once, and reads it once.
    let all_blocks = direct.blocks + cached.blocks + 4 * disk_blocks;
    Ok(Outcome {
        figures: vec![
            figure("past the cache, MiB/s", direct.mib_per_second()),
            figure("past the cache, p50 of a read, ms", ms(direct.p50_us)),
            figure("past the cache, p99 of a read, ms", ms(direct.p99_us)),
            figure("through the cache, MiB/s", cached.mib_per_second()),
            figure("through the cache, p50 of a read, ms", ms(cached.p50_us)),
            figure("through the cache, p99 of a read, ms", ms(cached.p99_us)),
            figure("blocks for a second of CPU time", all_blocks as f64 / course.cpu(0.0..ended).as_secs_f64()),
        ],
        compared: (
            format!("{} blocks, each of the disk once more, what it holds", direct.blocks + cached.blocks),
            u64::from(!is_held),
        ),
        rate,
        course,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_read_from_its_last_line() {
        let line = "blocks: OK, 30 read, 10 written, 2500 ms, read p50 8100 us, p99 12000 us";
        let pass = Pass::from_line(line).expect("a pass");
        assert_eq!(pass, Pass { blocks: 40, ms: 2500, p50_us: 8100, p99_us: 12_000 });
        assert!((pass.mib_per_second() - 1.0).abs() < 1e-9, "{}", pass.mib_per_second());
        assert_eq!(Pass::from_line("blocks: 30 read, 10 written, 2500 ms"), None);
    }
}
