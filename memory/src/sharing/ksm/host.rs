//! What KSM says of the whole host.

use serde::Serialize;

use super::error::KsmError;
use super::folder::{KsmFolder, Setting};

/// `/sys/kernel/mm/ksm` at a moment (kernel Documentation/admin-guide/mm/ksm.rst). It counts the pages of all processes,
/// of this program or not. `None` is what the kernel does not have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KsmHost {
    /// 0 ksmd is stopped, 1 it runs, 2 it is stopped and has unmerged everything.
    pub run: u64,
    /// Whether pages of different NUMA nodes are merged; `None` without NUMA.
    pub merge_across_nodes: Option<bool>,
    /// Pages that ksmd looks at before it sleeps.
    pub pages_to_scan: u64,
    /// How long it sleeps, in ms.
    pub sleep_millisecs: u64,
    /// Who sets pages_to_scan: `none` or `scan-time`; `None` before Linux 6.8.
    pub advisor_mode: Option<String>,
    /// Merged pages: what is left of all that were equal.
    pub pages_shared: u64,
    /// Places that have one of them beside the first: what is saved.
    pub pages_sharing: u64,
    /// pages_sharing for each of pages_shared; `None` while nothing is merged.
    pub sharing_ratio: Option<f64>,
    /// Pages that were looked at and have no equal.
    pub pages_unshared: u64,
    /// Pages that change too fast.
    pub pages_volatile: u64,
    /// How often ksmd has been through everything advised.
    pub full_scans: u64,
    /// Pages it has looked at; `None` before Linux 6.6.
    pub pages_scanned: Option<u64>,
    /// Places that have the kernel's zero page; `None` before Linux 6.6.
    pub ksm_zero_pages: Option<u64>,
    /// What is saved less what the kernel keeps for it, in bytes; `None` before Linux 6.4.
    pub general_profit_bytes: Option<i64>,
}

impl KsmHost {
    /// As it is now.
    ///
    /// # Errors
    /// [`KsmError::Absent`]; or a file cannot be read, or says what no kernel says.
    pub fn read() -> Result<Self, KsmError> {
        Self::read_in(&KsmFolder::default())
    }

    /// Places that have a merged page, the first of each among them.
    pub fn merged_pages(&self) -> u64 {
        self.pages_shared + self.pages_sharing
    }

    pub(super) fn read_in(folder: &KsmFolder) -> Result<Self, KsmError> {
        let number = |name| match folder.number(name) {
            Ok(None) => Err(KsmError::NoSetting { path: folder.path().join(name) }),
            Ok(Some(number)) => Ok(number),
            Err(error) => Err(error),
        };
        let (pages_shared, pages_sharing) = (number("pages_shared")?, number("pages_sharing")?);
        Ok(Self {
            run: number("run")?,
            merge_across_nodes: folder.value(Setting::MergeAcrossNodes)?.map(|value| value != 0),
            pages_to_scan: number("pages_to_scan")?,
            sleep_millisecs: number("sleep_millisecs")?,
            advisor_mode: folder.advisor()?,
            pages_shared,
            pages_sharing,
            sharing_ratio: (pages_shared > 0).then(|| pages_sharing as f64 / pages_shared as f64),
            pages_unshared: number("pages_unshared")?,
            pages_volatile: number("pages_volatile")?,
            full_scans: number("full_scans")?,
            pages_scanned: folder.number("pages_scanned")?,
            ksm_zero_pages: folder.number("ksm_zero_pages")?,
            general_profit_bytes: folder.number("general_profit")?,
        })
    }

    /// Why nothing that is advised gets merged, in one line, if ksmd does not run.
    pub fn stopped(&self) -> Option<String> {
        let run = Setting::Run;
        (self.run != 1)
            .then(|| format!("{run}: is {}, so no pages are merged: write 1 there, or use --ksm-tune", self.run))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use super::*;

    /// What every kernel with KSM has.
    const OLDEST: [(&str, &str); 8] = [
        ("run", "1\n"),
        ("pages_to_scan", "100\n"),
        ("sleep_millisecs", "20\n"),
        ("pages_shared", "4\n"),
        ("pages_sharing", "10\n"),
        ("pages_unshared", "7\n"),
        ("pages_volatile", "0\n"),
        ("full_scans", "3\n"),
    ];

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    fn read(folder: &tempfile::TempDir) -> Result<KsmHost, String> {
        KsmHost::read_in(&KsmFolder::at(folder.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn this_host_can_be_read() {
        let host = KsmHost::read().expect("a kernel with KSM");
        assert!(host.run <= 2 && host.pages_to_scan > 0, "{host:?}");
        let json = serde_json::to_value(&host).unwrap();
        assert_eq!(json["full_scans"], host.full_scans);
    }

    #[test]
    fn what_later_kernels_added_may_be_missing() {
        let folder = folder_with(&OLDEST);
        let host = read(&folder).unwrap();
        assert_eq!((host.pages_shared, host.sharing_ratio, host.full_scans), (4, Some(2.5), 3));
        assert_eq!((host.merge_across_nodes, host.advisor_mode, host.general_profit_bytes), (None, None, None));
        let write = |name, text| fs::write(folder.path().join(name), text).unwrap();
        write("advisor_mode", "none [scan-time]\n");
        write("general_profit", "-64\n");
        write("merge_across_nodes", "0\n");
        write("pages_shared", "0\n");
        let host = read(&folder).unwrap();
        assert_eq!((host.merge_across_nodes, host.general_profit_bytes), (Some(false), Some(-64)));
        assert_eq!((host.advisor_mode.as_deref(), host.sharing_ratio), (Some("scan-time"), None));
    }

    #[test]
    fn odd_files_are_named() {
        let folder = folder_with(&OLDEST);
        fs::write(folder.path().join("full_scans"), "many").unwrap();
        assert!(read(&folder).unwrap_err().ends_with("/full_scans: 'many' is no value of this file"));
        fs::remove_file(folder.path().join("run")).unwrap();
        assert!(read(&folder).unwrap_err().contains("/run: is not there"));
        let gone = folder.path().to_owned();
        drop(folder);
        let error = KsmHost::read_in(&KsmFolder::at(&gone)).unwrap_err();
        assert!(matches!(error, KsmError::Absent { .. }), "{error}");
    }

    #[test]
    fn a_host_that_merges_nothing_is_told_how_to() {
        let stopped = |run| {
            let folder = folder_with(&OLDEST);
            fs::write(folder.path().join("run"), run).unwrap();
            read(&folder).unwrap().stopped()
        };
        assert_eq!(stopped("1"), None);
        assert!(stopped("0").is_some_and(|text| text.starts_with("/sys/kernel/mm/ksm/run: is 0, so")));
        assert!(stopped("2").is_some());
    }
}
