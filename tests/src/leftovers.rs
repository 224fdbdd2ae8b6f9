//! What a command that starts guests of its own has left behind.

use std::fs;
use std::path::Path;

/// Processes whose command line names a file in this folder.
pub fn processes_with(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("a plain path");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

/// Fails unless neither guests nor files are left. The guests were killed and waited for by then.
#[track_caller]
pub fn expect_nothing_left(folder: &Path) {
    assert_eq!(processes_with(folder), [""; 0]);
    let files: Vec<_> = fs::read_dir(folder).expect("the folder").flatten().collect();
    assert!(files.is_empty(), "{files:?}");
}
