//! A pool as a user sees it: `cistern pool` and `cistern top`, on a terminal and off it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::ledger::{
    JoinRequest, Leadership, Ledger, Level, Membership, Orders, Report, Round, SettingsRequest, now_ns,
};
use cistern_tests::process::cistern;
use cistern_tests::terminal::Session;

const MIB: u64 = 1 << 20;

/// The alternate screen, as it is opened and closed.
const PAGE_OPENS: &[u8] = b"\x1b[?1049h";
const PAGE_CLOSES: &[u8] = b"\x1b[?1049l";

fn join(pool: &Path, name: &str) -> Membership {
    let request = JoinRequest {
        name: name.to_owned(),
        settings: SettingsRequest { budget_bytes: Some(384 * MIB), ..SettingsRequest::default() },
        default_budget_bytes: MIB,
        size_bytes: 128 * MIB,
        reservation_bytes: 0,
        limit_bytes: 128 * MIB,
        shares: 1280,
    };
    Ledger::join(pool, &request).expect("a place in the pool")
}

fn report(charge_mib: u64, refaults: u64) -> Report {
    Report {
        time_ns: now_ns(),
        charge_bytes: charge_mib * MIB,
        touched_bytes: 128 * MIB,
        refaults,
        ..Report::default()
    }
}

/// Leads a round in which `member` is granted 100 MiB.
fn lead(member: &Membership) -> Leadership {
    let mut leadership = member.try_lead().expect("nobody else leads");
    let orders = Orders { grant_bytes: 100 * MIB, ..Orders::default() };
    let round = Round {
        time_ns: now_ns(),
        level: Level::Soft,
        free_bytes: 20 * MIB as i64,
        orders: vec![(member.id(), orders)],
    };
    leadership.publish(&round).expect("a round");
    leadership
}

fn path(folder: &tempfile::TempDir) -> String {
    folder.path().to_str().expect("a plain path").to_owned()
}

#[test]
fn the_ledger_is_printed() {
    let folder = tempfile::tempdir().expect("folder");
    let member = join(folder.path(), "web");
    member.publish(&report(90, 0)).expect("a report");
    let _leadership = lead(&member);
    let printed = cistern(&["pool", &path(&folder), "--json"]);
    assert_eq!((printed.status, printed.stderr.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&printed.stdout).expect("JSON");
    assert_eq!(json["budget_bytes"], 384 * MIB);
    assert_eq!(json["free_bytes"], 20 * MIB);
    assert_eq!((&json["state"], &json["leader"]), (&"soft".into(), &"web".into()));
    let web = &json["members"][0];
    assert_eq!((&web["name"], &web["pid"]), (&"web".into(), &std::process::id().into()));
    assert_eq!((&web["size_bytes"], &web["grant_bytes"]), (&(128 * MIB).into(), &(100 * MIB).into()));
    assert_eq!(web["charge_bytes"], 90 * MIB);

    let printed = cistern(&["pool", &path(&folder)]);
    let lines: Vec<_> = printed.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{printed:?}");
    assert!(lines[0].contains("budget 384M  used 364M  free 20M 5.2%  soft  leader web ("), "{printed:?}");
    assert!(lines[1].starts_with("name"), "{printed:?}");
    let row: Vec<_> = lines[2].split_whitespace().take(4).collect();
    assert_eq!(row, ["web", "128M", "100M", "90M"], "{printed:?}");
}

#[test]
fn a_pool_that_is_missing_is_one_line() {
    let folder = tempfile::tempdir().expect("folder");
    let missing = path(&folder) + "/none";
    for arguments in [vec!["pool", &missing], vec!["pool", &missing, "--json"], vec!["top", &missing]] {
        let printed = cistern(&arguments);
        assert_eq!((printed.status, printed.stdout.as_str()), (Some(1), ""), "{printed:?}");
        assert_eq!(printed.stderr.lines().count(), 1, "{printed:?}");
        assert!(printed.stderr.contains("/none: there is no pool here"), "{printed:?}");
    }
    // Nobody said which.
    let printed = cistern(&["top", "--once"]);
    assert_eq!((printed.status, printed.stderr.lines().count()), (Some(2), 1), "{printed:?}");
    assert!(printed.stderr.contains("CISTERN_POOL"), "{printed:?}");
}

#[test]
fn once_is_plain_text_with_rates() {
    let folder = tempfile::tempdir().expect("folder");
    let member = join(folder.path(), "web");
    member.publish(&report(90, 1000)).expect("a report");
    let pool = path(&folder);
    // Without --once too: stdout is no terminal.
    for arguments in [vec!["top", &pool, "--once"], vec!["top", &pool]] {
        let printed = thread::scope(|scope| {
            let printed = scope.spawn(|| cistern(&arguments));
            let start = Instant::now();
            while !printed.is_finished() {
                member.publish(&report(90, 1000 + start.elapsed().as_millis() as u64)).expect("a report");
                thread::sleep(Duration::from_millis(20));
            }
            printed.join().expect("it is printed")
        });
        assert_eq!(printed.status, Some(0), "{printed:?}");
        assert!(printed.stdout.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{printed:?}");
        let (headings, row) = (printed.stdout.lines().nth(1), printed.stdout.lines().nth(2));
        let column = headings.expect("headings").split_whitespace().position(|heading| heading == "ref/s");
        let rate = row.expect("a guest").split_whitespace().nth(column.expect("a rate")).expect("a value");
        // A thousand a second, as far as the machine lets both keep time.
        assert!(rate.parse::<f64>().is_ok_and(|rate| (500.0..1500.0).contains(&rate)) || rate == "1.0k", "{printed:?}");
    }
}

#[test]
fn the_live_view_leaves_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let member = join(folder.path(), "web");
    member.publish(&report(90, 0)).expect("a report");
    let pool = path(&folder);
    let endings: [&dyn Fn(&mut Session); 4] = [
        &|session| session.type_keys(b"q"),
        &|session| session.type_keys(b"\x1b"),
        &|session| session.type_keys(b"\x03"),
        &|session| session.signal(libc::SIGTERM),
    ];
    for end in endings {
        let mut session = Session::start(&["top", &pool]);
        session.wait_for(PAGE_OPENS);
        session.wait_for(b"web");
        assert!(session.settings().is_raw());
        end(&mut session);
        session.wait_for(PAGE_CLOSES);
        assert_eq!(session.wait().code(), Some(0));
        assert_eq!(session.settings(), session.before);
    }
}

#[test]
fn the_live_view_goes_on_when_guests_come_and_go() {
    let folder = tempfile::tempdir().expect("folder");
    drop(join(folder.path(), "first"));
    let mut session = Session::start(&["top", &path(&folder)]);
    // Words, because blanks that are blank already are not drawn.
    session.wait_for(b"guests");
    let member = join(folder.path(), "second");
    member.publish(&report(90, 0)).expect("a report");
    session.wait_for(b"second");
    session.type_keys(b"\r");
    session.wait_for(b"entitled,");
    drop(member);
    session.wait_for(b"budget");
    session.type_keys(b"q");
    assert_eq!(session.wait().code(), Some(0));
}
