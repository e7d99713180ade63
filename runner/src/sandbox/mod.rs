//! What happens between fork and exec. [`enter`] is the whole order; every other file here is one part of it.

mod identity;
mod mounts;
mod program;
mod resolve;
mod rootfs;
pub mod seccomp;
mod staging;
mod system;

use crate::devices::DeviceControl;
use crate::error::{During, Failure};
use crate::protocol::{Frame, Leftovers, receive, send};
use crate::spec::{Network, Security, Spec};
pub use rootfs::try_overlay;

use program::Program;
use resolve::Root;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Signal, fchdir, getcwd, pivot_root, setsid, umask};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use staging::Staging;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Becomes the sandboxed process: reads the request from the session, sets everything up and executes the command.
/// Runs as process 1 of a new pid namespace, in a copy of the helper, and never returns into it.
pub(crate) fn enter([session, stdin, stdout, stderr]: [OwnedFd; 4], devices: &DeviceControl) -> ! {
    let mut leftovers = Leftovers::default();
    let work = std::panic::AssertUnwindSafe(|| set_up(&session, [stdin, stdout, stderr], devices, &mut leftovers));
    let failure = match std::panic::catch_unwind(work) {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Refused("internal error: the set-up panicked".to_owned()),
    };
    let code = if let Failure::Exec { code, .. } = &failure { *code } else { 125 };
    let _ = send(session.as_fd(), &Frame::Failed(failure, leftovers));
    xbuild_sys::exit_now(code);
}

/// The order, each step with its reason.
fn set_up(
    session: &OwnedFd,
    stdio: [OwnedFd; 3],
    devices: &DeviceControl,
    leftovers: &mut Leftovers,
) -> Result<Infallible, Failure> {
    // If the helper is killed, so is this process: nothing may outlive the engine.
    die_with_helper()?;
    let request = receive::<Spec>(session.as_fd()).during(|| "read the sandbox request".to_owned())?;
    let spec = request.ok_or_else(|| Failure::Refused("the engine took its request back".to_owned()))?;
    // While /proc is the host's: needs its /proc/self/exe, and finds mistakes before any work.
    let program = Program::new(&spec.args, &spec.env)?;
    umask(Mode::empty());
    // The helper's own group limits devices; its children are in it from birth.
    if spec.security == Security::Insecure {
        devices.leave()?;
    }
    // Before the cgroup namespace, whose root is the group we are in when it is made.
    if let Some(cgroup) = &spec.cgroup {
        crate::cgroup::join(cgroup)?;
    }
    new_namespaces(&spec)?;
    let host_root = open_directory("/")?;
    // Nothing mounted from here on reaches the host, and nothing the host mounts reaches us.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during(|| "make the mounts private".to_owned())?;
    let root = build_root(&spec, host_root.as_fd(), devices, leftovers)?;
    swap_root(&root, host_root)?;
    // By descriptor and after the swap, so that the directory is inside whatever its name is (CVE-2024-21626).
    enter_directory(&root, &spec.cwd)?;
    drop(root);
    // A session of its own: no controlling terminal, no signals from the engine's group.
    setsid().during(|| "start a session".to_owned())?;
    take_stdio(stdio, spec.tty)?;
    if spec.init {
        stay_as_init()?;
    }
    restrict(&spec)?;
    // The last word before exec: whatever is still open ends here, also what a library may have opened.
    xbuild_sys::close_from(3).during(|| "close descriptors".to_owned())?;
    send(session.as_fd(), &Frame::Ready(std::mem::take(leftovers))).during(|| "report to the engine".to_owned())?;
    program.execute()
}

fn die_with_helper() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during(|| "tie the process to the helper".to_owned())
}

fn new_namespaces(spec: &Spec) -> Result<(), Failure> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    match &spec.network {
        Network::Host => {}
        Network::None => flags |= UnshareFlags::NEWNET,
        // While /proc is the host's, by which the path goes.
        Network::Namespace(path) => join_network(path)?,
    }
    xbuild_sys::unshare(flags.bits()).during(|| "make namespaces".to_owned())?;
    if spec.network == Network::None {
        xbuild_sys::loopback_up().during(|| "bring the loopback interface up".to_owned())?;
    }
    rustix::system::sethostname(spec.hostname.as_bytes()).during(|| "set the host name".to_owned())
}

fn join_network(path: &Path) -> Result<(), Failure> {
    let step = || format!("join the network namespace `{}`", path.display());
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).during(step)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).during(step)
}

