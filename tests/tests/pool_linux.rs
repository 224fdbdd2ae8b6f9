//! Linux guests in a pool: what they do not need goes first, and comes back before anything is swapped or killed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::control::ask;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::paged::{MIB, counter, folder_on_disk, without_histograms};
use cistern_tests::process::{LIMIT, Running, binary, probe};
use serde_json::Value;

/// Fills memory and ends, so that it is free; fills its page cache, which lasts as long as the disk is open; needs memory
/// again. It goes on when it is told to.
const SCRIPT: &str = r#"
hog 50M
echo first done
read line < /dev/ttyS0
exec 3< /dev/vda
dd bs=1M <&3 > /dev/null 2>&1
echo cached
read line < /dev/ttyS0
echo read $line
hog 80M
echo second done
dmesg | grep -i -c 'out of memory' || true
"#;

/// What the guest reads into its page cache.
const CACHED_BYTES: usize = 48 << 20;

/// A VM of this pool.
fn member(folder: &Path, name: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(binary());
    command.args(["run", "--name", name, "--pool"]).arg(folder.join("pool")).args(["--budget", "170M", "--swap"]);
    command.arg(folder).arg("--api-sock").arg(folder.join(name)).args(["--sample-period", "1s"]).args(arguments);
    command.stdin(Stdio::piped());
    Running::spawn(command)
}

fn memory(folder: &Path, name: &str) -> Value {
    without_histograms(ask(&folder.join(name), "GET", "/memory", "").json())
}

/// Looks at a VM until it is as wanted.
#[track_caller]
fn wait_for(folder: &Path, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let memory = memory(folder, name);
        if wanted(&memory) {
            return memory;
        }
        assert!(Instant::now() < deadline, "{name}: {what}: {memory}");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn what_a_guest_does_not_need_is_the_others_until_it_does() {
    let folder = folder_on_disk();
    let folder = folder.path();
    let mut initramfs = Initramfs::new().expect("the initramfs");
    initramfs.add_bytes("/test.sh", SCRIPT);
    initramfs.write(&folder.join("initramfs")).expect("an initramfs is written");
    let (kernel, initrd) = (Guest::Vmlinux.build().expect("the kernel"), folder.join("initramfs"));
    let text = |path: &Path| path.to_str().expect("test paths are plain").to_owned();
    let (kernel, initrd) = (text(&kernel), text(&initrd));
    let disk = folder.join("disk");
    fs::write(&disk, vec![7; CACHED_BYTES]).expect("a disk");
    let disk = text(&disk);
    let arguments = [
        "--memory",
        "192M",
        "--balloon-max",
        "90",
        // It is the poorer: with equal shares it would have no more than its part.
        "--shares",
        "100",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--disk",
        &disk,
        "--cmdline",
        "init.run=\"sh /test.sh\"",
    ];
    let mut linux = member(folder, "linux", &arguments);
    linux.wait_for("the first hog", |line| line.starts_with("first done"));

    // What it freed it has reported: nobody had to ask.
    let freed = wait_for(folder, "linux", "free pages are reported", |memory| {
        counter(memory, "reported_bytes") > 40 * MIB && counter(memory, "pool.charge_bytes") < 90 * MIB
    });
    assert_eq!(counter(&freed, "evictions.zero") + counter(&freed, "evictions.compressed"), 0, "{freed}");

    // What it caches it could do without, and does not say so.
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    linux.wait_for("the cache", |line| line.starts_with("cached"));

    // Another comes, and slowly takes most of the budget.
    let program = "fill:40M,random=100,seed=3;repeat:20,(fill:5M,random=100,seed=3;idle:1);\
                   repeat:1000000,(walk:140M,dist=sequential,touches=36000,write=30;verify)";
    let cmdline = format!("probe=\"{program}\"");
    let mut other = member(folder, "probe", &["--memory", "192M", "--kernel", &text(probe()), "--cmdline", &cmdline]);
    // A balloon takes what is free first, which gives the host nothing, and what is cached when that is gone.
    let squeezed =
        wait_for(folder, "linux", "the balloon", |memory| counter(memory, "balloon_inflated_bytes") > 4 * MIB);
    assert_eq!(squeezed["pool"]["balloon"], "working", "{squeezed}");
    other.wait_for("the other's walk", |line| line.contains("verify"));
    other.signal(libc::SIGKILL);
    let finished = other.finish(LIMIT);
    assert!(finished.reports().iter().all(|report| report["bad"].is_null() || report["bad"] == 0), "{finished:?}");

    // Nobody is short any more: it has its memory back before it asks.
    wait_for(folder, "linux", "no balloon", |memory| counter(memory, "balloon_inflated_bytes") == 0);
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    let finished = linux.finish(LIMIT).expect_status(0);
    let output = finished.stdout.replace('\r', "");
    for words in
        ["\nhog: sum OK, 12800 pages", "\nhog: sum OK, 20480 pages", "\nsecond done", "\n0\n", "\ninit.run: status"]
    {
        assert!(output.contains(words), "{words}: {output}");
    }
}
