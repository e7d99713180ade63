//! Kernel settings of the process's own namespaces.

use super::system::below;
use crate::error::{During, Failure};
use crate::spec::{Network, Space, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::os::fd::BorrowedFd;

/// Writes the settings of `spec` below `proc`, before it is protected.
pub(super) fn set(proc: BorrowedFd<'_>, spec: &Spec) -> Result<(), Failure> {
    for (name, value) in &spec.sysctls {
        if !is_own(name, spec) {
            return Err(Failure::Refused(format!("sysctl \"{name}\" is not in a separate kernel namespace")));
        }
        let path = format!("sys/{}", name.replace('.', "/"));
        let step = || format!("write sysctl `{name}`");
        if below(proc, &path).during(step)?.is_none() {
            return Err(Failure::Refused(format!("sysctl \"{name}\" is not known to this kernel: no such file")));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = openat2(proc, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve).during(step)?;
        rustix::io::write(&file, value.as_bytes()).during(step)?;
    }
    Ok(())
}

/// Whether changing the setting changes nothing for others.
fn is_own(name: &str, spec: &Spec) -> bool {
    const IPC: [&str; 10] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
        "kernel.sem_next_id",
    ];
    if name.starts_with("net.") {
        return spec.network != Network::Host;
    }
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        return spec.namespaces.ipc != Space::Host;
    }
    matches!(name, "kernel.domainname" | "kernel.hostname") && spec.namespaces.uts == Space::Own
}
