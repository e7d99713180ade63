//! The program as a whole: what it leaves in stores, registries, archives and directories, and what other programs make of that.
//!
//! Each test has a [`Lab`]: a store with `busybox` and a home of its own. Nothing is reached but loopback.

mod cache;
mod calls;
mod containers;
mod contexts;
mod copying;
mod errors;
mod escapes;
mod faults;
mod images;
mod interrupt;
mod network;
mod oci;
mod outputs;
mod peers;
mod registry;
mod rootless;
mod run;
mod secrets;
mod services;
mod sharing;
mod soak;
mod steps;
mod store;
mod trees;
mod volumes;

use std::path::Path;
use xbuild_testkit::Lab;

/// The program that is tested.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_xbuild"))
}

/// A lab with `busybox`, unless something is missing that the test needs.
fn lab(programs: &[&str]) -> Option<Lab> {
    Lab::with_busybox(program(), programs)
}

/// A RUN command whose outcome tells one execution from another.
const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

/// What a file of the image of `context` holds; the image is built from it with these flags.
fn built(lab: &Lab, context: &str, file: &str, flags: &[&str]) -> String {
    let name = format!("{context}.out");
    let output = format!("type=local,dest={name}");
    lab.xbuild(&["build", "-o", &output, context]).args(flags).ok();
    lab.read(&format!("{name}/{file}"))
}
