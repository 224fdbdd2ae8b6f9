//! Pools in which memory is short: the budget holds and no page is lost, whoever dies or stops.

use std::time::{Duration, Instant};

use cistern_memory::ledger::PoolView;
use cistern_tests::storm::Storm;

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
        let deadline = Instant::now() + Duration::from_secs(60);
        while storm.taken_bytes() > storm.budget_bytes() {
            assert!(Instant::now() < deadline, "the budget is not kept: {:?}", storm.view());
        }
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
