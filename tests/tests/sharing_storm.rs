//! Merged pages under everything at once, and sharing that ends where there is no room for it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_memory::sharing::ksm::KsmHost;
use cistern_tests::control::ask;
use cistern_tests::ksm::Ksm;
use cistern_tests::paged::{MIB, counter};
use cistern_tests::process::LIMIT;
use cistern_tests::storm::{PoolPeak, Probe, Storm};
use serde_json::json;

const SHARING: [&str; 5] = ["--sharing", "zero,store,ksm", "--scan-cpu", "20", "--ksm-tune"];

/// Pages that a guest fills. What is called `dup` there all guests have, and each has once.
const PAGES: u64 = 14 * MIB / PAGE_SIZE;

fn fill(kinds: &str, seed: usize) -> String {
    format!("fill:14M,{kinds},seed={seed}")
}

/// Fills a pool of 80 MiB with guests that do not fit unless they are merged. The first ones fit: pages that have left before
/// ksmd has come by are not merged, however fast it is.
#[track_caller]
fn overfill(storm: &mut Storm, kinds: &str, arguments: &[&str]) {
    for seed in 0..6 {
        if seed == 4 {
            storm.wait_until("merged pages", |storm| merged(storm) > 2 * PAGES);
        }
        let program = format!("{};repeat:100000,(idle:1;verify)", fill(kinds, seed));
        storm.start(32, &program, &[&SHARING[..], arguments].concat());
    }
    for member in &mut storm.members {
        member.wait_for_verify();
    }
}

#[track_caller]
fn patch(member: &Probe, path: &str, body: &serde_json::Value) {
    let answer = ask(&member.socket, "PATCH", path, &body.to_string());
    assert_eq!(answer.status, 204, "{}: {path} {body}: {answer:?}", member.name);
}

#[track_caller]
fn switch(storm: &Storm, mechanisms: &str) {
    storm.members.iter().for_each(|member| patch(member, "/sharing", &json!({ "mechanisms": mechanisms })));
}

/// Pages of a process that the kernel has merged.
fn merging_pages(member: &Probe) -> u64 {
    let path = format!("/proc/{}/ksm_merging_pages", member.running.pid());
    let text = std::fs::read_to_string(path).expect("a kernel with KSM");
    text.trim().parse().expect("a number")
}

fn merged(storm: &Storm) -> u64 {
    storm.members.iter().map(merging_pages).sum()
}

/// The same by their own account, which goes down at once: the kernel's does with KSM's next pass.
fn still_merged(storm: &Storm) -> u64 {
    let of = |member: &Probe| member.memory()["sharing"]["merging"]["merged_pages"].as_u64().unwrap_or(0);
    storm.members.iter().map(of).sum()
}

/// How many members have merged pages that wait for room to be unmerged.
#[track_caller]
fn waiting(storm: &Storm) -> usize {
    let waits = |member: &&Probe| member.memory()["sharing"]["merging"]["waits_for_room"] == true;
    storm.members.iter().filter(waits).count()
}

/// A counter of all members.
#[track_caller]
fn sum(storm: &Storm, path: &str) -> u64 {
    storm.members.iter().map(|member| counter(&member.memory(), path)).sum()
}

/// Fails unless the budget was kept, within 1 %, whenever all members stood still to be counted. What is sampled in between is
/// the resident set, which has merged pages in each of their sharers.
#[track_caller]
fn expect_within(peak: &PoolPeak, budget_bytes: u64) {
    println!("at most {} of {} KiB in {} looks", peak.taken_bytes >> 10, budget_bytes >> 10, peak.looks);
    assert!(peak.looks >= 10 && peak.taken_bytes <= budget_bytes / 100 * 101, "{} bytes", peak.taken_bytes);
}

/// What is known of members at an end, for people.
fn show(storm: &Storm) {
    for member in &storm.members {
        let memory = member.memory();
        println!("{}: {} {}", member.name, memory["evictions"], memory["sharing"]["merging"]);
    }
    println!("{:?}\n{}", KsmHost::read(), storm.summary());
}

