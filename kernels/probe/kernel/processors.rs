//! All processors of the guest: starts the others, and has every phase done by all of them.
//!
//! Between phases, and while one waits for another, processors halt: an idle guest costs its host nothing.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use cistern_probe::mp_table::{MAX_CPUS, Processors as Found};

use crate::apic;
use crate::clock::Clock;
use crate::cpu::{Block, Cpu, event};
use crate::memory::Arena;
use crate::work::{Job, Share, Work, Worker, World};

/// Where entry.s expects the start code of other processors, below 1 MiB.
const TRAMPOLINE: u64 = 0x1_0000;
const STACK_BYTES: u64 = 32 << 10;
/// How long a processor may take to appear.
const START_NANOSECONDS: u64 = 1_000_000_000;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static ap_block: AtomicPtr<Block>;
}

/// What all processors see.
struct Board {
    boot_apic_id: AtomicU8,
    /// Processors that have started, besides the boot processor.
    online: AtomicU32,
    /// Counts jobs; a change is what the others wait for.
    job_number: AtomicU32,
    job: UnsafeCell<(Job, *const World)>,
    /// Processors that have finished the job, besides the boot processor.
    finished: AtomicU32,
    workers: [AtomicPtr<Worker>; MAX_CPUS],
}

// SAFETY: `job` is written only while all others wait for `job_number` to change, which publishes it.
unsafe impl Sync for Board {}

static BOARD: Board = Board {
    boot_apic_id: AtomicU8::new(0),
    online: AtomicU32::new(0),
    job_number: AtomicU32::new(0),
    job: UnsafeCell::new((Job::Verify, ptr::null())),
    finished: AtomicU32::new(0),
    workers: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS],
};

/// The boot processor's view of all processors.
pub struct Processors {
    /// The processor that runs the program.
    pub cpu: Cpu,
    apic_ids: [u8; MAX_CPUS],
    /// Processors besides the boot processor; their ids come first.
    others: u32,
}

impl Processors {
    /// Starts every processor that was found; one that does not appear within a second is left out.
    pub fn start(cpu: Cpu, found: Option<&Found>, clock: &Clock, arena: &mut Arena) -> Self {
        let own_id = apic::id();
        BOARD.boot_apic_id.store(own_id, Ordering::Relaxed);
        BOARD.workers[0].store(arena.take::<Worker>(1).as_ptr(), Ordering::Relaxed);
        let mut processors = Self { cpu, apic_ids: [0; MAX_CPUS], others: 0 };
        for &id in found.map_or(&[][..], Found::apic_ids) {
            if id != own_id && (processors.others as usize) < MAX_CPUS - 1 {
                processors.start_one(id, clock, arena);
            }
        }
        processors
    }

    fn start_one(&mut self, apic_id: u8, clock: &Clock, arena: &mut Arena) {
        let number = self.others + 1;
        let mut block = arena.take::<Block>(1);
        let stack_top = arena.take::<u8>(STACK_BYTES).as_ptr() as u64 + STACK_BYTES;
        BOARD.workers[number as usize].store(arena.take::<Worker>(1).as_ptr(), Ordering::Relaxed);
        // SAFETY: fresh memory of the arena, all zero, which is a block.
        unsafe { block.as_mut() }.prepare(&self.cpu, stack_top, processor_main, number.into());
        // SAFETY: low memory that nothing uses any more; the start code is small and position-bound to this address.
        unsafe {
            let start = &raw const trampoline_start;
            let bytes = (&raw const trampoline_end).offset_from_unsigned(start);
            ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, bytes);
            ap_block.store(block.as_ptr(), Ordering::SeqCst);
        }
        apic::send_init(apic_id);
        apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8);
        let appeared = clock.wait(&self.cpu, clock.after(START_NANOSECONDS), || {
            self.cpu.take_events(event::WAKE);
            BOARD.online.load(Ordering::Acquire) == number
        });
        if appeared {
            self.apic_ids[self.others as usize] = apic_id;
            self.others += 1;
        } else {
            // Should it appear after all, it must not find what the next one is given.
            apic::send_init(apic_id);
        }
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.others + 1
    }

    /// Has all processors do their share of a job; `background` is called on this one whenever a device has something.
    /// Answers what they found, together, in the boot processor's worker.
    pub fn run(&self, job: Job, world: &World, mut background: impl FnMut()) -> &Worker {
        // SAFETY: all others wait, see `Board`.
        unsafe { *BOARD.job.get() = (job, world) };
        BOARD.finished.store(0, Ordering::Relaxed);
        BOARD.job_number.fetch_add(1, Ordering::Release);
        for &apic_id in &self.apic_ids[..self.others as usize] {
            apic::wake(apic_id);
        }
        let mut serve = || {
            if self.cpu.has_event(event::DEVICE) {
                self.cpu.take_events(event::DEVICE);
                background();
            }
        };
        let share = Share { number: 0, of: self.count() };
        let worker = worker(0);
        Work { world, share, worker }.perform(job, &mut serve);
        while BOARD.finished.load(Ordering::Acquire) != self.others {
            serve();
            self.cpu.take_events(event::WAKE);
            if BOARD.finished.load(Ordering::Acquire) != self.others {
                self.cpu.halt();
            }
        }
        for number in 1..self.count() {
            worker.merge(self::worker(number));
        }
        worker
    }
}

/// The results of a processor.
fn worker(number: u32) -> &'static mut Worker {
    let worker = NonNull::new(BOARD.workers[number as usize].load(Ordering::Relaxed));
    // SAFETY: memory of the arena for this processor alone; the boot processor looks at others' only between jobs.
    unsafe { worker.expect("every processor has a worker before it starts").as_mut() }
}

/// Where entry.s leaves CPL 0 on the other processors. Interrupts are off.
unsafe extern "C" fn processor_main(number: u64, block: *mut Block) -> ! {
    // SAFETY: entry.s passes the block of the processor that runs this.
    let cpu = unsafe { Cpu::new(block) };
    let number = number as u32;
    let boot_apic_id = BOARD.boot_apic_id.load(Ordering::Relaxed);
    let mut done = BOARD.job_number.load(Ordering::Acquire);
    apic::enable();
    cpu.allow_interrupts();
    BOARD.online.store(number, Ordering::Release);
    apic::wake(boot_apic_id);
    loop {
        cpu.take_events(event::WAKE);
        let job_number = BOARD.job_number.load(Ordering::Acquire);
        if job_number == done {
            cpu.halt();
            continue;
        }
        done = job_number;
        // SAFETY: published by the new job number; it stays until all have finished, and so does the world.
        let (job, world) = unsafe { *BOARD.job.get() };
        let share = Share { number, of: BOARD.online.load(Ordering::Acquire) + 1 };
        // SAFETY: as above.
        Work { world: unsafe { &*world }, share, worker: worker(number) }.perform(job, &mut || {});
        BOARD.finished.fetch_add(1, Ordering::Release);
        apic::wake(boot_apic_id);
    }
}
