//! A Linux guest at work, with other guests beside it that leave it less memory than it wants, on one of the [ways](Way) to hold
//! them all.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cistern_tests::baseline::reach::Reach;
use cistern_tests::control::ask;
use cistern_tests::guest_usage::GuestUsage;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::namespace::Namespace;
use cistern_tests::paged::{MIB, PagedVm, folder_on_disk};
use cistern_tests::process::{LIMIT, Running, binary, ends_with_this_thread, is_root};
use cistern_tests::swap_area::swap_area;
use tempfile::TempDir;

use crate::confines::Confines;
use crate::observer::{Course, Observer, stored_pages};
use crate::scenario::Plan;
use crate::way::{NotHere, Way};

/// The host's address on the network it has with the guest, and the guest's.
const HOST_ADDRESS: &str = "10.0.0.1/24";
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Of both ends: frames are large, because each costs the same where guest kernels are interpreted.
const MTU: &str = "32000";

/// The guest's own swap, on its first disk.
const SWAP_MIB: u64 = 32;

/// Room in the kernel's swap, in budgets.
const SWAP_BUDGETS: u64 = 4;

/// Before its own script every guest does this.
const PROLOGUE: &str = "swapon /dev/vda\n(exec -a usage /init 2) &\n";

/// What the other guests hold, and a part of which they use: the same work however it goes.
const KINDS: &str = "zero=15,dup=20,text=45,random=20";

/// What there is, in MiB before it is scaled.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The guest's memory.
    pub memory_mib: u64,
    /// How many others there are.
    pub others: u64,
    /// The memory of each of them.
    pub other_mib: u64,
    /// What each fills of it.
    pub other_filled_mib: u64,
    /// What all may take where that is limited.
    pub budget_mib: u64,
}

/// A guest to be put to work.
pub struct Setup {
    /// Its script.
    pub script: String,
    /// More files that it has, by their paths in the guest.
    pub files: Vec<(&'static str, String)>,
    /// Its second disk.
    pub disk: Disk,
    /// It has a network.
    pub has_network: bool,
    /// How much of everything there is.
    pub sizes: Sizes,
}

/// A guest's second disk.
pub enum Disk {
    /// None.
    Nothing,
    /// One with this image, which it may not write.
    Image(PathBuf),
    /// One of so many bytes, past the host's cache.
    Blank(u64),
}

/// See the top of this file. Everything ends with it.
pub struct Stage {
    way: Way,
    observer: Observer,
    /// The guest that is measured.
    pub guest: Running,
    namespace: Option<Namespace>,
    others: Vec<PagedVm>,
    confines: Option<Confines>,
    /// What every guest is started with.
    flags: Vec<String>,
    processes: Arc<Mutex<Vec<u32>>>,
    sizes: Sizes,
    scale: u64,
    /// When memory was short, in seconds.
    load_began: f64,
    folder: TempDir,
}

impl Stage {
    /// Sets the host up and starts the guest.
    ///
    /// # Errors
    /// [`NotHere`]: the host lacks what the way needs. It takes root and this is not; a guest cannot be built.
    pub fn open(plan: &Plan, way: Way, setup: &Setup) -> Result<Self> {
        ensure!(is_root() || !setup.has_network, "a network for the guest takes root: run it as root, please");
        let (sizes, folder) = (setup.sizes, folder_on_disk());
        let budget_bytes = sizes.budget_mib * plan.scale * MIB;
        // Without a cgroup ours touches nothing of the host.
        let is_confined = match way {
            Way::Linux(_) => true,
            Way::Ours(_) => matches!(plan.reach(), Reach::Guests(_)),
            Way::Unlimited => false,
        };
        let confines = is_confined
            .then(|| Confines::prepare(plan.reach(), way, budget_bytes, SWAP_BUDGETS * budget_bytes, folder.path()));
        let mut confines = match (way, confines.transpose()) {
            (Way::Linux(_), confines) => confines.context(NotHere)?,
            (_, confines) => confines?,
        };
        let namespace = setup.has_network.then(|| Namespace::new(HOST_ADDRESS));
        if let Some(namespace) = &namespace {
            let status = namespace.command(Path::new("ip")).args(["link", "set", Namespace::TAP, "mtu", MTU]).status();
            ensure!(status.context("ip: package iproute2")?.success(), "the tap takes no large frames");
        }
        let mut command =
            namespace.as_ref().map_or_else(|| Command::new(binary()), |network| network.command(binary()));
        let pool_bytes = confines.as_ref().map_or(budget_bytes, Confines::pool_bytes);
        let flags = if way.is_ours() { flags(pool_bytes, folder.path()) } else { Vec::new() };
        confines.as_ref().map_or(Ok(()), |confines| confines.enter(&mut command))?;
        ends_with_this_thread(&mut command, libc::SIGKILL);
        let guest = start(command, plan, setup, &flags, folder.path())?;
        let processes = Arc::new(Mutex::new(vec![guest.pid()]));
        let all = Arc::clone(&processes);
        let all = move || all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        confines.iter_mut().for_each(|confines| confines.watch(all.clone()));
        // Ours swaps by itself.
        let swapping = confines.as_ref().filter(|_| !way.is_ours()).map(Confines::host);
        let observer = Observer::start(all, swapping);
        if way.is_ours() {
            observer.add_socket(folder.path().join("guest.sock"));
        }
        Ok(Self {
            way,
            observer,
            guest,
            namespace,
            others: Vec::new(),
            confines,
            flags,
            processes,
            sizes,
            scale: plan.scale,
            load_began: 0.0,
            folder,
        })
    }

