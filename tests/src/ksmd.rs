//! ksmd alone: everything advised from outside, at a pace that is set by hand.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::baseline::keeper::Keeper;

const SETTINGS: [&str; 3] = ["pages_to_scan", "sleep_millisecs", "run"];

/// How ksmd runs, until it is dropped or its process ends: then it runs as it was found to.
pub struct Ksmd {
    _keeper: Keeper,
    /// Whoever drives KSM holds this.
    _lock: File,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/mm/ksm").join(name)
}

impl Ksmd {
    /// Takes the wheel and stops it.
    pub fn take() -> Self {
        let lock = File::open(path("run")).expect("a kernel with KSM");
        lock.lock().expect("a lock");
        let mut keeper = Keeper::start_holding(&[&lock]).expect("a shell");
        for name in SETTINGS {
            let found = fs::read_to_string(path(name)).expect("a kernel with KSM");
            keeper
                .will(&format!("echo {} > {}", found.trim(), path(name).display()))
                .expect("it has just been started");
        }
        fs::write(path("run"), "0").expect("root may");
        Self { _keeper: keeper, _lock: lock }
    }

    /// Has it look at so many pages, and sleep for so many ms, in turns.
    pub fn run(&self, pages_to_scan: u32, sleep_millisecs: u32) {
        for (name, value) in SETTINGS.into_iter().zip([pages_to_scan, sleep_millisecs, 1]) {
            fs::write(path(name), value.to_string()).expect("root may");
        }
    }
}

/// `PR_SET_MEMORY_MERGE` (Linux 6.4).
const SET_MEMORY_MERGE: libc::c_int = 67;

/// Has all memory of the processes that `start` starts advised: they inherit that, and cannot take it back.
pub fn with_all_advised<R: Send>(start: impl FnOnce() -> R + Send) -> R {
    set_memory_merge(true);
    let started = std::thread::scope(|scope| {
        let start = || {
            refuse_unmergeable();
            start()
        };
        scope.spawn(start).join().expect("they start")
    });
    set_memory_merge(false);
    started
}

fn set_memory_merge(merges: bool) {
    // SAFETY: plain numbers.
    let result = unsafe { libc::prctl(SET_MEMORY_MERGE, libc::c_ulong::from(merges), 0, 0, 0) };
    assert_eq!(result, 0, "prctl(PR_SET_MEMORY_MERGE): {}", std::io::Error::last_os_error());
}

/// For this thread and what it starts the kernel is one without KSM that refuses MADV_UNMERGEABLE: guest RAM is taken out of
/// what is inherited by that (kernel Documentation/userspace-api/seccomp_filter.rst).
fn refuse_unmergeable() {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let advice_offset = std::mem::offset_of!(libc::seccomp_data, args) + 2 * size_of::<u64>();
    let mut filter = [
        statement(load, 0, 0, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
        statement(is_equal, 0, 3, libc::SYS_madvise as u32),
        statement(load, 0, 0, advice_offset as u32),
        statement(is_equal, 0, 1, libc::MADV_UNMERGEABLE as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads the program, which outlives the call; it concerns this thread and what it starts.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "prctl(PR_SET_SECCOMP): {}", std::io::Error::last_os_error());
}
