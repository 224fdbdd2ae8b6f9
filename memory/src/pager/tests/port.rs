//! A real userfaultfd whose calls fail: when told to, or at random.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cistern_probe::random::Generator;

use super::super::descriptor::{Descriptor, Fault, FaultPort, Progress};
use crate::PAGE_SIZE;
use crate::mapping::Mapping;

/// Calls that can be made to fail. Not so wake: the kernel's has nothing to fail on but its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Copy,
    Move,
    Protect,
    Unprotect,
    Register,
    Unregister,
}

impl Call {
    const COUNT: usize = 7;
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
pub enum PortFault {
    /// It goes well: the faults after it are for later calls.
    None,
    /// It does nothing and fails with this errno. No fault is lost by a read that fails: the next one gets it.
    Errno(i32),
    /// It does so many pages, then fails with this errno.
    Partial(u64, i32),
    /// The thread panics.
    Panic,
}

/// How a call may fail at random: with which errno, and how often in a row.
type Kinds = &'static [(i32, u64)];

/// Whoever calls must bear every one of these. What no remedy is for (a page that does not come back however often it is
/// tried) is not among them: a run is shorter than patience there.
fn kinds(call: Call) -> Kinds {
    match call {
        Call::Read => &[(libc::EAGAIN, 3)],
        Call::Copy => &[(libc::EAGAIN, 80), (libc::EEXIST, 6), (libc::ENOENT, 6), (libc::ENOMEM, 4)],
        Call::Move => &[
            (libc::EAGAIN, 80),
            (libc::EBUSY, 80),
            (libc::EEXIST, 12),
            (libc::EINVAL, 12),
            (libc::ENOENT, 6),
            (libc::ENOMEM, 4),
        ],
        Call::Protect | Call::Unprotect => &[(libc::EAGAIN, 80), (libc::ENOENT, 6), (libc::ENOMEM, 4)],
        Call::Register | Call::Unregister => &[],
    }
}

/// Of so many calls one fails while faults come at random.
const ODDS: u64 = 12;

/// A run of failures of one thread's calls of one kind.
#[derive(Debug, Clone, Copy, Default)]
enum Run {
    #[default]
    Over,
    /// So many more.
    Failing(i32, u64),
    /// The next one goes well: runs do not follow each other.
    Pause,
}

thread_local! {
    static RUNS: RefCell<[Run; Call::COUNT]> = const { RefCell::new([Run::Over; Call::COUNT]) };
}

/// What happens beside the next call of a kind, on the thread that makes it.
#[derive(Default)]
struct Aside(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Aside {
    fn run(&self) {
        let act = self.0.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
    }
}

impl fmt::Debug for Aside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Aside")
    }
}

/// Which calls fail. The test keeps it, the port asks it.
#[derive(Debug, Default)]
pub struct Plan {
    queues: [Mutex<VecDeque<PortFault>>; Call::COUNT],
    /// How often calls were made, failed or not.
    calls: [AtomicU64; Call::COUNT],
    injected: [AtomicU64; Call::COUNT],
    weather: Mutex<Option<Generator>>,
    before_protect: Aside,
    after_unprotect: Aside,
}

impl Plan {
    /// Has something happen before the next call that protects.
    pub fn before_protect(&self, act: impl FnOnce() + Send + 'static) {
        *self.before_protect.0.lock().unwrap() = Some(Box::new(act));
    }

    /// Has something happen after the next call that takes a protection off.
    pub fn after_unprotect(&self, act: impl FnOnce() + Send + 'static) {
        *self.after_unprotect.0.lock().unwrap() = Some(Box::new(act));
    }

    /// The next calls of this kind.
    pub fn order(&self, call: Call, faults: impl IntoIterator<Item = PortFault>) {
        self.queues[call as usize].lock().unwrap().extend(faults);
    }

    /// No call of this kind fails any more by order.
    pub fn cancel(&self, call: Call) {
        self.queues[call as usize].lock().unwrap().clear();
    }

    /// How many ordered faults no call has met yet.
    pub fn ordered(&self, call: Call) -> usize {
        self.queues[call as usize].lock().unwrap().len()
    }

    /// From here on calls fail at random; never with `None`.
    pub fn set_weather(&self, seed: Option<u64>) {
        *self.weather.lock().unwrap() = seed.map(Generator::new);
    }