/// Mounts the root file system and everything over it, in the new mount namespace.
fn build_root(
    spec: &Spec,
    host_root: BorrowedFd<'_>,
    devices: &DeviceControl,
    leftovers: &mut Leftovers,
) -> Result<Root, Failure> {
    let nodev = spec.security == Security::Sandbox && !devices.is_on();
    let tree = rootfs::mount_root(&spec.root)?;
    if nodev {
        let flags = xbuild_sys::MountFlags { nodev: true, ..Default::default() };
        xbuild_sys::set_mount_flags(tree.as_fd(), flags, false).during(|| "shut devices in the root".to_owned())?;
    }
    let mut staging = Staging::new(host_root)?;
    // Over the host's root directory: a place that exists everywhere and that no path of ours leads through.
    rootfs::attach(tree.as_fd(), host_root).during(|| "attach the root file system".to_owned())?;
    let root = Root::new(tree)?;
    let system = system::mount_system(&root, spec)?;
    mounts::mount_all(&root, spec, nodev, &mut staging, leftovers)?;
    // Last, so that no mount of the request lies over a mask.
    if spec.security == Security::Sandbox {
        system::mask(&system, &mut staging)?;
    }
    Ok(root)
}

/// Makes `root` the root and lets go of the host's.
fn swap_root(root: &Root, host_root: OwnedFd) -> Result<(), Failure> {
    fchdir(root.fd()).during(|| "enter the root file system".to_owned())?;
    pivot_root(".", ".").during(|| "change the root".to_owned())?;
    // The old root now lies over the new one; it is taken off by its descriptor, not by a name.
    fchdir(&host_root).during(|| "enter the old root".to_owned())?;
    // A look-up of "." ends at what is mounted on top of it, so the staging memory goes first and the old root after it.
    let mut taken_off = 0;
    loop {
        match unmount(".", UnmountFlags::DETACH) {
            Ok(()) => taken_off += 1,
            // No longer a mount of this namespace: all of it is gone.
            Err(Errno::INVAL) if taken_off > 0 => break,
            Err(error) => return Err(error).during(|| "let go of the old root".to_owned()),
        }
    }
    fchdir(root.fd()).during(|| "enter the root file system".to_owned())
}

fn enter_directory(root: &Root, path: &str) -> Result<(), Failure> {
    let directory = root.directory(path)?;
    fchdir(&directory).during(|| format!("change to `{path}`"))?;
    let shown = getcwd(Vec::new()).during(|| format!("change to `{path}`"))?;
    if shown.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Failure::Refused(format!("the working directory `{path}` is outside the root")))
    }
}

fn take_stdio([stdin, stdout, stderr]: [OwnedFd; 3], tty: bool) -> Result<(), Failure> {
    let step = || "set the standard streams".to_owned();
    rustix::stdio::dup2_stdin(&stdin).during(step)?;
    rustix::stdio::dup2_stdout(&stdout).during(step)?;
    rustix::stdio::dup2_stderr(&stderr).during(step)?;
    if tty {
        rustix::process::ioctl_tiocsctty(&stdin).during(|| "take the terminal".to_owned())?;
    }
    Ok(())
}

/// Forks; the parent stays as process 1, reaps, and ends as the command ends. Returns in the command's process.
fn stay_as_init() -> Result<(), Failure> {
    let forked = xbuild_sys::fork_pid_namespace(false).during(|| "start the command under init".to_owned())?;
    let xbuild_sys::Forked::Parent { pid, .. } = forked else {
        return die_with_helper();
    };
    loop {
        let Ok(Some((reaped, status))) = rustix::process::wait(rustix::process::WaitOptions::empty()) else {
            continue;
        };
        if reaped.as_raw_nonzero().get() as u32 == pid {
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            xbuild_sys::exit_now(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255));
        }
    }
}

/// Gives up what the command must not have.
fn restrict(spec: &Spec) -> Result<(), Failure> {
    // While still privileged: hard limits may be raised with CAP_SYS_RESOURCE.
    identity::set_limits(&spec.rlimits)?;
    identity::limit_capabilities(spec.security)?;
    // With CAP_SYS_ADMIN still there, since set-user-ID programs must work and so no_new_privs stays off.
    if spec.security == Security::Sandbox {
        xbuild_sys::load_filter(seccomp::docker_default()).during(|| "load the system-call filter".to_owned())?;
    }
    identity::become_user(&spec.user, spec.security)?;
    // Changing the user has cleared it.
    die_with_helper()?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn open_directory(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open `{path}`"))
}
