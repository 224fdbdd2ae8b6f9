//! The main thread while the guest runs: it waits for the end, and for what the user does meanwhile.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use cistern_devices::power::Power;
use cistern_devices::serial::Serial;
use cistern_memory::manager::{Manager, ManagerHandle, Member};
use cistern_memory::pager::Limits;
use cistern_memory::sharing::{Scanner, SharingHandle};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::api::{ApiServer, ControlSocket, Controlled};
use crate::cpu::vcpu::{self, RunningVcpu};
use crate::device_loop::DeviceLoop;
use crate::heap;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::signals::Signals;
use crate::terminal::{ConsoleInput, Watch};
use crate::thread_id;
use crate::verdict::{RunError, Verdict};

/// How long a guest has to switch itself off after the power button was pressed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How often what is free in the heap goes back to the host.
const HEAP_INTERVAL: Duration = Duration::from_secs(10);

/// What a run reacts to besides its guest.
#[derive(Default)]
pub struct Controls {
    /// SIGTERM and the like press the power button, a second one stops.
    pub signals: Option<Signals>,
    /// What is typed on the serial console.
    pub input: Option<ConsoleInput>,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// Where other programs look at the machine and control it.
    pub socket: Option<ControlSocket>,
    /// The machine's place in a pool.
    pub member: Option<Member>,
}

impl Machine {
    /// Runs the guest to its end, on this thread and others, and takes the machine apart.
    ///
    /// # Errors
    /// [`RunError`]: the host failed, not the guest.
    pub fn run(self, mut controls: Controls) -> Result<Outcome, RunError> {
        let failed = |what| move |cause| RunError::Thread { what, cause };
        vcpu::install_kick_handler().map_err(failed("signal handler"))?;
        let power = Arc::clone(self.power());
        let pager = Arc::clone(&self.pager);
        let scanner = self.start_scanner(controls.member.as_mut())?;
        let pool = controls.member.as_ref().map(Member::handle);
        let sharing = scanner.as_ref().map(Scanner::handle);
        let socket = controls.socket.take().map(|socket| (socket, self.controlled(pool, sharing)));
        pager.exempt_thread(thread_id::current());
        if let Some(limit_bytes) = self.resident_limit_bytes {
            pager.set_limits(Limits::alone(Some(limit_bytes)))?;
        }
        let manager = match controls.member.take() {
            Some(mut member) => {
                member.take_charge(Arc::clone(&pager), self.balloon().cloned(), self.write_sampler())?;
                Some(Manager::start(member)?)
            }
            None => None,
        };
        let supervisor = Supervisor {
            verdict: Arc::clone(&self.verdict),
            power,
            serial: self.serial,
            serial_input_space: self.serial_input_space,
            grace: TimerFd::new().map_err(|error| failed("timer")(error.into()))?,
            timeout: TimerFd::new().map_err(|error| failed("timer")(error.into()))?,
            heap: TimerFd::new().map_err(|error| failed("timer")(error.into()))?,
            controls,
            stop_asked: false,
            input_watched: false,
        };
        let devices = DeviceLoop::start(self.virtio, Arc::clone(&self.verdict), Arc::clone(&pager))?;
        let mut running = Vec::with_capacity(self.vcpus.len());
        let mut started = Ok(());
        for vcpu in self.vcpus {
            match vcpu.start() {
                Ok(vcpu) => running.push(vcpu),
                Err(cause) => {
                    started = Err(failed("vCPU thread")(cause));
                    break;
                }
            }
        }
        pager.set_vcpu_threads(running.iter().map(RunningVcpu::thread_id).collect());
        // After the vCPUs, which it would keep waiting.
        let mut api = None;
        let ending = started
            .and_then(|()| {
                api = socket.map(|(socket, machine)| ApiServer::start(socket, machine)).transpose()?;
                Ok(())
            })
            .and_then(|()| supervisor.supervise());
        // First, so that nobody sets a new limit.
        drop(api);
        drop(manager);
        drop(scanner);
        // A vCPU may be waiting for someone to read the console.
        if let Some(output_cut) = self.output_cut {
            output_cut.cut();
        }
        pager.release();
        vcpu::stop_all(running);
        devices.stop();
        pager.shut_down();
        ending
    }

    /// Starts what finds pages that need not be there, if anybody may want it.
    fn start_scanner(&self, member: Option<&mut Member>) -> Result<Option<Scanner>, RunError> {
        let Some(config) = self.sharing else { return Ok(None) };
        let place = member.as_ref().map(|member| member.place());
        let scanner = Scanner::start(&self.pager, self.ram(), config, place, thread_id::current)?;
        if let Some(member) = member {
            member.share(scanner.handle());
        }
        Ok(Some(scanner))
    }

