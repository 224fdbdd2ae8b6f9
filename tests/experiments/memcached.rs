//! memcached in a Linux guest: values got and set a second, and how long that takes, over virtio-net.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cistern_tests::debian_program::DebianProgram;
use cistern_tests::memcached::{Generator, Load};
use cistern_tests::paged::{MIB, folder_on_disk};

use crate::report::Report;
use crate::scenario::Plan;
use crate::stage::{Disk, Setup, Sizes, Stage};
use crate::way::Way;
use crate::workload::{Figure, Outcome, compare, later};

const PORT: u16 = 11_211;

/// A page each, nearly.
const VALUE_BYTES: usize = 4000;

/// The disk that memcached and its libraries lie on.
const PROGRAMS_MIB: u64 = 16;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let (sizes, filled_mib, duration) = if plan.is_short {
        let sizes = Sizes { memory_mib: 96, others: 1, other_mib: 64, other_filled_mib: 48, budget_mib: 64 };
        (sizes, 1, Duration::from_secs(4))
    } else {
        let sizes = Sizes { memory_mib: 128, others: 3, other_mib: 64, other_filled_mib: 48, budget_mib: 128 };
        (sizes, 8, Duration::from_secs(30))
    };
    let load = Load {
        keys: (filled_mib * plan.scale * MIB) as usize / VALUE_BYTES,
        value_bytes: VALUE_BYTES,
        keys_a_get: 8,
        sets_percent: 10,
        zipf_exponent: 0.99,
    };
    let folder = folder_on_disk();
    let image = folder.path().join("programs");
    let made = programs(&image);
    let measure = |way| {
        let loader = made.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        // Room for all, so that none is thrown out.
        let limit_mib = (2 * filled_mib * plan.scale).max(64);
        let script = format!(
            "mount -t ext4 -o ro /dev/vdb /mnt\ncd /mnt\n\
             LD_LIBRARY_PATH=/mnt ./{loader} ./memcached -u root -t 1 -m {limit_mib} -p {PORT} -o no_modern\n"
        );
        let files = vec![("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n".to_owned())];
        serve(
            plan,
            way,
            &Setup { script, files, disk: Disk::Image(image.clone()), has_network: true, sizes },
            load,
            duration,
        )
    };
    compare(
        "memcached",
        "Requests a second",
        sizes.budget_mib,
        "values of 4000 bytes, half of each random, 8 keys a get, a request in ten sets, Zipf 0.99, one connection; the other guests are \
         probes; system calls take long where guest kernels are interpreted, so what is to be read are the ratios",
        plan,
        measure,
    )
}

/// A file system with memcached and what it needs; the name of what starts it there.
fn programs(image: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let loader = DebianProgram::fetch("memcached")?.copy_to("usr/bin/memcached", folder.path())?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-O", "^has_journal", "-d"]).arg(folder.path()).arg(image).arg(format!("{PROGRAMS_MIB}M"));
    let output = command.output().context("mkfs.ext4: package e2fsprogs")?;
    ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    fs::metadata(image)?;
    Ok(loader)
}

fn serve(plan: &Plan, way: Way, setup: &Setup, load: Load, duration: Duration) -> Result<Outcome> {
    let mut stage = Stage::open(plan, way, setup)?;
    let stream = stage.connect(PORT)?;
    let mut generator = Generator::new(load, stream)?;
    generator.fill().context("filling memcached")?;
    stage.press()?;
    let begun = stage.seconds();
    let served = generator.run(duration, 40).context("memcached at work")?;
    let ended = stage.seconds();
    let missing = generator.verify().context("looking at all of memcached")?;
    let course = stage.close()?;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let figure = |name, value| Figure { name, value };
    Ok(Outcome {
        figures: vec![
            figure("gets a second", served.gets_per_second()),
            figure("sets a second", served.sets_per_second()),
            figure("gets for a second of CPU time", served.got as f64 / course.cpu(begun..ended).as_secs_f64()),
            figure("p50 of a request for 8 keys, ms", ms(served.gets.percentile(50))),
            figure("p99 of a request for 8 keys, ms", ms(served.gets.percentile(99))),
            figure("p99 of a set, ms", ms(served.sets.percentile(99))),
        ],
        compared: (
            format!("{} values, and each of {} once more", served.got, load.keys),
            served.wrong + missing as u64,
        ),
        rate: later(served.gets.rates(1.0), begun),
        course,
    })
}
