//! What a user may ask of `cistern run`: the same names as flags and in a TOML file.
//!
//! [`RunOptions`] is that surface, every field optional; [`RunOptions::resolve`] turns it into a [`MachineConfig`] with
//! every default filled in and every contradiction refused.

mod pool;
mod sharing;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use cistern_memory::PAGE_SIZE;
use cistern_memory::pager::PagerConfig;
use cistern_memory::policy::allocator::IdleTax;
use cistern_memory::policy::watermark::Watermarks;
use cistern_memory::sharing::Mechanisms;
use clap::Args;
use serde::Deserialize;

use crate::config::{
    BalloonMode, CodecChoice, ConsoleTarget, DiskConfig, EvictionChoice, MachineConfig, NetConfig, StoreLimit,
    VsockConfig,
};
use crate::firmware::CPUS_MAX;
use crate::pool_options::{Budget, Period, ReclaimChoice, Shares};
use crate::size::Size;

/// Why options make no sense. All of these are usage errors.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The configuration file cannot be read.
    #[error("--config {}: {cause}: name a TOML file this user may read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The configuration file says something that makes no sense.
    #[error("--config {}: {reason}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and what, on one line.
        reason: String,
    },
    /// No kernel is named.
    #[error("--kernel FILE is missing: name a vmlinux or bzImage, or write one with 'cistern guest write probe FILE'")]
    NoKernel,
    /// A value is out of its range.
    #[error("--{flag} {value}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What the user wrote.
        value: String,
        /// What would be right.
        reason: String,
    },
}

