//! A Linux guest whose memory is paged: programs and the disk see nothing of it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::control::try_ask;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::paged::{MIB, counter, expect_homes, folder_on_disk, without_histograms};
use cistern_tests::process::{LIMIT, Running, binary};
use serde_json::Value;

/// Copies one disk to the other and reads that back, again and again, past the page cache, while the hog fills memory. The
/// last copy is made when the hog is done.
const SCRIPT: &str = r#"
hog 110M > /tmp/hog &
rounds=0
going=yes
while [ $going = yes ]; do
    kill -0 $! 2> /dev/null || going=no
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda of=/dev/vdb bs=64k 2> /dev/null
    sync
    echo 3 > /proc/sys/vm/drop_caches
    sha256sum < /dev/vdb
    rounds=$((rounds + 1))
    sleep 3
done
wait $!
status=$?
echo rounds $rounds
cat /tmp/hog
exit $status
"#;

const DISK_BYTES: usize = 512 << 10;

#[test]
fn a_hog_and_direct_disks_get_right_what_they_wrote() {
    let folder = folder_on_disk();
    let file = |name: &str| folder.path().join(name);
    fs::create_dir(file("swap")).expect("a folder");
    let mut data = vec![0; DISK_BYTES];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut data)).expect("random bytes");
    fs::write(file("from"), &data).expect("write");
    fs::write(file("to"), vec![0; DISK_BYTES]).expect("write");
    let mut initramfs = Initramfs::new().expect("the initramfs");
    initramfs.add_bytes("/test.sh", SCRIPT);
    initramfs.write(&file("initramfs")).expect("an initramfs is written");

    let mut command = Command::new(binary());
    command.args(["run", "--memory", "256M", "--resident", "96M", "--cmdline", "init.run=\"sh /test.sh\"", "--swap"]);
    command.arg(file("swap")).arg("--kernel").arg(Guest::Vmlinux.build().expect("the kernel"));
    command.arg("--initrd").arg(file("initramfs")).arg("--api-sock").arg(file("socket"));
    for disk in ["from", "to"] {
        command.arg("--disk").arg(format!("{},direct", file(disk).display()));
    }
    command.stdin(Stdio::null());
    let mut running = Running::spawn(command);
    let memory = last_counters(&mut running, &file("socket"));
    let finished = running.finish(LIMIT).expect_status(0);

    let sum = Command::new("sha256sum").arg(file("from")).output().expect("sha256sum starts");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().map(str::to_owned).expect("a sum");
    let read: Vec<_> = finished.stdout.lines().filter_map(|line| line.strip_suffix("  -")).collect();
    assert!(read.len() >= 2 && read.iter().all(|found| *found == sum), "{sum}: {}\n{memory}", finished.stdout);
    assert!(finished.stdout.contains(&format!("\nrounds {}", read.len())), "{}", finished.stdout);
    assert!(fs::read(file("to")).expect("read") == data, "what the guest wrote to the disk");
    assert!(finished.stdout.contains("\nhog: sum OK, 28160 pages"), "{}", finished.stdout);
    assert!(finished.stdout.contains("\ninit.run: status 0"), "{}", finished.stdout);
    // Devices do not wait for the limit.
    assert!(counter(&memory, "charge_bytes") <= 97 * MIB, "{memory}");
    expect_homes(&memory, &["aside", "compressed", "swapped"]);
    assert!(counter(&memory, "evictions.swapped") > 5_000, "{memory}");
}

/// The pager's counters as they were last seen before the guest ended.
fn last_counters(running: &mut Running, socket: &Path) -> Value {
    let (deadline, mut last) = (Instant::now() + 3 * LIMIT, Value::Null);
    while !running.has_ended() {
        assert!(Instant::now() < deadline, "the guest has no end: {last}");
        last = counters(socket).map_or(last, without_histograms);
        thread::sleep(Duration::from_millis(100));
    }
    last
}

/// What a VM that may be about to end says.
fn counters(socket: &Path) -> Option<Value> {
    serde_json::from_str(&try_ask(socket, "/memory")?.body).ok()
}
