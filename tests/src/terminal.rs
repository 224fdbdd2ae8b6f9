//! A terminal with somebody in front of it, and `cistern` on it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{LIMIT, binary};

/// The settings of a terminal that a program may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    input: libc::tcflag_t,
    output: libc::tcflag_t,
    control: libc::tcflag_t,
    local: libc::tcflag_t,
    characters: [libc::cc_t; libc::NCCS],
}

impl Settings {
    fn of(terminal: &OwnedFd) -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel writes a termios to the address or fails.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) }, 0);
        // SAFETY: tcgetattr succeeded and filled it in.
        let settings = unsafe { settings.assume_init() };
        Self {
            input: settings.c_iflag,
            output: settings.c_oflag,
            control: settings.c_cflag,
            local: settings.c_lflag,
            characters: settings.c_cc,
        }
    }

    /// True when keys arrive one by one, unechoed, and none of them is a signal.
    pub fn is_raw(&self) -> bool {
        self.local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

/// A terminal and the `cistern` that runs on it, which is killed when this is dropped.
pub struct Session {
    person: File,
    program: OwnedFd,
    child: Child,
    shown: Vec<u8>,
    /// The settings before it was started.
    pub before: Settings,
}

impl Session {
    /// Starts `cistern` with a new terminal as its stdin, stdout, stderr and controlling terminal.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same with these variables in its environment.
    pub fn start_with(arguments: &[&str], variables: &[(&str, &Path)]) -> Self {
        let (person, program) = open_pty();
        let before = Settings::of(&program);
        let mut command = Command::new(binary());
        let end = || program.try_clone().expect("a descriptor");
        command.args(arguments).envs(variables.iter().copied()).stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid and ioctl are async-signal-safe; nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("cistern starts");
        Self { person: person.into(), program, child, shown: Vec::new(), before }
    }

    /// The settings now.
    pub fn settings(&self) -> Settings {
        Settings::of(&self.program)
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.person.write_all(keys).expect("the terminal takes it");
    }

    /// Waits until this has been shown since the last such wait.
    #[track_caller]
    pub fn wait_for(&mut self, text: &[u8]) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(start) = self.shown.windows(text.len()).position(|window| window == text) {
                self.shown.drain(..start + text.len());
                return;
            }
            let ended = self.has_ended();
            // What it printed last may still be on its way.
            if !self.read_ready(if ended { 0 } else { 100 }) && (ended || Instant::now() > deadline) {
                let [text, shown] = [text, &self.shown].map(String::from_utf8_lossy);
                panic!("no {text:?} in {shown:?}; it has ended: {ended}");
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the child is not reaped yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// True when it is over.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_some()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "not done; shown: {:?}", String::from_utf8_lossy(&self.shown));
            // A full terminal would hold up who writes to it.
            if !self.read_ready(20) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Takes what is shown, waiting this long for it; false when that is nothing.
    fn read_ready(&mut self, milliseconds: i32) -> bool {
        let mut poll = libc::pollfd { fd: self.person.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as said.
        if unsafe { libc::poll(&mut poll, 1, milliseconds) } <= 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        let bytes = self.person.read(&mut buffer).expect("the program's end is open here too");
        self.shown.extend_from_slice(&buffer[..bytes]);
        bytes > 0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new terminal: the side of the person typing, the side of the program. Neither survives an exec.
fn open_pty() -> (OwnedFd, OwnedFd) {
    let (mut person, mut program): (RawFd, RawFd) = (-1, -1);
    // SAFETY: openpty writes two descriptors; the optional arguments are absent.
    let result = unsafe { libc::openpty(&mut person, &mut program, ptr::null_mut(), ptr::null(), ptr::null()) };
    assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
    for fd in [person, program] {
        // SAFETY: a plain system call on an open descriptor.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    }
    // SAFETY: both are open and owned by nobody else.
    unsafe { (OwnedFd::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}
