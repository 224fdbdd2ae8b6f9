//! How many guests a budget holds at nearly all of their goodput: ours beside what Linux has, with the same guests and the same
//! memory, the kernel's own for zram and zswap counted in.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cistern_tests::baseline::host::Host;
use cistern_tests::baseline::reach::Reach;
use cistern_tests::baseline::reclaimer::{Reclaimer, Work};
use cistern_tests::baseline::{Baseline, Compressor, Swap};
use cistern_tests::chart::Chart;
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::{binary, children};
use cistern_tests::samples::private_bytes;
use serde_json::Value;

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

/// What all guests may take together, what each is told it has, and what it fills of that.
const BUDGET_MIB: u64 = 512;
const MEMORY_MIB: u64 = 64;
const FILLED_MIB: u64 = 32;

/// What is filled with what, and the guests that idle of ten: the mix of overcommitted hosts.
const KINDS: &str = "zero=15,dup=20,text=45,random=20,seed={n}";
const IDLE_OF_TEN: u64 = 7;

/// Of the short version: guests that fill more than there is, all of which end well.
const FEW: u64 = 4;
const FEW_BUDGET_MIB: u64 = 96;

/// In a cgroup our pool has this part less: what is charged there besides and a pool does not count, KVM's own memory and that of
/// `density` itself.
const UNCOUNTED_PART: u64 = 16;

/// How often what is taken is drawn.
const INTERVAL: Duration = Duration::from_millis(250);

/// What came of a number of guests, or of the search for it.
struct Packed {
    /// `None` is ours.
    baseline: Option<Baseline>,
    guests: u64,
    bad_pages: u64,
    verified_pages: u64,
    /// Of the guest that keeps least.
    worst_goodput: f64,
    /// By the account of who keeps them within the budget; `None` where that is our own manager alone.
    work: Option<Work>,
    peak_bytes: u64,
    /// What was taken, in MiB, over time, in seconds.
    course: Vec<(f64, f64)>,
}

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let reach = Reach::find(folder_on_disk().path()).unwrap_or_else(|error| Reach::Nothing(format!("{error:#}")));
    let mut report = Report::new(format!("nobody has published ours; {reach}"));
    let ours = pack(plan, &reach, None);
    let (mut best, mut chart) = (0, Chart::new("MiB of the host that all guests take together"));
    for baseline in grid(plan, &reach) {
        match pack(plan, &reach, Some(baseline)) {
            Ok(packed) => {
                best = best.max(packed.guests);
                show(&mut report, plan, &reach, &packed);
                chart.line(&baseline.to_string(), packed.course);
            }
            Err(error) => report.row(baseline.to_string(), NOT_PUBLISHED, format!("not here: {error:#}")),
        }
    }
    match ours {
        Ok(packed) => {
            show(&mut report, plan, &reach, &packed);
            chart.line("ours", packed.course);
            if !plan.is_short {
                let ratio = packed.guests as f64 / best.max(1) as f64;
                report.row("ours by the best of these", NOT_PUBLISHED, format!("{ratio:.2}"));
            }
        }
        Err(error) => report.claim("ours can be measured", false, format!("{error:#}")),
    }
    report.drawn(chart.write_to(&plan.out, "packing.svg"));
    report
}

/// Those that are measured: what fits without overcommit needs none. Of the short version one, or one of each kind where the
/// limit is under test.
fn grid(plan: &Plan, reach: &Reach) -> Vec<Baseline> {
    let is_wanted = |baseline: &Baseline| match baseline.swap {
        Swap::Nothing => false,
        _ if !plan.is_short => true,
        Swap::Zram => !baseline.merges || matches!(reach, Reach::Guests(_)),
        Swap::File | Swap::Zswap { max_pool_percent: 20, compressor: Compressor::Lz4 } => {
            matches!(reach, Reach::Guests(_))
        }
        _ => false,
    };
    Baseline::grid().into_iter().filter(is_wanted).collect()
}

fn show(report: &mut Report, plan: &Plan, reach: &Reach, packed: &Packed) {
    let Packed { baseline, guests, bad_pages, verified_pages, worst_goodput, work, peak_bytes, .. } = packed;
    let name = baseline.map_or("ours".to_owned(), |baseline| baseline.to_string());
    let Work { paged_out_bytes, limit_hits, killed, .. } = work.unwrap_or_default();
    let mut found = format!("{guests} guests, at most {} MiB", peak_bytes / MIB);
    if !plan.is_short {
        found += &format!(", worst goodput {:.0} %", worst_goodput * 100.0);
    }
    if let Reach::Guests(_) = reach {
        found += &format!(", limit met {limit_hits} times, {} MiB swapped, {killed} killed", paged_out_bytes / MIB);
    }
    report.row(&name, NOT_PUBLISHED, found);
    let is_whole = *bad_pages == 0 && (!plan.is_short || *verified_pages > 0);
    report.claim(
        format!("{name}: no page is bad"),
        is_whole && (baseline.is_none() || paged_out_bytes > 0),
        format!("{bad_pages} of {verified_pages} that were looked at"),
    );
    // Whoever looks for the most that fit starts too many.
    if plan.is_short || baseline.is_none() {
        report.claim(format!("{name}: no guest is killed"), killed == 0, killed);
    }
}

