//! The sandbox as an OCI runtime for others (runtime-spec 1.2), and the way back: a bundle of a sandbox of ours.
//!
//! ```text
//! ROOT/              default /run/xbuild-oci
//!   ID/              mode 0700; there from `create` to `delete`
//!     config.json    the configuration as it was read
//!     state.json     what was made of it; not there while the container is being created
//!     start          socket that the container's first process waits at; not there once it was started
//! ```
//!
//! `create` forks the container's first process, which makes its namespaces and mounts, takes the root, reports, and then
//! waits. Nobody looks after it: it becomes the child of whoever takes orphans in above the caller. `start` connects to it,
//! and the end of that connection is the program's start; an error comes over it. There is no process of ours left then.
//!
//! # Invariants
//! - The process that executes this is a copy through a read-only mount (see [`protect_program`]), so no container can write
//!   to the program through `/proc/PID/exe`; and it is not dumpable.
//! - What a configuration asks for and this runtime does not have is an error, never left out.
//! - Settings of the kernel are written through the host's `/proc`, masks are made of the host's `/dev/null`.
//! - No descriptor of ours is open in a program; those of `--preserve-fds` are the caller's own.

mod bundle;
mod copy_up;
mod create;
mod devices;
mod error;
mod exec;
mod features;
pub(crate) mod generate;
mod hooks;
mod init;
mod lifecycle;
mod limits;
mod mounts;
mod options;
mod rights;
mod state;
mod wait;

pub use bundle::Bundle;
pub use create::{CreateOptions, protect_program};
pub use error::OciError;
pub use exec::ExecOptions;
pub use features::features;
pub use generate::configuration;
pub use state::{Record, Runtime, Status};
pub use wait::{forward_signals, wait_for};

pub use oci_spec;
