//! Kernel settings of the process's own namespaces.

use super::system::below;
use crate::error::{During, Failure};
use crate::spec::{Network, Space, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::os::fd::BorrowedFd;

/// Writes the settings of `spec` below `proc`, before it is protected.
pub(crate) fn set(proc: BorrowedFd<'_>, spec: &Spec) -> Result<(), Failure> {
    let settings = spec.sysctls.iter().map(|(name, value)| (name, value));
    write(proc, settings, |name| is_own(name, spec))
}

/// Writes settings below `proc`, which has to be a file system of the kernel's that nobody else has a hand in; `own` says
/// whether changing one changes nothing for others.
pub(crate) fn write<'a>(
    proc: BorrowedFd<'_>,
    settings: impl Iterator<Item = (&'a String, &'a String)>,
    own: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    for (name, value) in settings {
        // Either separator may be used; names of interfaces may hold dots only with the other one.
        let (path, dotted) = match name.contains('/') {
            true => (format!("sys/{name}"), name.replace('/', ".")),
            false => (format!("sys/{}", name.replace('.', "/")), name.clone()),
        };
        if !own(&dotted) {
            return Err(Failure::Refused(format!("sysctl \"{name}\" is not in a separate kernel namespace")));
        }
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
    if name.starts_with("net.") {
        return spec.network != Network::Host;
    }
    if is_of_ipc(name) {
        return spec.namespaces.ipc != Space::Host;
    }
    matches!(name, "kernel.domainname" | "kernel.hostname") && spec.namespaces.uts == Space::Own
}

/// Whether the setting belongs to a namespace of IPC.
pub(crate) fn is_of_ipc(name: &str) -> bool {
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
    IPC.contains(&name) || name.starts_with("fs.mqueue.")
}
