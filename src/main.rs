//! The `xbuild` program.
fn main() {}