    /// What may be seen and done through the control socket.
    fn controlled(&self, pool: Option<Arc<ManagerHandle>>, sharing: Option<Arc<SharingHandle>>) -> Controlled {
        Controlled {
            name: self.name.clone(),
            cpus: self.vcpus.len(),
            memory_bytes: self.ram().size_bytes(),
            balloon: self.balloon().cloned(),
            free_page_reporting: self.free_page_reporting,
            power: Arc::clone(self.power()),
            verdict: Arc::clone(&self.verdict),
            pager: Arc::clone(&self.pager),
            pool,
            sharing,
        }
    }
}

struct Supervisor {
    verdict: Arc<Verdict>,
    power: Arc<Power>,
    serial: Arc<Serial>,
    serial_input_space: EventFd,
    grace: TimerFd,
    timeout: TimerFd,
    heap: TimerFd,
    controls: Controls,
    stop_asked: bool,
    input_watched: bool,
}

impl Supervisor {
    /// Waits until there is an ending.
    fn supervise(mut self) -> Result<Outcome, RunError> {
        let failed = |error: event_manager::Error| RunError::Thread {
            what: "main event loop",
            cause: io::Error::other(error.to_string()),
        };
        let set = |timer: &mut TimerFd, first: Duration, interval: Option<Duration>| {
            timer.reset(first, interval).map_err(|error| RunError::Thread { what: "timer", cause: error.into() })
        };
        if let Some(timeout) = self.controls.timeout {
            set(&mut self.timeout, timeout, None)?;
        }
        // What it took to start is free now.
        heap::give_back();
        set(&mut self.heap, HEAP_INTERVAL, Some(HEAP_INTERVAL))?;
        let verdict = Arc::clone(&self.verdict);
        let mut manager = EventManager::<Self>::new().map_err(failed)?;
        manager.add_subscriber(self);
        loop {
            if let Some(ending) = verdict.take() {
                return ending;
            }
            manager.run().map_err(failed)?;
        }
    }

    /// The user wants the guest to end: first gently, then not.
    fn ask_to_stop(&mut self) {
        if self.stop_asked {
            self.verdict.reach(Ok(Outcome::Stopped));
            return;
        }
        self.stop_asked = true;
        self.power.press_button();
        // Without a timer there is no waiting for the guest.
        if self.grace.reset(SHUTDOWN_GRACE, None).is_err() {
            self.verdict.reach(Ok(Outcome::Stopped));
        }
    }

    /// Gives the guest what was typed, as much as it takes, and watches for more as long as there may be more.
    fn transfer_input(&mut self, ops: &mut EventOps) {
        let Some(input) = &mut self.controls.input else { return };
        let watch = input.pump(&self.serial);
        if watch == Watch::Quit {
            self.verdict.reach(Ok(Outcome::Stopped));
        }
        let wanted = watch == Watch::Input;
        if wanted != self.input_watched {
            let events = Events::new(&input.fd(), EventSet::IN);
            // What epoll refuses to watch, `pump` never wants watched.
            let done = if wanted { ops.add(events) } else { ops.remove(events) };
            self.input_watched = if done.is_ok() { wanted } else { self.input_watched };
        }
    }
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = |fd: RawFd| {
            ops.add(Events::new_raw(fd, EventSet::IN))
                .expect("a fresh epoll takes an eventfd, timer or signal descriptor");
        };
        watch(self.verdict.event().as_raw_fd());
        watch(self.serial_input_space.as_raw_fd());
        watch(self.grace.as_raw_fd());
        watch(self.timeout.as_raw_fd());
        watch(self.heap.as_raw_fd());
        if let Some(signals) = &self.controls.signals {
            watch(signals.as_raw_fd());
        }
        self.transfer_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.timeout.as_raw_fd() {
            self.verdict.reach(Ok(Outcome::TimedOut));
        } else if fd == self.grace.as_raw_fd() {
            self.verdict.reach(Ok(Outcome::Stopped));
        } else if fd == self.heap.as_raw_fd() {
            // How often it was due does not matter; reading clears it.
            let _ = self.heap.wait();
            heap::give_back();
        } else if fd == self.serial_input_space.as_raw_fd() {
            // Only its readiness matters; reading clears it.
            let _ = self.serial_input_space.read();
            self.transfer_input(ops);
        } else if self.controls.signals.as_ref().is_some_and(|signals| signals.as_raw_fd() == fd) {
            if self.controls.signals.as_ref().is_some_and(Signals::take) {
                self.ask_to_stop();
            }
        } else if fd != self.verdict.event().as_raw_fd() {
            self.transfer_input(ops);
        }
    }
}