/// Options of `cistern run`. A TOML file has the same names and the same values (`memory = "512M"`, `disk = ["a.img",
/// "b.img,ro"]`); paths in it are relative to the working directory, as on the command line.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RunOptions {
    /// Kernel: ELF vmlinux or bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, appended to the defaults
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Pass --cmdline as it is, without the defaults
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        hide_possible_values = true)]
    pub bare_cmdline: Option<bool>,
    /// Guest memory [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Raw disk image or block device; 'direct' goes past the host's page cache; repeat for more
    #[arg(long, value_name = "FILE[,ro][,direct]")]
    #[serde(deserialize_with = "one_or_many")]
    pub disk: Vec<DiskConfig>,
    /// Network interface on an existing tap; repeat for more
    #[arg(long, value_name = "tap=NAME[,mac=MAC]")]
    #[serde(deserialize_with = "one_or_many")]
    pub net: Vec<NetConfig>,
    /// Virtual socket: guest address N, host side at PATH
    #[arg(long, value_name = "cid=N,uds=PATH")]
    pub vsock: Option<VsockConfig>,
    /// Give the guest random numbers of the host's
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        hide_possible_values = true)]
    pub rng: Option<bool>,
    /// Balloon device: on, noreporting (the guest does not report free pages) or off [default: on]
    #[arg(long, value_enum, value_name = "MODE", hide_possible_values = true)]
    pub balloon: Option<BalloonMode>,
    /// Limit on host memory for the guest's resident and stored pages
    #[arg(long, value_name = "SIZE")]
    pub resident: Option<Size>,
    /// Folder for a swap file
    #[arg(long, value_name = "DIR")]
    pub swap: Option<PathBuf>,
    /// Limit on the swap file [default: the file system's]
    #[arg(long, value_name = "SIZE")]
    pub swap_limit: Option<Size>,
    /// Limit on memory for compressed pages, as a size or a share of guest memory [default: 50%]
    #[arg(long, value_name = "SIZE|PERCENT%")]
    pub store_limit: Option<StoreLimit>,
    /// How stored pages are compressed: none, lz4 or zstd [default: lz4]
    #[arg(long, value_enum, value_name = "CODEC", hide_possible_values = true)]
    pub codec: Option<CodecChoice>,
    /// CPU time for taking pages from the guest, in percent of one CPU [default: 100]
    #[arg(long, value_name = "PERCENT")]
    pub reclaim_cpu: Option<u32>,
    /// How pages leave guest RAM: move or copy [default: move where the kernel can]
    #[arg(long, value_enum, value_name = "METHOD", hide = true)]
    pub eviction: Option<EvictionChoice>,
    /// Folder of a pool that shares a memory budget; made if missing
    #[arg(long, value_name = "DIR")]
    pub pool: Option<PathBuf>,
    /// The pool's budget: a size, or what the cgroup or the host has [default: the pool's, else auto]
    #[arg(long, value_name = "SIZE|auto")]
    pub budget: Option<Budget>,
    /// Part when active memory does not fit: low, normal, high (1:2:4, normal is 10 a MiB) or a number
    #[arg(long, value_name = "SHARES")]
    pub shares: Option<Shares>,
    /// Host memory this VM is guaranteed [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub reservation: Option<Size>,
    /// Host memory its guest may use at most [default: --memory]
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Size>,
    /// How much dearer idle memory is in the pool [default: 75]
    #[arg(long, value_name = "PERCENT")]
    pub idle_tax: Option<IdleTax>,
    /// Free memory at which the pool takes the next measure, in percent of the budget [default: 6,4,2,1]
    #[arg(long, value_name = "A,B,C,D")]
    pub watermarks: Option<Watermarks>,
    /// How often a sample of the guest's pages is taken [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub sample_period: Option<Period>,
    /// Pages of a sample [default: 100]
    #[arg(long, value_name = "N")]
    pub sample_pages: Option<u32>,
    /// Sample also where the pool is not short of memory
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        hide_possible_values = true)]
    pub track: Option<bool>,
    /// The most of the guest that its balloon may hold [default: 65]
    #[arg(long, value_name = "PERCENT")]
    pub balloon_max: Option<u8>,
    /// When pages are taken in a pool: off, pressure or proactive [default: pressure]
    #[arg(long, value_enum, value_name = "WHEN", hide_possible_values = true)]
    pub reclaim: Option<ReclaimChoice>,
    /// Ways of sharing, used also where nothing is short: off, or some of zero,store,ksm [default: zero,store]
    #[arg(long, value_name = "WAYS")]
    pub sharing: Option<Mechanisms>,
    /// CPU time for finding what can be shared, in percent of one CPU; at most five VMs' together in a pool [default: 5]
    #[arg(long, value_name = "PERCENT")]
    pub scan_cpu: Option<u32>,
    /// Drive the host's KSM while this VM leads the pool, and put back its settings after that
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        hide_possible_values = true)]
    pub ksm_tune: Option<bool>,
    /// Whether KSM merges pages of different NUMA nodes, 0 or 1 [default: as it is]
    #[arg(long, value_name = "0|1")]
    pub ksm_across_nodes: Option<u8>,
    /// Offer all guest memory to the host's KSM and leave it to that, as QEMU does; without a pool
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        hide_possible_values = true, hide = true)]
    pub mergeable: Option<bool>,
    /// Serial console: stdio, none or file:PATH [default: stdio]
    #[arg(long, value_name = "TARGET")]
    pub console: Option<ConsoleTarget>,
    /// Name of this VM, for its messages and 'cistern stats' [default: the process id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Control socket [default: cistern/NAME.sock in $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// Stop the guest after this many seconds (exit status 4)
    #[arg(long, value_name = "SECS", allow_negative_numbers = true)]
    pub timeout: Option<f64>,
    /// Print, as JSON on stderr, where the time before the guest's first instruction went
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        hide_possible_values = true
    )]
    pub boot_times: Option<bool>,
}

/// Options that take a list accept a single value too.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr,
    T::Err: std::fmt::Display,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string or a list of strings")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

const DEFAULT_MEMORY: Size = Size::mebibytes(512);
/// Boot structures, a kernel and something to work with: less has never booted anything.
const MINIMUM_MEMORY: Size = Size::mebibytes(4);
/// Page tables, firmware and the working set of an idle guest: with less it would do nothing but wait for its own pages.
pub(crate) const MINIMUM_RESIDENT: Size = Size::mebibytes(8);
const DEFAULT_STORE_LIMIT: StoreLimit = StoreLimit::Percent(50);
const MAXIMUM_CPUS: u32 = CPUS_MAX as u32;
const MAXIMUM_NAME_BYTES: usize = 64;
/// No description of a machine is as long as this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

