//! Pools in which memory is short: the budget holds and no page is lost, whoever dies or stops.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Level, PoolView};
use cistern_memory::policy::brake::SOON;
use cistern_tests::control::ask;
use cistern_tests::course::Recorder;
use cistern_tests::cycles::HOMES;
use cistern_tests::paged::{MIB, counter};
use cistern_tests::ramps::{self, Ramp};
use cistern_tests::storm::Storm;
use cistern_tests::watch::{Still, pss_with_files_bytes};

/// A guest that rewrites its memory at random for as long as it is let, and looks at all of it now and then.
fn churning(size: &str, seed: usize) -> String {
    format!("fill:{size},churn,seed={seed};repeat:1000000,(walk:{size},touches=8000,write=100;verify)")
}

/// Pages that all members have evicted.
fn evicted_pages(view: &PoolView) -> u64 {
    view.members.iter().map(|member| member.report.evicted_pages).sum()
}

#[test]
fn a_leader_that_is_killed_is_replaced_and_nothing_else_is_lost() {
    const KILLS: usize = 10;
    let mut storm = Storm::new(96);
    for seed in 0..4 {
        storm.start(64, &churning("48M", seed), &[]);
    }
    // All are full, and pages come and go.
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    let watch = storm.watch();
    let mut handovers = Vec::new();
    for kill in 0..KILLS {
        // In the middle of it: so many were evicted since the last one.
        let before = evicted_pages(&storm.view());
        let view = storm.wait_for("storm", |view| {
            view.members.len() == 4 && evicted_pages(view) > before + 2_000 && view.leader_pid.is_some()
        });
        let leader = view.leader_pid.expect("just looked");
        storm.kill(leader);
        let killed = Instant::now();
        let view = storm.wait_for("other leader", |view| view.leader_pid.is_some_and(|pid| pid != leader));
        handovers.push(killed.elapsed());
        assert_eq!(view.members.len(), 3, "{view:?}");
        storm.start(64, &churning("48M", 4 + kill), &[]);
        storm.wait_for("order", |view| view.members.len() == 4 && view.round_age_ms.is_some_and(|age| age < 1000));
        storm.wait_until("budget kept", |storm| storm.taken_bytes() <= storm.budget_bytes());
    }
    println!("leader to leader: {handovers:?}");
    // Everybody, the last one too, gets round.
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    storm.expect_alive();
    watch.finish().expect_within(storm.budget_bytes());
    storm.stop();
}

#[test]
fn thirty_guests_rewrite_more_than_the_budget_and_keep_to_it() {
    const GUESTS: usize = 30;
    let mut storm = Storm::new(512);
    let watch = storm.watch();
    for seed in 0..GUESTS {
        let program = format!(
            "fill:48M,text=50,random=50,seed={seed};walk:48M,touches=12288,dist=sequential,write=100;verify;idle:1000000"
        );
        storm.start(64, &program, &[]);
    }
    for member in &mut storm.members {
        let verify = member.running.wait_for_phase("verify");
        assert!(verify["bad"] == 0 && verify["pages"] == 48 << 8, "{}: {verify}", member.name);
    }
    storm.expect_alive();
    let view = storm.view();
    assert_eq!(view.members.len(), GUESTS, "{view:?}");
    let own: Vec<u64> = view.members.iter().map(|member| member.report.own_bytes >> 10).collect();
    println!("KiB of each process: {own:?}, leader {:?}", view.leader);
    let peak = watch.finish();
    peak.expect_within(storm.budget_bytes());
    storm.stop();
}

