//! Sandbox: namespaces, mounts, seccomp, capabilities, cgroups, networks.
//!
//! One facility for RUN steps and containers. A [`Spec`] is plain data; a [`Launcher`] hands it to a small fork server
//! (this program executed again, single-threaded; see [`helper`]) whose children become the sandboxed processes; a
//! [`Running`] waits, kills and cleans up. [`users`] turns `USER` texts into numbers.
//!
//! Invariants: secrets travel over sockets and live in memory file systems only; no path below the root is resolved
//! without the kernel's bound; when process 1 of a sandbox ends, its processes and mounts are gone before anybody is
//! told; when the engine dies, so does everything it started.

mod capabilities;
mod cgroup;
mod cleanup;
pub mod container;
mod descriptors;
mod devices;
mod error;
pub mod helper;
mod launcher;
pub mod network;
pub mod oci;
mod propagation;
mod protocol;
pub mod rootless;
pub mod sandbox;
pub mod skeleton;
mod spec;
pub mod users;

pub use capabilities::CAPABILITIES;
pub use error::SandboxError;
pub use launcher::{End, Killer, Launcher, Outcome, Running, Stdio};
pub use propagation::Propagation;
pub use sandbox::seccomp::docker::profile as seccomp_profile;
pub use sandbox::try_overlay;
pub use spec::{
    Account, CgroupSpec, DEFAULT_CAPABILITIES, DEFAULT_PATH, DeviceNode, Identity, MountSource, MountSpec, Namespaces,
    Network, Privileges, Rlimit, Rootfs, Seccomp, Security, Space, Spec,
};
