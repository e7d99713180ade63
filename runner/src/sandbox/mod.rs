//! What happens between fork and exec. [`enter`] is the whole order; every other file here is one part of it.

pub(crate) mod account;
pub(crate) mod cgroups;
pub(crate) mod console;
pub(crate) mod identity;
pub(crate) mod join;
mod mounts;
pub(crate) mod namespaces;
pub(crate) mod nodes;
pub(crate) mod program;
pub(crate) mod resolve;
pub(crate) mod rootfs;
pub mod seccomp;
mod staging;
pub(crate) mod sysctl;
pub(crate) mod system;

use crate::devices::DeviceControl;
use crate::error::{During, Failure};
use crate::protocol::{Frame, Leftovers, receive, send};
use crate::spec::{DEFAULT_CAPABILITIES, Identity, Network, Privileges, Rlimit, Seccomp, Space, Spec};
use mounts::Propagated;
use program::Program;
use resolve::Root;
pub use rootfs::try_overlay;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Signal, fchdir, getcwd, pivot_root, setsid, umask};
use rustix::thread::UnshareFlags;
use seccomp::Filter;
use staging::Staging;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes what all sandboxes of this process have in common, for the processes that are forked from it.
pub(crate) fn get_ready() {
    seccomp::docker_default();
    // Whoever needs them is told why they cannot be read.
    let _ = crate::cgroup::hierarchies();
}

/// Becomes the sandboxed process: reads the request from the session, sets everything up and executes the command.
/// Runs as process 1 of a new pid namespace, in a copy of the helper, and never returns into it.
pub(crate) fn enter([session, stdin, stdout, stderr]: [OwnedFd; 4], devices: &DeviceControl) -> ! {
    let request = || {
        // If the helper is killed, so is this process: nothing may outlive the engine.
        die_with_helper()?;
        let request = receive::<Spec>(session.as_fd()).during(|| "read the sandbox request".to_owned())?;
        request.ok_or_else(|| Failure::Refused("the engine took its request back".to_owned()))
    };
    become_process(&session, [stdin, stdout, stderr], devices, request, || Ok(()))
}

/// The same, for a request that is known. When all is set up it waits until the other side of the session lets it go.
pub(crate) fn enter_with(session: &OwnedFd, stdio: [OwnedFd; 3], devices: &DeviceControl, spec: &Spec) -> ! {
    let request = || {
        die_with_helper()?;
        xbuild_sys::reset_signals().during(|| "give signals their defaults".to_owned())?;
        Ok(spec)
    };
    become_process(session, stdio, devices, request, || wait_for_leave(session.as_fd()))
}

fn wait_for_leave(session: BorrowedFd<'_>) -> Result<(), Failure> {
    match rustix::io::retry_on_intr(|| rustix::io::read(session, &mut [0]))
        .during(|| "wait for the start".to_owned())?
    {
        0 => Err(Failure::Refused("the monitor took its request back".to_owned())),
        _ => Ok(()),
    }
}

fn become_process<S: std::borrow::Borrow<Spec>>(
    session: &OwnedFd,
    stdio: [OwnedFd; 3],
    devices: &DeviceControl,
    request: impl FnOnce() -> Result<S, Failure>,
    leave: impl FnOnce() -> Result<(), Failure>,
) -> ! {
    let mut leftovers = Leftovers::default();
    let work = std::panic::AssertUnwindSafe(|| {
        let request = request()?;
        set_up(session, stdio, devices, request.borrow(), &mut leftovers, leave)
    });
    let failure = match std::panic::catch_unwind(work) {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Refused("internal error: the set-up panicked".to_owned()),
    };
    let code = if let Failure::Exec { code, .. } = &failure { *code } else { 125 };
    let _ = send(session.as_fd(), &Frame::Failed(failure, leftovers));
    xbuild_sys::exit_now(code);
}

/// Takes the root of the process `pid`, with everything that is mounted there, for this process's own.
pub(crate) fn visit(pid: u32) -> Result<(), Failure> {
    namespaces::join(pid, "mnt")
}

/// Mounts what a sandbox would see, in a namespace of this process's own, and takes it for its root.
pub(crate) fn show_files(spec: &Spec) -> Result<(), Failure> {
    // Queues can be mounted by the owner of their namespace only.
    xbuild_sys::unshare((UnshareFlags::NEWNS | UnshareFlags::NEWIPC).bits()).during(|| "make namespaces".to_owned())?;
    let host_root = open_directory("/")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during(|| "make the mounts private".to_owned())?;
    umask(Mode::empty());
    let nobody = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .during(|| "open `/dev/null`".to_owned())?;
    let privileges = spec.security.privileges();
    let mut leftovers = Leftovers::default();
    let nodev = !privileges.all_devices;
    let (root, _) =
        build_root(spec, &privileges, Outside::default(), host_root.as_fd(), nodev, &nobody, &mut leftovers)?;
    swap_root(&root, host_root)?;
    rustix::process::chroot(".").during(|| "change the root".to_owned())
}

