//! The kernel's own overcommit on ordinary hosts: there a cgroup's limit has guests' memory swapped, and ours works within the same.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use cistern_tests::baseline::reach::Reach;
use cistern_tests::debian::CloudKernel;
use cistern_tests::lab::{Lab, Transcript};
use cistern_tests::paged::folder_on_disk;
use cistern_tests::process;

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
PROGRAM
state | diff /tmp/before -
"#;

/// Runs it where cgroups are mounted like that.
fn in_nested_host(kernel: CloudKernel, cgroup: &str, program: &Path, arguments: &str) -> Result<Transcript> {
    let folder = folder_on_disk();
    let image = folder.path().join("disk");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).arg("1G").output()?;
    assert!(made.status.success(), "mkfs.ext4 (Debian package e2fsprogs): {made:?}");
    let name = program.file_name().expect("a program has a name").to_str().expect("cargo's names are plain");
    let transcript = Lab::new(kernel)?
        .with_modules(&["zram"])?
        .with_program(process::binary())?
        .with_program(program)?
        .with_disk(&image)
        .step("set up", SET_UP)
        .step("run", &RUN.replace("CGROUP", cgroup).replace("PROGRAM", &format!("{name} {arguments}")))
        .run(LIMIT)?;
    transcript.check()?;
    Ok(transcript)
}

/// The same guests in the same cgroup, under Linux with what this kernel has, and under ours.
#[test]
fn a_limit_holds_guests_6_12() -> Result<()> {
    let experiments = Path::new(env!("CARGO_BIN_EXE_experiments"));
    let transcript = in_nested_host(CloudKernel::V6_12, "cgroup2", experiments, "packing --short --out /tmp/out")?;
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
    Ok(())
}

/// Version 1, which Linux 6.12 is built without.
#[test]
fn a_limit_of_version_1_reaches_guests_6_1() -> Result<()> {
    let this = std::env::current_exe()?;
    let arguments = "--ignored --exact reach_of_a_limit --nocapture";
    let transcript = in_nested_host(CloudKernel::V6_1, "cgroup -o memory", &this, arguments)?;
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
