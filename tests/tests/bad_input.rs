//! Bad input: exit status 1 or 2, one line that says what is wrong, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cistern_tests::process::{cistern, probe};

/// Runs `cistern run` and expects this status and these words on its one line of stderr.
#[track_caller]
fn refused(arguments: &[&str], status: i32, words: &[&str]) {
    let finished = cistern(&[&["run"], arguments].concat()).expect_status(status);
    assert_eq!(finished.stdout, "", "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "no '{word}' in: {}", finished.stderr);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

#[test]
fn a_kernel_that_is_none() {
    let folder = tempfile::tempdir().expect("folder");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("write");
        path
    };
    let image = fs::read(probe()).expect("the probe");

    refused(&[], 2, &["--kernel"]);
    refused(&["--kernel", "/nonexistent/vmlinux"], 1, &["kernel /nonexistent/vmlinux", "No such file"]);
    refused(&["--kernel", path(folder.path())], 1, &["kernel", "directory"]);
    refused(&["--kernel", path(&file("empty", b""))], 1, &["kernel", "neither an ELF vmlinux nor a bzImage"]);
    refused(&["--kernel", path(&file("text", &[b'x'; 5000]))], 1, &["neither"]);
    for bytes in [5, 20, 63, 64, 100, 200, image.len() / 2] {
        refused(&["--kernel", path(&file("short", &image[..bytes]))], 1, &["kernel", "short"]);
    }
    let mut other_machine = image.clone();
    other_machine[18] = 183;
    refused(&["--kernel", path(&file("arm", &other_machine))], 1, &["not for 64-bit x86"]);
    let mut wild_entry = image.clone();
    wild_entry[24..32].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    refused(&["--kernel", path(&file("entry", &wild_entry))], 1, &["entry point 0xffffffff81000000"]);
    // A bzImage header and nothing behind it.
    let mut bzimage = vec![0; 0x400];
    bzimage[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    bzimage[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    bzimage[0x211] = 1;
    bzimage[0x1f1] = 1;
    bzimage[0x1f4..0x1f8].copy_from_slice(&0x1_0000u32.to_le_bytes());
    bzimage[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    refused(&["--kernel", path(&file("bzimage", &bzimage))], 1, &["bzimage", "truncated"]);
}

#[test]
fn garbage_behind_an_elf_header() {
    let folder = tempfile::tempdir().expect("folder");
    let image = fs::read(probe()).expect("the probe");
    let kernel = folder.path().join("garbage");
    // A fixed generator: a failure can be run again.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..60 {
        let mut garbage = image[..4096.min(image.len())].to_vec();
        for _ in 0..=round % 8 {
            let offset = 4 + random() as usize % 400;
            garbage[offset] = random() as u8;
        }
        fs::write(&kernel, &garbage).expect("write");
        // Some of it may even start; it must then end, and never as an error of ours without a line.
        let finished = cistern(&["run", "--kernel", path(&kernel), "--memory", "16M", "--timeout", "0.2"]);
        assert!(matches!(finished.status, Some(0 | 1 | 3 | 4)), "round {round}: {finished:?}");
        assert_eq!(
            finished.stderr.lines().count(),
            usize::from(finished.status != Some(0)),
            "round {round}: {finished:?}"
        );
        assert!(!finished.stderr.contains("panicked"), "round {round}: {finished:?}");
    }
}

#[test]
fn an_initrd_that_does_not_fit() {
    let folder = tempfile::tempdir().expect("folder");
    let initrd = folder.path().join("initrd");
    let kernel = path(probe());
    fs::File::create(&initrd).and_then(|file| file.set_len(64 << 20)).expect("sparse file");
    refused(
        &["--kernel", kernel, "--initrd", path(&initrd), "--memory", "32M"],
        1,
        &["initrd", "needs 64M", "use a larger --memory"],
    );
    refused(&["--kernel", kernel, "--initrd", "/nonexistent"], 1, &["initrd /nonexistent", "No such file"]);
    refused(&["--kernel", kernel, "--initrd", path(folder.path())], 1, &["initrd", "is a directory"]);
}

#[test]
fn memory_no_guest_can_have() {
    let kernel = path(probe());
    refused(&["--kernel", kernel, "--memory", "0"], 2, &["--memory 0B: at least"]);
    refused(&["--kernel", kernel, "--memory", "1M"], 2, &["--memory 1M: at least"]);
    refused(&["--kernel", kernel, "--memory", "5000001"], 2, &["not a multiple of 4K"]);
    refused(&["--kernel", kernel, "--memory", "much"], 2, &["'much' is not a size"]);
    let huge = cistern(&["run", "--kernel", kernel, "--memory", "4000000G"]).expect_status(1);
    let last = huge.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("guest addresses") || last.contains("mapping"), "{huge:?}");
    // An address space of our own that is too small: what mmap grants is the limit then.
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 2000000; exec \"$0\" run --kernel \"$1\" --memory 8G"])
        .arg(cistern_tests::process::binary())
        .arg(probe())
        .output()
        .expect("sh starts");
    assert_eq!(limited.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&limited.stderr);
    assert!(stderr.contains("guest RAM: mapping") && stderr.contains("memory"), "{stderr}");
}

