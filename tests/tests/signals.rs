//! Signals before and while the guest runs.

use std::ffi::CString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cistern_tests::process::{binary, probe};

#[test]
fn a_file_that_is_waited_for_can_be_given_up() {
    let folder = tempfile::tempdir().expect("folder");
    let pipe = folder.path().join("pipe");
    let c_pipe = CString::new(pipe.as_os_str().as_bytes()).expect("no zero in it");
    // SAFETY: the call reads one string that ends in a zero byte.
    assert_eq!(unsafe { libc::mkfifo(c_pipe.as_ptr(), 0o600) }, 0);
    let mut child = Command::new(binary())
        .args(["run", "--console", "none", "--kernel"])
        .arg(&pipe)
        .stdin(Stdio::null())
        .spawn()
        .expect("cistern starts");
    // Opened for writing without waiting only while there is a reader: it is about to wait for the kernel's bytes.
    let mut writer = std::fs::OpenOptions::new();
    let _writer = writer.write(true).open(&pipe).expect("cistern reads");
    // SAFETY: a plain system call; the child is not reaped yet, so the pid is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    for _ in 0..600 {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            assert_eq!(status.signal(), Some(libc::SIGTERM));
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    child.kill().expect("still there");
    panic!("it waits on");
}

#[test]
fn what_was_ignored_stays_ignored() {
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(binary())
        .args(["run", "--memory", "64M", "--timeout", "60", "--cmdline", "probe=\"repeat:100,(idle:1)\"", "--kernel"])
        .arg(probe())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut wait_for_guest = || {
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("\"idle\"")));
        assert!(line.is_some(), "the guest is gone");
    };
    let pid = child.id() as i32;
    // SAFETY: a plain system call; the child is not reaped yet, so the pid is its own.
    let signal = |signal| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    wait_for_guest();
    // A second one that was heard would end it.
    for _ in 0..2 {
        signal(libc::SIGHUP);
        wait_for_guest();
    }
    wait_for_guest();
    signal(libc::SIGTERM);
    wait_for_guest();
    signal(libc::SIGTERM);
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn a_limit_on_file_sizes_costs_output_and_not_the_machine() {
    let folder = tempfile::tempdir().expect("folder");
    let log = folder.path().join("log");
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 1; exec \"$@\"", "sh"])
        .arg(binary())
        .args(["run", "--memory", "64M", "--timeout", "60", "--cmdline", "probe=\"fill:1M;repeat:60,(verify)\""])
        .arg(format!("--console=file:{}", log.display()))
        .arg("--kernel")
        .arg(probe())
        .output()
        .expect("sh starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr} {:?}", output.status);
    assert!(stderr.contains("bytes of output lost: File too large"), "{stderr}");
}
