//! The `xbuild` program: builds Dockerfiles into OCI images and runs them.
//!
//! The same binary is the sandbox's helper process; that is decided before anything else is set up.

mod cli;
mod progress;

use std::process::ExitCode;

fn main() -> ExitCode {
    xbuild_runner::helper::main_if_requested();
    cli::main()
}
