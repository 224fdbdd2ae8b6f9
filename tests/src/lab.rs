//! The nested host: an ordinary AMD-V host with `kvm_amd`, emulated by QEMU, from Debian packages alone.
//!
//! A lab is a set of files and of named steps, shell scripts that run one after the other in one boot (which costs
//! seconds). Steps find `/dev/kvm`, busybox, the helper programs of `kernels/linux/tools`, and what was added. What
//! steps print comes out of the second serial port, so the nested host's kernel cannot write into it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::debian::CloudKernel;
use crate::initramfs::Initramfs;
use crate::qemu::{End, Machine, Output};

/// The nested host's kernel now and then oopses while it boots under emulation, or stands still; so many boots are tried.
const BOOT_ATTEMPTS: u32 = 3;

/// With a thread for each CPU, QEMU now and then loses an interrupt between them, or runs an instruction that the other has half
/// written, after minutes of virtualization; one thread for two takes twice as long as one for one.
const CPUS: u32 = 1;

/// A line that the nested host prints all the while it does not stand still.
const HEARTBEAT: &str = "lab: alive";
const HEARTBEAT_SECONDS: u64 = 10;
/// So long without one tells that from a busy machine.
const LONGEST_SILENCE: Duration = Duration::from_secs(12 * HEARTBEAT_SECONDS);

/// Starts the line that says a step begins or has ended. Followed by a space and the step's number, and at the end by
/// another and its status.
const BEGIN_MARK: &str = "@lab-begin";
const END_MARK: &str = "@lab-end";

/// What a kernel prints when it has failed.
const OOPS_SIGNS: [&str; 6] =
    ["Oops:", "BUG:", "Kernel panic", "general protection fault", "kernel BUG at", "double fault:"];

/// What a nested host has loaded before its first step.
const MODULES: [&str; 8] = ["kvm", "kvm-amd", "loop", "tun", "virtio_rng", "virtio_pci", "virtio_blk", "ext4"];

/// One at a time in a process: two emulated machines on a few CPUs only make each other run out of time.
static MACHINE: Mutex<()> = Mutex::new(());

/// A nested host to be booted.
#[derive(Debug)]
pub struct Lab {
    kernel: CloudKernel,
    bzimage: PathBuf,
    initramfs: Initramfs,
    memory_mib: u32,
    arguments: Vec<String>,
    steps: Vec<(String, String)>,
}

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Exit status of its script; `None` when it did not end.
    pub status: Option<i32>,
    /// Everything it printed, standard output and error together.
    pub output: String,
}

/// What happened in a nested host.
#[derive(Debug)]
pub struct Transcript {
    /// The steps that were started, in order.
    pub steps: Vec<Step>,
    /// What the nested host's kernel printed.
    pub console: String,
    /// How many boots it took; more than one when the nested host's own kernel failed before the first step, or stood still.
    pub boots: u32,
}

