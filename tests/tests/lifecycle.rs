//! How a `cistern run` ends, and what it leaves behind: exit statuses, signals, consoles, terminals.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cistern_tests::process::{Finished, LIMIT, Running, binary, cistern, wait_until};
use cistern_tests::terminal::Session;
use cistern_tests::tiny::{Code, Protocol};

/// A guest in a file that goes away with it.
struct Guest {
    folder: tempfile::TempDir,
}

impl Guest {
    fn new(code: &Code) -> Self {
        Self::with(Protocol::Linux64, code)
    }

    fn with(protocol: Protocol, code: &Code) -> Self {
        let guest = Self { folder: tempfile::tempdir().expect("folder") };
        code.write(protocol, &guest.kernel());
        guest
    }

    fn kernel(&self) -> PathBuf {
        self.file("kernel")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Calls `run` with the arguments that boot this guest, and more of them.
    fn arguments<T>(&self, more: &[&str], run: impl FnOnce(&[&str]) -> T) -> T {
        let kernel = self.kernel();
        run(&[&["run", "--kernel", text(&kernel), "--memory", "16M"], more].concat())
    }

    fn run(&self, more: &[&str]) -> Finished {
        self.arguments(more, cistern)
    }

    fn start(&self, more: &[&str]) -> Running {
        self.arguments(more, Running::start)
    }

    fn start_to(&self, stdout: Stdio, more: &[&str]) -> Running {
        let mut command = Command::new(binary());
        self.arguments(more, |arguments| {
            command.args(arguments);
        });
        command.stdin(Stdio::null());
        Running::spawn_to(command, stdout)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

/// Prints "ready", then what is typed, until 'q' ends it with status 69 or 'c' makes it crash.
fn echo() -> Guest {
    let quit = Code::new().exit(69).halt();
    let crash = Code::new().triple_fault();
    Guest::new(
        &Code::new().print("ready\n").repeat(Code::new().read_key().if_key(b'q', quit).if_key(b'c', crash).print_key()),
    )
}

fn ends(code: Code, status: i32) -> Finished {
    Guest::new(&code).run(&[]).expect_status(status)
}

#[test]
fn a_guest_that_ends_itself_is_a_success() {
    for code in [
        Code::new().print("bye\n").reset().halt(),
        Code::new().print("bye\n").power_off().halt(),
        // A shutdown event of pvpanic's.
        Code::new().print("bye\n").panic(4).halt(),
    ] {
        let finished = ends(code, 0);
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("bye", ""));
    }
}

#[test]
fn a_guest_says_its_exit_status() {
    for status in [64, 64 + 7, 64 + 31] {
        let finished = ends(Code::new().exit(status).halt(), i32::from(status));
        assert_eq!(finished.stderr, "");
    }
    // Five bits of what is written count.
    ends(Code::new().exit(64 + 0x20 + 3).halt(), 64 + 3);
}

#[test]
fn a_guest_that_crashes_is_none() {
    let crashed = ends(Code::new().triple_fault().halt(), 3);
    assert_eq!(crashed.stderr, "cistern: guest crashed: triple fault on vCPU 0\n");
    let panicked = ends(Code::new().print("oops\n").panic(1).halt(), 3);
    assert_eq!(
        (panicked.stdout.as_str(), panicked.stderr.as_str()),
        ("oops", "cistern: guest crashed: kernel panic\n")
    );
    // A crash kernel may do its work; its end is no success.
    let dumped = ends(Code::new().panic(2).print("dumping\n").reset().halt(), 3);
    assert_eq!(dumped.stdout, "dumping");
    assert!(dumped.stderr.contains("crash kernel"), "{dumped:?}");
}

#[test]
fn a_guest_that_goes_on_is_stopped_in_time() {
    for code in [Code::new().halt(), Code::new().raw(&[0xeb, 0xfe])] {
        let finished = Guest::new(&code).run(&["--timeout", "0.3"]).expect_status(4);
        assert_eq!(finished.stderr, "cistern: timed out after 0.3 s, guest stopped\n");
    }
    // The limit is for the guest that needs it only.
    Guest::new(&Code::new().exit(64).halt()).run(&["--timeout", "1000"]).expect_status(64);
}

#[test]
fn both_boot_protocols_enter_in_their_mode_with_the_command_line() {
    for (protocol, status) in [(Protocol::Linux64, 64), (Protocol::Pvh, 65)] {
        let guest = Guest::with(protocol, &Code::new().print_command_line(protocol).exit_with_mode().halt());
        let finished = guest.run(&["--bare-cmdline", "--cmdline", "one two=3"]).expect_status(status);
        assert_eq!(finished.stdout, "one two=3", "{protocol:?}");
        let finished = guest.run(&["--cmdline", "one two=3"]).expect_status(status);
        assert!(finished.stdout.starts_with("console=ttyS0 reboot=k panic=-1 quiet"), "{finished:?}");
        assert!(finished.stdout.ends_with(" virtio_mmio.device=4K@0xd0000000:5 one two=3"), "{finished:?}");
    }
}

#[test]
fn the_power_button_is_pressed_and_the_guest_obeys() {
    let guest = Guest::new(&Code::new().print("ready\n").wait_for_power_button().print("obeyed\n").power_off().halt());
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let mut running = guest.start(&[]);
        running.wait_for("first line", |line| line == "ready");
        running.signal(signal);
        let finished = running.finish(LIMIT).expect_status(0);
        assert_eq!(finished.stdout, "ready\nobeyed");
    }
}

#[test]
fn a_guest_deaf_to_the_power_button_gets_its_grace() {
    // It sees the button, and goes on for much longer than the grace.
    let guest = Guest::new(&Code::new().print("ready\n").wait_for_power_button().print("pressed\n").halt());
    let mut running = guest.start(&[]);
    running.wait_for("first line", |line| line == "ready");
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    running.wait_for("second line", |line| line == "pressed");
    running.finish(LIMIT).expect_status(0);
    // A lower bound is not a matter of how busy the host is.
    assert!(asked.elapsed() >= Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn a_second_signal_is_not_argued_with() {
    let guest = Guest::new(&Code::new().print("ready\n").wait_for_power_button().print("pressed\n").halt());
    // Were it to wait for the grace, which the first signal began, no round would end before. A busy host may spoil some.
    let mut shortest = Duration::MAX;
    for _ in 0..12 {
        let mut running = guest.start(&[]);
        running.wait_for("first line", |line| line == "ready");
        let asked = Instant::now();
        running.signal(libc::SIGTERM);
        running.wait_for("second line", |line| line == "pressed");
        running.signal(libc::SIGTERM);
        running.finish(LIMIT).expect_status(0);
        shortest = shortest.min(asked.elapsed());
        if shortest < Duration::from_secs(5) {
            return;
        }
    }
    panic!("never before the grace was over: {shortest:?}");
}

#[test]
fn input_that_ends_does_not_stop_the_guest() {
    // Some reading of nothing, then an end of its own.
    let on_its_own = Code::new().delay(20_000).print("still here\n").exit(70).halt();
    let guest = Guest::new(&on_its_own);
    assert_eq!(guest.run(&[]).expect_status(70).stdout, "still here");
    // A file, a closed descriptor, a pipe whose end comes with what was written to it.
    let file = guest.file("input");
    fs::write(&file, "typed").expect("write");
    let input = Stdio::from(fs::File::open(&file).expect("open"));
    guest.arguments(&[], |arguments| Running::start_with(arguments, input)).finish(LIMIT).expect_status(70);
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$0\" run --kernel \"$1\" --memory 16M <&-"]).arg(binary()).arg(guest.kernel());
    Running::spawn(closed).finish(LIMIT).expect_status(70);
    let guest = Guest::new(&Code::new().repeat(Code::new().read_key().if_key(b'e', on_its_own).print_key()));
    let (reader, mut writer) = io::pipe().expect("a pipe");
    // More than the serial port takes at once.
    writer.write_all(&[&[b'x'; 1000][..], b"\ne"].concat()).expect("a pipe holds that");
    drop(writer);
    let finished = guest.arguments(&[], |arguments| Running::start_with(arguments, reader.into())).finish(LIMIT);
    assert_eq!(finished.expect_status(70).stdout, format!("{}\nstill here", "x".repeat(1000)));
}

#[test]
fn output_nobody_wants_does_not_stop_the_guest() {
    let guest = Guest::new(&Code::new().print("one\ntwo\n").exit(71).halt());
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
    for (stdout, cause) in [(Stdio::from(writer), "Broken pipe"), (full.into(), "No space left on device")] {
        let finished = guest.start_to(stdout, &[]).finish(LIMIT).expect_status(71);
        assert_eq!(finished.stderr, format!("cistern: console: 8 bytes of output lost: {cause}\n"));
    }
}

#[test]
fn output_nobody_reads_does_not_hold_up_the_end() {
    let guest = Guest::new(&Code::new().repeat(Code::new().print("x")));
    let cases: [(&[i32], &[&str], i32); 3] =
        [(&[libc::SIGTERM], &[], 0), (&[libc::SIGTERM, libc::SIGINT], &[], 0), (&[], &["--timeout", "5"], 4)];
    for (signals, arguments, status) in cases {
        let (reader, writer) = io::pipe().expect("a pipe");
        // Small, so that it is soon full.
        // SAFETY: F_SETPIPE_SZ takes an int.
        assert!(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } > 0);
        let mut running = guest.start_to(writer.into(), arguments);
        wait_until("a full pipe", || {
            assert!(!running.has_ended(), "it ended");
            is_full(&reader)
        });
        signals.iter().for_each(|&signal| running.signal(signal));
        running.finish(LIMIT).expect_status(status);
    }
}