impl RunOptions {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`OptionsError::File`] or [`OptionsError::Toml`].
    pub fn from_file(path: &Path) -> Result<Self, OptionsError> {
        let failed = |cause| OptionsError::File { path: path.to_owned(), cause };
        let mut text = String::new();
        let mut file = File::open(path).map_err(failed)?.take(CONFIG_BYTES_MAX + 1);
        file.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(failed(io::Error::other(format!("larger than {} KiB", CONFIG_BYTES_MAX >> 10))));
        }
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            OptionsError::Toml {
                path: path.to_owned(),
                reason: format!("{place}{}", error.message().replace('\n', "; ")),
            }
        })
    }

    /// These options where they say something, `other` where they do not.
    pub fn or(self, other: Self) -> Self {
        let list = |mine: Vec<_>, others| if mine.is_empty() { others } else { mine };
        Self {
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            cmdline: self.cmdline.or(other.cmdline),
            bare_cmdline: self.bare_cmdline.or(other.bare_cmdline),
            memory: self.memory.or(other.memory),
            cpus: self.cpus.or(other.cpus),
            disk: list(self.disk, other.disk),
            net: if self.net.is_empty() { other.net } else { self.net },
            vsock: self.vsock.or(other.vsock),
            rng: self.rng.or(other.rng),
            balloon: self.balloon.or(other.balloon),
            resident: self.resident.or(other.resident),
            swap: self.swap.or(other.swap),
            swap_limit: self.swap_limit.or(other.swap_limit),
            store_limit: self.store_limit.or(other.store_limit),
            codec: self.codec.or(other.codec),
            reclaim_cpu: self.reclaim_cpu.or(other.reclaim_cpu),
            eviction: self.eviction.or(other.eviction),
            pool: self.pool.or(other.pool),
            budget: self.budget.or(other.budget),
            shares: self.shares.or(other.shares),
            reservation: self.reservation.or(other.reservation),
            limit: self.limit.or(other.limit),
            idle_tax: self.idle_tax.or(other.idle_tax),
            watermarks: self.watermarks.or(other.watermarks),
            sample_period: self.sample_period.or(other.sample_period),
            sample_pages: self.sample_pages.or(other.sample_pages),
            track: self.track.or(other.track),
            balloon_max: self.balloon_max.or(other.balloon_max),
            reclaim: self.reclaim.or(other.reclaim),
            sharing: self.sharing.or(other.sharing),
            scan_cpu: self.scan_cpu.or(other.scan_cpu),
            ksm_tune: self.ksm_tune.or(other.ksm_tune),
            ksm_across_nodes: self.ksm_across_nodes.or(other.ksm_across_nodes),
            mergeable: self.mergeable.or(other.mergeable),
            console: self.console.or(other.console),
            name: self.name.or(other.name),
            api_sock: self.api_sock.or(other.api_sock),
            timeout: self.timeout.or(other.timeout),
            boot_times: self.boot_times.or(other.boot_times),
        }
    }

    /// Fills in the defaults and checks every value by itself.
    ///
    /// # Errors
    /// [`OptionsError::NoKernel`] or [`OptionsError::Value`].
    pub fn resolve(self) -> Result<MachineConfig, OptionsError> {
        let bad = |flag, value: String, reason: &str| OptionsError::Value { flag, value, reason: reason.to_owned() };
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        if memory < MINIMUM_MEMORY {
            return Err(bad("memory", memory.to_string(), &format!("at least {MINIMUM_MEMORY}")));
        }
        if !memory.bytes.is_multiple_of(PAGE_SIZE) {
            return Err(bad("memory", memory.bytes.to_string(), "not a multiple of 4K"));
        }
        let cpus = self.cpus.unwrap_or(1);
        if !(1..=MAXIMUM_CPUS).contains(&cpus) {
            return Err(bad("cpus", cpus.to_string(), &format!("1 to {MAXIMUM_CPUS}")));
        }
        if let Some(resident) = self.resident
            && resident < MINIMUM_RESIDENT
        {
            return Err(bad("resident", resident.to_string(), &format!("at least {MINIMUM_RESIDENT}")));
        }
        if let (Some(limit), None) = (self.swap_limit, &self.swap) {
            return Err(bad("swap-limit", limit.to_string(), "there is no swap file: name its folder with --swap DIR"));
        }
        let name = self.name.clone().unwrap_or_else(|| std::process::id().to_string());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAXIMUM_NAME_BYTES || !name.chars().all(plain) || name.starts_with('.') {
            return Err(bad("name", name, "letters, digits, '-', '_' and '.', at most 64"));
        }
        let pool = self.resolve_pool(&name, memory)?;
        let sharing = self.resolve_sharing()?;
        let mergeable = self.resolve_mergeable()?;
        let defaults = PagerConfig::default();
        let reclaim_cpu_percent = self.reclaim_cpu.unwrap_or(defaults.reclaim_cpu_percent);
        let host_cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        if !(1..=100 * host_cpus).contains(&reclaim_cpu_percent) {
            let range = format!("1 to {}, 100 for each CPU of this host", 100 * host_cpus);
            return Err(bad("reclaim-cpu", reclaim_cpu_percent.to_string(), &range));
        }
        let pager = PagerConfig {
            swap_folder: self.swap,
            swap_limit_bytes: self.swap_limit.map_or(defaults.swap_limit_bytes, |limit| limit.bytes),
            store_limit_bytes: self.store_limit.unwrap_or(DEFAULT_STORE_LIMIT).bytes(memory),
            codec: self.codec.map_or(defaults.codec, Into::into),
            reclaim_cpu_percent,
            eviction: self.eviction.map(Into::into),
            ..defaults
        };
        let timeout = match self.timeout {
            Some(seconds) => match Duration::try_from_secs_f64(seconds) {
                // More than the kernel's signed seconds hold is no time it can wait.
                Ok(timeout) if !timeout.is_zero() && i64::try_from(timeout.as_secs()).is_ok() => Some(timeout),
                _ => return Err(bad("timeout", seconds.to_string(), "a number of seconds above 0")),
            },
            None => None,
        };
        Ok(MachineConfig {
            kernel: self.kernel.ok_or(OptionsError::NoKernel)?,
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            bare_cmdline: self.bare_cmdline.unwrap_or(false),
            memory,
            cpus: cpus as u8,
            disks: self.disk,
            nets: self.net,
            vsock: self.vsock,
            rng: self.rng.unwrap_or(false),
            balloon: self.balloon.unwrap_or(BalloonMode::On),
            resident: self.resident,
            pool,
            sharing,
            mergeable,
            pager,
            console: self.console.unwrap_or(ConsoleTarget::Stdio),
            name,
            api_socket: self.api_sock,
            timeout,
            boot_times: self.boot_times.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use cistern_memory::manager::{ManagerConfig, ReclaimMode};
    use cistern_memory::pager::EvictionMethod;
    use cistern_memory::sharing::ksm::TunerConfig;
    use cistern_memory::store::codec::Codec;

    use super::*;

    fn toml(text: &str) -> Result<RunOptions, String> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("write");
        RunOptions::from_file(file.path()).map_err(|error| error.to_string())
    }

    const EVERYTHING: &str = r#"
        kernel = "vmlinux"
        initrd = "initramfs.cpio"
        cmdline = "root=/dev/vda"
        bare-cmdline = true
        memory = "1G"
        cpus = 2
        disk = ["a.img", "b.img,ro,direct"]
        net = "tap=tap0,mac=02:00:00:00:00:01"
        vsock = "cid=3,uds=/tmp/v"
        rng = true
        balloon = "noreporting"
        resident = "256M"
        swap = "/var/tmp"
        swap-limit = "2G"
        store-limit = "25%"
        codec = "zstd"
        reclaim-cpu = 50
        eviction = "move"
        pool = "/run/pool"
        budget = "4G"
        shares = "high"
        reservation = "64M"
        limit = "512M"
        idle-tax = 50
        watermarks = "8,6,4,2"
        sample-period = "2s"
        sample-pages = 200
        track = true
        balloon-max = 50
        reclaim = "off"
        sharing = "zero,ksm"
        scan-cpu = 3
        ksm-tune = true
        ksm-across-nodes = 0
        mergeable = true
        console = "file:/tmp/log"
        name = "one"
        api-sock = "/run/one.sock"
        timeout = 2.5
        boot-times = true
    "#;

    #[test]
    fn every_flag_has_its_twin_in_the_file() {
        let file = toml(EVERYTHING).expect("valid");
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            options: RunOptions,
        }
        let flags = <Flags as clap::Parser>::try_parse_from([
            "run",
            "--kernel",
            "vmlinux",
            "--initrd",
            "initramfs.cpio",
            "--cmdline",
            "root=/dev/vda",
            "--bare-cmdline",
            "--memory",
            "1G",
            "--cpus",
            "2",
            "--disk",
            "a.img",
            "--disk",
            "b.img,ro,direct",
            "--net",
            "tap=tap0,mac=02:00:00:00:00:01",
            "--vsock",
            "cid=3,uds=/tmp/v",
            "--rng",
            "--balloon",
            "noreporting",
            "--resident",
            "256M",
            "--swap",
            "/var/tmp",
            "--swap-limit",
            "2G",
            "--store-limit",
            "25%",
            "--codec",
            "zstd",
            "--reclaim-cpu",
            "50",
            "--eviction",
            "move",
            "--pool",
            "/run/pool",
            "--budget",
            "4G",
            "--shares",
            "high",
            "--reservation",
            "64M",
            "--limit",
            "512M",
            "--idle-tax",
            "50",
            "--watermarks",
            "8,6,4,2",
            "--sample-period",
            "2s",
            "--sample-pages",
            "200",
            "--track",
            "--balloon-max",
            "50",
            "--reclaim",
            "off",
            "--sharing",
            "zero,ksm",
            "--scan-cpu",
            "3",
            "--ksm-tune",
            "--ksm-across-nodes",
            "0",
            "--mergeable",
            "--console",
            "file:/tmp/log",
            "--name",
            "one",
            "--api-sock",
            "/run/one.sock",
            "--timeout",
            "2.5",
            "--boot-times",
        ])
        .expect("valid");
        assert_eq!(flags.options, file);
        // None was left out above.
        let count =
            <Flags as clap::CommandFactory>::command().get_arguments().filter(|flag| flag.get_id() != "help").count();
        assert_eq!(EVERYTHING.lines().filter(|line| line.contains(" = ")).count(), count);
        let error = file.clone().resolve().expect_err("a limit of its own, and a pool").to_string();
        assert_eq!(error, "--resident 256M: a VM in a pool is limited by --limit");
        let config = RunOptions { resident: None, mergeable: None, ..file }.resolve().expect("valid");
        assert_eq!((config.disks.len(), config.nets.len()), (2, 1));
        assert_eq!((config.disks[1].read_only, config.disks[1].direct), (true, true));
        assert_eq!(config.timeout, Some(Duration::from_millis(2500)));
        let pager = config.pager;
        assert_eq!((pager.store_limit_bytes, pager.swap_limit_bytes), (256 << 20, 2 << 30));
        assert_eq!((pager.codec, pager.eviction), (Codec::Zstd, Some(EvictionMethod::Move)));
        assert_eq!((pager.reclaim_cpu_percent, pager.swap_folder), (50, Some("/var/tmp".into())));
        let pool = config.pool.expect("a pool");
        let settings = pool.request.settings;
        assert_eq!((settings.budget_bytes, settings.idle_tax_percent), (Some(4 << 30), Some(50)));
        assert_eq!(settings.watermarks_millipercent, Some([8000, 6000, 4000, 2000]));
        let request = pool.request;
        assert_eq!((request.name.as_str(), request.size_bytes, request.shares), ("one", 1 << 30, 20 * 1024));
        assert_eq!((request.reservation_bytes, request.limit_bytes), (64 << 20, 512 << 20));
        assert_eq!((pool.manager.tracker.period, pool.manager.tracker.sample_pages), (Duration::from_secs(2), 200));
        assert_eq!((pool.manager.track, pool.manager.balloon_max_percent), (true, 50));
        assert_eq!(pool.manager.reclaim, ReclaimMode::Off);
        assert_eq!(pool.manager.ksm_tuner, Some(TunerConfig { across_nodes: Some(false), ..TunerConfig::default() }));
    }

    #[test]
    fn a_pool_has_defaults_and_its_flags_need_one() {
        let options = |change: fn(&mut RunOptions)| {
            let mut options = RunOptions {
                kernel: Some("k".into()),
                memory: Some(Size::mebibytes(64)),
                pool: Some("pool".into()),
                ..Default::default()
            };
            change(&mut options);
            options.resolve().map_err(|error| error.to_string())
        };
        let pool = options(|_| ()).expect("valid").pool.expect("a pool");
        assert_eq!((pool.request.limit_bytes, pool.request.reservation_bytes, pool.request.shares), (64 << 20, 0, 640));
        assert_eq!((pool.request.settings, pool.manager), (Default::default(), ManagerConfig::default()));
        assert_eq!(pool.manager.ksm_tuner, None);
        let not_tuned = options(|options| options.ksm_tune = Some(false)).expect("valid").pool.expect("a pool");
        assert_eq!(not_tuned.manager.ksm_tuner, None);
        for (change, expected) in [
            ((|options| options.limit = Some(Size::mebibytes(65))) as fn(&mut RunOptions), "--limit 65M: 8M to 64M"),
            (|options| options.limit = Some(Size::mebibytes(7)), "--limit 7M: 8M to 64M"),
            (|options| options.reservation = Some(Size::mebibytes(65)), "--reservation 65M: at most 64M"),
            (|options| options.budget = Some(Budget::Size(Size::mebibytes(7))), "--budget 7M: at least 8M"),
            (|options| options.sample_pages = Some(0), "--sample-pages 0: 1 to 10000"),
            (|options| options.balloon_max = Some(96), "--balloon-max 96: 0 to 95"),
            (|options| (options.pool, options.budget) = (None, Some(Budget::Auto)), "--budget auto: there is no pool"),
            (|options| (options.pool, options.track) = (None, Some(true)), "--track true: there is no pool"),
            (|options| (options.pool, options.ksm_tune) = (None, Some(true)), "--ksm-tune true: there is no pool"),
            (
                |options| (options.pool, options.ksm_across_nodes) = (None, Some(1)),
                "--ksm-across-nodes 1: there is no pool",
            ),
            (
                |options| (options.ksm_tune, options.ksm_across_nodes) = (Some(true), Some(2)),
                "--ksm-across-nodes 2: 0 or 1",
            ),
            (|options| options.ksm_across_nodes = Some(1), "--ksm-across-nodes 1: KSM is changed only with --ksm-tune"),
            (
                |options| (options.ksm_tune, options.ksm_across_nodes) = (Some(false), Some(0)),
                "--ksm-across-nodes 0: KSM is changed only with --ksm-tune",
            ),
        ] {
            let error = options(change).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn paging_has_defaults() {
        let options = RunOptions { kernel: Some("k".into()), memory: Some(Size::mebibytes(64)), ..Default::default() };
        let config = options.clone().resolve().expect("valid");
        assert_eq!((config.resident, config.pager.swap_folder, config.pager.eviction), (None, None, None));
        assert_eq!((config.pager.store_limit_bytes, config.pager.swap_limit_bytes), (32 << 20, u64::MAX));
        assert_eq!((config.pager.codec, config.pager.reclaim_cpu_percent), (Codec::Lz4, 100));
        // A limit that is never reached is none, and no mistake.
        RunOptions { resident: Some(Size::mebibytes(4096)), ..options }.resolve().expect("valid");
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = RunOptions { memory: Some(Size::mebibytes(64)), ..Default::default() };
        let merged = flags.or(toml(EVERYTHING).expect("valid"));
        assert_eq!(merged.memory, Some(Size::mebibytes(64)));
        assert_eq!(merged.cpus, Some(2));
    }

    #[test]
    fn odd_files_say_where_and_what() {
        for (text, expected) in [
            ("kernal = \"x\"", "line 1: unknown field `kernal`"),
            ("cpus = 1\nmemory = \"lots\"", "line 2: 'lots' is not a size"),
            ("disk = 7", "expected a string or a list of strings"),
            ("net = \"eth0\"", "tap=NAME"),
            ("store-limit = \"110%\"", "0% to 100% of guest memory"),
            ("store-limit = true", "a size or percentage"),
            ("codec = \"gzip\"", "unknown variant `gzip`"),
            ("= = =", "line 1"),
        ] {
            let error = toml(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let options = || RunOptions { kernel: Some("k".into()), ..Default::default() };
        for (options, expected) in [
            (RunOptions::default(), "--kernel FILE is missing"),
            (RunOptions { memory: Some(Size { bytes: 0 }), ..options() }, "--memory 0B: at least 4M"),
            (RunOptions { memory: Some(Size::mebibytes(1)), ..options() }, "--memory 1M: at least 4M"),
            (RunOptions { memory: Some(Size { bytes: (8 << 20) + 1 }), ..options() }, "not a multiple of 4K"),
            (RunOptions { cpus: Some(0), ..options() }, "--cpus 0: 1 to 254"),
            (RunOptions { cpus: Some(255), ..options() }, "--cpus 255: 1 to 254"),
            (RunOptions { resident: Some(Size::mebibytes(7)), ..options() }, "--resident 7M: at least 8M"),
            (
                RunOptions { swap_limit: Some(Size::mebibytes(7)), ..options() },
                "--swap-limit 7M: there is no swap file",
            ),
            (RunOptions { reclaim_cpu: Some(0), ..options() }, "--reclaim-cpu 0: 1 to "),
            (RunOptions { reclaim_cpu: Some(u32::MAX), ..options() }, "--reclaim-cpu 4294967295: 1 to "),
            (
                RunOptions { mergeable: Some(true), resident: Some(Size::mebibytes(64)), ..options() },
                "--mergeable true: its pages are the kernel's to page: leave out --resident",
            ),
            (RunOptions { timeout: Some(0.0), ..options() }, "--timeout 0"),
            (RunOptions { timeout: Some(f64::NAN), ..options() }, "--timeout NaN"),
            (RunOptions { timeout: Some(1e19), ..options() }, "--timeout 1"),
            (RunOptions { name: Some("a/b".into()), ..options() }, "--name a/b"),
        ] {
            let error = options.resolve().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