    /// Seconds since there is load, as charts have them.
    pub fn seconds(&self) -> f64 {
        self.observer.seconds() - self.load_began
    }

    /// Connects to a server in the guest, once it listens. No read or write may take for ever.
    ///
    /// # Errors
    /// The guest has ended, or nobody listens for too long.
    pub fn connect(&mut self, port: u16) -> Result<TcpStream> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let namespace = self.namespace.as_ref().context("the guest has a network")?;
            match namespace.enter(|| TcpStream::connect((GUEST_ADDRESS, port))) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.set_write_timeout(Some(LIMIT)))?;
                    return Ok(stream);
                }
                Err(error) if Instant::now() > deadline => return Err(error).context("nobody listens in the guest"),
                Err(_) => ensure!(!self.guest.has_ended(), "the guest has ended"),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts the other guests, and waits until they have filled what they will: from then on memory is short, where it is.
    ///
    /// # Errors
    /// The cgroup that all are in is gone.
    pub fn press(&mut self) -> Result<()> {
        let size = |mib: u64| format!("{}M", mib * self.scale);
        let (filled, used) = (size(self.sizes.other_filled_mib), size(self.sizes.other_filled_mib / 2));
        for number in 1..=self.sizes.others {
            let program = format!(
                "fill:{filled},{KINDS},seed={number};repeat:told,(walk:{used},touches=2000,write=20;idle:1);verify;\
                 repeat:told,(idle:1)"
            );
            let memory = size(self.sizes.other_mib);
            let arguments = ["--memory", &memory, "--cpus", "1"].into_iter();
            let arguments: Vec<_> = arguments.chain(self.flags.iter().map(String::as_str)).collect();
            let mut launcher = Command::new(binary());
            self.confines.as_ref().map_or(Ok(()), |confines| confines.enter(&mut launcher))?;
            ends_with_this_thread(&mut launcher, libc::SIGKILL);
            let other = PagedVm::start_probe(launcher, &program, &arguments);
            self.processes.lock().unwrap_or_else(PoisonError::into_inner).push(other.running.pid());
            if self.way.is_ours() {
                self.observer.add_socket(other.socket());
            }
            self.others.push(other);
        }
        for other in &mut self.others {
            other.running.wait_for_phase("fill");
        }
        self.load_began = self.observer.seconds();
        Ok(())
    }

    /// Has the others compare all that they hold, ends everything and puts the host back.
    ///
    /// # Errors
    /// The guest did not end well, or memory was to be short and nothing was taken from any guest.
    pub fn close(mut self) -> Result<Course> {
        let load = self.load_began..self.observer.seconds();
        self.others.iter_mut().for_each(PagedVm::tell);
        self.others.iter_mut().for_each(|other| other.wait_for_verifies(1));
        let socket = self.folder.path().join("guest.sock");
        let sockets = self.others.iter().map(PagedVm::socket).chain([socket.clone()]);
        let stored_pages: u64 = match self.way {
            Way::Ours(_) => sockets.filter_map(|socket| stored_pages(&socket)).sum(),
            _ => 0,
        };
        let mut course = self.observer.finish();
        let answer = ask(&socket, "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#);
        ensure!(answer.status == 204, "the guest is not stopped: {answer:?}");
        let finished = self.guest.finish(LIMIT);
        ensure!(finished.status == Some(0), "the guest ended with {:?}: {}", finished.status, finished.stderr);
        for vm in self.others {
            vm.stop();
        }
        let work = self.confines.map(Confines::finish).transpose()?.flatten();
        let is_taken = stored_pages > 0 || work.is_some_and(|work| work.paged_out_bytes > 0);
        ensure!(is_taken || self.way == Way::Unlimited, "memory was not short: nothing was taken from the guests");
        course.load = load;
        course.guest = GuestUsage::all(&finished.stdout);
        course.console = finished.stdout;
        Ok(course)
    }
}

