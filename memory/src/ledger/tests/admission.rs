//! Who is let into a pool, and what the others are told.

use super::super::head::{FORMAT, head_bytes};
use super::super::join::join;
use super::super::layout::HEAD_BYTES;
use super::super::lock;
use super::*;

fn refusal(pool: &Pool, request: &JoinRequest) -> String {
    Ledger::join(&pool.path(), request).unwrap_err().to_string()
}

#[test]
fn the_first_members_settings_stand() {
    let pool = Pool::new();
    let asked = |budget_bytes, tax| SettingsRequest {
        budget_bytes: Some(budget_bytes),
        idle_tax_percent: Some(tax),
        ..SettingsRequest::default()
    };
    let with = |name, settings| JoinRequest { settings, ..request(name) };
    let one = Ledger::join(&pool.path(), &with("one", asked(MIB, 50))).unwrap();
    assert_eq!(one.settings().budget_bytes, MIB);
    // Who asks for nothing takes what there is, whatever it would have set.
    let two = pool.join("two");
    assert_eq!((two.settings(), pool.read().settings), (one.settings(), *one.settings()));
    let _same = Ledger::join(&pool.path(), &with("same", asked(MIB, 50))).unwrap();
    let budget = refusal(&pool, &with("three", asked(2 * MIB, 50)));
    assert!(budget.ends_with("its budget is 1048576 bytes, not 2097152 bytes"), "{budget}");
    let tax = refusal(&pool, &with("three", asked(MIB, 75)));
    assert!(tax.ends_with("its idle memory tax is 50 percent, not 75 percent"), "{tax}");
    // They outlive who set them, but not the pool.
    drop(one);
    assert!(refusal(&pool, &with("three", asked(2 * MIB, 50))).contains("budget"));
    drop((two, _same));
    let three = Ledger::join(&pool.path(), &with("three", asked(2 * MIB, 0))).unwrap();
    assert_eq!(three.settings().budget_bytes, 2 * MIB);
    assert_eq!((pool.read().settings, pool.names()), (*three.settings(), vec!["three".to_owned()]));
}

#[test]
fn a_reservation_that_does_not_fit_is_refused_with_the_numbers() {
    let pool = Pool::new();
    let with = |name, mib| JoinRequest { reservation_bytes: mib * MIB, limit_bytes: 2000 * MIB, ..request(name) };
    // Of 1000 MiB, 60 are held back.
    let alone = refusal(&pool, &with("one", 941));
    assert!(alone.contains("0 are reserved by others") && alone.ends_with("which leaves 985661440"), "{alone}");
    assert_eq!(pool.bytes().len(), 0, "nothing was made for who was refused");
    let one = Ledger::join(&pool.path(), &with("one", 600)).unwrap();
    let _two = Ledger::join(&pool.path(), &with("two", 340)).unwrap();
    let full = refusal(&pool, &with("three", 1));
    let numbers = "a reservation of 1048576 bytes does not fit: of the budget of 1048576000 bytes, 985661440 are reserved \
        by others and 62914560 are held back, which leaves 0";
    assert!(full.ends_with(numbers), "{full}");
    let _three = Ledger::join(&pool.path(), &with("three", 0)).unwrap();
    drop(one);
    assert!(refusal(&pool, &with("four", 601)).contains("does not fit"));
    let _four = Ledger::join(&pool.path(), &with("four", 600)).unwrap();
}

#[test]
fn names_are_used_once() {
    let pool = Pool::new();
    let one = pool.join("one");
    let message = refusal(&pool, &request("one"));
    assert!(
        message.ends_with(&format!("a VM named one is in it already: process {}", std::process::id())),
        "{message}"
    );
    drop(one);
    pool.join("one");
}

#[test]
fn requests_that_nobody_can_make_are_refused() {
    let pool = Pool::new();
    let requests = [
        request(""),
        request("a\nb"),
        request(&"a".repeat(65)),
        JoinRequest { size_bytes: 0, ..request("one") },
        JoinRequest { reservation_bytes: 257 * MIB, ..request("one") },
        JoinRequest { shares: 0, ..request("one") },
        JoinRequest { default_budget_bytes: 0, ..request("one") },
    ];
    for request in requests {
        assert!(matches!(Ledger::join(&pool.path(), &request), Err(LedgerError::Request { .. })), "{request:?}");
    }
    assert!(!pool.path().exists());
    pool.join(&"a".repeat(64));
}

