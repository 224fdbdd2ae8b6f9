//! Tests on the nested host: an ordinary AMD-V host under emulation, once with each of two kernels.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use cistern_tests::cycles::{Cycles, HOMES};
use cistern_tests::debian::CloudKernel;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::lab::Lab;
use cistern_tests::paged::{MIB, counter, folder_on_disk, without_histograms};
use cistern_tests::process;
use serde_json::Value;

/// Generous: a boot takes seconds, but the machine may be busy.
const LIMIT: Duration = Duration::from_secs(300);

/// The lab itself: `kvm_amd` is there, steps report what they did, and a failing one does not stop the next.
fn lab_works(kernel: CloudKernel) -> Result<()> {
    let transcript = Lab::new(kernel)?
        .step("kernel", "uname -r")
        .step("kvm", "set -e; test -c /dev/kvm; grep -qw svm /proc/cpuinfo; test -d /sys/module/kvm_amd")
        .step("nested paging", "cat /sys/module/kvm_amd/parameters/npt")
        .step("failing", "echo before; exit 7")
        .step("after", "printf 'no newline at the end'")
        .run(LIMIT)?;

    assert_eq!(transcript.steps.len(), 5, "{transcript:?}");
    let step = |name| transcript.step(name).expect("the step was started");
    assert!(step("kernel").output.starts_with(&format!("{}.", kernel.version())), "{transcript:?}");
    assert_eq!(step("kvm").status, Some(0), "{transcript:?}");
    assert!(matches!(step("nested paging").output.trim(), "1" | "Y"), "{transcript:?}");
    assert_eq!((step("failing").status, step("failing").output.trim()), (Some(7), "before"));
    assert_eq!((step("after").status, step("after").output.as_str()), (Some(0), "no newline at the end"));
    let error = transcript.check().expect_err("one step failed");
    assert!(error.to_string().contains("step failing: status 7"), "{error}");
    Ok(())
}

#[test]
fn lab_6_1() -> Result<()> {
    lab_works(CloudKernel::V6_1)
}

#[test]
fn lab_6_12() -> Result<()> {
    lab_works(CloudKernel::V6_12)
}

/// A disk whose content the guest must find, and change.
const MAKE_DISK: &str =
    "dd if=/dev/urandom of=/tmp/disk bs=1M count=4 2>/dev/null; sha256sum < /tmp/disk > /tmp/before";

/// What a Linux guest does with it: prints its checksum and the number of its CPUs, then writes to it.
const USE_DISK: &str = "echo cpus $(nproc); sha256sum < /dev/vda; dd if=/dev/vda of=/dev/vda bs=512 count=2048 \
                        seek=4096 2>/dev/null; sync; head -c 16 /dev/hwrng | wc -c";

/// The host's side: the guest saw what was there, and what it wrote has arrived.
const CHECK_DISK: &str = "set -e; cat /tmp/log; grep -q 'cpus 2' /tmp/log; grep -qF \"$(cat /tmp/before)\" /tmp/log; \
                          grep -q '^16' /tmp/log; grep -q 'init.run: status 0' /tmp/log; \
                          cmp -n 1048576 /tmp/disk /tmp/disk 0 2097152";

/// Two guests with like pages, some of which they write to once these are merged. What was found of KSM is there again after
/// that.
const MERGE: &str = r#"set -e
cat /sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/pages_to_scan > /tmp/ksm-before
for vm in a b; do
    cistern run --kernel /g/probe --memory 64M --budget 96M --pool /tmp/pool --name $vm --api-sock /tmp/$vm         --sharing zero,store,ksm --scan-cpu 50 --ksm-tune --cmdline         'probe="fill:24M,zero=10,dup=60,text=30;repeat:1000,(verify;walk:24M,touches=20,write=100;idle:1)"'         > /tmp/$vm.log 2>&1 &
    echo $! > /tmp/$vm.pid
done
merged() {
    echo $(($(cat /proc/$(cat /tmp/a.pid)/ksm_merging_pages) + $(cat /proc/$(cat /tmp/b.pid)/ksm_merging_pages)))
}
verifies() {
    grep -c '"verify"' /tmp/$1.log || true
}
seconds=0
until [ $(merged) -ge 5500 ]; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $seconds = 400 ]; then
        cat /tmp/a.log
        cistern sharing /tmp/a
        exit 99
    fi
done
for vm in a b; do
    count=$(verifies $vm)
    until [ $(verifies $vm) -ge $((count + 2)) ]; do
        sleep 1
        kill -0 $(cat /tmp/$vm.pid)
    done