/// The order, each step with its reason.
fn set_up(
    session: &OwnedFd,
    stdio: [OwnedFd; 3],
    devices: &DeviceControl,
    spec: &Spec,
    leftovers: &mut Leftovers,
    leave: impl FnOnce() -> Result<(), Failure>,
) -> Result<Infallible, Failure> {
    // While /proc is the host's: needs its /proc/self/exe, and finds mistakes before any work.
    let mut program = Program::new(&spec.args, &spec.env)?;
    let privileges = spec.security.privileges();
    umask(Mode::empty());
    if let Some(score) = spec.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .during(|| format!("set the OOM score adjustment to {score}"))?;
    }
    // Before the cgroup namespace, whose root is the group we are in when it is made.
    let limited = devices.apply(privileges.all_devices, spec.cgroup.as_ref())?;
    if let Some(cgroup) = &spec.cgroup {
        crate::cgroup::join(cgroup)?;
    }
    let nodev = !privileges.all_devices && !limited;
    let filter = load_policy(&privileges)?;
    let shm = shared_memory(spec)?;
    new_namespaces(spec)?;
    let host_root = open_directory("/")?;
    let outside = Outside { shm, propagated: mounts::take_hold(spec)? };
    // Nothing mounted from here on reaches the host, and nothing the host mounts reaches us.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during(|| "make the mounts private".to_owned())?;
    let (root, terminal) = build_root(spec, &privileges, outside, host_root.as_fd(), nodev, &stdio[0], leftovers)?;
    swap_root(&root, host_root)?;
    let user = resolve_user(spec, &root, &mut program)?;
    // By descriptor and after the swap, so that the directory is inside whatever its name is (CVE-2024-21626).
    enter_directory(&root, &spec.cwd)?;
    drop(root);
    // A session of its own: no controlling terminal, no signals from the engine's group.
    setsid().during(|| "start a session".to_owned())?;
    take_stdio(stdio, terminal, spec.tty)?;
    if spec.init {
        stay_as_init()?;
    }
    if spec.account.is_some() {
        give_streams(&user);
    }
    leave()?;
    restrict(&spec.rlimits, &privileges, filter.as_ref(), &user)?;
    // The last word before exec: whatever is still open ends here, also what a library may have opened.
    xbuild_sys::close_from(3).during(|| "close descriptors".to_owned())?;
    send(session.as_fd(), &Frame::Ready(std::mem::take(leftovers))).during(|| "report to the engine".to_owned())?;
    program.execute()
}

fn die_with_helper() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during(|| "tie the process to the helper".to_owned())
}

/// `/dev/shm` of somebody else, for processes that share their memory with others.
fn shared_memory(spec: &Spec) -> Result<Option<OwnedFd>, Failure> {
    let pid = match spec.namespaces.ipc {
        Space::Own => return Ok(None),
        Space::Host => {
            let shm = rootfs::open_host(std::path::Path::new("/dev/shm"))?;
            return rootfs::clone_tree(shm.as_fd(), true).during(|| "share `/dev/shm`".to_owned()).map(Some);
        }
        Space::Of(pid) => pid,
    };
    // A mount can only be copied from inside its namespace; the copy may then be taken anywhere.
    let step = || format!("share `/dev/shm` of process {pid}");
    let own = namespaces::open_own("mnt").during(step)?;
    let other = namespaces::open(pid, "mnt").during(step)?;
    namespaces::enter(&other, "mnt").during(step)?;
    let root = open_directory("/")?;
    let shm = resolve::open_inside(root.as_fd(), "dev/shm").and_then(|shm| rootfs::clone_tree(shm.as_fd(), false));
    namespaces::enter(&own, "mnt").during(step)?;
    shm.during(step).map(Some)
}

