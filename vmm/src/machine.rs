//! A microVM put together, ready to run.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use cistern_devices::exit_port::{EXIT_PORT, ExitPort};
use cistern_devices::i8042::{I8042, I8042_PORT, I8042_PORTS};
use cistern_devices::port::PortDevice;
use cistern_devices::power::{POWER_PORT, POWER_PORTS, Power, SCI_GSI};
use cistern_devices::pvpanic::{PVPANIC_PORT, Pvpanic};
use cistern_devices::request::RequestSink;
use cistern_devices::serial::{self, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, Serial};
use cistern_devices::virtio::mmio::{BreakReport, MmioTransport};
use cistern_memory::activity::WriteSampler;
use cistern_memory::pager::{Pager, PagerError, PagerFailure};
use cistern_memory::sharing::SharingConfig;
use cistern_memory::{Balloon, GuestRam, RamError, UserfaultSupport};
use linux_loader::loader::load_cmdline;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError};
use crate::bus::{Bus, PortRange};
use crate::config::{BalloonMode, ConsoleTarget, MachineConfig};
use crate::cpu::cpuid;
use crate::cpu::registers::{self, Entry, RegisterError};
use crate::cpu::vcpu::Vcpu;
use crate::device_set::{DeviceSet, DeviceSetError};
use crate::firmware::{self, FirmwareError, Platform, VirtioSlot};
use crate::host::{Host, HostError};
use crate::layout;
use crate::outcome::STATUS_ERROR;
use crate::report;
use crate::size::Size;
use crate::terminal::{self, ConsoleOutput, OutputCut};
use crate::timeline::Timeline;
use crate::verdict::Verdict;
use crate::vm::{Vm, VmError};

/// Why a machine could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host's KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Guest memory cannot be paged.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// Pages that cannot be moved cannot be merged: KSM takes the protections off that copying them out relies on.
    #[error("--sharing ksm: this kernel cannot move merged pages (Linux 6.8): leave out ksm")]
    NoMerging,
    /// More memory than guest-physical addresses.
    #[error("--memory {memory}: this host's KVM has {bits}-bit guest addresses, at most --memory {}G", largest_memory_gib(*.bits))]
    AddressWidth {
        /// What was asked for.
        memory: Size,
        /// Width of a guest-physical address.
        bits: u32,
    },
    /// A KVM call.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A virtual CPU.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ACPI or MP tables.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// A virtio device.
    #[error(transparent)]
    Device(#[from] DeviceSetError),
    /// The console's file.
    #[error("console {}: {cause}: name a file this user may write", path.display())]
    Console {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// An eventfd or signal handler.
    #[error("{what}: {cause}")]
    System {
        /// What was asked of the kernel.
        what: &'static str,
        /// What it said.
        cause: io::Error,
    },
}

impl MachineError {
    /// True when the command line or configuration makes no sense, whatever the host.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Boot(BootError::CommandLine(_)) | Self::Device(DeviceSetError::TooMany { .. }))
    }
}

/// The largest memory that fits into addresses of this width, with the gap below 4 GiB, in GiB.
fn largest_memory_gib(bits: u32) -> u64 {
    let gap_bytes = layout::DEVICE_GAP.end - layout::DEVICE_GAP.start;
    ((1u64 << bits) - gap_bytes) >> 30
}

/// A microVM that has not started.
pub struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) virtio: Vec<Arc<MmioTransport>>,
    pub(crate) serial: Arc<Serial>,
    pub(crate) serial_input_space: EventFd,
    pub(crate) verdict: Arc<Verdict>,
    pub(crate) output_cut: Option<OutputCut>,
    pub(crate) pager: Arc<Pager>,
    pub(crate) resident_limit_bytes: Option<u64>,
    pub(crate) name: String,
    pub(crate) free_page_reporting: bool,
    pub(crate) sharing: Option<SharingConfig>,
    power: Arc<Power>,
    balloon: Option<Arc<dyn Balloon>>,
    ram: Arc<GuestRam>,
    // Last: vCPUs are closed before it.
    vm: Vm,
}

impl Machine {
    /// Opens files and devices, maps RAM, loads the kernel and writes everything a guest finds at boot. Nothing of the
    /// guest has run when this returns.
    ///
    /// # Errors
    /// [`MachineError`]; whatever was opened is closed again.
    pub fn build(config: &MachineConfig) -> Result<Self, MachineError> {
        Self::build_timed(config, &Arc::default())
    }

