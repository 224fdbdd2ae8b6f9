//! A guest whose working set steps up and down, and what its manager says of it, from samples of its pages and from the dirty log.

use cistern_tests::chart::Chart;
use cistern_tests::estimates::{Following, Period, WalkingVm, median};

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "ESX samples 100 pages a minute and takes the maximum of its averages; ours samples 100 in a period of one second here, and \
         joins writes from the dirty log; the guest is a probe",
    );
    // The step, its seconds, and the guest, all in MiB.
    let (guest_mib, steps_mib, seconds) =
        if plan.is_short { (256, [25, 125, 25], [8, 6, 10]) } else { (512, [50, 250, 50], [20, 50, 30]) };
    let (guest_mib, steps_mib) = (guest_mib * plan.scale, steps_mib.map(|mib: u64| mib * plan.scale));
    let (error_mib, fill_mib) = (guest_mib / 10, guest_mib * 3 / 5);
    let walks: Vec<String> =
        steps_mib.iter().zip(seconds).map(|(mib, seconds)| format!("walk:{mib}M,secs={seconds},write=30")).collect();
    let program = format!("fill:{fill_mib}M,text=100,seed=1;{};verify;idle:1000000", walks.join(";"));
    let arguments = ["--memory", &format!("{guest_mib}M"), "--track", "--sample-period", "1s"];
    let mut vm = WalkingVm::start(&program, &arguments);
    let periods = vm.observe(steps_mib.len());
    let mut chart = Chart::over("What a guest works with (MiB)", "periods");
    let estimates: [(&str, Estimate); 3] = [
        ("both", |period| Some(period.active_mib)),
        ("samples", |period| Some(period.sampled_mib)),
        ("dirty log", |period| period.written_mib),
    ];
    for (name, estimate) in estimates {
        let followed = Following::of(&periods, steps_mib, error_mib, estimate);
        let errors = &followed.errors_mib;
        let known = |periods: Option<usize>| periods.map_or("never".to_owned(), |periods| periods.to_string());
        report.row(
            format!("{name}: within a tenth of the guest, median error"),
            if name == "samples" { "+-10 % in 95 %" } else { NOT_PUBLISHED },
            format!("{} of {}, {} MiB", followed.within(error_mib), errors.len(), median(errors.clone()).unwrap_or(0)),
        );
        report.row(
            format!("{name}: periods until a step up is known, a step down half"),
            NOT_PUBLISHED,
            format!("{}, {}", known(followed.up), known(followed.down)),
        );
        chart.line(name, line(&periods, estimate));
    }
    let truth = |period: &Period| steps_mib.get(period.walk).copied();
    chart.line("truth", line(&periods, truth));
    report.drawn(chart.write_to(&plan.out, "active-tracking.svg"));

    let of_walk =
        |walk: usize| periods.iter().filter(move |period| period.walk == walk).map(|period| period.active_mib);
    let [before, after] = [0, 2].map(|walk| of_walk(walk).min().unwrap_or(u64::MAX));
    let most = of_walk(1).max().unwrap_or(0);
    report.claim(
        "the estimate rises and falls with the guest, to less than half",
        2 * before < most && 2 * after < most,
        format!("from {before} to {most} to {after} MiB"),
    );
    while vm.reports("verify").is_empty() {
        assert!(!vm.vm.running.has_ended(), "the guest has ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let verify = vm.reports("verify").remove(0);
    report.claim("its pages are as they were", verify["bad"] == 0, &verify["pages"]);
    vm.vm.stop();
    report
}

/// One of the estimates, in MiB.
type Estimate = fn(&Period) -> Option<u64>;

fn line(periods: &[Period], value: impl Fn(&Period) -> Option<u64>) -> Vec<(f64, f64)> {
    let point = |(at, period)| Some((at as f64, value(period)? as f64));
    periods.iter().enumerate().filter_map(point).collect()
}
