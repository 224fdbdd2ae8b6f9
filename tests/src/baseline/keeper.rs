//! Puts a host back to what it was, whatever becomes of who changed it.
//!
//! A shell in a process group of its own is told before each change how to undo it, and undoes all of them, the last first, when
//! its input ends: because it is told to, or because the other end is gone, by Ctrl-C or kill -9.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Reads commands to the end of its input, then runs them in reverse. One that fails does not keep the others from running.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT PIPE
undo=
while IFS= read -r line; do
    undo="$line || failed=1
$undo"
done
failed=0
eval "$undo"
exit $failed
"#;

/// Undoes what was done when it is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct Keeper {
    shell: Child,
}

impl Keeper {
    /// One that has nothing to undo yet.
    ///
    /// # Errors
    /// There is no shell.
    pub fn start() -> Result<Self> {
        Self::start_holding(&[])
    }

    /// One that holds locks, too: whoever waits for one has it when all is undone, and no sooner.
    ///
    /// # Errors
    /// There is no shell.
    pub fn start_holding(locks: &[&File]) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        for descriptor in locks.iter().map(|lock| lock.as_raw_fd()) {
            // SAFETY: fcntl is async-signal-safe; the file is open until the shell has started.
            unsafe {
                command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
        }
        Ok(Self { shell: command.spawn().context("sh")? })
    }

    /// Has a line of shell run at the end, before those that were told earlier. Told before what it undoes is done, it must do
    /// no harm if that never happened.
    ///
    /// # Errors
    /// The shell is gone.
    pub fn will(&mut self, line: &str) -> Result<()> {
        let input = self.shell.stdin.as_mut().context("the keeper was told to begin")?;
        writeln!(input, "{line}").context("the keeper of the host's settings")
    }

    /// Has everything undone, and waits for it.
    ///
    /// # Errors
    /// Something could not be undone; the shell has said what.
    pub fn undo(&mut self) -> Result<()> {
        drop(self.shell.stdin.take());
        let status = self.shell.wait().context("the keeper of the host's settings")?;
        if !status.success() {
            bail!("the host is not quite as it was: {status}");
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.shell.stdin.is_some()
            && let Err(error) = self.undo()
        {
            eprintln!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_change_is_undone_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut keeper = Keeper::start().expect("a shell");
        for word in ["one", "two", "three"] {
            keeper.will(&format!("echo '{word}' >> {}", log.display())).expect("it listens");
        }
        assert!(!log.exists(), "nothing is undone before the end");
        drop(keeper);
        assert_eq!(fs::read_to_string(&log).expect("it was written"), "three\ntwo\none\n");
    }

    #[test]
    fn what_cannot_be_undone_keeps_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        let mut keeper = Keeper::start().expect("a shell");
        keeper.will(&format!("touch {}", file.display())).expect("it listens");
        keeper.will("false").expect("it listens");
        let error = keeper.undo().expect_err("one of them failed");
        assert!(error.to_string().starts_with("the host is not quite as it was"), "{error}");
        assert!(file.exists());
    }

    #[test]
    fn nobody_has_to_read_what_a_keeper_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        // Its standard error goes to who is gone, as after Ctrl-C.
        let script = format!("(printf 'touch {}\\necho word >&2\\n' | sh -c \"$0\") 2>&1 | true", file.display());
        Command::new("sh").args(["-c", &script, SCRIPT]).status().expect("sh");
        crate::process::wait_until("the change is undone", || file.exists());
    }

    #[test]
    fn a_lock_is_held_until_all_is_undone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let lock = File::create(&path).expect("a file");
        lock.lock().expect("nobody has it");
        let mut keeper = Keeper::start_holding(&[&lock]).expect("a shell");
        let other = File::open(&path).expect("it is there");
        // As when its process ends.
        drop(lock);
        assert!(other.try_lock().is_err(), "nothing is undone yet");
        keeper.undo().expect("there is nothing to undo");
        // What other tests start has a copy of it for a moment.
        crate::process::wait_until("the lock", || other.try_lock().is_ok());
    }

    #[test]
    fn a_keeper_outlives_whoever_is_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        // A process that starts a keeper's shell and is killed before it has closed its input.
        let script =
            format!("mkfifo fifo; sh -c \"$0\" < fifo & exec 3> fifo; echo 'touch {}' >&3; kill -9 $$", file.display());
        let status = Command::new("sh").args(["-c", &script, SCRIPT]).current_dir(&folder).status().expect("sh");
        assert!(!status.success(), "it was killed");
        let deadline = std::time::Instant::now() + crate::process::LIMIT;
        while !file.exists() {
            assert!(std::time::Instant::now() < deadline, "nothing was undone");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