#[test]
fn paging_that_makes_no_sense() {
    let kernel = path(probe());
    refused(&["--kernel", kernel, "--resident", "1M"], 2, &["--resident 1M: at least 8M"]);
    refused(&["--kernel", kernel, "--swap-limit", "1G"], 2, &["--swap-limit 1G", "--swap DIR"]);
    refused(&["--kernel", kernel, "--store-limit", "120%"], 2, &["'120%'", "100%"]);
    refused(&["--kernel", kernel, "--codec", "gzip"], 2, &["--codec"]);
    refused(&["--kernel", kernel, "--reclaim-cpu", "0"], 2, &["--reclaim-cpu 0: 1 to "]);
}

#[test]
fn sharing_that_makes_no_sense() {
    let kernel = path(probe());
    let pool = tempfile::tempdir().expect("folder");
    let pool = path(pool.path());
    refused(&["--kernel", kernel, "--sharing", "tps"], 2, &["'tps'", "off, or some of zero,store,ksm"]);
    refused(&["--kernel", kernel, "--sharing", "off,zero"], 2, &["'off,zero'"]);
    refused(&["--kernel", kernel, "--sharing", "ksm"], 2, &["--sharing ksm", "no pool to merge with", "--pool DIR"]);
    let by_copy = ["--kernel", kernel, "--pool", pool, "--sharing", "zero,ksm", "--eviction", "copy"];
    refused(&by_copy, 2, &["--sharing zero,ksm", "leave out --eviction copy"]);
    refused(&["--kernel", kernel, "--scan-cpu", "0"], 2, &["--scan-cpu 0: 1 to 100 percent"]);
    refused(&["--kernel", kernel, "--scan-cpu", "101"], 2, &["--scan-cpu 101"]);
    refused(&["--kernel", kernel, "--ksm-tune"], 2, &["--ksm-tune", "--pool DIR"]);
    let untuned = ["--kernel", kernel, "--pool", pool, "--ksm-across-nodes", "1"];
    refused(&untuned, 2, &["--ksm-across-nodes 1", "--ksm-tune"]);
    let nodes = ["--kernel", kernel, "--pool", pool, "--ksm-tune", "--ksm-across-nodes", "2"];
    refused(&nodes, 2, &["--ksm-across-nodes 2: 0 or 1"]);
    for arguments in [vec!["sharing", "nobody", "tps"], vec!["sharing", "nobody", "ksm,off"]] {
        let finished = cistern(&arguments).expect_status(2);
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains("off, or some of zero,store,ksm"), "{finished:?}");
    }
}

