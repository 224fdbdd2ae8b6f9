//! The command line of `cistern`.

use std::path::PathBuf;

use cistern::options::RunOptions;
use clap::{Parser, Subcommand};

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
    /// Boot a handful of embedded guests and show them working
    Demo(Demo),
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

/// `cistern demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// Print one JSON object a guest instead of a picture
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
