//! KSM's folder in sysfs, and the settings in it that a tuner may change.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::KsmError;

/// Where the kernel has it (kernel Documentation/admin-guide/mm/ksm.rst).
const SYSFS: &str = "/sys/kernel/mm/ksm";

/// The kernel marks the choice in force like this: `none [scan-time]`.
const ADVISOR_CHOICES: [&str; 2] = ["none", "scan-time"];

/// A setting that a tuner may change; all of them hold for the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Who sets pages_to_scan: 0 whoever writes it, 1 the kernel (since Linux 6.8).
    AdvisorMode,
    /// Pages that ksmd looks at before it sleeps.
    PagesToScan,
    /// How long it sleeps, in ms.
    SleepMillisecs,
    /// Whether ksmd passes over pages for which it has found no equal, for up to eight passes (since Linux 6.7).
    SmartScan,
    /// Whether pages of different NUMA nodes are merged; changes only while nothing is.
    MergeAcrossNodes,
    /// Whether ksmd runs: 0 or 1. The file's third value, 2, unmerges the pages of everybody: it is none of ours.
    Run,
}

impl Setting {
    /// In the order in which they are changed; put back they are in the reverse. The advisor is first because the kernel
    /// refuses pages_to_scan while it is on, ksmd's start is last.
    pub(super) const ALL: [Self; 6] = [
        Self::AdvisorMode,
        Self::PagesToScan,
        Self::SleepMillisecs,
        Self::SmartScan,
        Self::MergeAcrossNodes,
        Self::Run,
    ];

    fn file_name(self) -> &'static str {
        match self {
            Self::AdvisorMode => "advisor_mode",
            Self::PagesToScan => "pages_to_scan",
            Self::SleepMillisecs => "sleep_millisecs",
            Self::SmartScan => "smart_scan",
            Self::MergeAcrossNodes => "merge_across_nodes",
            Self::Run => "run",
        }
    }

    /// Whether it may be written.
    pub(super) fn allows(self, value: u64) -> bool {
        match self {
            Self::PagesToScan => (1..=u64::from(u32::MAX)).contains(&value),
            Self::SleepMillisecs => value <= u64::from(u32::MAX),
            Self::AdvisorMode | Self::SmartScan | Self::MergeAcrossNodes | Self::Run => value <= 1,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SYSFS}/{}", self.file_name())
    }
}

/// The folder; another one only in tests.
#[derive(Debug, Clone)]
pub(super) struct KsmFolder(PathBuf);

impl Default for KsmFolder {
    fn default() -> Self {
        Self(SYSFS.into())
    }
}

impl KsmFolder {
    #[cfg(test)]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a setting is.
    pub fn path_of(&self, setting: Setting) -> PathBuf {
        self.0.join(setting.file_name())
    }

    /// What a file says; `None` where this kernel does not have it.
    pub fn text(&self, name: &str) -> Result<Option<String>, KsmError> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => match self.0.is_dir() {
                true => Ok(None),
                false => Err(KsmError::Absent { folder: self.0.clone() }),
            },
            Err(cause) => Err(KsmError::Io { path, action: "reading", cause }),
        }
    }

    /// The number in a file; `None` where this kernel does not have it.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, KsmError> {
        let odd = |text| KsmError::Odd { path: self.0.join(name), text };
        self.text(name)?.map(|text| text.parse().map_err(|_| odd(text))).transpose()
    }

    /// The advisor in force; `None` before Linux 6.8.
    pub fn advisor(&self) -> Result<Option<String>, KsmError> {
        let name = Setting::AdvisorMode.file_name();
        let Some(text) = self.text(name)? else { return Ok(None) };
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
        match chosen {
            Some(chosen) => Ok(Some(chosen.to_owned())),
            None => Err(KsmError::Odd { path: self.0.join(name), text }),
        }
    }

    /// The value of a setting; `None` where this kernel does not have it.
    pub fn value(&self, setting: Setting) -> Result<Option<u64>, KsmError> {
        match setting {
            Setting::AdvisorMode => {
                let Some(chosen) = self.advisor()? else { return Ok(None) };
                // One that came later is on, whatever it is called, and not to be put back by a number.
                let number = ADVISOR_CHOICES.iter().position(|choice| *choice == chosen);
                Ok(Some(number.map_or(u64::MAX, |number| number as u64)))
            }
            _ => self.number(setting.file_name()),
        }
    }

    /// Writes a setting.
    pub fn set(&self, setting: Setting, value: u64) -> Result<(), KsmError> {
        debug_assert!(setting.allows(value), "{setting:?} {value}");
        let text = match setting {
            Setting::AdvisorMode => ADVISOR_CHOICES[value as usize].to_owned(),
            _ => value.to_string(),
        };
        let path = self.path_of(setting);
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => Ok(()),
            Err(cause) if setting == Setting::MergeAcrossNodes && cause.kind() == io::ErrorKind::ResourceBusy => {
                let pages_shared = self.number("pages_shared")?.unwrap_or(0);
                Err(KsmError::Merged { path, asked: value, pages_shared })
            }
            Err(cause) => Err(KsmError::Io { path, action: "writing", cause }),
        }
    }
}