/// Guests write to merged pages, free some and fill them again, while they are sampled, ballooned, and have to give more than
/// they have besides merged pages.
#[test]
fn merged_pages_are_written_evicted_ballooned_reported_and_sampled() {
    let _ksm = Ksm::hold();
    let mut storm = Storm::new(44);
    let arguments = [&SHARING[..], &["--sample-period", "300ms", "--sample-pages", "400", "--track"]].concat();
    let kinds = "dup=70,zero=5,text=15,random=10";
    // These fit, so they are merged before any page has to go.
    for seed in 0..2 {
        let work = "walk:2M,secs=1,write=20,dist=zipf;idle:1;verify";
        storm.start(32, &format!("{};repeat:100000,({work})", fill(kinds, seed)), &arguments);
    }
    let watch = storm.watch();
    storm.wait_until("merged pages", |storm| merged(storm) > PAGES / 2);
    for seed in 2..4 {
        let again = format!("fill:2M,{kinds},seed={seed}");
        let work =
            format!("walk:14M,secs=1,write=20,dist=zipf;free:2M;{again};free:2M,silent;idle:0.5;{again};verify",);
        storm.start(32, &format!("fill:16M,{kinds},seed={seed};repeat:100000,({work})"), &arguments);
    }
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    let mut still = BTreeSet::from([
        "evictions.broken",
        "evictions.freed",
        "evictions.zero_freed",
        "evictions.compressed",
        "refaults.aside.pages",
        "pool.sample_periods",
        "pool.balloon_given_bytes",
        "reported_bytes",
    ]);
    let before: Vec<_> = still.iter().map(|path| (*path, sum(&storm, path))).collect();
    let (began, mut most_merged, mut round) = (Instant::now(), 0, 0);
    // All of it at once: what happened before there was a crowd does not count.
    while !still.is_empty() || began.elapsed() < Duration::from_secs(20) {
        // One balloon after the other grows, and gives back.
        let amount_mib = [Some(12), Some(2), None][round % 3];
        let member = &storm.members[round / 3 % 4];
        patch(member, "/balloon", &json!({ "amount_mib": amount_mib }));
        thread::sleep(Duration::from_millis(700));
        most_merged = most_merged.max(merged(&storm));
        before.iter().filter(|(path, count)| sum(&storm, path) > *count).for_each(|(path, _)| {
            still.remove(path);
        });
        storm.expect_alive();
        assert!(began.elapsed() < LIMIT, "nothing has become of {still:?}");
        round += 1;
    }
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    show(&storm);
    println!("at most {most_merged} pages were merged");
    assert!(most_merged > 0, "pages were merged all the while");
    expect_within(&watch.finish(), storm.budget_bytes());
    storm.stop();
}

/// A pool that cannot hold what its guests have without sharing.
#[test]
fn sharing_ends_as_there_is_room_for_it() {
    let _ksm = Ksm::hold();
    let mut storm = Storm::new(80);
    overfill(&mut storm, "dup=80,text=20", &[]);
    let watch = storm.watch();
    let before = storm.taken_bytes();
    switch(&storm, "off");
    storm.wait_until("end of sharing", |storm| {
        merged(storm) == 0 && storm.members.iter().all(|member| member.memory()["sharing"]["merging"].is_null())
    });
    println!("{} MiB were taken while pages were merged, {} now", before / MIB, storm.taken_bytes() / MIB);
    for member in &mut storm.members {
        member.wait_for_verify();
    }
    show(&storm);
    let stored = sum(&storm, "evictions.compressed") + sum(&storm, "evictions.duplicate");
    assert!(stored > PAGES / 2, "what does not fit has left: {stored}");
    expect_within(&watch.finish(), storm.budget_bytes());
    storm.stop();
}

/// Where nobody gives pages there is never room: what has none stays merged, and nothing else waits for that.
#[test]
fn sharing_that_cannot_end_holds_nobody_up() {
    let _ksm = Ksm::hold();
    let mut storm = Storm::new(80);
    // Cleared pages go back to the host until sharing is off, and are touched again after that.
    overfill(&mut storm, "dup=84,text=15,zero=1", &["--reclaim", "off", "--balloon", "off"]);
    let watch = storm.watch();
    switch(&storm, "off");
    storm.wait_until("want of room", |storm| waiting(storm) > 0);
    // As long as any goes on to unmerge, and a while longer.
    let mut left = u64::MAX;
    loop {
        for member in &mut storm.members {
            member.wait_for_verify();
            member.wait_for_verify();
        }
        let now = still_merged(&storm);
        if now >= std::mem::replace(&mut left, now) {
            break;
        }
    }
    println!("{left} pages stay merged");
    assert!(left > 1000, "{left}");
    storm.wait_until("contentment", |storm| storm.view().members.iter().all(|member| !member.report.wants_growth));
    assert!(waiting(&storm) > 0);
    // The user thinks better of it.
    switch(&storm, "zero,store,ksm");
    storm.wait_until("merged pages", |storm| merged(storm) > left && still_merged(storm) > left);
    assert_eq!(waiting(&storm), 0);
    show(&storm);
    expect_within(&watch.finish(), storm.budget_bytes());
    // One that waits for room ends all the same.
    switch(&storm, "off");
    storm.stop();
}