fn new_namespaces(spec: &Spec) -> Result<(), Failure> {
    let mut flags = UnshareFlags::NEWNS;
    let spaces = &spec.namespaces;
    for (space, flag, name) in [
        (&spaces.ipc, UnshareFlags::NEWIPC, "ipc"),
        (&spaces.uts, UnshareFlags::NEWUTS, "uts"),
        (&spaces.cgroup, UnshareFlags::NEWCGROUP, "cgroup"),
    ] {
        match space {
            Space::Own => flags |= flag,
            Space::Host => {}
            Space::Of(pid) => namespaces::join(*pid, name)?,
        }
    }
    match &spec.network {
        Network::None => flags |= UnshareFlags::NEWNET,
        Network::Host => {}
        Network::Namespace(path) => namespaces::join_network(path)?,
    }
    xbuild_sys::unshare(flags.bits()).during(|| "make namespaces".to_owned())?;
    if spec.network == Network::None {
        xbuild_sys::loopback_up().during(|| "bring the loopback interface up".to_owned())?;
    }
    if spaces.uts != Space::Own {
        return Ok(());
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes()).during(|| "set the domain name".to_owned())?;
    }
    rustix::system::sethostname(spec.hostname.as_bytes()).during(|| "set the host name".to_owned())
}

/// What was taken hold of before the mounts were cut off from the host's.
#[derive(Debug, Default)]
struct Outside {
    /// Somebody else's `/dev/shm`.
    shm: Option<OwnedFd>,
    /// The mounts of the request that stay connected with the host's, by their places in it.
    propagated: Propagated,
}

/// Mounts the root file system and everything over it, in the new mount namespace; gives it, and the terminal if the
/// request wants one. `nodev` if nothing else keeps devices shut.
fn build_root(
    spec: &Spec,
    privileges: &Privileges,
    outside: Outside,
    host_root: BorrowedFd<'_>,
    nodev: bool,
    console_socket: &OwnedFd,
    leftovers: &mut Leftovers,
) -> Result<(Root, Option<OwnedFd>), Failure> {
    let tree = rootfs::mount_root(&spec.root)?;
    if nodev {
        let flags = xbuild_sys::MountFlags { nodev: true, ..Default::default() };
        xbuild_sys::set_mount_flags(tree.as_fd(), flags, false).during(|| "shut devices in the root".to_owned())?;
    }
    let mut staging = Staging::new(host_root)?;
    // Over the host's root directory: a place that exists everywhere and that no path of ours leads through.
    rootfs::attach(tree.as_fd(), host_root).during(|| "attach the root file system".to_owned())?;
    let root = Root::new(tree)?;
    let system = system::mount_system(&root, spec, privileges, outside.shm)?;
    let terminal = match spec.console {
        None => None,
        Some(size) => {
            let (terminal, name) = console::open(system.pts(), size, console_socket.as_fd())?;
            console::show(&root, system.pts(), &name)?;
            Some(terminal)
        }
    };
    mounts::mount_all(&root, spec, outside.propagated, nodev, &mut staging, leftovers)?;
    // Last, so that no mount of the request lies over a mask.
    if privileges.masked {
        system::mask(&system, &mut staging)?;
    }
    if spec.readonly_root {
        root.directory(&spec.cwd)?;
        let flags = xbuild_sys::MountFlags { readonly: true, nodev, ..Default::default() };
        xbuild_sys::set_mount_flags(root.fd(), flags, false).during(|| "protect the root".to_owned())?;
    }
    Ok((root, terminal))
}

/// Looks the user up in the root's own files, where the request names one.
fn resolve_user(spec: &Spec, root: &Root, program: &mut Program) -> Result<Identity, Failure> {
    match &spec.account {
        None => Ok(spec.user.clone()),
        Some(account) => {
            let user = account::resolve(root.fd(), account)?;
            program.set_home(&user.home)?;
            Ok(user.identity)
        }
    }
}

/// Makes `root` the root and lets go of the host's.
pub(crate) fn swap_root(root: &Root, host_root: OwnedFd) -> Result<(), Failure> {
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

pub(crate) fn enter_directory(root: &Root, path: &str) -> Result<(), Failure> {
    let directory = root.directory(path)?;
    fchdir(&directory).during(|| format!("change to `{path}`"))?;
    let shown = getcwd(Vec::new()).during(|| format!("change to `{path}`"))?;
    if shown.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Failure::Refused(format!("the working directory `{path}` is outside the root")))
    }
}

pub(crate) fn take_stdio(
    [stdin, stdout, stderr]: [OwnedFd; 3],
    terminal: Option<OwnedFd>,
    tty: bool,
) -> Result<(), Failure> {
    let step = || "set the standard streams".to_owned();
    if let Some(terminal) = terminal {
        return take_terminal(&terminal);
    }
    rustix::stdio::dup2_stdin(&stdin).during(step)?;
    rustix::stdio::dup2_stdout(&stdout).during(step)?;
    rustix::stdio::dup2_stderr(&stderr).during(step)?;
    if tty {
        rustix::process::ioctl_tiocsctty(&stdin).during(|| "take the terminal".to_owned())?;
    }
    Ok(())
}

