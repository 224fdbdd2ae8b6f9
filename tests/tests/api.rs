//! The control socket of a real VM: who gets in, what is answered, and what it leaves behind.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::control::{ask, connect, read, send};
use cistern_tests::process::{Finished, LIMIT, Running, binary, probe};
use cistern_tests::tiny::{Code, Protocol};
use serde_json::{Value, json};

/// Goes on until it is stopped, and says so all the time.
const ENDLESS: &str = "fill:1M,random=100;repeat:100000,(idle:0.05;verify)";

/// A user's runtime folder.
struct Runtime {
    folder: tempfile::TempDir,
}

impl Runtime {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("folder") }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join("cistern").join(format!("{name}.sock"))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("XDG_RUNTIME_DIR", self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, more: &[&str]) -> Running {
        let mut command = self.command(binary());
        command.args(["run", "--memory", "64M", "--cmdline", &format!("probe=\"{ENDLESS}\""), "--kernel"]);
        command.arg(probe()).args(more);
        Running::spawn(command)
    }

    /// Runs a guest and waits for it to be at work.
    fn start(&self, more: &[&str]) -> Running {
        let mut vm = self.run(more);
        vm.wait_for_phase("verify");
        vm
    }

    fn stats(&self, arguments: &[&str]) -> Output {
        self.command(binary()).arg("stats").args(arguments).output().expect("cistern starts")
    }
}