    /// [`Machine::build`], with the time each step takes noted.
    ///
    /// # Errors
    /// As for [`Machine::build`].
    pub fn build_timed(config: &MachineConfig, timeline: &Arc<Timeline>) -> Result<Self, MachineError> {
        let system = |what| move |cause| MachineError::System { what, cause };
        if config.resident.is_some() || config.pager.swap_folder.is_some() || config.sharing.scans_always {
            let support = UserfaultSupport::probe().map_err(PagerError::from)?;
            if config.sharing.mechanisms.ksm && !support.move_pages {
                return Err(MachineError::NoMerging);
            }
        }
        let host = Host::open()?;
        timeline.mark("open KVM");
        let ranges = layout::ram_ranges(config.memory.bytes);
        let bits = host.physical_address_bits;
        if ranges.last().is_some_and(|range| range.end > 1 << bits) {
            return Err(MachineError::AddressWidth { memory: config.memory, bits });
        }
        let (output, output_cut) = open_console(&config.console)?;
        let devices = DeviceSet::open(config)?;
        timeline.mark("open devices");
        let ram = GuestRam::new(&ranges)?;
        if config.mergeable {
            ram.offer_to_ksm()?;
        }
        timeline.mark("map RAM");
        let pager = Pager::new(Arc::clone(&ram), config.pager.clone(), Box::new(end_on_pager_failure))?;
        timeline.mark("make pager");
        let vm = Vm::new(&host, Arc::clone(&ram))?;
        timeline.mark("create VM");

        let mut virtio = Vec::with_capacity(devices.virtio.len());
        let mut slots = Vec::with_capacity(devices.virtio.len());
        for (index, (device, gsi)) in devices.virtio.into_iter().zip(layout::VIRTIO_GSIS).enumerate() {
            let mmio_base = layout::VIRTIO_BASE + index as u64 * layout::VIRTIO_BYTES;
            let report: BreakReport = Box::new(report::line);
            let transport = MmioTransport::new(device, Arc::clone(&ram), report).map_err(system("eventfd"))?;
            vm.connect_interrupt(transport.interrupt().line(), gsi)?;
            vm.connect_kicks(transport.kicks(), mmio_base)?;
            virtio.push(Arc::new(transport));
            slots.push(VirtioSlot { mmio_base, mmio_bytes: layout::VIRTIO_BYTES, gsi });
        }

        let verdict = Arc::new(Verdict::new().map_err(system("eventfd"))?);
        let requests: RequestSink = {
            let verdict = Arc::clone(&verdict);
            Arc::new(move |request| verdict.request(request))
        };
        let line = new_eventfd().map_err(system("eventfd"))?;
        vm.connect_interrupt(&line, SERIAL_GSI)?;
        let serial_input_space = new_eventfd().map_err(system("eventfd"))?;
        let input_space = serial_input_space.try_clone().map_err(system("eventfd"))?;
        let serial = Arc::new(Serial::new(line, input_space, output));
        let power = Arc::new(Power::new(Arc::clone(&requests), Box::new(vm.level_line(SCI_GSI))));
        let range =
            |first: u16, count: u16, device: Arc<dyn PortDevice>| PortRange { ports: first..first + count, device };
        let bus = Arc::new(Bus::new(
            vec![
                range(SERIAL_PORT, SERIAL_PORTS, serial.clone()),
                range(I8042_PORT, I8042_PORTS, Arc::new(I8042::new(Arc::clone(&requests)))),
                range(POWER_PORT, POWER_PORTS, power.clone()),
                range(PVPANIC_PORT, 1, Arc::new(Pvpanic::new(Arc::clone(&requests)))),
                range(EXIT_PORT, 1, Arc::new(ExitPort::new(requests))),
            ],
            virtio.clone(),
        ));

        timeline.mark("connect devices");
        let platform = Platform { cpus: config.cpus, virtio: slots, has_serial: true, has_pvpanic: true };
        let entry = load_guest(config, &host, &ram, &platform)?;
        timeline.mark("load guest");
        let supported = cpuid::supported(&host).map_err(VmError::new("KVM_GET_SUPPORTED_CPUID"))?;
        let mut vcpus = Vec::with_capacity(usize::from(config.cpus));
        for id in 0..config.cpus {
            let fd = vm.create_vcpu(id)?;
            let cpuid = cpuid::for_vcpu(&supported, id, config.cpus);
            fd.set_cpuid2(&cpuid).map_err(VmError::new("KVM_SET_CPUID2"))?;
            registers::set_up_common(&fd, id)?;
            if id == 0 {
                registers::set_up_entry(&fd, ram.memory(), entry)?;
            }
            vcpus.push(Vcpu {
                id,
                fd,
                bus: Arc::clone(&bus),
                ram: Arc::clone(&ram),
                verdict: Arc::clone(&verdict),
                timeline: (id == 0).then(|| Arc::clone(timeline)),
            });
        }
        timeline.mark("create vCPUs");
        Ok(Self {
            vcpus,
            virtio,
            serial,
            serial_input_space,
            verdict,
            output_cut,
            pager,
            resident_limit_bytes: config.resident.map(|limit| limit.bytes),
            name: config.name.clone(),
            free_page_reporting: config.balloon == BalloonMode::On,
            sharing: (config.pool.is_some() || config.sharing.scans_always).then_some(config.sharing),
            power,
            balloon: devices.balloon,
            ram,
            vm,
        })
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// What pages guest memory.
    pub fn pager(&self) -> &Arc<Pager> {
        &self.pager
    }

    /// What watches the guest's writes, where KVM can say them in parts.
    pub fn write_sampler(&self) -> Option<WriteSampler> {
        let log = self.vm.dirty_log()?;
        Some(WriteSampler::new(Arc::new(log), Arc::clone(&self.ram)))
    }

    /// The serial port.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial
    }