/// Starts the guest that is measured.
fn start(mut command: Command, plan: &Plan, setup: &Setup, flags: &[String], folder: &Path) -> Result<Running> {
    let mut initramfs = Initramfs::new()?;
    let network = format!("ifconfig eth0 {GUEST_ADDRESS} netmask 255.255.255.0 mtu {MTU} up\n");
    let network = if setup.has_network { network.as_str() } else { "" };
    initramfs.add_bytes("/work.sh", [PROLOGUE, network, &setup.script].concat());
    // A folder that disks are mounted on.
    initramfs.add_bytes("/mnt/empty", "");
    setup.files.iter().for_each(|(path, content)| initramfs.add_bytes(path, content.as_bytes()));
    initramfs.write(&folder.join("initramfs"))?;
    fs::write(folder.join("guest-swap"), swap_area((SWAP_MIB * MIB) as usize)).context("a disk")?;
    command.args(["run", "--memory", &plan.size(setup.sizes.memory_mib), "--cmdline", "init.run=\"sh /work.sh\""]);
    command.arg("--kernel").arg(Guest::Vmlinux.build()?).arg("--initrd").arg(folder.join("initramfs"));
    command.arg("--disk").arg(folder.join("guest-swap")).arg("--api-sock").arg(folder.join("guest.sock"));
    match &setup.disk {
        Disk::Nothing => {}
        Disk::Image(image) => drop(command.arg("--disk").arg(format!("{},ro", image.display()))),
        Disk::Blank(bytes) => {
            let path = folder.join("disk");
            File::create(&path).and_then(|file| file.set_len(*bytes)).context("a disk")?;
            command.arg("--disk").arg(format!("{},direct", path.display()));
        }
    }
    if setup.has_network {
        command.args(["--net", &format!("tap={}", Namespace::TAP)]);
    }
    command.args(flags).stdin(Stdio::piped());
    Ok(Running::spawn(command))
}

/// A pool's guests are started with these.
fn flags(pool_bytes: u64, folder: &Path) -> Vec<String> {
    let (pool, swap) = (folder.join("pool").display().to_string(), folder.display().to_string());
    let pairs = [("--pool", pool), ("--budget", pool_bytes.to_string()), ("--swap", swap)];
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}