done
cistern sharing /tmp/a
cistern stats /tmp/a --json > /tmp/merged.json
for pid in $(cat /tmp/a.pid) $(cat /tmp/b.pid); do
    kill $pid
    kill $pid
    while kill -0 $pid 2>/dev/null; do
        sleep 1
    done
done
cat /tmp/a.log /tmp/b.log
cat /sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/pages_to_scan | cmp - /tmp/ksm-before
"#;

/// Where pages cannot be moved they cannot be merged: that is said at once.
const MERGE_IN_VAIN: &str =
    "cistern run --kernel /g/probe --memory 64M --budget 96M --pool /tmp/pool --sharing ksm --timeout 20";

/// The same binary as on this machine boots everything there, too.
fn cistern_boots(kernel: CloudKernel) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let package = kernel.fetch()?;
    let cloud_initramfs = scratch.path().join("cloud.cpio");
    Initramfs::for_cloud_guest(&package)?.write(&cloud_initramfs)?;

    let probe = "cistern run --kernel /g/probe --memory 256M --cpus 2 --cmdline 'probe=\"fill:64M,zero=20,dup=20,\
                 text=40,random=20,seed=7;verify;walk:32M,secs=1,dist=zipf,write=30;free:16M;idle:1;verify\"'";
    let boot = |images: &str| {
        format!(
            "{MAKE_DISK}; timeout 200 cistern run {images} --cpus 2 --memory 256M --disk /tmp/disk --rng \
             --cmdline 'init.run=\"{USE_DISK}\"' > /tmp/log 2>&1; status=$?; [ $status = 0 ] || {{ cat /tmp/log; \
             exit $status; }}; {CHECK_DISK}"
        )
    };
    let cloud = "--kernel /g/vmlinuz --initrd /g/cloud.cpio";
    // Ready means: the guest listens to its power button.
    let power_button = format!(
        "cistern run {cloud} --memory 256M --cmdline 'init.run=\"echo ready; sleep 1000\"' > /tmp/log 2>&1 & \
         while ! grep -q ready /tmp/log; do sleep 1; kill -0 $! || break; done; kill -TERM $!; wait $!; status=$?; \
         cat /tmp/log; grep -q 'init: power button' /tmp/log || exit 99; exit $status"
    );
    let panic = format!(
        "cistern run {cloud} --memory 256M --cmdline 'init.run=\"echo c > /proc/sysrq-trigger\"' > /tmp/log 2>&1; \
         status=$?; cat /tmp/log; exit $status"
    );
    let transcript = Lab::new(kernel)?
        .with_program(process::binary())?
        .with_file("/g/probe", process::probe())
        .with_file("/g/vmlinux", &Guest::VmlinuxSmp.build()?)
        .with_file("/g/initramfs.cpio", &Guest::Initramfs.build()?)
        .with_file("/g/vmlinuz", &package.bzimage)
        .with_file("/g/cloud.cpio", &cloud_initramfs)
        .step("host", "cistern host --json")
        .step("probe", probe)
        .step("our Linux", &boot("--kernel /g/vmlinux --initrd /g/initramfs.cpio"))
        .step("stock Debian kernel", &boot(cloud))
        .step("power button", &power_button)
        .step("panic", &panic)
        .step("merging", if kernel == CloudKernel::V6_1 { MERGE_IN_VAIN } else { "" })
        .run(LIMIT * 3)?;

    let step = |name| transcript.step(name).unwrap_or_else(|| panic!("no step {name}: {transcript:?}"));
    let host: Value = serde_json::from_str(step("host").output.trim())?;
    assert_eq!(host["kvm"], "hardware", "{host}");
    // UFFDIO_MOVE came with Linux 6.8.
    assert_eq!(host["userfaultfd"]["move"], kernel == CloudKernel::V6_12, "{host}");
    // First: it shows the nested host's console when that is what failed.
    for (name, status) in
        [("probe", 0), ("our Linux", 0), ("stock Debian kernel", 0), ("power button", 0), ("panic", 3)]
    {
        assert_eq!(step(name).status, Some(status), "{name}:\n{}\nhost:\n{}", step(name).output, transcript.console);
    }
    if kernel == CloudKernel::V6_1 {
        let refusal = "cistern: --sharing ksm: this kernel cannot move merged pages (Linux 6.8): leave out ksm";
        assert_eq!((step("merging").status, step("merging").output.trim()), (Some(1), refusal));
    }
    let reports: Vec<Value> = step("probe")
        .output
        .lines()
        .filter(|line| !line.is_empty())
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let verifies: Vec<_> = reports.iter().filter(|report| report["phase"] == "verify").collect();
    assert_eq!(verifies.len(), 2, "{reports:?}");
    assert!(verifies.iter().all(|verify| verify["bad"] == 0 && verify["pages"].as_u64() > Some(0)), "{reports:?}");
    Ok(())
}

