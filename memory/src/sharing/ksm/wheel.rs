//! Who drives KSM. Its settings hold for the host while pools are many: one driver at a time, and what it changes is put
//! back.
//!
//! The driver holds a lock (flock) on KSM's `run` itself, which leaves no file behind and goes with its process. Who mounts
//! sysfs in a network namespace of its own has another file and does not see the lock; what helps there is the rule for
//! everybody else who writes these files: a value that is not what was written here is somebody else's, and is let be. Whoever
//! may read `run` can hold the lock: then nobody drives, and that is all.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::error::KsmError;
use super::folder::{KsmFolder, Setting};
use super::record::{Change, Changes, RecordFile};
use super::regulator::Pace;

/// The right to drive, until it is dropped or the process ends. Dropped it puts back what it found.
#[derive(Debug)]
pub(super) struct Wheel {
    folder: KsmFolder,
    record: RecordFile,
    changes: Changes,
    lost: Vec<Setting>,
    lock: File,
}

impl Wheel {
    /// Takes the wheel for a pool, and with it what an earlier leader of the pool has changed and not put back. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`KsmError::Taken`], [`KsmError::Absent`]; the record of an earlier leader cannot be read.
    pub fn take(folder: KsmFolder, pool: &Path) -> Result<Self, KsmError> {
        let lock = open_run(&folder)?;
        let path = folder.path_of(Setting::Run);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(KsmError::Taken { path }),
            Err(TryLockError::Error(cause)) => return Err(KsmError::Io { path, action: "locking", cause }),
        }
        Self::with_lock(lock, folder, pool)
    }

    /// As one who has locked `run`.
    fn with_lock(lock: File, folder: KsmFolder, pool: &Path) -> Result<Self, KsmError> {
        let record = RecordFile::of(pool, folder.path());
        let mut wheel = Self { changes: record.read()?, folder, record, lost: Vec::new(), lock };
        for (index, setting) in Setting::ALL.into_iter().enumerate() {
            let Some(change) = wheel.changes.0[index] else { continue };
            // What stands now was found by this leader, if it is not of the earlier one.
            wheel.changes.0[index] = match wheel.current(setting)? {
                Some(value) if change.explains(value) => Some(Change { written: value, before: value, ..change }),
                _ => None,
            };
        }
        Ok(wheel)
    }

    /// What somebody else has changed since this wheel had changed it.
    pub fn lost(&self) -> &[Setting] {
        &self.lost
    }

    /// Whether how ksmd runs has been changed, by this leader or by the one it took over from.
    pub fn has_driven(&self) -> bool {
        let is_of_run = |setting: &Setting| *setting != Setting::MergeAcrossNodes;
        Setting::ALL
            .iter()
            .filter(|setting| is_of_run(setting))
            .any(|setting| self.changes.0[*setting as usize].is_some())
    }

    /// Has ksmd run at a pace. Once somebody else has changed how it runs, what this wheel has changed of its pace is put
    /// back at once, lest it runs at half of one and half of another, and that is all from then on.
    ///
    /// # Errors
    /// As for a single setting; [`KsmError::Unmerging`].
    pub fn drive(&mut self, pace: Pace) -> Result<(), KsmError> {
        self.look()?;
        if self.is_let_go() {
            return Ok(());
        }
        if self.current(Setting::Run)?.is_some_and(|run| !Setting::Run.allows(run)) {
            return Err(KsmError::Unmerging { path: self.folder.path_of(Setting::Run) });
        }
        if self.current(Setting::AdvisorMode)?.is_some_and(|mode| mode != 0) {
            self.set(Setting::AdvisorMode, 0)?;
        }
        // Pages are advised where they have equals, some a little later than others: passed over by turns, two that are equal
        // need not be seen in the same pass, which merging them takes.
        if self.current(Setting::SmartScan)?.is_some_and(|is_on| is_on != 0) {
            self.set(Setting::SmartScan, 0)?;
        }
        self.set(Setting::PagesToScan, pace.pages_to_scan.into())?;
        self.set(Setting::SleepMillisecs, pace.sleep_millisecs.into())?;
        self.set(Setting::Run, 1)
    }

    /// Whether somebody else has taken over how ksmd runs.
    pub fn is_let_go(&self) -> bool {
        self.lost.iter().any(|setting| *setting != Setting::MergeAcrossNodes)
    }

    /// Changes whether pages of different nodes are merged.
    ///
    /// # Errors
    /// [`KsmError::Merged`]; as for a single setting.
    pub fn set_across_nodes(&mut self, across: bool) -> Result<(), KsmError> {
        let (setting, value) = (Setting::MergeAcrossNodes, u64::from(across));
        let pages_shared = self.folder.number("pages_shared")?.unwrap_or(0);
        if pages_shared > 0 && self.current(setting)?.is_some_and(|current| current != value) {
            return Err(KsmError::Merged { path: self.folder.path_of(setting), asked: value, pages_shared });
        }
        self.set(setting, value)
    }

    /// Changes a setting that nobody else has changed since. What it was is recorded first.
    ///
    /// # Errors
    /// This kernel does not have it, or does not accept the value; or its present value could not be put back.
    fn set(&mut self, setting: Setting, value: u64) -> Result<(), KsmError> {
        let path = || self.folder.path_of(setting);
        let current = self.current(setting)?.ok_or_else(|| KsmError::NoSetting { path: path() })?;
        if current == value {
            return Ok(());
        }
        if !setting.allows(current) {
            return Err(KsmError::Odd { path: path(), text: current.to_string() });
        }
        let earlier = self.changes.0[setting as usize];
        let found = earlier.map_or(current, |change| change.found);
        self.changes.0[setting as usize] = Some(Change { found, written: value, before: current });
        let written = self.record.write(&self.changes).and_then(|()| self.folder.set(setting, value));
        if written.is_err() {
            // The setting is as it was; a record that says more does no harm.
            self.changes.0[setting as usize] = earlier;
        }
        written
    }

    /// Looks whether what was changed still is as it was written.
    fn look(&mut self) -> Result<(), KsmError> {
        let known = self.lost.len();
        for setting in Setting::ALL {
            if self.changes.0[setting as usize].is_some() && !self.is_own(setting)? {
                self.lose(setting);
            }
        }
        if self.lost.len() == known {
            return Ok(());
        }
        if self.is_let_go() {
            let pace = |setting| !matches!(setting, Setting::Run | Setting::MergeAcrossNodes);
            self.put_back_those(pace);
        }
        self.record.write(&self.changes)
    }

    /// Puts back what is still as it was written, and tells what could not be: that stays recorded. Across which nodes pages
    /// are merged cannot, while any are.
    pub fn put_back(&mut self) -> PutBack {
        let mut result = self.put_back_those(|_| true);
        result.failures.extend(self.record.write(&self.changes).err());
        result
    }

    fn put_back_those(&mut self, are_meant: impl Fn(Setting) -> bool) -> PutBack {
        let mut result = PutBack::default();
        for setting in Setting::ALL.into_iter().rev().filter(|setting| are_meant(*setting)) {
            let Some(change) = self.changes.0[setting as usize] else { continue };
            match self.is_own(setting) {
                Ok(true) => {}
                Ok(false) => {
                    self.lose(setting);
                    continue;
                }
                Err(error) => {
                    result.failures.push(error);
                    continue;
                }
            }
            match self.folder.set(setting, change.found) {
                Ok(()) => {
                    self.changes.0[setting as usize] = None;
                    result.put_back.push(setting);
                }
                Err(error) => result.failures.push(error),
            }
        }
        result
    }

    fn current(&self, setting: Setting) -> Result<Option<u64>, KsmError> {
        self.folder.value(setting)
    }

    /// Whether a setting that was changed is as it was written last.
    fn is_own(&self, setting: Setting) -> Result<bool, KsmError> {
        let written = self.changes.0[setting as usize].map(|change| change.written);
        // With the advisor on pages_to_scan is the kernel's, whatever it is.
        let is_the_advisors =
            setting == Setting::PagesToScan && self.current(Setting::AdvisorMode)?.is_some_and(|mode| mode != 0);
        Ok(!is_the_advisors && self.current(setting)? == written)
    }

    fn lose(&mut self, setting: Setting) {
        self.changes.0[setting as usize] = None;
        self.lost.push(setting);
    }
}