/// True when a pipe takes no more.
fn is_full(reader: &io::PipeReader) -> bool {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int; F_GETPIPE_SZ takes no argument.
    let capacity = unsafe {
        assert_eq!(libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut waiting), 0);
        libc::fcntl(reader.as_raw_fd(), libc::F_GETPIPE_SZ)
    };
    // Written a byte at a time, a pipe fills its last page before it is full.
    waiting == capacity
}

#[test]
fn a_console_may_be_a_file_or_none() {
    let guest = Guest::new(&Code::new().print("to the console\n").delay(5000).exit(72).halt());
    let silent = guest.run(&["--console", "none"]).expect_status(72);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
    let log = guest.file("log");
    fs::write(&log, "before\n").expect("write");
    let target = format!("file:{}", text(&log));
    for _ in 0..2 {
        let logged = guest.run(&["--console", &target]).expect_status(72);
        assert_eq!((logged.stdout.as_str(), logged.stderr.as_str()), ("", ""));
    }
    assert_eq!(fs::read_to_string(&log).expect("read"), "before\nto the console\nto the console\n");
    // Neither touches the terminal it was started from.
    for target in ["none", &target] {
        let guest = Guest::new(&Code::new().halt());
        let mut session = guest.arguments(&["--console", target, "--timeout", "1"], Session::start);
        session.type_keys(b"\x01x");
        wait_until("the end", || {
            assert_eq!(session.settings(), session.before);
            session.has_ended()
        });
        assert_eq!(session.wait().code(), Some(4));
    }
}