impl Lab {
    /// A nested host under this kernel, fetched if need be, with 2 GiB and [`CPUS`].
    ///
    /// # Errors
    /// The kernel cannot be had, or the initramfs not be built: a missing package is named.
    pub fn new(kernel: CloudKernel) -> Result<Lab> {
        let package = kernel.fetch()?;
        let mut initramfs = Initramfs::new()?;
        initramfs.add_modules(&package, &MODULES)?;
        Ok(Lab {
            kernel,
            bzimage: package.bzimage,
            initramfs,
            memory_mib: 2048,
            arguments: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Sets the nested host's RAM.
    pub fn with_memory_mib(mut self, memory_mib: u32) -> Lab {
        self.memory_mib = memory_mib;
        self
    }

    /// Loads modules of the nested host's kernel, with all they depend on, besides those that it always has.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub fn with_modules(mut self, names: &[&str]) -> Result<Lab> {
        self.initramfs.add_modules(&self.kernel.fetch()?, &[&MODULES, names].concat())?;
        Ok(self)
    }

    /// Adds a program of this machine, with its shared libraries, under `/bin`.
    ///
    /// # Errors
    /// As for [`Initramfs::add_program`].
    pub fn with_program(mut self, program: &Path) -> Result<Lab> {
        self.initramfs.add_program(program)?;
        Ok(self)
    }

    /// Adds a file of this machine at an absolute path of the nested host. All of it lies in the nested host's RAM.
    pub fn with_file(mut self, guest_path: &str, source: &Path) -> Lab {
        self.initramfs.add_file(guest_path, source);
        self
    }

    /// Adds a disk with this image: `/dev/vda` for the first, and so on.
    pub fn with_disk(self, image: &Path) -> Lab {
        let id = format!("disk{}", self.arguments.len());
        // What is written need not outlive this machine, so nobody waits for its own disk.
        self.with_argument("-drive")
            .with_argument(&format!("file={},if=none,id={id},format=raw,cache=unsafe", image.display()))
            .with_argument("-device")
            .with_argument(&format!("virtio-blk-pci,drive={id}"))
    }

    /// Adds a QEMU argument, for further devices.
    pub fn with_argument(mut self, argument: &str) -> Lab {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Adds a step: a script for busybox's shell. A step that fails does not keep the later ones from running.
    pub fn step(mut self, name: &str, script: &str) -> Lab {
        self.steps.push((name.to_owned(), script.to_owned()));
        self
    }

    /// Boots the nested host, runs the steps, at most for `limit`, and returns what they did.
    ///
    /// # Errors
    /// QEMU cannot run; the nested host did not come to the first step, or stood still as a whole, in [`BOOT_ATTEMPTS`] boots
    /// if it was its own kernel that failed. A step that fails is no error here: see [`Transcript::check`].
    pub fn run(mut self, limit: Duration) -> Result<Transcript> {
        let mut script = format!(
            "(while echo '<0>{HEARTBEAT}' > /dev/kmsg; do sleep {HEARTBEAT_SECONDS}; done) &\n\
             exec >/dev/ttyS1 2>&1 </dev/null\n"
        );
        for (number, (_, step)) in self.steps.iter().enumerate() {
            let path = format!("/lab/{number}");
            self.initramfs.add_bytes(&path, step.as_bytes());
            // A mark must start a line, whatever the step printed last.
            script.push_str(&format!("echo '{BEGIN_MARK} {number}'; sh {path}; echo \"\n{END_MARK} {number} $?\"\n"));
        }
        self.initramfs.add_bytes("/lab/run", script);
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let archive = directory.path().join("initramfs.cpio");
        self.initramfs.write(&archive)?;
        let machine = Machine {
            kernel: &self.bzimage,
            initramfs: &archive,
            // An oops stops the machine at once instead of leaving it to the time limit.
            cmdline: "console=ttyS0 reboot=k panic=-1 oops=panic mitigations=off quiet init.run=\"sh /lab/run\"",
            memory_mib: self.memory_mib,
            cpus: CPUS,
            arguments: &self.arguments,
            heartbeat: HEARTBEAT,
            longest_silence: LONGEST_SILENCE,
        };
        let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.kernel.version();
        let mut boots = 1;
        loop {
            let Output { ttys0, ttys1, end } = machine.run(limit)?;
            let console = without_heartbeat(&ttys0);
            let steps = parse_steps(&ttys1, &self.steps);
            let failure = match end {
                End::Silent => "stood still",
                _ if !steps.is_empty() => return Ok(Transcript { steps, console, boots }),
                _ if has_oops(&console) => "had a kernel that failed",
                End::OutOfTime => bail!("nested host {version}: ran out of time before its first step:\n{console}"),
                End::Stopped => bail!("nested host {version}: stopped before its first step:\n{console}"),
            };
            if boots == BOOT_ATTEMPTS {
                bail!("nested host {version}: {failure} in the last of {boots} boots; steps:\n{steps:?}\n{console}");
            }
            eprintln!("nested host {version}: {failure} in boot {boots} of {BOOT_ATTEMPTS}; steps: {steps:?}");
            boots += 1;
        }
    }
}

impl Transcript {
    /// The step of this name, if it was started.
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// Fails unless every step that was started ended with status 0 and the nested host's kernel had nothing to
    /// complain of. Steps that were not started follow one that did not end, so they are covered.
    ///
    /// # Errors
    /// Names the first step that failed, with its output; or holds the nested host's console.
    pub fn check(&self) -> Result<()> {
        for step in &self.steps {
            match step.status {
                Some(0) => {}
                Some(status) => bail!("step {}: status {status}:\n{}", step.name, step.output),
                None => bail!(
                    "step {}: did not end:\n{}\nthe nested host's console:\n{}",
                    step.name,
                    step.output,
                    self.console
                ),
            }
        }
        if has_oops(&self.console) {
            bail!("the nested host's kernel failed after the steps had begun:\n{}", self.console);
        }
        Ok(())
    }
}

/// What the console shows besides the heartbeat.
fn without_heartbeat(console: &str) -> String {
    console.split_inclusive('\n').filter(|line| !line.contains(HEARTBEAT)).collect()
}

fn has_oops(console: &str) -> bool {
    OOPS_SIGNS.iter().any(|sign| console.contains(sign))
}

/// Finds the steps in what came out of the second serial port.
fn parse_steps(output: &str, steps: &[(String, String)]) -> Vec<Step> {
    let mut found = Vec::new();
    for (number, (name, _)) in steps.iter().enumerate() {
        let begin = format!("{BEGIN_MARK} {number}\n");
        let Some(start) = output.find(&begin) else { break };
        let rest = &output[start + begin.len()..];
        let end = format!("\n{END_MARK} {number} ");
        let (text, status) = match rest.find(&end) {
            Some(at) => (&rest[..at], rest[at + end.len()..].lines().next().and_then(|word| word.parse().ok())),
            None => (rest, None),
        };
        found.push(Step { name: name.clone(), status, output: text.to_owned() });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_steps() -> Vec<(String, String)> {
        ["first", "second"].map(|name| (name.to_owned(), String::new())).to_vec()
    }

    #[test]
    fn steps_from_output() {
        let output = "@lab-begin 0\na\nb\n\n@lab-end 0 0\n@lab-begin 1\nno newline\n@lab-end 1 3\n";
        let found = parse_steps(output, &two_steps());
        assert_eq!(found[0], Step { name: "first".into(), status: Some(0), output: "a\nb\n".into() });
        assert_eq!(found[1], Step { name: "second".into(), status: Some(3), output: "no newline".into() });
    }

    #[test]
    fn the_heartbeat_is_not_shown() {
        assert_eq!(without_heartbeat("[ 1.2] lab: alive\noops\n[ 9.8] lab: alive\nend"), "oops\nend");
    }

    #[test]
    fn step_that_did_not_end() {
        let found = parse_steps("@lab-begin 0\nand then", &two_steps());
        assert_eq!(found, [Step { name: "first".into(), status: None, output: "and then".into() }]);
        assert!(parse_steps("nothing", &two_steps()).is_empty());
    }

    #[test]
    fn check_tells_failures_apart() {
        let step = |status| Step { name: "s".into(), status, output: String::new() };
        let transcript =
            |status, console: &str| Transcript { steps: vec![step(status)], console: console.into(), boots: 1 };
        assert!(transcript(Some(0), "quiet").check().is_ok());
        assert!(transcript(Some(1), "quiet").check().is_err());
        assert!(transcript(None, "quiet").check().is_err());
        assert!(transcript(Some(0), "[ 9.1] BUG: unable to handle page fault").check().is_err());
    }
}
