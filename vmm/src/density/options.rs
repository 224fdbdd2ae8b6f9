//! What a user may ask of `cistern density`: its own flags, and those of `cistern run` that every guest gets.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cistern::options::{OptionsError, RunOptions};
use cistern::pool_options::Budget;
use cistern::size::Size;
use cistern_memory::ledger::MAXIMUM_MEMBERS;
use cistern_memory::manager::automatic_budget_bytes;
use cistern_memory::sharing::Mechanisms;
use clap::{ArgMatches, Args, Command, FromArgMatches, Parser};

use super::mix::Part;
use super::workload::Workload;

/// Flags of `run` that each guest has of its own, or that say where its console and its pool are.
const OWN: [&str; 11] = [
    "pool",
    "resident",
    "name",
    "api_sock",
    "console",
    "boot_times",
    "disk",
    "net",
    "vsock",
    "bare_cmdline",
    "eviction",
];

/// Those that `density --help` lists; the others are in that of `run`.
const LISTED: [&str; 6] = ["kernel", "initrd", "cmdline", "memory", "budget", "swap"];

/// They come behind density's own.
const FIRST_PLACE: usize = 100;

const BUDGET_HELP: &str =
    "What all guests may use together: a size, or what the cgroup or the host has [default: auto]";

/// Those that are said to each guest in another way.
const TOLD_APART: [&str; 3] = ["kernel", "cmdline", "budget"];

/// Guests in a pool have this much of their VMM's to pay for.
const VMM_BYTES: u64 = 4 << 20;

/// `cistern density`.
#[derive(Args)]
pub struct Density {
    /// Guests to start, or 'max': as many as all keep their goodput; 'max:N' looks around N
    #[arg(long, value_name = "N|max")]
    pub guests: Count,
    /// What W parts of the guests run on the embedded test kernel; repeat for a mix; 'n' in braces is a guest's number
    #[arg(long, value_name = "[W:]PROGRAM", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    pub probe: Vec<Part>,
    /// Time between two starts, in ms
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub stagger: u64,
    /// Time before the measurement once all have filled their memory, in seconds
    #[arg(long, value_name = "S", default_value_t = 10.0, allow_negative_numbers = true)]
    pub warmup: f64,
    /// Time of the measurement, in seconds
    #[arg(long, value_name = "S", default_value_t = 30.0, allow_negative_numbers = true)]
    pub secs: f64,
    /// What each guest must get done of what it does alone, for 'max'
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0, allow_negative_numbers = true)]
    pub goodput: f64,
    /// No pool, no paging, no sharing: what the host does by itself, --budget is only noted
    #[arg(long)]
    pub unmanaged: bool,
    /// Folder for report.json and report.html
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print report.json instead of tables, and nothing before
    #[arg(long)]
    pub json: bool,
    /// What each guest is.
    #[command(flatten)]
    pub guest: GuestFlags,
}

/// How many guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// So many.
    Number(usize),
    /// As many as keep their goodput.
    Max {
        /// What that is believed to be.
        near: Option<usize>,
    },
}

impl Count {
    /// Whether the largest number is looked for.
    pub const fn is_max(self) -> bool {
        matches!(self, Self::Max { .. })
    }
}

/// Text that is no number of guests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}': 1 to {MAXIMUM_MEMBERS} guests, max, or max:N")]
pub struct CountError(String);

impl FromStr for Count {
    type Err = CountError;

    fn from_str(text: &str) -> Result<Self, CountError> {
        let number = |digits: &str| match digits.parse() {
            Ok(number @ 1..=MAXIMUM_MEMBERS) => Ok(number.into()),
            _ => Err(CountError(text.to_owned())),
        };
        match text.strip_prefix("max") {
            None => Ok(Self::Number(number(text)?)),
            Some("") => Ok(Self::Max { near: None }),
            Some(near) => Ok(Self::Max { near: Some(number(near.strip_prefix(':').unwrap_or_default())?) }),
        }
    }
}

/// Flags of `cistern run` that every guest is started with.
#[derive(Debug, Clone, Default)]
pub struct GuestFlags {
    /// What they say.
    pub options: RunOptions,
    arguments: Vec<OsString>,
}

/// `run`'s flags by themselves.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct OnlyRun {
    #[command(flatten)]
    options: RunOptions,
}