#[test]
fn a_configuration_file_says_what_flags_do_not() {
    let protocol = Protocol::Linux64;
    let guest = Guest::new(&Code::new().print_command_line(protocol).print("\n").exit(73).halt());
    let (log, config) = (guest.file("log"), guest.file("vm.toml"));
    let kernel = guest.kernel();
    let toml = format!(
        "kernel = {kernel:?}\ncmdline = \"from the file\"\nbare-cmdline = true\nmemory = \"16M\"\nballoon = \"off\"\n\
         console = \"file:{}\"\ntimeout = 1000\n",
        text(&log)
    );
    fs::write(&config, toml).expect("write");
    cistern(&["run", "--config", text(&config)]).expect_status(73);
    assert_eq!(fs::read_to_string(&log).expect("read"), "from the file\n");
    let flags = ["run", "--config", text(&config), "--console", "stdio", "--cmdline", "from the flags"];
    assert_eq!(cistern(&flags).expect_status(73).stdout, "from the flags");
    let not_bare = cistern(&["run", "--config", text(&config), "--console", "stdio", "--bare-cmdline=false"]);
    let printed = not_bare.expect_status(73).stdout;
    assert!(printed.starts_with("console=ttyS0") && printed.ends_with(" from the file"), "{printed}");
    assert!(!printed.contains("virtio_mmio"), "the only device is off: {printed}");
    let other = Guest::new(&Code::new().exit(74).halt());
    cistern(&["run", "--config", text(&config), "--kernel", text(&other.kernel())]).expect_status(74);
}

