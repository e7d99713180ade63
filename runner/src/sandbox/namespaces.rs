//! Going into namespaces of other processes.

use crate::error::{During, Failure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opens a namespace of this process.
pub(crate) fn open_own(name: &str) -> Result<OwnedFd, Errno> {
    // Not by number: this process may have another one here than in `/proc`.
    rustix::fs::open(format!("/proc/self/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a namespace of a process; `/proc` has to be the host's.
pub(crate) fn open(pid: u32, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(format!("/proc/{pid}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Goes into an open namespace. That of mounts changes root and working directory, too.
pub(crate) fn enter(namespace: &OwnedFd, name: &str) -> Result<(), Errno> {
    let kind = match name {
        "mnt" | "mount" => LinkNameSpaceType::Mount,
        "ipc" => LinkNameSpaceType::InterProcessCommunication,
        "uts" => LinkNameSpaceType::HostNameAndNISDomainName,
        "cgroup" => LinkNameSpaceType::ControlGroup,
        "net" | "network" => LinkNameSpaceType::Network,
        "pid" => LinkNameSpaceType::ProcessID,
        "user" => LinkNameSpaceType::User,
        _ => return Err(Errno::INVAL),
    };
    move_into_link_name_space(namespace.as_fd(), Some(kind))
}

/// Goes into a namespace of a process.
pub(crate) fn join(pid: u32, name: &str) -> Result<(), Failure> {
    open(pid, name)
        .and_then(|space| enter(&space, name))
        .during(|| format!("join the {name} namespace of process {pid}"))
}

/// Goes into the network namespace that a file stands for.
pub(crate) fn join_network(path: &Path) -> Result<(), Failure> {
    join_path(path, "network")
}

/// Goes into the namespace that a file stands for.
pub(crate) fn join_path(path: &Path, name: &str) -> Result<(), Failure> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|space| enter(&space, name))
        .during(|| format!("join the {name} namespace `{}`", path.display()))
}

/// Does `work` on a thread with mounts of its own: root of a user namespace may mount nothing in those that it came with.
///
/// # Errors
/// There is no such thread or namespace.
pub(crate) fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".into()).spawn_scoped(scope, || {
            xbuild_sys::unshare(rustix::thread::UnshareFlags::NEWNS.bits())?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
