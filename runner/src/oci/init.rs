//! The container's first process, from fork to exec. [`run`] is the whole order.

use super::bundle::{Bundle, Spaces};
use super::error::OciError;
use super::mounts::{self, Place};
use super::rights::Rights;
use super::{devices, hooks};
use crate::Propagation;
use crate::error::{During, Failure};
use crate::protocol::{receive, send};
use crate::sandbox::program::Program;
use crate::sandbox::resolve::{Root, open_inside};
use crate::sandbox::rootfs::{attach, clone_tree, open_host};
use crate::sandbox::{self, account, console, namespaces, sysctl};
use crate::spec::{Account, CgroupSpec};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::Mode;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{fchdir, setsid, umask};
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

/// What the first process tells the one that made it, which answers each with [`Go`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// It has its namespaces; hooks of the runtime may run.
    Isolated,
    /// Everything is there but the program; it waits to be started.
    Ready,
    /// It cannot be.
    Failed(Failure),
}

/// Leave to go on, with the state that hooks are told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Go {
    pub(super) state: String,
}

/// What it was forked with.
pub(super) struct Init<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) session: OwnedFd,
    /// Where it waits to be started.
    pub(super) start: OwnedFd,
    /// Where a terminal's controlling side goes.
    pub(super) console: Option<OwnedFd>,
    pub(super) cgroup: CgroupSpec,
    /// Descriptors below this number are the program's.
    pub(super) keep: u32,
    pub(super) pivot: bool,
    pub(super) setgroups: bool,
}

/// Becomes the container's program, or reports why not and ends.
pub(super) fn run(init: &Init<'_>) -> ! {
    let work = std::panic::AssertUnwindSafe(|| prepare(init));
    let (program, rights, state) = match std::panic::catch_unwind(work) {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(failure)) => end(&init.session, failure),
        Err(_) => end(&init.session, Failure::Refused("internal error: the set-up panicked".to_owned())),
    };
    let started = match wait_for_start(init) {
        Ok(started) => started,
        Err(_) => xbuild_sys::exit_now(1),
    };
    match execute(init, &program, &rights, &state) {
        Ok(never) => match never {},
        Err(failure) => end(&started, failure),
    }
}

fn end(to: &OwnedFd, failure: Failure) -> ! {
    let code = if let Failure::Exec { code, .. } = &failure { *code } else { 1 };
    let _ = send(to.as_fd(), &Report::Failed(failure));
    xbuild_sys::exit_now(code)
}

/// Waits for leave to go on.
fn go(session: &OwnedFd) -> Result<Go, Failure> {
    let answer = receive::<Go>(session.as_fd()).during(|| "wait for the runtime".to_owned())?;
    answer.ok_or_else(|| Failure::Refused("the runtime was ended".to_owned()))
}

