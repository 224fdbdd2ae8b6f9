//! The command line of `cistern`.

use std::path::PathBuf;

use cistern::options::RunOptions;
use cistern::pool_options::Budget;
use cistern_memory::sharing::Mechanisms;
use clap::{Parser, Subcommand};

use crate::density::Density;

/// A minimal KVM hypervisor with memory overcommit built in: one process, one microVM.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Boot a microVM and stay with it to its end
    #[command(after_help = RUN_HELP)]
    Run(Box<Run>),
    /// Show what a running VM's memory costs and where it is
    Stats(Stats),
    /// Show a pool of VMs that share a memory budget, and what each may and does use
    Pool(Pool),
    /// Watch a pool live
    #[command(after_help = TOP_HELP)]
    Top(Top),
    /// Set a VM's balloon by hand, or leave it to its pool again
    Balloon {
        /// Name or process id of the VM, or its control socket's path
        #[arg(value_name = "NAME|PID|SOCKET")]
        vm: String,
        /// What the balloon shall hold
        #[arg(value_name = "SIZE|auto")]
        size: Budget,
    },
    /// Show or switch what a VM shares: off, or some of zero,store,ksm
    Sharing {
        /// Name or process id of the VM, or its control socket's path
        #[arg(value_name = "NAME|PID|SOCKET")]
        vm: String,
        /// The ways of sharing from now on
        #[arg(value_name = "WAYS")]
        ways: Option<Mechanisms>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Watch a pool at work: eight embedded guests in half of the memory they fill
    Demo(Demo),
    /// Find out how many guests a budget of memory holds, and what that costs them
    #[command(after_help = DENSITY_HELP)]
    Density(Box<Density>),
    /// Guests that come with the program
    #[command(subcommand)]
    Guest(GuestCommand),
    /// What this host offers: KVM, page faults in user space
    Host {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const RUN_HELP: &str = "Exit status: 0 guest powered off or reset, or stopped by you; 1 host or VMM error; 2 usage;
3 guest crash; 4 timed out; 64 + the low five bits of a byte the guest writes to port 0xf4.
Ctrl-A x stops the guest, Ctrl-A h lists more. SIGTERM presses the power button; a second one, or 5 s, stops.";

const DENSITY_HELP: &str = "\
Every other memory and pool flag of 'run' is taken too, and passed on to all guests. Programs that end are waited for;
those with 'repeat:forever' are measured for --secs and stopped. Goodput is touches a second, or the part of an idle
guest's touches in time, against a guest alone. Exit status: 1 bad page, a guest that did not end well, no number that
passed, or host error; 2 usage; 0 also if you stop it.";

const TOP_HELP: &str = "\
The bar is what is free of the budget, with the watermarks in it. A guest may
use its grant and costs the host its charge; gfree is what the guest itself
calls free, ref/s its refaults a second, stall the time its faults waited in
parts of the time that passed. Arrows select, Enter shows all of a guest, the
capital letters of the headings sort, q leaves. Columns without room are left
out. Off a terminal the table is printed once, with every column.";

/// `cistern run`.
#[derive(clap::Args)]
pub struct Run {
    /// What the machine is.
    #[command(flatten)]
    pub options: RunOptions,
    /// TOML file with the same names as these flags; flags win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// `cistern stats`.
#[derive(clap::Args)]
pub struct Stats {
    /// Name or process id of the VM, or its control socket's path
    #[arg(value_name = "NAME|PID|SOCKET")]
    pub vm: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `cistern pool`.
#[derive(clap::Args)]
pub struct Pool {
    /// Folder of the pool
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `cistern top`.
#[derive(clap::Args)]
pub struct Top {
    /// Folder of the pool [default: $CISTERN_POOL, else the current folder if it is one]
    pub dir: Option<PathBuf>,
    /// Measure for a second, print the table as text and end
    #[arg(long)]
    pub once: bool,
}

/// `cistern demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// Print one JSON object a guest and one for the pool in the end, and nothing before
    #[arg(long)]
    pub json: bool,
}

/// `cistern guest`.
#[derive(Subcommand)]
pub enum GuestCommand {
    /// Name the embedded guests
    List,
    /// Write an embedded guest to a file, to boot with --kernel
    Write {
        /// Name of the guest
        name: String,
        /// Where to
        file: PathBuf,
    },
}
