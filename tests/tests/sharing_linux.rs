//! Linux guests that hold the same merge it, and go on working.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::guest_memory::GuestMemory;
use cistern_tests::guests::Guest;
use cistern_tests::ksm::{DrivenPool, Ksm};
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::{LIMIT, Running, binary};

/// What each of two guests has in common with the other at the least: 8 MiB that the load holds, and some of the kernel's.
const MERGED_BYTES: u64 = 12 * MIB;

#[test]
fn two_linux_guests_merge_what_they_have_in_common_and_go_on() {
    let _ksm = Ksm::hold();
    let folder = folder_on_disk();
    // Dropped after the guests.
    let pool = DrivenPool::new(&folder.path().join("pool"));
    let kernel = Guest::Vmlinux.build().expect("the kernel");
    let initrd = Guest::Initramfs.build().expect("the initramfs");
    let start = |number: usize| {
        let mut command = Command::new(binary());
        command.args(["run", "--memory", "64M", "--name", &format!("linux{number}"), "--pool"]);
        command.arg(pool.folder()).args(["--budget", "1G", "--sharing", "zero,store,ksm", "--ksm-tune"]);
        command.arg("--api-sock").arg(folder.path().join(format!("socket{number}"))).arg("--kernel").arg(&kernel);
        command.arg("--initrd").arg(&initrd).arg("--cmdline");
        command.arg(format!("init.run=\"exec -a hold /init 8M 2M {number}\"")).stdin(Stdio::null());
        Running::spawn(command)
    };
    let mut guests = [start(0), start(1)];
    for guest in &mut guests {
        guest.wait_for("the load", |line| line.starts_with("hold: ready"));
    }
    let deadline = Instant::now() + LIMIT;
    let memory = loop {
        let memory = guests.each_ref().map(|guest| GuestMemory::of(guest.pid()).expect("it runs"));
        if memory.iter().all(|memory| memory.merged_bytes >= MERGED_BYTES) {
            break memory;
        }
        assert!(Instant::now() < deadline, "not merged in time: {memory:?}");
        assert!(guests.iter_mut().all(|guest| !guest.has_ended()), "a guest has ended");
        thread::sleep(Duration::from_millis(200));
    };
    println!("{memory:?}");
    for memory in memory {
        assert!(memory.proportional_bytes + MERGED_BYTES / 4 < memory.resident_bytes, "{memory:?}");
    }
    // They read all of it again, and find it as it was.
    for guest in &mut guests {
        guest.catch_up();
        for _ in 0..2 {
            let line = guest.wait_for("rounds", |line| line.starts_with("hold:"));
            assert!(line.ends_with("rounds OK"), "{line}");
        }
        assert!(!guest.has_ended());
    }
}
