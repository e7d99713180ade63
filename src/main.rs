//! The `xbuild` program: builds Dockerfiles into OCI images and runs them.
//!
//! The same binary is the sandbox's helper process, the monitor of a container, and what starts a user's own programs; that is decided before anything else is
//! set up.

mod cli;
mod progress;

use std::process::ExitCode;

fn main() -> ExitCode {
    xbuild_runner::helper::main_if_requested();
    xbuild_runner::container::monitor::main_if_requested();
    xbuild_runner::container::inside::main_if_requested();
    xbuild_runner::rootless::main_if_requested();
    allow_descriptors();
    cli::main()
}

/// Descriptors that trees of some hundred layers take, two for each and more in a walk.
const DESCRIPTORS: u64 = 8192;

/// Raises the limit of open files where it is low and may be raised; steps inherit it.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < DESCRIPTORS) {
        let wanted = limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
        // Without it builds of fewer layers work all the same.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}