/// The order, each step with its reason.
fn prepare(init: &Init<'_>) -> Result<(Program, Rights, String), Failure> {
    let bundle = init.bundle;
    let config = bundle.config();
    let linux = bundle.linux().map_err(plain)?;
    let process = bundle.process().map_err(plain)?;
    let spaces = bundle.spaces().map_err(plain)?;
    xbuild_sys::reset_signals().during(|| "give signals their defaults".to_owned())?;
    // Ids are mapped and the control groups are joined from outside, where the right to do so is.
    go(&init.session)?;
    if spaces.has(LinuxNamespaceType::User) {
        become_root()?;
    }
    // While /proc is the host's.
    let rights = Rights::of(process, super::rights::filter(linux.seccomp().as_ref())?)?;
    rights.set_by_proc()?;
    let env: &[String] = process.env().as_deref().unwrap_or_default();
    let mut program = Program::new(process.args().as_deref().unwrap_or_default(), env)?;
    let proc = open_host("/proc".as_ref())?;
    enter_namespaces(&spaces)?;
    // A mount can only be copied from inside its namespace.
    let null = mounts::null()?;
    name_host(bundle)?;
    umask(Mode::empty());
    let list = config.mounts().as_deref().unwrap_or_default();
    let prepared = mounts::prepare(list, bundle.directory())?;
    let host_root = sandbox::open_directory("/")?;
    let (root, propagation) = take_root(bundle)?;
    send(init.session.as_fd(), &Report::Isolated).during(|| "report to the runtime".to_owned())?;
    let state = go(&init.session)?.state;
    let place =
        Place { root: &root, own_cgroups: spaces.makes(LinuxNamespaceType::Cgroup), cgroup: &init.cgroup, propagation };
    for mount in prepared {
        place.mount(mount)?;
    }
    let fills_dev = mounts::fills_dev(list);
    if fills_dev {
        devices::fill(&root, linux.devices().as_deref().unwrap_or_default())?;
    }
    let terminal = match &init.console {
        None => None,
        Some(socket) => Some(open_terminal(&root, socket, process.console_size().as_ref(), fills_dev)?),
    };
    let in_container = config.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
    hooks::run("createContainer", in_container, &state).map_err(plain)?;
    let own = |name: &str| is_own(name, &spaces);
    sysctl::write(proc.as_fd(), linux.sysctl().iter().flatten(), own)?;
    mounts::protect_dev(&root, list)?;
    for path in linux.readonly_paths().iter().flatten() {
        mounts::protect(&root, path)?;
    }
    for path in linux.masked_paths().iter().flatten() {
        mounts::hide(&root, path, null.as_fd())?;
    }
    let cwd = process.cwd().to_str().ok_or_else(|| Failure::Refused("process.cwd is not UTF-8".to_owned()))?;
    root.directory(cwd)?;
    if config.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        let readonly = xbuild_sys::MountChange { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        xbuild_sys::change_mount(root.fd(), readonly, false).during(|| "protect the root".to_owned())?;
    }
    match init.pivot {
        true => sandbox::swap_root(&root, host_root)?,
        false => move_root(&root, &host_root)?,
    }
    finish_propagation(linux.rootfs_propagation().as_deref())?;
    if let Ok(user) = account::resolve(root.fd(), &Account { user: rights.user.uid.to_string(), groups: Vec::new() }) {
        program.set_home(&user.home)?;
    }
    sandbox::enter_directory(&root, cwd)?;
    drop(root);
    setsid().during(|| "start a session".to_owned())?;
    if let Some(terminal) = terminal {
        sandbox::take_terminal(&terminal)?;
    }
    sandbox::give_streams(&rights.user);
    program.check()?;
    send(init.session.as_fd(), &Report::Ready).during(|| "report to the runtime".to_owned())?;
    Ok((program, rights, state))
}

fn plain(error: OciError) -> Failure {
    match error {
        OciError::Setup { step, source } => Failure::Setup { step, errno: source.raw_os_error().unwrap_or(libc::EIO) },
        other => Failure::Refused(other.to_string()),
    }
}

/// In a new user namespace a process is nobody until it says who it is.
pub(super) fn become_root() -> Result<(), Failure> {
    let step = || "become root of the user namespace".to_owned();
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).during(step)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).during(step)?;
    // Changing ids of a process that was not dumpable leaves it so; what belongs to it in /proc must be its own.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).during(step)
}

fn enter_namespaces(spaces: &Spaces) -> Result<(), Failure> {
    use LinuxNamespaceType as T;
    // The one of mounts last: it takes the host's files away.
    for kind in [T::Ipc, T::Uts, T::Network, T::Cgroup, T::Mount] {
        if let Some(path) = spaces.joins(kind) {
            namespaces::join_path(path, &kind.to_string())?;
        }
    }
    xbuild_sys::unshare(spaces.unshared().bits()).during(|| "make namespaces".to_owned())?;
    if spaces.makes(T::Network) {
        xbuild_sys::loopback_up().during(|| "bring the loopback interface up".to_owned())?;
    }
    Ok(())
}

fn name_host(bundle: &Bundle) -> Result<(), Failure> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    if let Some(name) = given(bundle.config().hostname()) {
        rustix::system::sethostname(name.as_bytes()).during(|| format!("set the host name `{name}`"))?;
    }
    if let Some(name) = given(bundle.config().domainname()) {
        rustix::system::setdomainname(name.as_bytes()).during(|| format!("set the domain name `{name}`"))?;
    }
    Ok(())
}