/// By their sizes alone two of these guests fit the budget, to the byte; by what they cost they do not.
#[test]
fn those_that_are_left_keep_to_the_budget_too() {
    let mut storm = Storm::new(64);
    for seed in 0..4 {
        storm.start(32, &churning("30M", seed), &[]);
    }
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    for _ in 0..2 {
        storm.kill(storm.members[0].running.pid());
    }
    let mut taken_bytes = Vec::new();
    for _ in 0..3 {
        for member in &mut storm.members {
            member.wait_for_verify();
        }
        let pids: Vec<_> = storm.members.iter().map(|member| member.running.pid()).collect();
        let _still = Still::all(pids.iter().copied());
        // The program too, which other looks leave out.
        let of_each = pids.iter().map(|&pid| pss_with_files_bytes(pid).expect("it runs"));
        taken_bytes.push(of_each.sum::<u64>());
    }
    let budget_bytes = storm.budget_bytes();
    println!("{taken_bytes:?} of {budget_bytes}");
    let most_bytes = taken_bytes.into_iter().max().expect("there were three looks");
    assert!(most_bytes <= budget_bytes / 100 * 101, "{most_bytes} of {budget_bytes}");
    assert!(most_bytes * 10 > budget_bytes * 8, "they hardly fit: {most_bytes} of {budget_bytes}");
    storm.stop();
}

/// Levels at which more than balloons is used.
const BELOW_SOFT: [Level; 3] = [Level::Hard, Level::Low, Level::Stop];

/// What all members have done at some levels, by the name of a counter.
fn at_levels(storm: &Storm, levels: &[Level], counter: &str) -> u64 {
    levels.iter().map(|&level| storm.at_level(level, counter)).sum()
}

#[test]
fn a_slow_ramp_is_met_by_balloons_alone() {
    let Ramp { storm, course, peak } = ramps::slow();
    println!("{}", course.draw("A slow ramp", "pool-ramp-slow.svg").display());
    peak.expect_within(storm.budget_bytes());
    assert!(storm.at_level(Level::Soft, "entered") > 0, "{}", storm.summary());
    assert!(at_levels(&storm, &Level::ALL, "balloon_given_bytes") > MIB, "{}", storm.summary());
    assert_eq!(at_levels(&storm, &BELOW_SOFT, "entered"), 0, "{}", storm.summary());
    assert_eq!(at_levels(&storm, &Level::ALL, "evicted_pages"), 0, "{}", storm.summary());
    assert_eq!(at_levels(&storm, &Level::ALL, "written_pages"), 0, "{}", storm.summary());
    println!("{}", storm.summary());
    storm.stop();
}

fn fast_ramp(title: &str, file: &str, arguments: &[&str]) -> Storm {
    let Ramp { storm, course, peak } = ramps::fast(arguments);
    println!("{}", course.draw(title, file).display());
    peak.expect_within(storm.budget_bytes());
    println!("{}", storm.summary());
    assert!(storm.at_level(Level::Hard, "entered") > 0, "{}", storm.summary());
    assert!(at_levels(&storm, &BELOW_SOFT, "evicted_pages") > 0, "{}", storm.summary());
    storm
}

#[test]
fn a_fast_ramp_is_met_by_compression_before_the_swap_file() {
    let started = Instant::now();
    let storm = fast_ramp("A fast ramp", "pool-ramp-fast.svg", &[]);
    for member in &storm.members {
        let memory = member.memory();
        // What does not compress is a bit of code. The rest is stored as zero or compressed, and stays there: nothing goes on
        // before what is soon.
        let evicted = |home: &str| counter(&memory, &format!("evictions.{home}"));
        assert!(evicted("swapped") * 20 <= evicted("zero") + evicted("compressed"), "{memory}");
        assert!(evicted("written_back") == 0 || started.elapsed() > SOON, "{memory}");
    }
    storm.stop();
    // Where the compressed store may not hold as much, the file takes its oldest pages. Without the tax both have to give,
    // whether or not a sample has ended before.
    let arguments = ["--store-limit", "2M", "--idle-tax", "0"];
    let storm = fast_ramp("A fast ramp, a small compressed store", "pool-ramp-file.svg", &arguments);
    for member in &storm.members {
        let memory = member.memory();
        assert!(counter(&memory, "evictions.written_back") > 0, "{memory}");
        assert!(counter(&memory, "compressed.held_bytes") <= 3 * MIB, "{memory}");
    }
    storm.stop();
}

/// Pages that a member was given back when it asked for them.
fn refaults(storm: &Storm, pid: u32) -> u64 {
    let memory = storm.member(pid).memory();
    HOMES.iter().map(|home| counter(&memory, &format!("refaults.{home}.pages"))).sum()
}