/// Makes `terminal` the controlling one, and all standard streams.
pub(crate) fn take_terminal(terminal: &OwnedFd) -> Result<(), Failure> {
    let step = || "set the standard streams".to_owned();
    rustix::process::ioctl_tiocsctty(terminal).during(|| "take the terminal".to_owned())?;
    rustix::stdio::dup2_stdin(terminal).during(step)?;
    rustix::stdio::dup2_stdout(terminal).during(step)?;
    rustix::stdio::dup2_stderr(terminal).during(step)
}

/// Forks; the parent stays as process 1, passes signals on, reaps, and ends as the command ends. Returns in the
/// command's process.
fn stay_as_init() -> Result<(), Failure> {
    // Process 1 ignores signals that it does not handle, so it takes them one by one instead.
    xbuild_sys::block_signals().during(|| "keep signals for the init process".to_owned())?;
    let forked = xbuild_sys::fork_pid_namespace(false).during(|| "start the command under init".to_owned())?;
    let xbuild_sys::Forked::Parent { pid, .. } = forked else {
        xbuild_sys::reset_signals().during(|| "give signals their defaults".to_owned())?;
        return die_with_helper();
    };
    // The session among them: whoever reads it waits for its end, which is the command's to give.
    if xbuild_sys::close_inherited(3).is_err() {
        xbuild_sys::exit_now(125);
    }
    loop {
        match xbuild_sys::wait_signal() {
            Ok(libc::SIGCHLD) => reap(pid),
            Ok(signal) => {
                // The command may have ended a moment ago.
                let _ = xbuild_sys::kill(pid, signal);
            }
            Err(_) => {}
        }
    }
}

/// Takes in every process that has ended; ends as the command `main` did.
fn reap(main: u32) {
    while let Ok(Some((reaped, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        if reaped.as_raw_nonzero().get() as u32 == main {
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            xbuild_sys::exit_now(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255));
        }
    }
}

/// Gives up what the command must not have.
fn restrict(
    limits: &[Rlimit],
    privileges: &Privileges,
    filter: Option<&Filter>,
    user: &Identity,
) -> Result<(), Failure> {
    // While still privileged: hard limits may be raised with CAP_SYS_RESOURCE.
    identity::set_limits(limits)?;
    let capabilities = match identity::take_number(user)? {
        true => 0,
        false => privileges.capabilities,
    };
    identity::limit_capabilities(capabilities)?;
    if privileges.no_new_privileges {
        rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
    }
    // With CAP_SYS_ADMIN still there, since set-user-ID programs must work and so no_new_privs stays off.
    if let Some(filter) = filter {
        xbuild_sys::load_filter_with(&filter.program, filter.flags)
            .during(|| "load the system-call filter".to_owned())?;
    }
    if crate::rootless::has_one_id() {
        xbuild_sys::load_filter(&seccomp::one_owner()).during(|| "load the filter for one owner".to_owned())?;
    }
    identity::become_user(user, capabilities)?;
    // Changing the user has cleared it.
    die_with_helper()?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// The filter for what a process may do; made before the process is in the sandbox.
fn load_policy(privileges: &Privileges) -> Result<Option<Filter>, Failure> {
    Ok(match (&privileges.seccomp, privileges.capabilities) {
        (Seccomp::Unconfined, _) => None,
        (Seccomp::Default, DEFAULT_CAPABILITIES) => {
            Some(Filter { program: seccomp::docker_default().into(), flags: 0 })
        }
        (Seccomp::Default, capabilities) => {
            Some(Filter { program: seccomp::docker_for(capabilities).into(), flags: 0 })
        }
        (Seccomp::Profile(text), _) => Some(seccomp::Policy::parse(text)?),
    })
}

/// Makes the standard streams the user's, so that `/dev/stdout` can be opened again by name.
pub(crate) fn give_streams(user: &Identity) {
    let uid = rustix::fs::Uid::from_raw(user.uid);
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let own = rustix::fs::fstat(stream).is_ok_and(|about| {
            let kind = rustix::fs::FileType::from_raw_mode(about.st_mode);
            kind == rustix::fs::FileType::Fifo || rustix::termios::isatty(stream)
        });
        if own && user.uid != u32::MAX {
            // A stream that stays another's only cannot be opened again.
            let _ = rustix::fs::fchown(stream, Some(uid), None);
        }
    }
}

pub(crate) fn open_directory(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open `{path}`"))
}