#[test]
fn what_is_typed_reaches_the_guest() {
    let guest = echo();
    let mut session = guest.arguments(&[], Session::start);
    session.wait_for(b"ready\r\n");
    let raw = session.settings();
    assert!(raw.is_raw() && !session.before.is_raw(), "{raw:?}");
    // The keys that usually stop, suspend or hold a program, and the escape's own.
    session.type_keys(b"hello \x03\x1a\x13\x11\x1c\x04\x01\x01\x01a\x01z!");
    session.wait_for(b"hello \x03\x1a\x13\x11\x1c\x04\x01\x01\x01z!");
    session.type_keys(b"\x01h");
    session.wait_for(b"Ctrl-A x: quit");
    session.type_keys(b"more");
    session.wait_for(b"more");
    session.type_keys(b"\x01");
    session.type_keys(b"x");
    assert_eq!(session.wait().code(), Some(0));
    assert_eq!(session.settings(), session.before);
}

#[test]
fn the_keys_that_quit_are_heard_when_the_guest_is_not() {
    // It reads nothing, and more is typed than anybody would keep.
    let guest = Guest::new(&Code::new().print("ready\n").halt());
    let mut session = guest.arguments(&[], Session::start);
    session.wait_for(b"ready");
    for _ in 0..100 {
        session.type_keys(&[b'x'; 1000]);
    }
    session.type_keys(b"\x01x");
    assert_eq!(session.wait().code(), Some(0));
    assert_eq!(session.settings(), session.before);
}

#[test]
fn the_terminal_is_as_it_was_after_every_end() {
    type End = fn(&mut Session);
    let ends: [(&str, End, Result<i32, i32>); 8] = [
        ("the quitting keys", |session| session.type_keys(b"\x01x"), Ok(0)),
        ("an exit of the guest's", |session| session.type_keys(b"q"), Ok(69)),
        ("a crash of the guest's", |session| session.type_keys(b"c"), Ok(3)),
        ("two signals", |session| [libc::SIGTERM, libc::SIGINT].iter().for_each(|&s| session.signal(s)), Ok(0)),
        ("one signal and the grace", |session| session.signal(libc::SIGTERM), Ok(0)),
        ("a segmentation fault", |session| session.signal(libc::SIGSEGV), Err(libc::SIGSEGV)),
        ("a bus error", |session| session.signal(libc::SIGBUS), Err(libc::SIGBUS)),
        ("an abort", |session| session.signal(libc::SIGABRT), Err(libc::SIGABRT)),
    ];
    let guest = echo();
    for (what, end, expected) in ends {
        let mut session = guest.arguments(&[], Session::start);
        session.wait_for(b"ready");
        assert!(session.settings().is_raw(), "{what}");
        end(&mut session);
        let status = session.wait();
        assert_eq!(status.code().ok_or(status.signal().unwrap_or(0)), expected, "{what}");
        assert_eq!(session.settings(), session.before, "{what}");
    }
    let mut session = guest.arguments(&["--timeout", "2"], Session::start);
    assert_eq!(session.wait().code(), Some(4));
    assert_eq!(session.settings(), session.before);
    // Refused before it began.
    let mut session = Session::start(&["run", "--kernel", "/nonexistent"]);
    assert_eq!(session.wait().code(), Some(1));
    assert_eq!(session.settings(), session.before);
}
