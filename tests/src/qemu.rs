//! QEMU as a whole machine with emulated AMD-V: the hardware under the nested host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::ends_with_this_thread;

/// How often the end of the machine is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A machine to run once, with two serial ports written to files.
#[derive(Debug)]
pub struct Machine<'a> {
    /// bzImage or PVH ELF kernel.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// Further arguments, like `-device` ones.
    pub arguments: &'a [String],
    /// What the guest writes to its first port all the while it is alive. A kernel that only complains of CPUs that are stuck
    /// is not.
    pub heartbeat: &'a str,
    /// It does so at least this often; when it does not, it stands still for good.
    pub longest_silence: Duration,
}

/// How a machine's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It stopped by itself.
    Stopped,
    /// It was stopped at the end of its time.
    OutOfTime,
    /// It was stopped because its heartbeat was not seen any more.
    Silent,
}

/// What a machine wrote to its serial ports.
#[derive(Debug)]
pub struct Output {
    /// First port.
    pub ttys0: String,
    /// Second port.
    pub ttys1: String,
    /// How it ended.
    pub end: End,
}

impl Machine<'_> {
    /// Runs the machine until the guest resets or powers it off, at most for `limit`.
    ///
    /// # Errors
    /// QEMU is missing, cannot be started, or ended with an error of its own.
    pub fn run(&self, limit: Duration) -> Result<Output> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let ports: [PathBuf; 2] = ["ttyS0", "ttyS1"].map(|name| directory.path().join(name));
        let errors = directory.path().join("stderr");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-display", "none"])
            .arg("-no-reboot")
            .args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", self.cmdline]);
        for port in &ports {
            command.arg("-serial").arg(format!("file:{}", port.display()));
        }
        command.args(self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        ends_with_this_thread(&mut command, libc::SIGKILL);
        let mut child = Running(command.spawn().context("qemu-system-x86_64 (Debian package qemu-system-x86)")?);
        let deadline = Instant::now() + limit;
        let (mut heartbeats, mut last_heartbeat) = (0, Instant::now());
        let end = loop {
            if let Some(status) = child.0.try_wait()? {
                if !status.success() {
                    bail!("qemu-system-x86_64: {status}: {}", fs::read_to_string(&errors)?.trim_end());
                }
                break End::Stopped;
            }
            let found = fs::read(&ports[0]).map_or(0, |bytes| text(&bytes).matches(self.heartbeat).count());
            if found != heartbeats {
                (heartbeats, last_heartbeat) = (found, Instant::now());
            }
            if Instant::now() > deadline {
                break End::OutOfTime;
            }
            if last_heartbeat.elapsed() > self.longest_silence {
                break End::Silent;
            }
            thread::sleep(POLL_INTERVAL);
        };
        drop(child);
        let [ttys0, ttys1] = ports.map(|port| fs::read(port).unwrap_or_default());
        Ok(Output { ttys0: text(&ttys0), ttys1: text(&ttys1), end })
    }
}

/// Serial output as text with plain line ends; what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

/// A child that does not outlive the test, whichever way that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
