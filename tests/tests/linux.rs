//! Linux, on this machine's KVM: its drivers and ours.
//!
//! A boot takes seconds to a minute where KVM interprets the guest's kernel, so each does as much as can be told apart.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::namespace::Namespace;
use cistern_tests::process::{Finished, LIMIT, Running, binary};

const MIB: usize = 1 << 20;
/// What is read and written of each disk: a file system's own code is interpreted too.
const DISK_BYTES: usize = 256 << 10;
/// What goes through a TCP connection; the guest's netcat takes it a KiB at a time.
const TCP_BYTES: usize = 256 << 10;

/// Runs the script.
const RUN_SCRIPT: &str = "init.run=\"sh /test.sh\"";

/// What a guest's script begins with. `check NAME COMMAND` prints whether the command succeeded.
const PROLOGUE: &str = r#"
check() { name=$1; shift; if "$@"; then echo "check $name: ok"; else echo "check $name: BAD"; fi; }
not() { ! "$@"; }
differ() { [ "$1" != "$2" ]; }
"#;

/// Linux, with a script to run and some random bytes in `/data`.
struct Linux {
    folder: tempfile::TempDir,
    kernel: PathBuf,
    data: Vec<u8>,
}

impl Linux {
    fn new(script: &str, data_bytes: usize) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut data = vec![0; data_bytes];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut data)).expect("random bytes");
        let kernel = Guest::Vmlinux.build().expect("the kernel");
        let mut initramfs = Initramfs::new().expect("the initramfs");
        initramfs.add_bytes("/test.sh", [PROLOGUE, script].concat());
        initramfs.add_bytes("/data", data.clone());
        initramfs.write(&folder.path().join("initramfs")).expect("an initramfs is written");
        Self { folder, kernel, data }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds what boots this guest to a command that is `cistern`.
    fn start(&self, mut command: Command, devices: &[&str], cmdline: &str) -> Running {
        command.args(["run", "--memory", "128M", "--cmdline", cmdline, "--kernel"]);
        command.arg(&self.kernel).arg("--initrd").arg(self.file("initramfs")).args(devices).stdin(Stdio::piped());
        Running::spawn(command)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

/// Fails unless the guest's script has made these checks, in this order, and each is good.
#[track_caller]
fn expect_checks(finished: &Finished, names: &[&str]) {
    let made: Vec<_> = finished.stdout.lines().filter_map(|line| line.strip_prefix("check ")).collect();
    let expected: Vec<_> = names.iter().map(|name| format!("{name}: ok")).collect();
    assert_eq!(made, expected, "{}", finished.stdout);
}

/// Runs a tool of this machine's and returns what it printed.
#[track_caller]
fn tool(name: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(arguments).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    output.stdout
}

#[test]
fn disks_random_numbers_and_the_console() {
    let linux = Linux::new(
        r#"
        check "raw disk read" cmp /data /dev/vda
        check "raw disk written" dd if=/data of=/dev/vda bs=64k count=1 seek=2 conv=fsync
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/vda of=/tmp/back bs=64k count=1 skip=2
        head -c 65536 /data > /tmp/part
        check "raw disk read back" cmp /tmp/part /tmp/back

        mkdir /mnt
        check "ext4 mounted" mount -t ext4 /dev/vdb /mnt
        check "ext4 read" cmp /data /mnt/from-host
        check "ext4 written" cp /data /mnt/from-guest
        check "ext4 unmounted" umount /mnt
        mount -t ext4 /dev/vdb /mnt
        check "ext4 read back" cmp /data /mnt/from-guest
        umount /mnt

        check "read-only disk read" cmp /data /dev/vdc
        check "read-only disk refuses" not dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync
        check "read-only disk says so" [ "$(cat /sys/block/vdc/ro)" = 1 ]
        check "read-only disk is as it was" cmp /data /dev/vdc

        check "random numbers of ours" [ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ]
        check "random numbers differ" differ "$(head -c 32 /dev/hwrng | od -x)" "$(head -c 32 /dev/hwrng | od -x)"

        # Programs that take turns, and whose registers the kernel has to keep for them.
        for round in 1 2 3 4; do
            check "pipeline $round" [ "$(head -c 4096 /data | od -v -tx1 -w1 -An | sort -u | wc -l)" = 256 ]
        done

        echo "console ready"
        read line
        echo "console heard: $line"
        exit 5
        "#,
        DISK_BYTES,
    );
    let [raw, ext4, read_only] = ["raw", "ext4", "read-only"].map(|name| linux.file(name));
    fs::write(&raw, &linux.data).expect("write");
    fs::write(&read_only, &linux.data).expect("write");
    let content = linux.file("content");
    fs::create_dir(&content).expect("folder");
    fs::write(content.join("from-host"), &linux.data).expect("write");
    tool("mkfs.ext4", &["-q", "-d", text(&content), text(&ext4), "16M"]);

    let read_only_disk = format!("{},ro", text(&read_only));
    let direct_disk = format!("{},direct", text(&ext4));
    let disks = ["--disk", text(&raw), "--disk", &direct_disk, "--disk", &read_only_disk, "--rng"];
    let mut running = linux.start(Command::new(binary()), &disks, RUN_SCRIPT);
    running.wait_for("console", |line| line == "console ready");
    running.stdin().write_all(b"what was typed\n").expect("write");
    // The input is at its end now, and the guest still there.
    running.close_stdin();
    let finished = running.finish(LIMIT).expect_status(64 + 5);
    assert!(finished.stdout.contains("\nconsole heard: what was typed"), "{}", finished.stdout);
    assert!(finished.stdout.contains("\ninit.run: status 5"), "{}", finished.stdout);
    expect_checks(
        &finished,
        &[
            "raw disk read",
            "raw disk written",
            "raw disk read back",
            "ext4 mounted",
            "ext4 read",
            "ext4 written",
            "ext4 unmounted",
            "ext4 read back",
            "read-only disk read",
            "read-only disk refuses",
            "read-only disk says so",
            "read-only disk is as it was",
            "random numbers of ours",
            "random numbers differ",
            "pipeline 1",
            "pipeline 2",
            "pipeline 3",
            "pipeline 4",
        ],
    );

    let mut expected = linux.data.clone();
    expected.copy_within(..64 << 10, 128 << 10);
    assert!(fs::read(&raw).expect("read") == expected, "what the guest wrote to the raw disk");
    assert!(fs::read(&read_only).expect("read") == linux.data, "the read-only disk was written");
    tool("e2fsck", &["-f", "-n", text(&ext4)]);
    let written = tool("debugfs", &["-R", "cat /from-guest", text(&ext4)]);
    assert!(written == linux.data, "what the guest wrote to the file system");
}

#[test]
fn network_sockets_and_the_power_button() {
    let linux = Linux::new(
        r#"
        ifconfig eth0 10.0.0.2 netmask 255.255.255.0
        check "address" grep -qi 02:00:00:00:00:2a /sys/class/net/eth0/address
        check "ping" ping -q -c 3 -W 60 10.0.0.1
        echo "network ready"
        nc -l -p 5000 < /dev/null > /tmp/received
        head -c 262144 /data > /tmp/part
        check "data from the host" cmp /tmp/part /tmp/received
        check "data to the host" nc 10.0.0.1 5001 < /tmp/part

        vsock listen 1234 1
        vsock connect 2 5678 < /data > /tmp/echoed
        check "socket echoed by the host" cmp /data /tmp/echoed
        check "socket nobody listens on" not vsock connect 2 5679

        echo "waiting"
        sleep 100000
        "#,
        MIB,
    );
    let namespace = Namespace::new("10.0.0.1/24");
    let uds = linux.file("vsock");
    let listener = UnixListener::bind(format!("{}_5678", text(&uds))).expect("a socket");
    let tcp_listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5001))).expect("a socket");
    let net = format!("tap={},mac=02:00:00:00:00:2a", Namespace::TAP);
    let vsock = format!("cid=3,uds={}", text(&uds));
    let mut running = linux.start(namespace.command(binary()), &["--net", &net, "--vsock", &vsock], RUN_SCRIPT);

    running.wait_for("network", |line| line == "network ready");
    let ping = namespace.command(Path::new("ping")).args(["-q", "-c", "3", "-W", "60", "10.0.0.2"]).output();
    let ping = ping.expect("ping starts: package iputils-ping");
    assert!(ping.status.success(), "{ping:?}");
    let to_guest = namespace.enter(|| {
        let connect = || TcpStream::connect((Ipv4Addr::new(10, 0, 0, 2), 5000)).ok();
        wait_until("the guest listens", connect)
    });
    bounded(&to_guest, TcpStream::set_read_timeout, TcpStream::set_write_timeout);
    (&to_guest).write_all(&linux.data[..TCP_BYTES]).expect("the guest takes it");
    to_guest.shutdown(Shutdown::Write).expect("a connection");
    // The guest says in its own way that it has it all.
    (&to_guest).read_to_end(&mut Vec::new()).expect("its end");
    let (from_guest, _) = tcp_listener.accept().expect("the guest connects");
    bounded(&from_guest, TcpStream::set_read_timeout, TcpStream::set_write_timeout);
    let mut received = Vec::new();
    (&from_guest).read_to_end(&mut received).expect("all of it");
    drop(from_guest);
    assert!(received == linux.data[..TCP_BYTES], "{} bytes from the guest", received.len());

    running.wait_for("vsock", |line| line == "vsock: listening on port 1234");
    let stream = UnixStream::connect(&uds).expect("the VMM listens");
    bounded(&stream, UnixStream::set_read_timeout, UnixStream::set_write_timeout);
    (&stream).write_all(b"CONNECT 1234\n").expect("the VMM reads");
    let mut reader = BufReader::new(&stream);
    let mut answer = String::new();
    reader.read_line(&mut answer).expect("an answer");
    assert!(answer.starts_with("OK "), "{answer}");
    let echoed = thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&linux.data).expect("the guest takes it");
            stream.shutdown(Shutdown::Write).expect("a connection");
        });
        let mut echoed = Vec::new();
        reader.read_to_end(&mut echoed).expect("all of it");
        echoed
    });
    assert!(echoed == linux.data, "{} bytes came back", echoed.len());
    let (stream, _) = listener.accept().expect("the VMM connects");
    bounded(&stream, UnixStream::set_read_timeout, UnixStream::set_write_timeout);
    let bytes = std::io::copy(&mut &stream, &mut &stream).expect("an echo");
    drop(stream);
    assert_eq!(bytes, MIB as u64);

    running.wait_for("the script's end", |line| line == "waiting");
    running.signal(libc::SIGTERM);
    let finished = running.finish(LIMIT).expect_status(0);
    assert!(finished.stdout.contains("\ninit: power button"), "{}", finished.stdout);
    let names = ["address", "ping", "data from the host", "data to the host"];
    expect_checks(&finished, &[&names[..], &["socket echoed by the host", "socket nobody listens on"]].concat());
    assert!(!uds.exists(), "the socket's file is left behind");
}

#[test]
fn a_panic_is_a_crash() {
    // The first process ends: that is what a kernel cannot go on from.
    let linux = Linux::new("exit", 0);
    let mut running = linux.start(Command::new(binary()), &[], "rdinit=/bin/sh -- /test.sh");
    running.close_stdin();
    let finished = running.finish(LIMIT).expect_status(3);
    assert!(finished.stdout.contains("Kernel panic - not syncing: Attempted to kill init!"), "{}", finished.stdout);
    assert_eq!(finished.stderr, "cistern: guest crashed: kernel panic\n");
}

/// No read or write may take for ever.
fn bounded<S>(
    stream: &S,
    set_read: impl Fn(&S, Option<Duration>) -> std::io::Result<()>,
    set_write: impl Fn(&S, Option<Duration>) -> std::io::Result<()>,
) {
    set_read(stream, Some(LIMIT)).and_then(|()| set_write(stream, Some(LIMIT))).expect("a limit above zero");
}

#[track_caller]
fn wait_until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