/// As many guests as keep their goodput, or few that fill more than there is.
fn pack(plan: &Plan, reach: &Reach, baseline: Option<Baseline>) -> Result<Packed> {
    let budget_mib = if plan.is_short { FEW_BUDGET_MIB } else { BUDGET_MIB };
    let budget_bytes = budget_mib * plan.scale * MIB;
    let folder = folder_on_disk();
    // Ours drives KSM, too, by itself.
    let setting = baseline.unwrap_or(Baseline { swap: Swap::Nothing, merges: true });
    let mut host = Host::prepare(setting, budget_bytes, 4 * budget_bytes, folder.path())?;
    let is_limited = matches!(reach, Reach::Guests(_));
    let uncounted_bytes = if is_limited && baseline.is_none() { budget_bytes / UNCOUNTED_PART } else { 0 };
    let noted = (budget_bytes - uncounted_bytes).to_string();
    let mut command = Command::new(binary());
    command.args(["density", "--json", "--memory", &plan.size(MEMORY_MIB), "--budget", &noted]);
    command.args(["--guests", &if plan.is_short { FEW.to_string() } else { "max".to_owned() }]);
    command.args(flags(baseline, folder.path())).args(programs(plan)).env("TMPDIR", folder.path());
    let cgroup = is_limited.then(|| host.cgroup()).transpose()?;
    if let Some(cgroup) = &cgroup {
        cgroup.enter(&mut command)?;
    }
    let host = Arc::new(host);
    let limited = cgroup.map(|cgroup| {
        let kernels = baseline.unwrap_or(Baseline { swap: Swap::Nothing, merges: false });
        Reclaimer::limit(kernels, Arc::clone(&host), budget_bytes, cgroup)
    });
    let limited = limited.transpose()?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (pid, started, mut course) = (child.id(), Instant::now(), Vec::new());
    let advised =
        || baseline.map(|kernels| Reclaimer::advise(kernels, Arc::clone(&host), budget_bytes, move || children(pid)));
    let reclaimer = limited.or_else(advised);
    let density = thread::spawn(move || child.wait_with_output());
    while !density.is_finished() {
        let taken_bytes = match &reclaimer {
            Some(reclaimer) => reclaimer.taken_bytes(),
            None => children(pid).into_iter().filter_map(private_bytes).sum(),
        };
        course.push((started.elapsed().as_secs_f64(), taken_bytes as f64 / MIB as f64));
        thread::sleep(INTERVAL);
    }
    let output = density.join().expect("it only waits");
    let work = reclaimer.map(Reclaimer::finish).transpose()?;
    Arc::into_inner(host).context("the reclaimer is done with the host")?.restore()?;
    let output = output?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found: Value =
        serde_json::from_str(&said).with_context(|| String::from_utf8_lossy(&output.stderr).trim_end().to_owned())?;
    packed(baseline, &found, work, course).with_context(|| format!("density said {said}"))
}

fn packed(baseline: Option<Baseline>, found: &Value, work: Option<Work>, course: Vec<(f64, f64)>) -> Option<Packed> {
    let number = |name: &str| found[name].as_u64();
    Some(Packed {
        baseline,
        guests: number("guests")?,
        bad_pages: number("bad_pages")?,
        verified_pages: number("verified_pages")?,
        worst_goodput: found["goodput"]["worst"].as_f64().unwrap_or(0.0),
        peak_bytes: work.map_or(number("peak_host_bytes")?, |work| work.peak_bytes),
        work,
        course,
    })
}

fn flags(baseline: Option<Baseline>, folder: &Path) -> Vec<String> {
    let words = match baseline {
        None => format!("--swap={} --sharing=zero,store,ksm --ksm-tune", folder.display()),
        Some(Baseline { merges: true, .. }) => "--unmanaged --mergeable".to_owned(),
        Some(_) => "--unmanaged".to_owned(),
    };
    words.split(' ').map(str::to_owned).collect()
}

fn programs(plan: &Plan) -> Vec<String> {
    let fill = format!("fill:{},{KINDS}", plan.size(FILLED_MIB));
    let half = plan.size(FILLED_MIB / 2);
    let (idle, active, times) = if plan.is_short {
        let idle = format!("{fill};idle:3,touch=1M,every=1;verify");
        (idle, format!("{fill};walk:{half},secs=2,write=20;verify"), &[][..])
    } else {
        let idle = format!("{fill};repeat:forever,(idle:3600,touch=1M,every=2)");
        (
            idle,
            format!("{fill};repeat:forever,(walk:{half},touches=2000,write=20;idle:0.2)"),
            &["--warmup", "30", "--secs", "30"][..],
        )
    };
    let probes = [(IDLE_OF_TEN, idle), (10 - IDLE_OF_TEN, active)];
    let probes = probes.into_iter().flat_map(|(weight, program)| ["--probe".to_owned(), format!("{weight}:{program}")]);
    probes.chain(times.iter().map(|&word| word.to_owned())).collect()
}
