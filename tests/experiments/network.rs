//! TCP to and from a Linux guest over virtio-net: throughput, and how long an answer takes.

use std::time::Duration;

use anyhow::{Context, Result};
use cistern_tests::paged::MIB;
use cistern_tests::tcp;

use crate::report::Report;
use crate::scenario::Plan;
use crate::stage::{Disk, Setup, Sizes, Stage};
use crate::way::Way;
use crate::workload::{Figure, Outcome, compare, later};

const PORT: u16 = 5000;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let (sizes, streamed_bytes, held_mib, duration) = if plan.is_short {
        let sizes = Sizes { memory_mib: 64, others: 1, other_mib: 64, other_filled_mib: 48, budget_mib: 56 };
        (sizes, MIB / 4, 1, Duration::from_secs(2))
    } else {
        let sizes = Sizes { memory_mib: 128, others: 3, other_mib: 64, other_filled_mib: 48, budget_mib: 128 };
        (sizes, 4 * MIB, 6, Duration::from_secs(20))
    };
    let held = plan.size(held_mib);
    let script = format!("(exec -a hold /init {held} {held} 1) &\nexec -a tcp /init {PORT}\n");
    let setup = Setup { script, files: Vec::new(), disk: Disk::Nothing, has_network: true, sizes };
    compare(
        "network",
        "Requests and answers a second",
        sizes.budget_mib,
        "netperf's TCP_STREAM, TCP_MAERTS and TCP_RR by a program of our own, as netperf is not free, with requests of 8 bytes instead \
         of 1 and every byte compared; beside it the guest reads what it holds twice a second",
        plan,
        |way| transfer(plan, way, &setup, streamed_bytes * plan.scale, duration),
    )
}

fn transfer(plan: &Plan, way: Way, setup: &Setup, bytes: u64, duration: Duration) -> Result<Outcome> {
    let mut stage = Stage::open(plan, way, setup)?;
    stage.guest.wait_for("what it holds", |line| line.starts_with("hold: ready"));
    stage.press()?;
    let sent = tcp::send(stage.connect(PORT)?, bytes).context("a stream to the guest")?;
    let received = tcp::receive(stage.connect(PORT)?, bytes).context("a stream from the guest")?;
    let stream = stage.connect(PORT)?;
    let begun = stage.seconds();
    let answers = tcp::request(stream, duration, 20).context("requests")?;
    let ended = stage.seconds();
    let course = stage.close()?;
    let is_held = course.console.contains("hold: ") && !course.console.contains("hold: BAD");
    let wrong = [sent.is_right, received.is_right, is_held].into_iter().filter(|is_right| !is_right).count();
    let ms = |percent| answers.percentile(percent).as_secs_f64() * 1e3;
    let figure = |name, value| Figure { name, value };
    Ok(Outcome {
        figures: vec![
            figure("to the guest, MiB/s", sent.mib_per_second()),
            figure("from the guest, MiB/s", received.mib_per_second()),
            figure("requests a second", answers.per_second()),
            figure(
                "requests for a second of CPU time",
                answers.count() as f64 / course.cpu(begun..ended).as_secs_f64(),
            ),
            figure("p50 of an answer, ms", ms(50)),
            figure("p99 of an answer, ms", ms(99)),
        ],
        compared: (
            format!("two streams of {} KiB, {} answers, what it holds", sent.bytes >> 10, answers.count()),
            wrong as u64,
        ),
        rate: later(answers.rates(1.0), begun),
        course,
    })
}