    /// The balloon, unless the configuration has none.
    pub fn balloon(&self) -> Option<&Arc<dyn Balloon>> {
        self.balloon.as_ref()
    }

    /// The ACPI power button.
    pub fn power(&self) -> &Arc<Power> {
        &self.power
    }

    /// The virtio devices in the order of their register blocks.
    pub fn virtio(&self) -> &[Arc<MmioTransport>] {
        &self.virtio
    }

    /// Where the run's end can be brought about from outside.
    pub fn verdict(&self) -> &Arc<Verdict> {
        &self.verdict
    }
}

/// Says what is lost and ends the process as it stands.
fn end_on_pager_failure(failure: &PagerFailure) {
    terminal::restore();
    report::line(&failure.to_string());
    // SAFETY: it does not return. Nothing may be closed before the threads that wait for the page are gone: they would
    // wake to zeroes, and write them to the user's disks.
    unsafe { libc::_exit(i32::from(STATUS_ERROR)) }
}

fn new_eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// What the serial port writes to and, where that may block, what ends the blocking.
fn open_console(target: &ConsoleTarget) -> Result<(serial::Output, Option<OutputCut>), MachineError> {
    let output = match target {
        ConsoleTarget::Stdio => {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            ConsoleOutput::new(stdout.map_err(|cause| MachineError::System { what: "stdout", cause })?)
        }
        ConsoleTarget::None => return Ok((Box::new(io::sink()), None)),
        // The file may be a pipe or a terminal as well.
        ConsoleTarget::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            ConsoleOutput::new(file.map_err(|cause| MachineError::Console { path: path.clone(), cause })?.into())
        }
    };
    let cut = output.output_cut();
    Ok((Box::new(output), Some(cut)))
}

/// Puts kernel, initrd, command line, firmware tables and boot parameters into guest memory.
fn load_guest(config: &MachineConfig, host: &Host, ram: &GuestRam, platform: &Platform) -> Result<Entry, MachineError> {
    let memory = ram.memory();
    let low_ram_end = ram.regions().first().map_or(0, |region| region.bytes);
    let kernel = boot::kernel::load(&config.kernel, memory, low_ram_end)?;
    let initrd = match &config.initrd {
        Some(path) => Some(boot::initrd::load(path, memory, &kernel, low_ram_end)?),
        None => None,
    };
    let command_line =
        boot::cmdline::compose(&config.cmdline, config.bare_cmdline, host.virtualization, &platform.virtio)?;
    load_cmdline(memory, GuestAddress(layout::COMMAND_LINE), &command_line)
        .map_err(|error| BootError::CommandLine(error.to_string()))?;
    let command_line_bytes =
        command_line.as_cstring().map_err(|error| BootError::CommandLine(error.to_string()))?.as_bytes().len();

    let rsdp_address = firmware::write(memory, platform)?;
    match kernel.entry {
        Entry::Linux64 { .. } => boot::linux::write_zero_page(
            memory,
            ram.regions(),
            &kernel,
            initrd.as_ref(),
            command_line_bytes,
            rsdp_address,
        )?,
        Entry::Pvh { .. } => {
            boot::pvh::write_start_info(memory, ram.regions(), initrd.as_ref(), rsdp_address)?;
        }
    }
    Ok(kernel.entry)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_console_pipe_nobody_reads_lets_go() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pipe");
        let c_path = CString::new(path.as_os_str().as_bytes()).expect("no zero in it");
        // SAFETY: the call reads one string that ends in a zero byte.
        assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
        let mut reader = OpenOptions::new();
        let _reader: File = reader.read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("a reader");
        let (mut output, cut) = open_console(&ConsoleTarget::File(path)).expect("a console");
        cut.expect("it may block").cut();
        // More than a pipe holds.
        assert!(output.write_all(&[0; 1 << 20]).is_err());
    }
}
