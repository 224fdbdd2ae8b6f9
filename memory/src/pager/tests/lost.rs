//! Pages that are truly lost, and threads that die: the VM ends, and nobody is ever answered with anything else.
//!
//! Each case runs in a process of its own, which ends as a VMM does: by `_exit` with the fault outstanding.

use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::port::{Call, Plan, PortFault};
use super::*;
use crate::store::swap::fault::Fault;

/// Names the case to the child.
const CASE_VARIABLE: &str = "CISTERN_LOST";

/// The page that is lost.
const LOST_GFN: u64 = 103;

/// How long the child looks on after a failure, where a VMM ends at once.
const LOOK: Duration = Duration::from_millis(200);

/// What the child ends with: a VMM's status; somebody saw a page that there is not; nothing failed at all.
const STATUS_FAILED: i32 = 1;
const STATUS_ANSWERED: i32 = 3;
const STATUS_UNHARMED: i32 = 4;

/// Somebody got past the page that is lost.
static ANSWERED: AtomicBool = AtomicBool::new(false);

/// The guest, where a failure finds it.
static GUEST: OnceLock<Guest> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    ReadError,
    ShortRead,
    FlippedBit,
    Compressed,
    Duplicate,
    Pinned,
    Came,
    Handler,
    Reader,
    Reclaimer,
}

impl Case {
    /// How the message begins and ends.
    fn message(self) -> (&'static str, &'static str) {
        match self {
            Self::ReadError => ("page 0x67 is lost: swap file: reading 1 pages", "Input/output error (os error 5)"),
            Self::ShortRead => ("page 0x67 is lost: swap file: reading 1 pages", "unexpected end of file"),
            Self::FlippedBit | Self::Pinned | Self::Came => {
                ("page 0x67 is lost: swap file: the page in slot", "is damaged: its checksum is wrong")
            }
            Self::Compressed => ("page 0x66 is lost: compressed store: block", ""),
            Self::Duplicate => ("page 0x65 is lost: compressed store: block", ""),
            Self::Handler => ("pager: thread pager has died", ""),
            Self::Reader => ("pager: thread fetch", "has died"),
            Self::Reclaimer => ("pager: thread reclaim0 has died", ""),
        }
    }
}

const CASES: [Case; 10] = [
    Case::ReadError,
    Case::ShortRead,
    Case::FlippedBit,
    Case::Compressed,
    Case::Duplicate,
    Case::Pinned,
    Case::Came,
    Case::Handler,
    Case::Reader,
    Case::Reclaimer,
];

fn child(case: Case) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "pager::tests::lost::loses"])
        .env(CASE_VARIABLE, format!("{case:?}"))
        .output()
        .unwrap()
}

#[test]
fn what_is_lost_ends_the_vm_and_is_never_answered() {
    for case in CASES {
        let output = child(case);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(STATUS_FAILED), "{case:?}: {errors}");
        let (begin, end) = case.message();
        let said = errors.lines().find_map(|line| line.strip_prefix("cistern: "));
        assert!(said.is_some_and(|line| line.starts_with(begin) && line.ends_with(end)), "{case:?}: {errors}");
    }
}

/// Ends the process as a VMM does, but for a look at whether somebody was answered meanwhile.
fn end(failure: &PagerFailure) {
    let _ = writeln!(io::stderr(), "cistern: {failure}");
    thread::sleep(LOOK);
    exit(if ANSWERED.load(Ordering::SeqCst) { STATUS_ANSWERED } else { STATUS_FAILED });
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(status) }
}

#[test]
#[ignore = "the child of what_is_lost_ends_the_vm_and_is_never_answered"]
fn loses() {
    let name = std::env::var(CASE_VARIABLE).expect("started by its parent");
    let case = *CASES.iter().find(|case| format!("{case:?}") == name).unwrap();
    let plan = Arc::new(Plan::default());
    let guest = GUEST.get_or_init(|| Guest::ending_by(&[0..MIB], with_swap(methods()[0]), Box::new(end)));
    guest.arm_through(&plan);
    (0..200).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
    assert_eq!(guest.evict(0..200), 200);
    assert_eq!(guest.store(0..200), 200);
    let homes = &guest.pager.paged.homes;
    let touched = match case {
        Case::ReadError => {
            guest.file().reads.lock().unwrap().extend([Fault::Errno(libc::EIO); 8]);
            LOST_GFN
        }
        Case::ShortRead => {
            guest.file().reads.lock().unwrap().extend([Fault::Short(100); 8]);
            LOST_GFN
        }
        Case::FlippedBit | Case::Pinned | Case::Came => {
            guest.damage_in_file(LOST_GFN);
            LOST_GFN
        }
        Case::Compressed => {
            homes.damage(guest.stored(LOST_GFN - 1));
            LOST_GFN - 1
        }
        Case::Duplicate => {
            homes.damage(guest.stored(LOST_GFN - 2));
            LOST_GFN - 2
        }
        Case::Handler => {
            plan.order(Call::Copy, [PortFault::Panic]);
            // A page that was never touched.
            250
        }
        Case::Reader => {
            plan.order(Call::Copy, [PortFault::Panic]);
            LOST_GFN
        }
        Case::Reclaimer => {
            plan.order(Call::Move, [PortFault::Panic]);
            plan.order(Call::Protect, [PortFault::Panic]);
            // Less than is about to be written, or what the reclaimer writes to the swap file before it dies would be room
            // enough; and firm, or a guest may go beyond it while there is nothing to evict.
            guest.pager.set_limits(Limits { is_firm: true, ..Limits::alone(Some(MIB / 8)) }).unwrap();
            // It waits for room that nobody makes.
            guest.soon(|| (200..256).for_each(|gfn| guest.write(gfn, &page_of(3, gfn))));
            exit(STATUS_ANSWERED);
        }
    };
    if case == Case::Came {
        // A walk comes along it, and nobody minds.
        (90..200).filter(|gfn| *gfn != LOST_GFN).for_each(|gfn| assert!(guest.read(gfn) == page_of(gfn, 0)));
        assert_eq!(guest.at_rest().pages.swapped, 23);
    }
    let reader = thread::spawn(move || {
        if case == Case::Pinned {
            let _ = guest.ram.pin(touched * PAGE_SIZE, PAGE_SIZE);
        } else {
            guest.read(touched);
        }
        ANSWERED.store(true, Ordering::SeqCst);
    });
    guest.soon(|| drop(reader.join()));
    // Whoever failed may still be looking.
    thread::sleep(2 * LOOK);
    exit(STATUS_UNHARMED);
}
