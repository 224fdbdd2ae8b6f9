//! The `cistern` command.
fn main() {}