impl Drop for Wheel {
    fn drop(&mut self) {
        // What fails stays recorded for the next leader.
        self.put_back();
        // A child that is being started has the descriptor too, until it is another program.
        let _ = self.lock.unlock();
    }
}

/// What became of settings that were to be put back.
#[derive(Debug, Default)]
pub struct PutBack {
    /// They are as they were found.
    pub put_back: Vec<Setting>,
    /// Why others could not be. They stay in the record.
    pub failures: Vec<KsmError>,
}

fn open_run(folder: &KsmFolder) -> Result<File, KsmError> {
    let path = folder.path_of(Setting::Run);
    // Whoever may not write here shall not drive, nor keep others from it.
    OpenOptions::new().read(true).write(true).open(&path).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => KsmError::Absent { folder: folder.path().to_owned() },
        _ => KsmError::Io { path, action: "opening", cause },
    })
}

/// Puts back what an earlier leader of this pool has left changed; `None` if there is nothing.
///
/// # Errors
/// As for [`Wheel::take`].
pub(super) fn put_back_left_behind(folder: KsmFolder, pool: &Path) -> Result<Option<PutBack>, KsmError> {
    if RecordFile::of(pool, folder.path()).read()?.is_empty() {
        return Ok(None);
    }
    Ok(Some(Wheel::take(folder, pool)?.put_back()))
}

#[cfg(test)]
mod tests;
