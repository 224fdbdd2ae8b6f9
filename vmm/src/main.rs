//! The `cistern` command.

mod balloon;
mod cli;
mod demo;
mod density;
mod guest_process;
mod pool;
mod running;
mod sharing;
mod stats;
mod top;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use cistern::api::ControlSocket;
use cistern::config::{ConsoleTarget, MachineConfig};
use cistern::guests;
use cistern::heap;
use cistern::host::{Host, Virtualization, host_memory_bytes};
use cistern::limits;
use cistern::machine::{Machine, MachineError};
use cistern::options::{OptionsError, RunOptions};
use cistern::outcome::{Outcome, STATUS_ERROR, STATUS_USAGE};
use cistern::report;
use cistern::signals::{Signals, ignore_file_size_limit_signal, restore_terminal_on_fatal_signals};
use cistern::size::Size;
use cistern::supervisor::Controls;
use cistern::terminal::{self, ConsoleInput};
use cistern::timeline::Timeline;
use cistern_memory::UserfaultSupport;
use cistern_memory::sharing::ksm::KsmHost;
use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command, GuestCommand, Run};

fn main() -> ExitCode {
    end_on_panic();
    heap::keep_small();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match cli.command {
        Command::Run(run) => run_machine(*run),
        Command::Stats(stats) => stats::run(&stats.vm, stats.json),
        Command::Pool(pool) => top::print_pool(&pool.dir, pool.json),
        Command::Top(top) => top::run(top.dir, top.once),
        Command::Balloon { vm, size } => balloon::run(&vm, size),
        Command::Sharing { vm, ways, json } => sharing::run(&vm, ways, json),
        Command::Demo(demo) => demo::run(demo.json),
        Command::Density(density) => density::run(*density),
        Command::Guest(command) => guest(command),
        Command::Host { json } => host(json),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&format!("{error:#}"));
            let usage = error.is::<OptionsError>()
                || error.is::<top::NoPoolNamed>()
                || error.downcast_ref().is_some_and(MachineError::is_usage);
            ExitCode::from(if usage { STATUS_USAGE } else { STATUS_ERROR })
        }
    }
}

/// The command line, on a thread of its own: its frames are deep, and the main thread's stack would keep what they took.
fn parse() -> clap::error::Result<Cli> {
    let parser = thread::Builder::new().spawn(Cli::try_parse);
    parser.ok().and_then(|parser| parser.join().ok()).unwrap_or_else(Cli::try_parse)
}

/// One line on stderr. Error numbers are for programs; the words before them are enough.
fn complain(message: &str) {
    let mut line = message.replace('\n', "; ");
    while let Some(start) = line.find(" (os error ") {
        let Some(length) = line[start..].find(')') else { break };
        line.replace_range(start..=start + length, "");
    }
    let line = format!("{}: {line}\n", report::prefix());
    // At once: others may write there too, and whoever reads sees a whole line. With stderr closed there is nobody to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Help and version as clap prints them; anything else as the one line that matters.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { STATUS_USAGE } else { 0 });
    }
    let text = error.render().to_string();
    // The usage and the pointer to --help that follow are known; a tip is not.
    let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let tips = rest.lines().filter(|line| line.trim_start().starts_with("tip:"));
    let message = message.lines().chain(tips).map(str::trim).collect::<Vec<_>>().join(" ");
    complain(message.strip_prefix("error: ").unwrap_or(&message));
    ExitCode::from(STATUS_USAGE)
}

/// Merging that is asked for while KSM does not run, and may not be started, is in vain.
fn warn_of_stopped_ksm(config: &MachineConfig) {
    let may_start = config.pool.as_ref().is_some_and(|pool| pool.manager.ksm_tuner.is_some());
    if !config.sharing.mechanisms.ksm || may_start {
        return;
    }
    match KsmHost::read() {
        Ok(host) => host.stopped().into_iter().for_each(|why| complain(&format!("warning: --sharing ksm: {why}"))),
        Err(error) => complain(&format!("warning: --sharing ksm: {error}")),
    }
}

