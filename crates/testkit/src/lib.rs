//! Hermetic command, registry and checkers for tests.
//!
//! What is here panics when something is not as it should be: its callers are tests. [`Lab`] is a place for one test: a home, a
//! store and a working directory of its own. [`Image`] reads an image layout and refuses one that is not whole. [`Registry`] and
//! [`FileServer`] listen on loopback and end when dropped. [`with_fault`] lets a command meet faults of the file system. [`skip`] says what could not run, and why.

mod base;
mod command;
mod faults;
mod files;
mod image;
mod lab;
mod registry;
mod skip;

pub use base::busybox;
pub use command::{Call, Done, Running, wait_until};
pub use faults::{Fault, Journal, with_fault};
pub use files::{FileServer, Reply};
pub use image::{Entry, Image, Layer, Tree, entries, hex};
pub use lab::{Lab, monitors_of};
pub use registry::Registry;
pub use skip::{find, missing, skip};
