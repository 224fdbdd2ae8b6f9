//! A host set up for a baseline, and put back.
//!
//! zswap's `max_pool_percent` is of the host's memory, not of a pool's. It is set to the whole percent of the host that is nearest
//! to what was asked of the budget, at least one.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cistern_memory::sharing::ksm::KsmHost;
use cistern_memory::{Meminfo, PAGE_SIZE};

use super::cgroup::Cgroup;
use super::keeper::Keeper;
use super::ksmtuned::Setting;
use super::shell::{output, quoted, run, text, write};
use super::throttle::Device;
use super::{Baseline, Compressor, Swap};
use crate::ksm::Ksm;
use crate::process::is_root;

const ZSWAP: &str = "/sys/module/zswap/parameters";
const ZRAM_CONTROL: &str = "/sys/class/zram-control";
const KSM: &str = "/sys/kernel/mm/ksm";
const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// The most that zswap may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZswapMost {
    /// As it is set: of the host's memory.
    pub host_percent: u64,
    /// That in bytes.
    pub bytes: u64,
}

impl ZswapMost {
    /// For so much of the budget, as near as can be.
    ///
    /// # Errors
    /// The kernel does not tell how much memory the host has.
    pub fn of(budget_percent: u8, budget_bytes: u64) -> Result<Self> {
        let meminfo = Meminfo::read().context("/proc/meminfo")?;
        let host_bytes = meminfo.bytes("MemTotal").context("/proc/meminfo: no MemTotal")?;
        let host_percent = nearest_percent(budget_percent, budget_bytes, host_bytes);
        Ok(Self { host_percent, bytes: host_bytes * host_percent / 100 })
    }
}

/// A host that swaps as a baseline says, until it is dropped or its process ends.
#[derive(Debug)]
pub struct Host {
    zram: Option<String>,
    /// A disk that is to be slow and is so for a cgroup alone.
    slow_for_cgroup: Option<Device>,
    // Undone first, then others may drive KSM.
    keeper: Keeper,
    _ksm: Option<Ksm>,
    _turn: File,
}

impl Host {
    /// Sets the host up for guests of this budget, with swap space in `folder`, which is on a disk.
    ///
    /// # Errors
    /// Not root; the host swaps already; it lacks what the baseline needs, which is named. Nothing is left changed then.
    pub fn prepare(baseline: Baseline, budget_bytes: u64, swap_bytes: u64, folder: &Path) -> Result<Self> {
        ensure!(is_root(), "{baseline}: swap and KSM are the whole host's: only root may set them up");
        let turn = File::create(std::env::temp_dir().join("cistern-tests-swap.lock")).context("a temporary folder")?;
        turn.lock().context("the host's swap")?;
        let ksm = baseline.merges.then(Ksm::hold);
        let locks: Vec<&File> = [&turn].into_iter().chain(ksm.as_ref().map(Ksm::lock)).collect();
        let keeper = Keeper::start_holding(&locks)?;
        let mut host = Self { zram: None, slow_for_cgroup: None, keeper, _ksm: ksm, _turn: turn };
        host.set_up(baseline, budget_bytes, swap_bytes, folder).with_context(|| format!("baseline {baseline}"))?;
        Ok(host)
    }

    fn set_up(&mut self, baseline: Baseline, budget_bytes: u64, swap_bytes: u64, folder: &Path) -> Result<()> {
        if baseline.merges {
            for file in ["pages_to_scan", "sleep_millisecs", "run"] {
                self.will_restore(&Path::new(KSM).join(file))?;
            }
        }
        expect_no_swap(&fs::read_to_string("/proc/swaps").context("/proc/swaps")?)?;
        match baseline.swap {
            Swap::Nothing => {}
            Swap::Zram => {
                // One page at a time: there is nothing to gain from reading ahead in memory.
                self.set(Path::new(PAGE_CLUSTER), "0")?;
                self.swap_to_zram(swap_bytes)?;
            }
            Swap::Zswap { max_pool_percent, compressor } => {
                let most = ZswapMost::of(max_pool_percent, budget_bytes)?;
                self.set_up_zswap(most.host_percent, compressor)?;
                self.swap_to_file(&folder.join("swap"), swap_bytes)?;
            }
            Swap::File => self.swap_to_file(&folder.join("swap"), swap_bytes)?,
            Swap::SlowFile => self.swap_slowly(&folder.join("swap"), swap_bytes)?,
        }
        Ok(())
    }