/// The flags that are passed on, as `run` describes them.
fn passed_on() -> Vec<clap::Arg> {
    let run = RunOptions::augment_args(Command::new("run"));
    run.get_arguments().filter(|flag| !OWN.contains(&flag.get_id().as_str())).cloned().collect()
}

impl Args for GuestFlags {
    fn augment_args(command: Command) -> Command {
        passed_on().into_iter().zip(FIRST_PLACE..).fold(command, |command, (flag, place)| {
            let id = flag.get_id().as_str();
            let (is_listed, is_budget) = (LISTED.contains(&id), id == "budget");
            let flag = flag.hide(!is_listed).display_order(place);
            command.arg(if is_budget { flag.help(BUDGET_HELP) } else { flag })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GuestFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let (mut all, mut arguments) = (Vec::new(), Vec::new());
        for flag in passed_on() {
            let id = flag.get_id().as_str();
            for value in matches.get_raw(id).into_iter().flatten() {
                let mut argument = OsString::from(format!("--{}=", flag.get_long().expect("run has long flags only")));
                argument.push(value);
                all.push(argument.clone());
                if !TOLD_APART.contains(&id) {
                    arguments.push(argument);
                }
            }
        }
        Ok(Self { options: OnlyRun::try_parse_from(all)?.options, arguments })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One kind of guest.
#[derive(Debug, Clone)]
pub struct Role {
    /// Its program, and how many guests have it.
    pub part: Part,
    /// What there is to measure of it.
    pub workload: Workload,
}

/// What is to be done, every contradiction refused.
#[derive(Debug)]
pub struct Plan {
    /// How many guests.
    pub count: Count,
    /// What a guest believes it has.
    pub memory: Size,
    /// What all may use.
    pub budget: Size,
    /// The kinds of guest, at least one. With a kernel of the user's there is one, whose program is the command line.
    pub roles: Vec<Role>,
    /// The user's kernel; `None` for the probe.
    pub kernel: Option<PathBuf>,
    /// Time between two starts.
    pub stagger: Duration,
    /// Time before the measurement.
    pub warmup: Duration,
    /// Time of the measurement.
    pub time: Duration,
    /// The share of its goodput alone that each guest must keep, 0 to 1.
    pub goodput: f64,
    /// Guests are in no pool.
    pub is_unmanaged: bool,
    /// The pool's leader drives KSM.
    pub tunes_ksm: bool,
    /// Flags that each guest gets.
    pub arguments: Vec<OsString>,
}

impl Plan {
    /// Whether guests are stopped after their time, and not waited for.
    pub fn is_timed(&self) -> bool {
        self.roles.iter().any(|role| role.workload.is_endless)
    }

    /// From flags.
    ///
    /// # Errors
    /// [`OptionsError`], in `run`'s words where it is a flag of `run`'s.
    pub fn new(density: Density) -> Result<Self, OptionsError> {
        let bad = |flag, value: String, reason: &str| OptionsError::Value { flag, value, reason: reason.to_owned() };
        let Density { guest: GuestFlags { options, mut arguments }, probe, .. } = density;
        let roles = match (&options.kernel, probe) {
            (None, parts) if !parts.is_empty() => parts.into_iter().map(role).collect::<Result<_, _>>()?,
            (None, _) => {
                let reason = "nothing to run: name a program with --probe PROGRAM, or a kernel with --kernel FILE";
                return Err(bad("guests", density.guests.to_string(), reason));
            }
            (Some(_), _) => {
                let program = options.cmdline.clone().unwrap_or_default();
                vec![Role { part: Part { weight: 1, program }, workload: Workload::UNKNOWN }]
            }
        };
        let is_measured = |role: &Role| options.kernel.is_some() || role.workload.is_measured();
        if density.guests.is_max() && !roles.iter().all(is_measured) {
            return Err(bad(
                "guests",
                density.guests.to_string(),
                "every --probe must walk, or touch pages while it is idle",
            ));
        }
        let seconds = |flag, value: f64, least: f64| match Duration::try_from_secs_f64(value) {
            Ok(time) if (least..=86_400.0).contains(&value) => Ok(time),
            _ => Err(bad(flag, value.to_string(), &format!("{least} to 86400 seconds"))),
        };
        if !(0.1..=100.0).contains(&density.goodput) {
            return Err(bad("goodput", density.goodput.to_string(), "0.1 to 100 percent"));
        }
        if density.stagger > 60_000 {
            return Err(bad("stagger", density.stagger.to_string(), "0 to 60000 ms"));
        }
        let budget = match options.budget {
            Some(Budget::Size(size)) => size,
            Some(Budget::Auto) | None => Size { bytes: automatic_budget_bytes().unwrap_or(0) },
        };
        if density.unmanaged
            && let Some((flag, value)) = first_manager_flag(&options)
        {
            return Err(bad(flag, value, "with --unmanaged there is no pool, no paging and no sharing"));
        }
        if !density.unmanaged && options.mergeable == Some(true) {
            let reason = "its pages are the kernel's to page: that takes --unmanaged";
            return Err(bad("mergeable", "true".to_owned(), reason));
        }
        let tunes_ksm = options.ksm_tune == Some(true);
        let has_sharing = options.sharing.is_some();
        let (reservation, kernel) = (options.reservation, options.kernel.clone());
        let checked = RunOptions {
            kernel: Some(PathBuf::new()),
            pool: (!density.unmanaged).then(PathBuf::new),
            budget: (!density.unmanaged).then_some(Budget::Size(budget)),
            ..options
        };
        let memory = checked.resolve()?.memory;
        let needed = Size { bytes: reservation.map_or(0, |size| size.bytes) + VMM_BYTES };
        if !density.unmanaged && budget < needed {
            let reason = format!("one guest needs {needed}, its reservation and its VMM");
            return Err(bad("budget", budget.to_string(), &reason));
        }
        if density.unmanaged && !has_sharing {
            arguments.push("--sharing=off".into());
        }
        Ok(Self {
            count: density.guests,
            memory,
            budget,
            roles,
            kernel,
            stagger: Duration::from_millis(density.stagger),
            warmup: seconds("warmup", density.warmup, 0.0)?,
            time: seconds("secs", density.secs, 0.1)?,
            goodput: density.goodput / 100.0,
            is_unmanaged: density.unmanaged,
            tunes_ksm,
            arguments,
        })
    }
}

/// A flag that has our memory manager do something, and its value.
fn first_manager_flag(options: &RunOptions) -> Option<(&'static str, String)> {
    let sharing = options.sharing.filter(|mechanisms| *mechanisms != Mechanisms::OFF);
    let ksm_tune = options.ksm_tune.filter(|tunes| *tunes);
    // The budget is noted in any case.
    RunOptions { budget: None, ksm_tune, ..options.clone() }
        .first_pool_flag()
        .or_else(|| options.swap.as_ref().map(|folder| ("swap", folder.display().to_string())))
        .or_else(|| options.store_limit.map(|limit| ("store-limit", limit.to_string())))
        .or_else(|| options.codec.map(|codec| ("codec", format!("{codec:?}").to_lowercase())))
        .or_else(|| options.reclaim_cpu.map(|percent| ("reclaim-cpu", percent.to_string())))
        .or_else(|| sharing.map(|mechanisms| ("sharing", mechanisms.to_string())))
        .or_else(|| options.scan_cpu.map(|percent| ("scan-cpu", percent.to_string())))
}

fn role(part: Part) -> Result<Role, OptionsError> {
    let refused = |reason| OptionsError::Value { flag: "probe", value: format!("'{}'", part.program), reason };
    let program = part.of_guest(1);
    if program.contains('"') {
        return Err(refused("a program has no quotes".to_owned()));
    }
    let workload = Workload::of(&program).map_err(refused)?;
    Ok(Role { part, workload })
}

impl std::fmt::Display for Count {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Max { near: None } => write!(formatter, "max"),
            Self::Max { near: Some(number) } => write!(formatter, "max:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Alone {
        #[command(flatten)]
        density: Density,
    }

    fn plan(flags: &str) -> Result<Plan, String> {
        let words = flags.split(' ').filter(|word| !word.is_empty());
        let parsed = Alone::try_parse_from(words).map_err(|error| error.to_string())?;
        Plan::new(parsed.density).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_of_run_are_passed_on() {
        let flags = "--guests 4 --probe fill:4M;verify --memory 32M --budget 64M --swap /var/tmp --track --sharing zero,ksm \
                     --ksm-tune --idle-tax 50 --initrd-less";
        assert!(plan(flags).is_err_and(|error| error.contains("--initrd-less")));
        let plan = plan(flags.trim_end_matches("--initrd-less")).expect("a plan");
        assert_eq!(
            (plan.count, plan.memory, plan.budget),
            (Count::Number(4), Size::mebibytes(32), Size::mebibytes(64))
        );
        let mut arguments = plan.arguments.clone();
        arguments.sort();
        let expected = [
            "--idle-tax=50",
            "--ksm-tune=true",
            "--memory=32M",
            "--sharing=zero,ksm",
            "--swap=/var/tmp",
            "--track=true",
        ];
        assert_eq!(arguments, expected);
        assert!(plan.tunes_ksm && !plan.is_timed() && plan.kernel.is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ok = "--memory 32M --budget 64M --probe fill:4M;repeat:forever,(walk:4M)";
        for (flags, words) in [
            ("--guests 0", "guests"),
            ("--guests 257", "256"),
            ("--guests most", "max"),
            ("--guests max:0", "max:N"),
            ("--guests max48", "max:N"),
            ("--guests 4 --warmup -1", "warmup"),
            ("--guests 4 --secs 0", "secs"),
            ("--guests 4 --goodput 101", "goodput"),
            ("--guests 4 --stagger 60001", "stagger"),
            ("--guests 4 --probe dance", "unknown step"),
            ("--guests 4 --probe 0:verify", "weight"),
            ("--guests 4 --kernel vmlinux", "kernel"),
            ("--guests max --probe fill:4M;verify", "every --probe"),
            ("--guests 4 --reservation 64M", "at most 32M"),
            ("--guests 4 --limit 1G", "limit"),
            ("--guests 4 --swap-limit 1G", "--swap DIR"),
            ("--guests 4 --pool /tmp/pool", "--pool"),
            ("--guests 4 --disk a.img", "--disk"),
            ("--guests 4 --unmanaged --shares high", "--shares 20 a MiB: with --unmanaged there is no pool"),
            ("--guests 4 --unmanaged --swap /var/tmp", "--swap /var/tmp: with --unmanaged"),
            ("--guests 4 --unmanaged --codec zstd", "--codec zstd: with --unmanaged"),
            ("--guests 4 --unmanaged --store-limit 50%", "--store-limit 50%: with --unmanaged"),
            ("--guests 4 --unmanaged --sharing zero,ksm", "--sharing zero,ksm: with --unmanaged"),
            ("--guests 4 --mergeable", "--mergeable true: its pages are the kernel's to page: that takes --unmanaged"),
        ] {
            let error = plan(&format!("{ok} {flags}")).err().unwrap_or_default();
            assert!(error.contains(words), "{flags}: {error}");
        }
        assert!(plan("--guests 4").is_err_and(|error| error.contains("--probe PROGRAM")));
        assert!(plan("--guests 4 --probe verify --budget 4M").is_err_and(|error| error.contains("at least 8M")));
        let reserved = "--guests 4 --probe verify --memory 64M --budget 32M --reservation 30M";
        assert!(plan(reserved).is_err_and(|error| error.contains("one guest needs 34M")));
        let count = |flags: &str| plan(&format!("{ok} {flags}")).map(|plan| plan.count);
        assert_eq!(count("--guests max"), Ok(Count::Max { near: None }));
        assert_eq!(count("--guests max:48"), Ok(Count::Max { near: Some(48) }));
    }

    #[test]
    fn a_mix_and_a_kernel() {
        let mix =
            plan("--guests 10 --probe 7:fill:4M;idle:1 --probe 3:fill:8M;repeat:forever,(walk:8M)").expect("a plan");
        assert_eq!(mix.roles.iter().map(|role| role.part.weight).collect::<Vec<_>>(), [7, 3]);
        assert!(mix.is_timed(), "one of them has no end");
        let linux = plan("--guests 3 --kernel vmlinux --initrd i.cpio --cmdline seed={n} --unmanaged").expect("a plan");
        assert_eq!((linux.roles.len(), linux.roles[0].part.of_guest(3)), (1, "seed=3".to_owned()));
        assert_eq!(linux.kernel, Some(PathBuf::from("vmlinux")));
        assert_eq!(linux.arguments, ["--initrd=i.cpio", "--sharing=off"]);
        plan("--guests 3 --probe verify --budget 64M --unmanaged --mergeable --sharing off").expect("it says so twice");
    }
}