#[test]
fn while_the_leader_is_stopped_nobody_grows() {
    let mut storm = Storm::new(96);
    for seed in 0..4 {
        storm.start(64, &churning("48M", seed), &[]);
    }
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    let leader = storm.wait_for("leader", |view| view.leader_pid.is_some()).leader_pid.expect("just looked");
    let mut others: Vec<u32> = storm.members.iter().map(|member| member.running.pid()).collect();
    others.retain(|&pid| pid != leader);
    storm.member(leader).running.signal(libc::SIGSTOP);
    storm.wait_until("stale order", |storm| {
        others.iter().all(|&pid| counter(&storm.member(pid).memory(), "pool.stale_orders") > 0)
    });
    // Memory becomes free, and is nobody's as long as nobody gives it.
    storm.kill(others.remove(0));
    let before = storm.taken_bytes_beside(leader);
    let refaulted: Vec<u64> = others.iter().map(|&pid| refaults(&storm, pid)).collect();
    storm.wait_until("exchange of pages", |storm| {
        others.iter().zip(&refaulted).all(|(&pid, &refaulted)| refaults(storm, pid) > refaulted + 2_000)
    });
    let during = storm.taken_bytes_beside(leader);
    storm.member(leader).running.signal(libc::SIGCONT);
    storm.wait_until("growth", |storm| storm.taken_bytes() > during + 8 * MIB);
    println!("{before} bytes, {during} while it was stopped, {} after", storm.taken_bytes());
    assert!(during <= before + MIB, "{before} {during}");
    let view = storm.wait_for("order", |view| view.round_age_ms.is_some_and(|age| age < 1000));
    assert_eq!(view.leader_pid, Some(leader), "{view:?}");
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    assert!(storm.taken_bytes() <= storm.budget_bytes() / 100 * 101);
    storm.stop();
}

/// Asks a member for its counters at every look at which it waits at an untouched page with more than its grant, the pool
/// being at the low level or below. Returns how often it has answered.
fn answers_while_waiting(pool: &Path, name: &str, socket: &Path, is_over: &AtomicBool) -> u64 {
    let mut answers = 0;
    while !is_over.load(Ordering::Relaxed) {
        let view = Ledger::read(pool).expect("the pool can be read");
        let member = view.members.iter().find(|member| member.identity.name == name).expect("it is a member");
        let has_excess = member.grant_bytes.is_some_and(|grant_bytes| member.report.charge_bytes > grant_bytes);
        if member.report.wants_growth && has_excess && view.level >= Some(Level::Low) {
            answers += u64::from(ask(socket, "GET", "/memory", "").status == 200);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    answers
}

#[test]
fn a_ramp_faster_than_reclaim_stops_growth_and_nothing_else() {
    let mut storm = ramps::crowd();
    let undisturbed = storm.members[1].running.wait_for_phase("walk");
    let (watch, recorder) = (storm.watch(), Recorder::start(&storm.pool()));
    storm.start(96, ramps::NEWCOMER, &ramps::SLOW_RECLAIM);
    let (pool, socket, is_over) = (storm.pool(), storm.members[0].socket.clone(), AtomicBool::new(false));
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| answers_while_waiting(&pool, "vm0", &socket, &is_over));
        // Growth goes on later: both get to their ends.
        let verify = storm.members[2].running.wait_for_phase("verify");
        storm.members[0].running.wait_for_phase("free");
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(verify["bad"], 0, "{verify}");
        answers.join().expect("it is well")
    });
    let disturbed = storm.members[1].running.wait_for_phase("walk");
    let course = recorder.finish();
    println!("{}", course.draw("A ramp faster than reclaim", "pool-ramp-low.svg").display());
    println!("{answers} answers while it waited, {}", storm.summary());
    println!("touches a second: {} before, {} last", undisturbed["touches_per_s"], disturbed["touches_per_s"]);
    let low = [Level::Low, Level::Stop];
    assert!(at_levels(&storm, &low, "entered") > 0, "{}", storm.summary());
    assert!(low.iter().any(|&level| storm.members[0].at_level(level, "waits_seen") > 0), "{}", storm.summary());
    assert!(answers > 0, "{}", storm.summary());
    watch.finish().expect_within(storm.budget_bytes());
    storm.stop();
}
