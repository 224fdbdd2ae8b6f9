//! What goes wrong with a ledger.

use std::io;
use std::path::PathBuf;

/// Why something could not be done with a pool's ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The pool's directory is missing and cannot be made.
    #[error("pool {}: making the directory: {cause}", pool.display())]
    Directory {
        /// The pool.
        pool: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There is no pool to look at.
    #[error("pool {}: there is no pool here: the first member makes one", pool.display())]
    NoPool {
        /// The pool.
        pool: PathBuf,
    },
    /// An operation on the file failed.
    #[error("{}: {action}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was done.
        action: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// What is there is something else; it is left as it is.
    #[error("{}: is not a ledger: name another directory for the pool", path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
    },
    /// The head cannot be read while members live.
    #[error("{}: the ledger's head is damaged: its leader writes it anew, try again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The pool is used by another version.
    #[error("{}: is used by cistern {theirs} (ledger format {their_format}), this is cistern {ours} (format {our_format})",
        path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version of the program that made the pool.
        theirs: String,
        /// Its format of the ledger.
        their_format: u32,
        /// Version of this program.
        ours: String,
        /// Its format of the ledger.
        our_format: u32,
    },
    /// Somebody who is joining does not get done.
    #[error("{}: another member has been joining for {seconds} seconds: is it stopped?", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The pool's first member has set another value.
    #[error("pool {}: its {setting} is {has}, not {asked}", pool.display())]
    Settings {
        /// The pool.
        pool: PathBuf,
        /// What the setting is called.
        setting: &'static str,
        /// What holds in the pool.
        has: String,
        /// What was asked for.
        asked: String,
    },
    /// A value that no pool and no member can have.
    #[error("pool {}: {rule}", pool.display())]
    Request {
        /// The pool.
        pool: PathBuf,
        /// What was not kept to.
        rule: &'static str,
    },
    /// Two VMs of one name.
    #[error("pool {}: a VM named {name} is in it already: process {pid}", pool.display())]
    NameInUse {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// The process that has it.
        pid: u32,
    },
    /// What is guaranteed to others leaves too little.
    #[error("pool {}: a reservation of {asked_bytes} bytes does not fit: of the budget of {budget_bytes} bytes, \
        {reserved_bytes} are reserved by others and {reserve_bytes} are held back, which leaves {}",
        pool.display(), budget_bytes.saturating_sub(*reserved_bytes).saturating_sub(*reserve_bytes))]
    Reservation {
        /// The pool.
        pool: PathBuf,
        /// What was asked for.
        asked_bytes: u64,
        /// The pool's budget.
        budget_bytes: u64,
        /// What the live members have reserved.
        reserved_bytes: u64,
        /// What is held back for growth that cannot wait.
        reserve_bytes: u64,
    },
    /// What is guaranteed to others is not known.
    #[error("pool {}: no reservation now: {members} members cannot be read; they write themselves anew, try again",
        pool.display())]
    Unreadable {
        /// The pool.
        pool: PathBuf,
        /// How many.
        members: usize,
    },
    /// Every slot has a live member.
    #[error("pool {}: is full: it has {members} members", pool.display())]
    Full {
        /// The pool.
        pool: PathBuf,
        /// How many.
        members: usize,
    },
    /// The file this member has open is no longer where others look for it.
    #[error("{}: was deleted or replaced: members that join from now on are in another pool", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
}