#[test]
fn devices_that_are_none() {
    let folder = tempfile::tempdir().expect("folder");
    let kernel = path(probe());
    let empty = folder.path().join("empty");
    fs::write(&empty, b"").expect("write");
    refused(&["--kernel", kernel, "--disk", path(folder.path())], 1, &["disk", "is a directory"]);
    refused(&["--kernel", kernel, "--disk", "/nonexistent"], 1, &["disk /nonexistent", "o such file"]);
    refused(&["--kernel", kernel, "--disk", path(&empty)], 1, &["disk", "empty"]);
    refused(&["--kernel", kernel, "--disk", ",ro"], 2, &["FILE[,ro][,direct]"]);
    // A file of the kernel's own, which has a length but no direct I/O.
    let never_direct = "/sys/class/net/lo/mtu,ro,direct";
    refused(&["--kernel", kernel, "--disk", never_direct], 1, &["no direct I/O", "leave out ',direct'"]);
    refused(&["--kernel", kernel, "--net", "eth0"], 2, &["tap=NAME"]);
    refused(&["--kernel", kernel, "--net", "tap=averyveryverylongname"], 1, &["averyveryverylongname"]);
    refused(&["--kernel", kernel, "--vsock", "cid=1,uds=/tmp/x"], 2, &["cid=N,uds=PATH"]);
    refused(&["--kernel", kernel, "--vsock", "cid=3,uds=/nonexistent/socket"], 1, &["/nonexistent/socket"]);
    refused(&["--kernel", kernel, "--console", "tty"], 2, &["stdio, none or file:PATH"]);
    refused(&["--kernel", kernel, "--console", "file:/nonexistent/log"], 1, &["console /nonexistent/log"]);
    refused(&["--kernel", kernel, "--cpus", "0"], 2, &["--cpus 0: 1 to 254"]);
    refused(&["--kernel", kernel, "--timeout", "never"], 2, &["--timeout"]);
    refused(&["--kernel", kernel, "--cmdline", &"x".repeat(3000)], 2, &["--cmdline: longer than"]);
    let disks: Vec<String> = (0..16)
        .map(|number| {
            let disk = folder.path().join(format!("disk{number}"));
            fs::write(&disk, [0; 512]).expect("write");
            path(&disk).to_owned()
        })
        .collect();
    let mut arguments = vec!["--kernel", kernel];
    disks.iter().for_each(|disk| arguments.extend(["--disk", disk.as_str()]));
    refused(&arguments, 2, &["17 virtio devices"]);
}

#[test]
fn odd_configuration_files() {
    let folder = tempfile::tempdir().expect("folder");
    let config = folder.path().join("vm.toml");
    let configure = |text: &[u8]| fs::write(&config, text).expect("write");
    let config = path(&config);
    configure(b"kernel = ");
    refused(&["--config", config], 2, &["vm.toml", "line 1"]);
    configure(b"kernel = \"a\"\nmemori = \"1G\"");
    refused(&["--config", config], 2, &["line 2", "memori"]);
    configure(b"kernel = \"/nonexistent\"\ncpus = \"two\"");
    refused(&["--config", config], 2, &["line 2"]);
    configure(b"\xff\xfe\x00");
    refused(&["--config", config], 2, &["vm.toml"]);
    refused(&["--config", "/nonexistent.toml"], 2, &["/nonexistent.toml", "No such file"]);
    refused(&["--config", path(folder.path())], 2, &["directory"]);
    configure(b"kernel = \"/nonexistent\"");
    refused(&["--config", config], 1, &["kernel /nonexistent"]);
}

#[test]
fn words_that_mean_nothing() {
    for (arguments, words) in [
        (vec!["fly"], "fly"),
        (vec!["run", "--fly"], "--fly"),
        (vec!["run", "extra"], "extra"),
        (vec!["guest", "write", "probe"], "required"),
    ] {
        let finished = cistern(&arguments).expect_status(2);
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains(words), "{finished:?}");
    }
    let unknown = cistern(&["guest", "write", "nobody", "/tmp/x"]).expect_status(1);
    assert!(unknown.stderr.contains("no guest named 'nobody'"), "{unknown:?}");
}

#[test]
fn kvm_that_may_not_be_used() {
    // A user of no group that may open /dev/kvm, in a copy the user can reach.
    let folder = tempfile::tempdir().expect("folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let binary = folder.path().join("cistern");
    fs::copy(cistern_tests::process::binary(), &binary).expect("copy");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .args(["run", "--kernel", "/dev/null"])
        .output()
        .expect("setpriv starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.trim(), "cistern: /dev/kvm: permission denied: run as a member of group kvm");
}
