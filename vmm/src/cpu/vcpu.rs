//! The thread of one virtual CPU.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cistern_memory::GuestRam;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, register_signal_handler};

use super::fixup;
use crate::bus::Bus;
use crate::outcome::Outcome;
use crate::thread_id;
use crate::timeline::Timeline;
use crate::verdict::{RunError, Verdict};

/// `KVM_SYSTEM_EVENT_*` (kernel Documentation/virt/kvm/api.rst).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// Stack of a vCPU thread: it dispatches exits and no more.
const STACK_BYTES: usize = 256 << 10;

/// Offset from SIGRTMIN of the signal that makes `KVM_RUN` return.
fn kick_signal() -> i32 {
    vmm_sys_util::signal::SIGRTMIN()
}

/// Installs the handler of the kick signal, which does nothing: its arrival is what ends `KVM_RUN`.
///
/// # Errors
/// What the kernel said.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), ignore).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// One virtual CPU, before it runs.
pub struct Vcpu {
    /// Its number, and APIC id.
    pub id: u8,
    /// KVM's handle of it.
    pub fd: VcpuFd,
    /// The devices it may touch.
    pub bus: Arc<Bus>,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// Where the end of the run is told.
    pub verdict: Arc<Verdict>,
    /// Where its first entry into the guest is noted.
    pub timeline: Option<Arc<Timeline>>,
}

/// A running virtual CPU; [`stop_all`] ends it.
pub struct RunningVcpu {
    thread: JoinHandle<()>,
    // Set once, before the first kick; the kick's system calls order it for the vCPU thread.
    stop: Arc<AtomicBool>,
    thread_id: Arc<OnceLock<i32>>,
}

impl Vcpu {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(mut self) -> io::Result<RunningVcpu> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = Arc::clone(&stop);
        let thread_id = Arc::new(OnceLock::new());
        let told_thread_id = Arc::clone(&thread_id);
        let thread =
            thread::Builder::new().name(format!("vcpu{}", self.id)).stack_size(STACK_BYTES).spawn(move || {
                // Nobody else sets it.
                let _ = told_thread_id.set(thread_id::current());
                if let Some(timeline) = self.timeline.take() {
                    timeline.mark("start threads");
                }
                while !thread_stop.load(Ordering::SeqCst) {
                    if let Some(ending) = self.run_once() {
                        self.verdict.reach(ending);
                        break;
                    }
                }
            })?;
        Ok(RunningVcpu { thread, stop, thread_id })
    }

    /// Enters the guest and serves the exit it comes back with. `Some` when there is no going on.
    fn run_once(&mut self) -> Option<Result<Outcome, RunError>> {
        let kvm_run: *const kvm_run = self.fd.get_kvm_run();
        // A string instruction brings several accesses to the same port in one exit.
        let access_bytes = || {
            // SAFETY: the page is mapped as long as the vCPU is open, and after a port exit the kernel has filled this
            // member of the union. Nothing writes it until the next KVM_RUN.
            usize::from(unsafe { (*kvm_run).__bindgen_anon_1.io.size }).max(1)
        };
        let crash = |how: String| Some(Ok(Outcome::Crash(how)));
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(access_bytes()).for_each(|access| self.bus.port_in(port, access));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(access_bytes()).for_each(|access| self.bus.port_out(port, access));
            }
            Ok(VcpuExit::MmioRead(address, data)) => self.bus.mmio_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.bus.mmio_write(address, data),
            // With the in-kernel interrupt controller KVM waits for interrupts itself; harmless where it does not.
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return crash(format!("triple fault on vCPU {}", self.id)),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => return Some(Ok(Outcome::PowerOff)),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => return Some(Ok(Outcome::Reset)),
            Ok(VcpuExit::SystemEvent(event, _)) => return crash(format!("system event {event}")),
            Ok(VcpuExit::InternalError) => {
                if let Err(how) = fixup::finish(&mut self.fd, self.ram.memory()) {
                    return crash(how);
                }
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return crash(format!("vCPU {} cannot enter the guest: reason {reason:#x} on CPU {cpu}", self.id));
            }
            Ok(exit) => return crash(format!("unexpected KVM exit {exit:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {}
                _ => {
                    return Some(Err(RunError::Vcpu {
                        id: self.id,
                        cause: io::Error::from_raw_os_error(error.errno()),
                    }));
                }
            },
        }
        None
    }
}

impl RunningVcpu {
    /// The kernel's number of the thread. Waits for the thread to have begun.
    pub fn thread_id(&self) -> i32 {
        *self.thread_id.wait()
    }

    /// Asks the thread to stop. A kick that arrives just before the thread waits for something is lost: ask again.
    fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // A thread that is gone already cannot be signalled, and need not be.
        let _ = self.thread.kill(kick_signal());
    }
}

/// Waits until all threads have left the guest for good and their vCPUs are closed. All are asked until none is left: one
/// may be waiting for another that has lost its kick.
pub fn stop_all(running: Vec<RunningVcpu>) {
    while running.iter().any(|vcpu| !vcpu.thread.is_finished()) {
        running.iter().for_each(RunningVcpu::request_stop);
        thread::sleep(Duration::from_millis(1));
    }
    for vcpu in running {
        // A panic of the thread has been printed by the panic hook; there is nothing to add.
        let _ = vcpu.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, pipe};
    use std::sync::mpsc::channel;
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn one_that_waits_for_another_does_not_keep_it_from_being_asked() {
        install_kick_handler().expect("a signal handler");
        let (mut reader, writer) = pipe().expect("a pipe");
        let console = Arc::new(Mutex::new(()));
        let holds = Arc::new(Barrier::new(2));
        let running = |body: Box<dyn FnOnce() + Send>| RunningVcpu {
            thread: thread::spawn(body),
            stop: Arc::default(),
            thread_id: Arc::default(),
        };
        let (waiting_for, held) = (Arc::clone(&console), Arc::clone(&holds));
        let vcpus = vec![
            running(Box::new(move || {
                held.wait();
                drop(waiting_for.lock());
            })),
            running(Box::new(move || {
                let _console = console.lock();
                holds.wait();
                // As if the first kicks had come too early.
                for _ in 0..3 {
                    let interrupted = reader.read(&mut [0]).expect_err("nobody writes");
                    assert_eq!(interrupted.kind(), ErrorKind::Interrupted);
                }
            })),
        ];
        let (sender, done) = channel();
        thread::spawn(move || {
            stop_all(vcpus);
            sender.send(())
        });
        done.recv_timeout(Duration::from_secs(60)).expect("all are gone");
        drop(writer);
    }
}
