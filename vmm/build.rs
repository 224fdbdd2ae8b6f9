//! Builds the guests that are embedded in the binary.

use std::path::Path;
use std::process;

include!("../kernels/probe/build_probe.rs");

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/probe");
    if let Err(error) = build_probe(&folder, &[]) {
        eprintln!("{error}");
        process::exit(1);
    }
}
