//! The system calls that need `unsafe`, each as one narrow safe function.
//!
//! Every other crate of the workspace forbids `unsafe`. What rustix has is used from there; this crate holds only what
//! rustix lacks or marks unsafe because of a rule that the function here keeps itself. Each function takes descriptors
//! and plain values, checks what the kernel does not, and returns `io::Error` unchanged.

mod mounts;
mod network;
mod notify;
mod process;
mod seccomp;

pub use mounts::{MountChange, MountFlags, change_mount, set_mount_flags};
pub use network::loopback_up;
pub use notify::{SupervisedCall, Supervisor, Verdict, load_supervised_filter};
pub use process::{
    Birth, Forked, adopt, block_signals, close_from, close_inherited, close_others, execute, exit_now, fork,
    fork_pid_namespace, is_open, is_single_threaded, keep_open, kill, pidfd_kill, release_code, reset_signals, unshare,
    wait_signal,
};
pub use seccomp::{Instruction, load_filter, load_filter_with};