    /// Makes a memory cgroup for the guests, for which a slow disk is slow. Before the host is put back whoever is still in it is
    /// killed.
    ///
    /// # Errors
    /// There is no memory cgroup, or none may be made; a disk that should be slow cannot be made so for it.
    pub fn cgroup(&mut self) -> Result<Cgroup> {
        let cgroup = Cgroup::make(&mut self.keeper)?;
        if let Some(device) = self.slow_for_cgroup {
            cgroup.slow_down(device, &mut self.keeper)?;
        }
        Ok(cgroup)
    }

    /// A slow disk is slow for guests outside of any cgroup too.
    ///
    /// # Errors
    /// It is not.
    pub fn expect_slow_for_everybody(&self) -> Result<()> {
        ensure!(
            self.slow_for_cgroup.is_none(),
            "a slow disk needs the blkio controller of cgroup v1, or guests in a cgroup of v2 whose limit reaches them"
        );
        Ok(())
    }

    /// Memory that the host holds for what is swapped: zram's and zswap's.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn store_bytes(&self) -> Result<u64> {
        // Zero where there is no zswap (proc_meminfo(5)).
        Ok(self.zram_bytes()? + Meminfo::read().and_then(|meminfo| meminfo.bytes("Zswap")).unwrap_or(0))
    }

    /// zram's part of that.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn zram_bytes(&self) -> Result<u64> {
        let Some(name) = &self.zram else { return Ok(0) };
        let path = format!("/sys/block/{name}/mm_stat");
        zram_bytes(&fs::read_to_string(&path).context(path.clone())?).with_context(|| path)
    }

    /// Sets how ksmd works.
    ///
    /// # Errors
    /// KSM is not there.
    pub fn set_ksm(&self, setting: Setting) -> Result<()> {
        let Setting { runs, pages_to_scan, sleep_millisecs } = setting;
        let values = [("pages_to_scan", pages_to_scan), ("sleep_millisecs", sleep_millisecs), ("run", runs.into())];
        values.into_iter().try_for_each(|(file, value)| write(&Path::new(KSM).join(file), &value.to_string()))
    }

    /// What KSM saves, over all processes.
    ///
    /// # Errors
    /// KSM is not there.
    pub fn merged_bytes(&self) -> Result<u64> {
        Ok(KsmHost::read()?.pages_sharing * PAGE_SIZE)
    }

    /// Puts the host back.
    ///
    /// # Errors
    /// Something could not be put back; what, was said.
    pub fn restore(mut self) -> Result<()> {
        self.keeper.undo()
    }

    fn swap_to_zram(&mut self, bytes: u64) -> Result<()> {
        let path = format!("{ZRAM_CONTROL}/hot_add");
        let number = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("no zram: it is not loaded (modprobe zram), or this kernel has none")
            }
            result => result.context(path)?,
        };
        let number = number.trim();
        let (name, device) = (format!("zram{number}"), format!("/dev/zram{number}"));
        self.keeper.will(&format!("echo {number} > {ZRAM_CONTROL}/hot_remove"))?;
        write(Path::new(&format!("/sys/block/{name}/comp_algorithm")), Compressor::Lz4.name())?;
        write(Path::new(&format!("/sys/block/{name}/disksize")), &bytes.to_string())?;
        self.zram = Some(name);
        self.swap_to(Path::new(&device))
    }

    fn set_up_zswap(&mut self, max_pool_percent: u64, compressor: Compressor) -> Result<()> {
        let folder = Path::new(ZSWAP);
        ensure!(folder.exists(), "this kernel has no zswap");
        // The kernel refuses a compressor that it does not have.
        self.set(&folder.join("compressor"), compressor.name())
            .with_context(|| format!("zswap has no {}", compressor.name()))?;
        self.set(&folder.join("max_pool_percent"), &max_pool_percent.to_string())?;
        self.set(&folder.join("enabled"), "Y")
    }

    fn make_file(&mut self, file: &Path, bytes: u64) -> Result<()> {
        self.keeper.will(&format!("rm -f {}", quoted(file)?))?;
        run("fallocate", &["-l", &bytes.to_string(), text(file)?])?;
        run("chmod", &["600", text(file)?])
    }

    fn swap_to_file(&mut self, file: &Path, bytes: u64) -> Result<()> {
        self.make_file(file, bytes)?;
        self.swap_to(file)
    }

    /// A device over the file, because that can be made slow for itself, and one over that: the kernel lets what it swaps pass
    /// whoever waits (Linux 6.11 and later), but not what a device writes for it.
    fn swap_slowly(&mut self, file: &Path, bytes: u64) -> Result<()> {
        self.make_file(file, bytes)?;
        let slow = self.make_device(file)?;
        let over = self.make_device(&slow)?;
        self.swap_to(&over)?;
        let device = Device::at(&slow)?;
        // After the rest, so that nobody waits for it when the host is put back.
        if !device.slow_for_everybody(&mut self.keeper)? {
            self.slow_for_cgroup = Some(device);
        }
        Ok(())
    }

    /// A device over a file or a device.
    fn make_device(&mut self, over: &Path) -> Result<PathBuf> {
        // The shell's own losetup, where it has one, knows no more than this.
        self.keeper.will(&format!(
            "for loop in /sys/block/loop*/loop; do if [ \"$(cat $loop/backing_file 2> /dev/null)\" = {} ]; then \
             loop=${{loop%/loop}}; losetup -d /dev/${{loop##*/}}; fi; done",
            quoted(&over.canonicalize().with_context(|| over.display().to_string())?)?
        ))?;
        // Past the page cache, which would make the disk fast and is not in the budget.
        let device = output("losetup", &["--find", "--show", "--direct-io=on", text(over)?])?;
        Ok(PathBuf::from(device.trim()))
    }

    fn swap_to(&mut self, target: &Path) -> Result<()> {
        run("mkswap", &[text(target)?])?;
        self.keeper
            .will(&format!("if grep -q ^{target} /proc/swaps; then swapoff {target}; fi", target = quoted(target)?))?;
        run("swapon", &[text(target)?])
    }

    /// Changes a setting.
    fn set(&mut self, path: &Path, value: &str) -> Result<()> {
        self.will_restore(path)?;
        write(path, value)
    }

    fn will_restore(&mut self, path: &Path) -> Result<()> {
        let found = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let (found, path) = (found.trim(), quoted(path)?);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        ensure!(found.chars().all(is_plain), "{path}: {found:?} cannot be put back");
        self.keeper.will(&format!("echo {found} > {path}"))
    }
}