/// Cuts the mounts off from the host's as the configuration says, and mounts the root file system over its own path.
/// Gives it, and the propagation of mounts that say nothing about it.
fn take_root(bundle: &Bundle) -> Result<(Root, Propagation), Failure> {
    let wanted = bundle.linux().map_err(plain)?.rootfs_propagation().clone().unwrap_or_default();
    let propagation = match wanted.as_str() {
        "" => Propagation::RSLAVE,
        name => Propagation::parse(name)
            .ok_or_else(|| Failure::Refused(format!("linux.rootfsPropagation: `{name}` is not a propagation type")))?,
    };
    // Whatever else is asked for, what happens here stays here; binds that are shared were taken hold of before.
    let all = if propagation.is_private() { MountPropagationFlags::PRIVATE } else { MountPropagationFlags::DOWNSTREAM };
    mount_change("/", all | MountPropagationFlags::REC).during(|| "cut the mounts off from the host's".to_owned())?;
    let path = bundle.rootfs().map_err(plain)?;
    let step = || format!("mount the root file system `{}`", path.display());
    let under = open_host(&path)?;
    let tree = clone_tree(under.as_fd(), true).during(step)?;
    attach(tree.as_fd(), under.as_fd()).during(step)?;
    Ok((Root::new(tree)?, propagation))
}

/// Sets the propagation of the new root itself, which had to be cut off while it became the root.
fn finish_propagation(wanted: Option<&str>) -> Result<(), Failure> {
    let Some((change, all)) = wanted.and_then(Propagation::parse).map(Propagation::change) else {
        return Ok(());
    };
    let root = sandbox::open_directory("/")?;
    xbuild_sys::change_mount(root.as_fd(), change, all).during(|| "set the propagation of the root".to_owned())
}

/// For roots that cannot be exchanged, such as that of an initial ramdisk: moves the new one over the old one.
fn move_root(root: &Root, host_root: &OwnedFd) -> Result<(), Failure> {
    let step = || "move the root".to_owned();
    fchdir(root.fd()).during(step)?;
    attach(root.fd(), host_root.as_fd()).during(step)?;
    rustix::process::chroot(".").during(step)?;
    rustix::process::chdir("/").during(step)
}

/// A terminal of the container's own `/dev/pts`, shown as `/dev/console`, too.
fn open_terminal(
    root: &Root,
    socket: &OwnedFd,
    size: Option<&oci_spec::runtime::Box>,
    console_too: bool,
) -> Result<OwnedFd, Failure> {
    let pts = open_inside(root.fd(), "dev/pts").during(|| "open `/dev/pts`".to_owned())?;
    let short = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    let size = size.map_or((0, 0), |size| (short(size.height()), short(size.width())));
    let (terminal, name) = console::open(pts.as_fd(), size, socket.as_fd())?;
    if console_too {
        console::show(root, pts.as_fd(), &name)?;
    }
    Ok(terminal)
}

/// Whether a kernel setting belongs to a namespace that the container does not share with the host.
fn is_own(name: &str, spaces: &Spaces) -> bool {
    use LinuxNamespaceType as T;
    let host_name = matches!(name, "kernel.hostname" | "kernel.domainname");
    (name.starts_with("net.") && spaces.has(T::Network))
        || (sysctl::is_of_ipc(name) && spaces.has(T::Ipc))
        || (host_name && spaces.has(T::Uts))
}

/// Waits until somebody wants the program to run; gives the connection.
fn wait_for_start(init: &Init<'_>) -> Result<OwnedFd, rustix::io::Errno> {
    loop {
        match rustix::net::accept_with(&init.start, rustix::net::SocketFlags::CLOEXEC) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            answer => return answer,
        }
    }
}

fn execute(init: &Init<'_>, program: &Program, rights: &Rights, state: &str) -> Result<Infallible, Failure> {
    let at_start = init.bundle.config().hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    hooks::run("startContainer", at_start, state).map_err(plain)?;
    // The last word before exec: whatever is still open ends there, also what a library may have opened.
    xbuild_sys::close_from(init.keep).during(|| "close descriptors".to_owned())?;
    rights.apply(init.setgroups)?;
    program.execute()
}
