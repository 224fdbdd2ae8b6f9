//! The kernel's own overcommit on ordinary hosts: there a cgroup's limit has guests' memory swapped, and ours works within the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use cistern_tests::baseline::host::Host;
use cistern_tests::baseline::reach::Reach;
use cistern_tests::debian::CloudKernel;
use cistern_tests::lab::{Lab, Transcript};
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::{self, Running};

/// Generous: it is three minutes of a CPU, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(1800);

/// Programs by their names, and a disk: there is no swapping to a file in an initramfs.
const SET_UP: &str = "busybox --install -s /bin 2>/dev/null\nset -e; mount -t ext4 /dev/vda /tmp";

/// What is changed for a baseline is as it was after it.
const RUN: &str = r#"set -e
mkdir -p /sys/fs/cgroup
mount -t CGROUP memory /sys/fs/cgroup
state() {
    cat /proc/swaps /proc/sys/vm/page-cluster /sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/pages_to_scan
    ls /sys/block /sys/fs/cgroup
    cat /sys/fs/cgroup/cgroup.subtree_control || true
}
state > /tmp/before
PROGRAMS
state | diff /tmp/before -
"#;

/// Runs programs with arguments, one after the other, where cgroups are mounted like that.
fn in_nested_host(kernel: CloudKernel, cgroup: &str, programs: &[(&Path, &str)]) -> Result<Transcript> {
    let folder = folder_on_disk();
    let image = folder.path().join("disk");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).arg("1G").output()?;
    assert!(made.status.success(), "mkfs.ext4 (Debian package e2fsprogs): {made:?}");
    // busybox has one that makes no device past the page cache.
    let mut lab = Lab::new(kernel)?
        .with_modules(&["zram"])?
        .with_program(process::binary())?
        .with_program(Path::new("/usr/sbin/losetup"))?
        .with_disk(&image);
    let mut lines = Vec::new();
    for (program, arguments) in programs {
        lab = lab.with_program(program)?;
        let name = program.file_name().expect("a program has a name").to_str().expect("cargo's names are plain");
        lines.push(format!("{name} {arguments}"));
    }
    let transcript = lab
        .step("set up", SET_UP)
        .step("run", &RUN.replace("CGROUP", cgroup).replace("PROGRAMS", &lines.join("\n")))
        .run(LIMIT)?;
    transcript.check()?;
    Ok(transcript)
}

/// The same guests in the same cgroup, under Linux with what this kernel has, and under ours.
#[test]
fn a_limit_holds_guests_6_12() -> Result<()> {
    let experiments = Path::new(env!("CARGO_BIN_EXE_experiments"));
    let this = std::env::current_exe()?;
    let programs: [(&Path, &str); 2] = [
        (experiments, "packing --short --out /tmp/out"),
        (&this, "--ignored --exact a_disk_that_is_slow_for_a_cgroup --nocapture"),
    ];
    let transcript = in_nested_host(CloudKernel::V6_12, "cgroup2", &programs)?;
    let said = &transcript.step("run").expect("it was started").output;
    println!("{said}");
    let row = |name: &str| said.lines().find(|line| line.split_whitespace().next() == Some(name));
    for name in ["zram", "zram+ksm", "file", "file+ksm"] {
        let row = row(name).unwrap_or_else(|| panic!("no {name}: {said}"));
        assert!(row.contains(" 4 guests") && row.contains("limit met ") && !row.contains("limit met 0 "), "{row}");
    }
    assert!(row("zswap-20-lz4").is_some_and(|row| row.ends_with("this kernel has no zswap")), "{said}");
    assert!(
        row("ours").is_some_and(|row| row.contains(" 4 guests") && row.ends_with(" 0 MiB swapped, 0 killed")),
        "{said}"
    );
    assert!(said.contains("one memory cgroup (version 2) holds all guests"), "{said}");
    // That no page is bad and no guest was killed is under "holds", or there had been another status.
    assert_eq!(said.lines().filter(|line| line.starts_with("  holds: ")).count(), 10, "{said}");
    assert!(said.contains("slow for its cgroup: "), "{said}");
    Ok(())
}

/// What the kernel swaps of a guest is the cgroup's, whoever it is that writes.
#[test]
#[ignore = "started in the nested host by a_limit_holds_guests_6_12"]
fn a_disk_that_is_slow_for_a_cgroup() -> Result<()> {
    let (folder, baseline) = (folder_on_disk(), "slow-file".parse()?);
    let mut host = Host::prepare(baseline, 8 * MIB, 64 * MIB, folder.path())?;
    let error = host.expect_slow_for_everybody().expect_err("there is no version 1");
    assert!(error.to_string().starts_with("a slow disk needs"), "{error}");
    let cgroup = host.cgroup()?;
    let mut command = Command::new(process::binary());
    command.args(["run", "--memory", "32M", "--cmdline", "probe=\"fill:8M,random=100;repeat:1000000,(verify)\""]);
    command.arg("--kernel").arg(process::probe()).stdin(Stdio::null());
    cgroup.enter(&mut command)?;
    let mut guest = Running::spawn(command);
    guest.wait_for_phase("fill");
    let of_cgroup = |file: &str| format!("/sys/fs/cgroup/cistern-tests-{}/{file}", std::process::id());
    // Other than the limit, which does not wait for a slow disk, this one kills nobody.
    fs::write(of_cgroup("memory.high"), (cgroup.usage()?.charged_bytes - 2 * MIB).to_string())?;
    guest.catch_up();
    assert_eq!(guest.wait_for_phase("verify")["bad"], 0);
    assert!(cgroup.usage()?.swapped_bytes > 0, "nothing was swapped");
    let read = |file| fs::read_to_string(of_cgroup(file)).context(file);
    let (most, done) = (read("io.max")?, read("io.stat")?);
    let (device, most) = most.trim().split_once(' ').context("one device has a limit")?;
    assert_eq!(most, "rbps=max wbps=max riops=100 wiops=100");
    let done = done.lines().find(|line| line.split_once(' ').is_some_and(|(found, _)| found == device));
    let is_charged = |word: &str| word.strip_prefix("wios=").is_some_and(|count| count != "0");
    assert!(done.is_some_and(|line| line.split(' ').any(is_charged)), "{done:?}");
    println!("slow for its cgroup: {done:?}");
    drop(guest);
    host.restore()
}

/// Version 1, which Linux 6.12 is built without.
#[test]
fn a_limit_of_version_1_reaches_guests_6_1() -> Result<()> {
    let this = std::env::current_exe()?;
    let arguments = "--ignored --exact reach_of_a_limit --nocapture";
    let transcript = in_nested_host(CloudKernel::V6_1, "cgroup -o memory", &[(&this, arguments)])?;
    let said = &transcript.step("run").expect("it was started").output;
    assert!(said.contains("found: Guests(V1)"), "{said}");
    Ok(())
}

#[test]
#[ignore = "started in the nested host by a_limit_of_version_1_reaches_guests_6_1"]
fn reach_of_a_limit() -> Result<()> {
    println!("found: {:?}", Reach::find(folder_on_disk().path())?);
    Ok(())
}