/// Ends a VM through its socket.
fn stop(vm: Running, socket: &Path) -> Finished {
    assert_eq!(ask(socket, "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#).status, 204);
    vm.finish(LIMIT).expect_status(0)
}

#[test]
fn every_path_answers_for_a_running_vm() {
    let runtime = Runtime::new();
    let vm = runtime.start(&["--name", "paths", "--cpus", "2"]);
    let socket = runtime.socket("paths");
    let get = |path| {
        let answer = ask(&socket, "GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(answer.headers.contains("content-type: application/json"), "{path}: {answer:?}");
        answer.json()
    };
    let change = |path, body: Value| assert_eq!(ask(&socket, "PATCH", path, &body.to_string()).status, 204, "{body}");

    let instance = get("/");
    assert_eq!((&instance["id"], &instance["state"]), (&json!("paths"), &json!("Running")), "{instance}");
    assert_eq!(get("/version")["cistern_version"], instance["vmm_version"]);
    assert_eq!(get("/vm"), json!({"id": "paths", "state": "Running", "pid": vm.pid()}));
    let config = json!({"vcpu_count": 2, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false});
    assert_eq!(get("/machine-config"), config);

    assert_eq!((&get("/balloon")["amount_mib"], &get("/balloon")["free_page_reporting"]), (&json!(0), &json!(true)));
    change("/balloon", json!({"amount_mib": 8}));
    let deadline = Instant::now() + LIMIT;
    let statistics = loop {
        let statistics = get("/balloon/statistics");
        if statistics["actual_mib"] == 8 {
            break statistics;
        }
        assert!(Instant::now() < deadline, "{statistics}");
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!((&statistics["target_pages"], &statistics["actual_pages"]), (&json!(2048), &json!(2048)));
    let total = statistics["total_memory"].as_u64().expect("the probe reports it");
    assert!((48 << 20..=64 << 20).contains(&total), "{statistics}");

    let memory = get("/memory");
    assert_eq!((&memory["ram_pages"], &memory["balloon_inflated_bytes"]), (&json!(16384), &json!(8 << 20)), "{memory}");
    assert_eq!(memory["resident_limit_bytes"], Value::Null, "{memory}");
    change("/memory", json!({"resident_bytes": 1u64 << 30}));
    assert_eq!(get("/memory")["resident_limit_bytes"], 1 << 30);
    change("/memory", json!({"resident_bytes": null}));
    assert_eq!(get("/memory")["resident_limit_bytes"], Value::Null);

    let metrics = ask(&socket, "GET", "/metrics", "");
    assert!(metrics.headers.contains("openmetrics-text"), "{metrics:?}");
    assert!(metrics.body.contains("\ncistern_balloon_inflated_bytes 8388608\n"), "{metrics:?}");
    assert!(metrics.body.ends_with("# EOF\n"), "{metrics:?}");
    stop(vm, &socket);
}

#[test]
fn what_makes_no_sense_is_refused_and_harms_nothing() {
    let runtime = Runtime::new();
    let vm = runtime.start(&["--name", "odd", "--balloon", "off"]);
    let socket = runtime.socket("odd");
    ask(&socket, "GET", "/nowhere", "").expect_refusal(404, "/nowhere");
    ask(&socket, "PUT", "/", "").expect_refusal(405, "PUT /");
    assert!(ask(&socket, "DELETE", "/memory", "").headers.contains("allow: get, patch"));
    ask(&socket, "GET", "/balloon", "").expect_refusal(400, "no balloon");
    for (body, words) in [
        ("", "body: EOF"),
        ("{\"resident_bytes\"", "body: EOF"),
        ("\u{1}\u{2}", "body: "),
        ("{\"resident_bytes\": \"much\"}", "invalid type: string"),
        ("{\"resident_bytes\": -5}", "body: "),
        ("{\"resident_bytes\": 1e30}", "body: "),
        ("{\"resident_bytes\": 1}", "at least 8388608"),
        ("{\"resident_bytes\": null, \"x\": 1}", "unknown field `x`"),
    ] {
        ask(&socket, "PATCH", "/memory", body).expect_refusal(400, words);
    }
    ask(&socket, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#).expect_refusal(400, "FlushMetrics");

    // Too long as announced, too long as it comes, and one that announces more than there can be.
    let long = " ".repeat(65 << 10);
    ask(&socket, "PUT", "/actions", &long).expect_refusal(413, "64 KiB");
    let chunked = "PUT /actions HTTP/1.1\r\nHost: vm\r\nTransfer-Encoding: chunked\r\n\r\n";
    let length = long.len();
    send(&socket, &format!("{chunked}{length:x}\r\n{long}\r\n0\r\n\r\n")).expect_refusal(413, "64 KiB");
    let endless = "PUT /actions HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: 9999999999999\r\n\r\n";
    send(&socket, endless).expect_refusal(413, "64 KiB");
    // What is no HTTP is not answered in JSON, but the connection ends.
    for garbage in ["\u{0}\u{1}\u{2}\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        assert!(matches!(send(&socket, garbage).status, 0 | 400 | 405 | 404), "{garbage:?}");
    }
    assert!(matches!(send(&socket, &format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000))).status, 0 | 431));
    assert_eq!(ask(&socket, "GET", "/vm", "").json()["pid"], vm.pid());
    stop(vm, &socket);
}

#[test]
fn slow_clients_hold_up_nobody_and_are_cut_off() {
    let runtime = Runtime::new();
    let mut vm = runtime.start(&["--name", "slow"]);
    let socket = runtime.socket("slow");
    // Half a head, half a body, and one that does not read what it is answered.
    let begin = |text: &str| {
        let mut stream = connect(&socket);
        stream.write_all(text.as_bytes()).expect("room for a line");
        stream
    };
    let started = Instant::now();
    let slow = [
        begin("GET /memory HT"),
        begin("PUT /actions HTTP/1.1\r\nHost: vm\r\nContent-Length: 100\r\n\r\n{"),
        begin(""),
        begin("GET /vm HTTP/1.1\r\nHost: vm\r\n\r\n"),
    ];
    // A client of good manners is answered meanwhile, and the guest goes on.
    let asked = Instant::now();
    assert_eq!(ask(&socket, "GET", "/vm", "").status, 200);
    vm.wait_for_phase("verify");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    for stream in slow {
        let answer = read(stream);
        assert!(matches!(answer.status, 0 | 200), "{answer:?}");
    }
    assert!(started.elapsed() >= Duration::from_secs(10), "{:?}", started.elapsed());
    stop(vm, &socket);
}

#[test]
fn more_clients_than_there_is_room_for_wait_their_turn() {
    let runtime = Runtime::new();
    let mut vm = runtime.start(&["--name", "many"]);
    let socket = runtime.socket("many");
    let asked = Instant::now();
    let idle: Vec<_> = (0..16).map(|_| connect(&socket)).collect();
    let waiting = thread::spawn({
        let socket = socket.clone();
        move || ask(&socket, "GET", "/vm", "")
    });
    vm.wait_for_phase("verify");
    assert_eq!(waiting.join().expect("no panic").status, 200);
    // Not before one of the others was cut off.
    assert!(asked.elapsed() >= Duration::from_secs(9), "{:?}", asked.elapsed());
    drop(idle);
    // Connected clients do not keep a VM from ending.
    let idle: Vec<_> = (0..40).map(|_| connect(&socket)).collect();
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGTERM);
    vm.finish(LIMIT).expect_status(0);
    drop(idle);
    assert!(!socket.exists());
}

#[test]
fn actions_reach_the_guest() {
    let runtime = Runtime::new();
    let kernel = runtime.folder.path().join("kernel");
    let code = Code::new().print("ready\n").wait_for_power_button().print("obeyed\n").power_off().halt();
    code.write(Protocol::Linux64, &kernel);
    let mut command = runtime.command(binary());
    command.args(["run", "--memory", "16M", "--name", "button", "--kernel"]).arg(&kernel);
    let mut vm = Running::spawn(command);
    vm.wait_for("first line", |line| line == "ready");
    let socket = runtime.socket("button");
    assert_eq!(ask(&socket, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#).status, 204);
    let finished = vm.finish(LIMIT).expect_status(0);
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("ready\nobeyed", ""));
    assert!(!socket.exists());
}

/// A copy of `cistern` that any user can reach.
fn copy_for_all(folder: &Path) -> PathBuf {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("permissions");
    let copy = folder.join("cistern-copy");
    fs::copy(binary(), &copy).expect("copy");
    copy
}

#[test]
fn only_the_owner_gets_in() {
    let runtime = Runtime::new();
    let vm = runtime.start(&["--name", "own"]);
    let socket = runtime.socket("own");
    let metadata = fs::symlink_metadata(&socket).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let folder = socket.parent().expect("a folder");
    assert_eq!(fs::symlink_metadata(folder).expect("a folder").mode() & 0o777, 0o700);

    let copy = copy_for_all(runtime.folder.path());
    let ask_as_other = || {
        let other = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .arg("stats")
            .arg(&socket)
            .output()
            .expect("setpriv starts");
        assert_eq!(other.status.code(), Some(1), "{other:?}");
        assert!(other.stdout.is_empty(), "{other:?}");
        String::from_utf8(other.stderr).expect("text")
    };
    assert!(ask_as_other().contains("ermission denied"));
    // Somebody who has opened the files to all has not opened the VM.
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("permissions");
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("permissions");
    let refused = ask_as_other();
    assert!(!refused.contains("ermission denied") && refused.contains("control socket"), "{refused}");
    stop(vm, &socket);
}

#[test]
fn a_name_is_one_vms_at_a_time() {
    let runtime = Runtime::new();
    let vm = runtime.start(&["--name", "twin"]);
    let socket = runtime.socket("twin");
    let refused = runtime.run(&["--name", "twin"]).finish(LIMIT).expect_status(1);
    assert!(refused.stderr.contains("twin.sock: in use by a running VM"), "{refused:?}");
    let path = socket.to_str().expect("test paths are plain");
    let refused = runtime.run(&["--api-sock", path]).finish(LIMIT).expect_status(1);
    assert!(refused.stderr.contains("in use by a running VM"), "{refused:?}");
    assert_eq!(ask(&socket, "GET", "/vm", "").json()["pid"], vm.pid(), "still the first one's");

    // Killed, it leaves its socket; the next of its name takes the place.
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.finish(LIMIT).status, None);
    assert!(socket.exists());
    let stale = runtime.stats(&["twin"]);
    assert_eq!(stale.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stale.stderr).contains("no VM is called 'twin': none is running"), "{stale:?}");
    let next = runtime.start(&["--name", "twin"]);
    assert_eq!(ask(&socket, "GET", "/vm", "").json()["pid"], next.pid());
    stop(next, &socket);
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_cannot_be_is_said() {
    let runtime = Runtime::new();
    let refused = runtime.run(&["--api-sock", "/nonexistent/vm.sock"]).finish(LIMIT).expect_status(1);
    assert!(refused.stderr.contains("control socket /nonexistent/vm.sock: No such file"), "{refused:?}");
    let file = runtime.folder.path().join("precious");
    fs::write(&file, "precious").expect("write");
    let path = file.to_str().expect("test paths are plain");
    runtime.run(&["--api-sock", path]).finish(LIMIT).expect_status(1);
    assert_eq!(fs::read_to_string(&file).expect("read"), "precious");

    // The one nobody asked for: a warning, and the VM runs.
    fs::write(runtime.folder.path().join("cistern"), "no folder").expect("write");
    let vm = runtime.start(&[]);
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGTERM);
    let finished = vm.finish(LIMIT).expect_status(0);
    assert!(finished.stderr.starts_with("cistern: warning: control socket: "), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn statistics_by_name_number_and_path() {
    let runtime = Runtime::new();
    let vm = runtime.start(&["--name", "seen"]);
    let socket = runtime.socket("seen");
    let (pid, path) = (vm.pid().to_string(), socket.to_str().expect("test paths are plain"));
    for which in ["seen", &pid, path] {
        let output = runtime.stats(&[which]);
        assert_eq!(output.status.code(), Some(0), "{which}: {output:?}");
        let table = String::from_utf8(output.stdout).expect("text");
        assert!(table.contains(&format!("seen, pid {pid}, running")), "{which}: {table}");
        let json = runtime.stats(&[which, "--json"]);
        let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!(report["ram_pages"], 16384, "{which}: {report}");
    }
    let unknown = runtime.stats(&["unseen"]);
    assert_eq!(unknown.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(stderr, "cistern: no VM is called 'unseen': running are seen\n");
    // A VM that is stopped accepts, and never answers.
    vm.signal(libc::SIGSTOP);
    let stopped = runtime.stats(&["seen"]);
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("no answer within 5 s"), "{stopped:?}");
    vm.signal(libc::SIGCONT);
    stop(vm, &socket);
}

#[test]
fn a_vm_without_a_name_has_its_number() {
    let runtime = Runtime::new();
    let killed = runtime.start(&[]);
    let left_behind = runtime.socket(&killed.pid().to_string());
    killed.signal(libc::SIGKILL);
    killed.finish(LIMIT);
    assert!(left_behind.exists());
    let vm = runtime.start(&[]);
    let number = vm.pid().to_string();
    assert_eq!(runtime.stats(&[&number]).status.code(), Some(0));
    let socket = runtime.socket(&number);
    assert_eq!(ask(&socket, "GET", "/", "").json()["id"], number);
    // What a client closes early is its own loss.
    for _ in 0..100 {
        drop(connect(&socket));
    }
    stop(vm, &socket);
    assert!(!socket.exists());
    // What the killed one left is gone too.
    assert_eq!(fs::read_dir(runtime.folder.path().join("cistern")).expect("a folder").count(), 0);
}

#[test]
fn paging_needs_a_userfaultfd_and_neither_a_plain_vm_nor_a_pool_at_rest_does() {
    let folder = tempfile::tempdir().expect("folder");
    let copy = copy_for_all(folder.path());
    let kernel = folder.path().join("probe");
    fs::copy(probe(), &kernel).expect("copy");
    // A user with a right to KVM and to nothing else: in a mount namespace of its own there is a KVM for all.
    let devices = folder.path().join("devices");
    fs::create_dir(&devices).expect("folder");
    const AS_OTHER: &str = "set -e; mount -t tmpfs -o mode=755 devices \"$0\"; mknod -m 666 \"$0/kvm\" c \"$1\" \"$2\"; \
                            mount --bind \"$0/kvm\" /dev/kvm; shift 2; \
                            exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let run = |more: &[&str]| {
        let kvm = fs::metadata("/dev/kvm").expect("/dev/kvm").rdev();
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", AS_OTHER])
            .arg(&devices)
            .args([libc::major(kvm).to_string(), libc::minor(kvm).to_string()])
            .arg(&copy)
            .args(["run", "--memory", "64M", "--cmdline", "probe=\"fill:1M;verify;exit\"", "--kernel"])
            .arg(&kernel)
            .args(more)
            .stdin(Stdio::null())
            .output()
            .expect("setpriv starts");
        assert_eq!(output.status.signal(), None, "{output:?}");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let pool = |name: &str| {
        let pool = folder.path().join(name);
        fs::create_dir(&pool).expect("folder");
        fs::set_permissions(&pool, Permissions::from_mode(0o777)).expect("permissions");
        pool.to_str().expect("test paths are plain").to_owned()
    };
    let (short, resting) = (pool("short"), pool("resting"));
    let overcommitted: &[&str] = &["--pool", &short, "--budget", "48M"];
    let at_rest: &[&str] = &["--pool", &resting, "--budget", "80M"];
    let sampled = [at_rest, &["--track"]].concat();
    for flags in [&["--resident", "32M"], &["--swap", "/var/tmp"], overcommitted, &sampled] {
        let (status, stderr) = run(flags);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(stderr.contains("/dev/userfaultfd") && stderr.lines().count() == 1, "{stderr}");
    }
    for flags in [&[], at_rest] {
        let (status, stderr) = run(flags);
        assert_eq!(status, Some(0), "{stderr}");
    }
}