fn run_machine(run: Run) -> anyhow::Result<u8> {
    let timeline = Arc::new(Timeline::default());
    timeline.mark("start");
    let options = match &run.config {
        Some(path) => run.options.or(RunOptions::from_file(path)?),
        None => run.options,
    };
    if let Some(name) = &options.name {
        report::set_name(name);
    }
    let is_named = options.name.is_some();
    let config = options.resolve()?;
    if let Some((memory_bytes, swap_bytes)) = host_memory_bytes()
        && config.memory.bytes > memory_bytes
        && config.resident.is_none_or(|limit| limit.bytes > memory_bytes)
        && swap_bytes == 0
    {
        let host = Size { bytes: memory_bytes };
        complain(&format!("warning: --memory {} is more than this host's {host}, which has no swap", config.memory));
    }
    timeline.mark("read options");
    ignore_file_size_limit_signal();
    if config.vsock.is_some() {
        limits::raise_open_files().context("limit of open files")?;
    }
    let member = config.pool.as_ref().map(|pool| pool::join(pool, &config)).transpose()?;
    let machine = Machine::build_timed(&config, &timeline)?;
    warn_of_stopped_ksm(&config);
    // Signals are blocked before the first thread starts, so that only the supervisor sees them.
    let signals = Signals::block().context("signals")?;
    let serial = machine.serial().clone();
    restore_terminal_on_fatal_signals().context("signals")?;
    let input = match config.console {
        ConsoleTarget::Stdio => Some(ConsoleInput::new(io::stdin().as_fd().try_clone_to_owned().context("stdin")?)?),
        _ => None,
    };
    let socket = control_socket(&config, is_named)?;
    timeline.mark("open control socket");
    let outcome = machine.run(Controls { signals: Some(signals), input, timeout: config.timeout, socket, member });
    terminal::restore();
    if config.boot_times {
        let _ = writeln!(io::stderr(), "{}", timeline.to_json());
    }
    if let Some(failure) = serial.take_output_failure() {
        complain(&format!("console: {} bytes of output lost: {}", failure.lost_bytes, failure.cause));
    }
    let outcome = outcome?;
    match &outcome {
        Outcome::Crash(_) => complain(&outcome.to_string()),
        Outcome::TimedOut => {
            complain(&format!("timed out after {} s, guest stopped", config.timeout.unwrap_or_default().as_secs_f64()))
        }
        _ => {}
    }
    Ok(outcome.status())
}

/// The control socket. A VM whose user asked for none goes without when there can be none, but two of one name would be
/// mistaken for each other.
fn control_socket(config: &MachineConfig, is_named: bool) -> anyhow::Result<Option<ControlSocket>> {
    if let Some(path) = &config.api_socket {
        return Ok(Some(ControlSocket::bind(path)?));
    }
    match ControlSocket::bind_name(&config.name) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if is_named && error.is_in_use() => Err(error.into()),
        Err(error) => {
            complain(&format!("warning: {error}"));
            Ok(None)
        }
    }
}

/// A panic of any thread is the end: a part of the machine is lost. The terminal is left as it was found.
fn end_on_panic() {
    let default_hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        terminal::restore();
        default_hook(info);
        process::exit(i32::from(STATUS_ERROR));
    }));
}

/// Prints a line on stdout; whoever closed it does not want to read it.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stdout(), $($text)*);
    }};
}

fn guest(command: GuestCommand) -> anyhow::Result<u8> {
    match command {
        GuestCommand::List => {
            for guest in &guests::GUESTS {
                say!("{:10} {}", guest.name, guest.description);
            }
        }
        GuestCommand::Write { name, file } => {
            let guest = guests::find(&name)
                .ok_or_else(|| anyhow!("no guest named '{name}': 'cistern guest list' names them"))?;
            guest.write(&file).with_context(|| file.display().to_string())?;
        }
    }
    Ok(0)
}

fn host(json: bool) -> anyhow::Result<u8> {
    let host = Host::open()?;
    let virtualization = match host.virtualization {
        Virtualization::Hardware => "hardware",
        Virtualization::Pvm => "pvm",
    };
    let userfault = UserfaultSupport::probe();
    let (memory_bytes, swap_bytes) = host_memory_bytes().unwrap_or_default();
    if json {
        let report = serde_json::json!({
            "kvm": virtualization,
            "guest_physical_address_bits": host.physical_address_bits,
            "memory_bytes": memory_bytes,
            "swap_bytes": swap_bytes,
            "userfaultfd": userfault.as_ref().ok().map(|support| serde_json::json!({
                "write_protect": support.write_protect,
                "move": support.move_pages,
            })),
        });
        say!("{report}");
        return Ok(0);
    }
    say!("KVM           {virtualization}, {}-bit guest addresses", host.physical_address_bits);
    say!("memory        {}, swap {}", Size { bytes: memory_bytes }, Size { bytes: swap_bytes });
    match userfault {
        Ok(support) => {
            let word = |has| if has { "yes" } else { "no" };
            say!("userfaultfd   yes: write-protect {}, move {}", word(support.write_protect), word(support.move_pages));
        }
        Err(error) => say!("userfaultfd   no: {error}"),
    }
    Ok(0)
}