#[test]
fn cistern_6_1() -> Result<()> {
    cistern_boots(CloudKernel::V6_1)
}

#[test]
fn cistern_6_12() -> Result<()> {
    cistern_boots(CloudKernel::V6_12)
}

/// Cycles on each nested host; what they are is said in [`cistern_tests::cycles`].
const CYCLES: u64 = 20_000;

/// Pages that are churned there, under a quarter of their size.
const CHURNED_PAGES: u64 = 32 * MIB / 4096;

/// Runs the guest until it has verified its pages; it idles while its counters are read. One that takes too long is shown.
const CHURN: &str = r#"set -e
mkdir /disk
mount -t ext4 /dev/vda /disk
cistern run --kernel /g/probe --memory 64M --cpus 2 --resident 8M --swap /disk --api-sock /tmp/socket --cmdline \
    'probe="fill:32M,churn,seed=7;walk:32M,touches=TOUCHES,write=100;verify;idle:1000000"' > /tmp/log 2>&1 &
echo $! > /tmp/pid
seconds=0
while ! grep -q verify /tmp/log && kill -0 $!; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $seconds = 600 ]; then
        cat /tmp/log
        for thread in /proc/$!/task/*; do
            cat $thread/comm $thread/stack
        done
        cistern stats /tmp/socket --json
        exit 99
    fi
done
cat /tmp/log
"#;

/// Memory of a guest leaves it by the way this kernel has for it, to a disk too, and comes back.
fn churn(kernel: CloudKernel, eviction: &str) -> Result<()> {
    let folder = folder_on_disk();
    let image = folder.path().join("disk");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).arg("256M").output()?;
    assert!(made.status.success(), "mkfs.ext4 (Debian package e2fsprogs): {made:?}");

    // Four touches of five find the page out; two of three are reckoned with.
    let touches = (CYCLES + CHURNED_PAGES) * 3 / 2;
    let transcript = Lab::new(kernel)?
        .with_program(process::binary())?
        .with_file("/g/probe", process::probe())
        .with_disk(&image)
        .step("churn", &CHURN.replace("TOUCHES", &touches.to_string()))
        .step("counters", "cistern stats /tmp/socket --json")
        .step("end", "pid=$(cat /tmp/pid); kill $pid; kill $pid; while kill -0 $pid; do sleep 1; done")
        .step("merging", if kernel == CloudKernel::V6_12 { MERGE } else { "" })
        .step("merged", if kernel == CloudKernel::V6_12 { "cat /tmp/merged.json" } else { "" })
        .run(LIMIT * 5)?;
    transcript.check()?;

    let output = |name| &transcript.step(name).unwrap_or_else(|| panic!("no step {name}: {transcript:?}")).output;
    if kernel == CloudKernel::V6_12 {
        let merged: Value = serde_json::from_str(output("merged").trim())?;
        println!("{}\n{}", output("merging"), merged["sharing"]);
        assert!(counter(&merged, "sharing.merging.merged_pages") > 2000, "{merged}");
        assert!(counter(&merged, "evictions.broken") > 0 && counter(&merged, "evictions.zero_freed") > 500, "{merged}");
        let reports = output("merging").lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_good = |report: &Value| report["phase"] != "bad" && (report["bad"].is_null() || report["bad"] == 0);
        assert!(reports.into_iter().all(|report| is_good(&report)), "{}", output("merging"));
    }
    let memory: Value = serde_json::from_str(output("counters").trim())?;
    let memory = without_histograms(memory);
    let reports: Vec<Value> = output("churn").lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let verify = reports.iter().find(|report| report["phase"] == "verify");
    assert!(verify.is_some_and(|verify| verify["pages"] == CHURNED_PAGES), "{transcript:?}");
    assert!(reports.iter().all(|report| report["bad"].is_null() || report["bad"] == 0), "{transcript:?}");
    let cycles = Cycles::of(&memory, CHURNED_PAGES);
    println!("{}: {cycles:?}, {reports:?}, {memory}", kernel.version());
    assert!(cycles.total() >= CYCLES, "{cycles:?}: {memory}");
    cycles.expect_tenths(&HOMES);
    assert_eq!((&memory["eviction"], &memory["swap"]["caching"]), (&eviction.into(), &"direct".into()), "{memory}");
    assert_eq!(counter(&memory, "failures.over_limit_pages"), 0, "{memory}");
    Ok(())
}

#[test]
fn churn_6_1() -> Result<()> {
    churn(CloudKernel::V6_1, "copy")
}

#[test]
fn churn_6_12() -> Result<()> {
    churn(CloudKernel::V6_12, "move")
}