/// Other swap space would be used, too.
fn expect_no_swap(swaps: &str) -> Result<()> {
    let names: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(names.is_empty(), "this host swaps to {} already: what it costs could not be told apart", names.join(", "));
    Ok(())
}

fn nearest_percent(percent: u8, budget_bytes: u64, host_bytes: u64) -> u64 {
    let asked_bytes = budget_bytes as f64 * f64::from(percent) / 100.0;
    (asked_bytes * 100.0 / host_bytes.max(1) as f64).round().clamp(1.0, 100.0) as u64
}

/// The third number of `mm_stat`: memory that the device takes (kernel Documentation/admin-guide/blockdev/zram.rst).
fn zram_bytes(mm_stat: &str) -> Result<u64> {
    let number = mm_stat.split_ascii_whitespace().nth(2).context("it has no third number")?;
    number.parse().with_context(|| format!("{number:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_budget_is_a_part_of_the_host() {
        assert_eq!(nearest_percent(20, 1 << 30, 24 << 30), 1);
        assert_eq!(nearest_percent(50, 1 << 30, 24 << 30), 2);
        assert_eq!(nearest_percent(50, 24 << 30, 24 << 30), 50);
        assert_eq!(nearest_percent(20, 1 << 20, 24 << 30), 1, "zswap takes no less");
    }

    #[test]
    fn the_memory_of_zram_is_read() {
        assert_eq!(
            zram_bytes("  1048576   400000   524288        0   530000  3 0 0 0\n").expect("three numbers"),
            524_288
        );
        assert!(zram_bytes("1 2").is_err());
    }

    #[test]
    fn a_host_that_swaps_is_refused() {
        let header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(expect_no_swap(header).is_ok());
        let error = expect_no_swap(&format!("{header}/dev/sda2 partition 8388604 0 -2\n")).expect_err("it swaps");
        assert!(error.to_string().starts_with("this host swaps to /dev/sda2 already"), "{error}");
    }
}