    /// How often calls of this kind were made.
    pub fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize].load(Ordering::Relaxed)
    }

    /// How often calls of this kind were made to fail.
    pub fn injected(&self, call: Call) -> u64 {
        self.injected[call as usize].load(Ordering::Relaxed)
    }

    fn next(&self, call: Call, pages: u64) -> PortFault {
        self.calls[call as usize].fetch_add(1, Ordering::Relaxed);
        let ordered = self.queues[call as usize].lock().unwrap().pop_front();
        let fault = ordered.unwrap_or_else(|| self.random(call, pages));
        if !matches!(fault, PortFault::None) {
            self.injected[call as usize].fetch_add(1, Ordering::Relaxed);
        }
        assert!(!matches!(fault, PortFault::Panic), "the test wants this thread to die");
        fault
    }

    fn random(&self, call: Call, pages: u64) -> PortFault {
        let mut weather = self.weather.lock().unwrap();
        let (Some(random), kinds) = (weather.as_mut(), kinds(call)) else { return PortFault::None };
        RUNS.with_borrow_mut(|runs| {
            let run = &mut runs[call as usize];
            match *run {
                Run::Failing(errno, left) => {
                    *run = if left > 1 { Run::Failing(errno, left - 1) } else { Run::Pause };
                    return PortFault::Errno(errno);
                }
                Run::Pause => {
                    *run = Run::Over;
                    return PortFault::None;
                }
                Run::Over => {}
            }
            if kinds.is_empty() || random.below(ODDS) > 0 {
                return PortFault::None;
            }
            let (errno, longest) = kinds[random.below(kinds.len() as u64) as usize];
            // Short ones more often: half of them are one failure.
            let failures = if random.below(2) == 0 { 1 } else { 1 + random.below(longest) };
            *run = if failures > 1 { Run::Failing(errno, failures - 1) } else { Run::Pause };
            match pages {
                2.. if random.below(2) == 0 => PortFault::Partial(1 + random.below(pages - 1), errno),
                _ => PortFault::Errno(errno),
            }
        })
    }
}

/// The port.
pub struct FaultyPort {
    real: Descriptor,
    plan: Arc<Plan>,
}

impl FaultyPort {
    pub fn over(real: Descriptor, plan: Arc<Plan>) -> Self {
        Self { real, plan }
    }

    fn transfer(&self, call: Call, bytes: u64, real: impl Fn(u64) -> Progress) -> Progress {
        match self.plan.next(call, bytes / PAGE_SIZE) {
            PortFault::Errno(errno) => Progress { bytes: 0, cause: Some(io::Error::from_raw_os_error(errno)) },
            PortFault::Partial(pages, errno) if pages * PAGE_SIZE < bytes => {
                let done = real(pages * PAGE_SIZE);
                let cause = done.cause.unwrap_or_else(|| io::Error::from_raw_os_error(errno));
                Progress { bytes: done.bytes, cause: Some(cause) }
            }
            _ => real(bytes),
        }
    }

    /// A call on a range of which nothing is done when it fails.
    fn whole(&self, call: Call, real: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.plan.next(call, 1) {
            PortFault::Errno(errno) | PortFault::Partial(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => real(),
        }
    }
}

impl FaultPort for FaultyPort {
    fn read(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        match self.whole(Call::Read, || self.real.read(faults)) {
            // As the real one does.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(()),
            outcome => outcome,
        }
    }

    fn copy(&self, to: u64, from: *const u8, bytes: u64) -> Progress {
        self.transfer(Call::Copy, bytes, |bytes| self.real.copy(to, from, bytes))
    }

    fn move_pages(&self, to: u64, from: u64, bytes: u64) -> Progress {
        self.transfer(Call::Move, bytes, |bytes| self.real.move_pages(to, from, bytes))
    }

    /// One that fails may have protected some pages.
    fn protect(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.plan.before_protect.run();
        match self.plan.next(Call::Protect, bytes / PAGE_SIZE) {
            PortFault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            PortFault::Partial(pages, errno) => {
                self.real.protect(address, bytes.min(pages * PAGE_SIZE))?;
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => self.real.protect(address, bytes),
        }
    }

    fn unprotect(&self, address: u64, bytes: u64) -> io::Result<()> {
        let outcome = self.whole(Call::Unprotect, || self.real.unprotect(address, bytes));
        self.plan.after_unprotect.run();
        outcome
    }

    fn wake(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.real.wake(address, bytes)
    }

    fn register(&self, mapping: &Mapping) -> io::Result<()> {
        self.whole(Call::Register, || self.real.register(mapping))
    }

    fn unregister(&self, mapping: &Mapping) -> io::Result<()> {
        self.whole(Call::Unregister, || self.real.unregister(mapping))
    }

    fn fd(&self) -> RawFd {
        self.real.fd()
    }
}