#[test]
fn a_full_pool_says_so() {
    let pool = Pool::new();
    let mut members: Vec<_> = (0..256).map(|number| pool.join(&format!("vm{number}"))).collect();
    assert!(refusal(&pool, &request("one")).ends_with("is full: it has 256 members"));
    assert_eq!(pool.read().members.len(), 256);
    let ids: Vec<_> = members.iter().map(Membership::id).collect();
    let mut leadership = members[255].try_lead().unwrap();
    leadership.publish(&round(8, &ids)).unwrap();
    assert!(members.iter().all(|member| member.orders().is_some_and(|standing| standing.orders == orders(8))));
    drop(members.remove(77));
    assert_eq!(pool.join("one").id().slot, 77);
}

#[test]
fn versions_refuse_each_other() {
    let pool = Pool::new();
    let old = join(&pool.path(), &request("old"), "0.0.9").unwrap();
    let message = refusal(&pool, &request("new"));
    let ours = env!("CARGO_PKG_VERSION");
    assert!(message.ends_with(&format!(
        "is used by cistern 0.0.9 (ledger format {FORMAT}), this is cistern {ours} (format {FORMAT})"
    )));
    // The same format can be looked at.
    assert_eq!(pool.names(), ["old"]);
    // Another format, of which only the preamble is known.
    let mut head = head_bytes(FORMAT + 1, "9.0", old.settings(), 0);
    head[64..].fill(0xaa);
    std::os::unix::fs::FileExt::write_all_at(&pool.file(), &head, 0).unwrap();
    let message = refusal(&pool, &request("new"));
    let theirs = FORMAT + 1;
    assert!(message.ends_with(&format!(
        "is used by cistern 9.0 (ledger format {theirs}), this is cistern {ours} (format {FORMAT})"
    )));
    let read = Ledger::read(&pool.path());
    assert!(matches!(read, Err(LedgerError::Version { their_format, .. }) if their_format == theirs));
    // Nobody of that version is left.
    drop(old);
    let _new = pool.join("new");
    assert_eq!(pool.names(), ["new"]);
}

#[test]
fn what_is_no_ledger_is_left_alone() {
    for bytes in [&b"#!/bin/sh\n"[..], &[0, 0, 1], &vec![7; 100_000], &vec![0; 1_000_000]] {
        let pool = Pool::new();
        pool.put(bytes);
        assert!(matches!(Ledger::join(&pool.path(), &request("one")), Err(LedgerError::NotALedger { .. })));
        assert!(matches!(Ledger::read(&pool.path()), Err(LedgerError::NotALedger { .. })));
        assert!(pool.bytes() == bytes);
    }
    let pool = Pool::new();
    fs::create_dir_all(pool.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", pool.file_path()).unwrap();
    assert!(matches!(Ledger::join(&pool.path(), &request("one")), Err(LedgerError::Io { .. })));
    fs::write(pool.0.path().join("file"), "").unwrap();
    let in_a_file = pool.0.path().join("file").join("pool");
    assert!(matches!(Ledger::join(&in_a_file, &request("one")), Err(LedgerError::Directory { .. })));
    assert!(matches!(Ledger::read(&in_a_file), Err(LedgerError::NoPool { .. })));
    assert!(matches!(Ledger::read(Path::new("/nowhere/pool")), Err(LedgerError::NoPool { .. })));
}

/// What a crash while the pool was made can leave blocks nobody.
#[test]
fn a_half_made_pool_is_made_anew() {
    let head = head_bytes(FORMAT, "1.0", &SettingsRequest::default().or_default(MIB), 0);
    let mut half = head.clone();
    half[40..].fill(0);
    let mut damaged = head.clone();
    damaged[100] ^= 1;
    damaged.resize(HEAD_BYTES as usize + 1000, 5);
    for left in [vec![], vec![0; 128], vec![0; 50_000], head, half, damaged] {
        let pool = Pool::new();
        pool.put(&left);
        let one = pool.join("one");
        assert_eq!(one.settings().budget_bytes, BUDGET_BYTES);
        assert_eq!((pool.names(), pool.read().corrupt_slots), (vec!["one".to_owned()], 0));
    }
}

#[test]
fn who_joins_waits_its_turn() {
    let pool = Pool::new();
    let _one = pool.join("one");
    let other = pool.file();
    assert!(lock::try_lock(&other, &lock::JOINING).unwrap());
    std::thread::scope(|scope| {
        let two = scope.spawn(|| pool.join("two"));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!two.is_finished());
        assert_eq!(pool.names(), ["one"]);
        drop(other);
        let two = two.join().unwrap();
        assert_eq!(two.id().slot, 1);
    });
    let other = pool.file();
    assert!(lock::try_lock(&other, &lock::JOINING).unwrap());
    assert!(
        refusal(&pool, &request("three")).ends_with("another member has been joining for 5 seconds: is it stopped?")
    );
}
