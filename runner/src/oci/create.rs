//! Making a container: the side of the process that was called.

use super::bundle::Bundle;
use super::error::{At, OciError};
use super::init::{self, Go, Init, Report};
use super::state::{Record, Runtime, Status, described};
use super::{hooks, limits, rights};
use crate::cgroup;
use crate::devices::ALLOWED;
use crate::error::{During, Failure};
use crate::protocol::{receive, send};
use crate::sandbox::namespaces;
use crate::spec::CgroupSpec;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, socketpair,
};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal,
    set_dumpable_behavior, waitid,
};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use xbuild_sys::{Birth, Forked};

/// What `create` is told beside the bundle.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Where the first process's id is written.
    pub pid_file: Option<PathBuf>,
    /// Socket that takes the controlling side of a terminal.
    pub console_socket: Option<PathBuf>,
    /// So many descriptors from 3 on belong to the program.
    pub preserve_fds: u32,
    /// So many more, which it finds by `LISTEN_FDS`.
    pub listen_fds: u32,
    /// Move the new root over the old one in place of exchanging them.
    pub no_pivot: bool,
}

/// Makes this process one that no container can get at: executes this program again through a read-only mount of its file,
/// where it is not that already. To be called by a process with one thread, before it does anything else.
///
/// # Errors
/// What went wrong; with success this process goes on, or another does in its place.
pub fn protect_program(keep: u32) -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let own = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatvfs(&own)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let program = crate::launcher::own_program()?;
    if !rustix::fs::fstatvfs(&program)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        // Mounts cannot be made here, so no container can either.
        return Ok(());
    }
    xbuild_sys::close_from(3 + keep)?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    Err(command.exec())
}

impl Runtime {
    /// Makes a container whose program waits to be started.
    pub fn create(&self, id: &str, bundle: &Path, options: &CreateOptions) -> Result<Record, OciError> {
        if !xbuild_sys::is_single_threaded().at("look at", Path::new("/proc/self/task"))? {
            return Err(OciError::Refused("internal error: a runtime has one thread".to_owned()));
        }
        let keep = kept(options.preserve_fds.saturating_add(options.listen_fds))?;
        let bundle = Bundle::load(bundle)?.with_listeners(options.listen_fds);
        let console = console(&bundle, options.console_socket.as_deref())?;
        let linux = bundle.linux()?;
        let group = limits::group(linux.cgroups_path().as_deref(), id)?;
        super::rights::Rights::of(bundle.process()?, rights::filter(linux.seccomp().as_ref())?)?;
        let directory = self.claim(id, &bundle)?;
        let made =
            self.make(id, &bundle, options, Prepared { keep, console, group: group.clone(), directory: &directory });
        if made.is_err() {
            cgroup::remove(&group);
            // What went wrong matters more than a directory that stays.
            let _ = fs::remove_dir_all(&directory);
        }
        made
    }

    fn make(&self, id: &str, bundle: &Bundle, options: &CreateOptions, own: Prepared<'_>) -> Result<Record, OciError> {
        let Prepared { keep, console, group, directory } = own;
        let start = listener(directory).at("listen in", directory)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .at("talk to the first process of", directory)?;
        let setgroups = maps_groups(bundle)?;
        let (pid, pidfd) = match fork(bundle)? {
            Forked::Parent { pid, pidfd } => (pid, pidfd),
            Forked::Child => {
                drop(ours);
                let pivot = !options.no_pivot;
                init::run(&Init { bundle, session: theirs, start, console, cgroup: group, keep, pivot, setgroups })
            }
        };
        drop((theirs, start, console));
        let done = self.attend(id, bundle, options, pid, &ours, &group, setgroups);
        if let Err(error) = &done {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            tell_stopped(id, bundle, error);
        }
        done
    }

    /// Leads the first process through its set-up.
    #[expect(clippy::too_many_arguments, reason = "a container has these parts")]
    fn attend(
        &self,
        id: &str,
        bundle: &Bundle,
        options: &CreateOptions,
        pid: u32,
        session: &OwnedFd,
        group: &CgroupSpec,
        setgroups: bool,
    ) -> Result<Record, OciError> {
        let linux = bundle.linux()?;
        let settings = limits::settings(linux.resources().as_ref())?;
        cgroup::place_everywhere(group, &settings, pid)?;
        limit_devices(bundle, group)?;
        rights::set_oom_score(bundle.process()?, pid)?;
        map_ids(bundle, pid, setgroups)?;
        let record = Record::new(id, pid, bundle, group, setgroups)?;
        let state = described(&record, Status::Creating).to_string();
        let go = || send(session.as_fd(), &Go { state: state.clone() });
        let _ = go();
        expect(session, &Report::Isolated)?;
        if let Some(all) = bundle.config().hooks() {
            hooks::run("prestart", all.prestart().as_ref(), &state)?;
            hooks::run("createRuntime", all.create_runtime().as_ref(), &state)?;
        }
        let _ = go();
        expect(session, &Report::Ready)?;
        self.keep(&record)?;
        if let Some(file) = &options.pid_file {
            write_pid(file, pid)?;
        }
        Ok(record)
    }
}

struct Prepared<'a> {
    keep: u32,
    console: Option<OwnedFd>,
    group: CgroupSpec,
    directory: &'a Path,
}

/// Writes a process id; the file appears whole, since somebody may wait for it.
pub(super) fn write_pid(file: &Path, pid: u32) -> Result<(), OciError> {
    let part = file.with_file_name(format!(".{}", file.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&part, pid.to_string()).at("write", &part)?;
    fs::rename(&part, file).at("write", file)
}

/// The number of the first descriptor that is not the program's; all below have to be there.
pub(super) fn kept(count: u32) -> Result<u32, OciError> {
    let end = 3 + count.min(1 << 16);
    // One that is missing would be taken by something of ours, which the program would then find there.
    match (3..end).find(|number| !xbuild_sys::is_open(*number)) {
        Some(number) => Err(OciError::Refused(format!("unable to preserve fd {number}: it is not open"))),
        None => {
            xbuild_sys::keep_open(end).at("keep descriptors of", Path::new("/proc/self/fd"))?;
            Ok(end)
        }
    }
}

/// Connects to where a terminal is wanted; a configuration with one needs that, and others must not have it.
fn console(bundle: &Bundle, path: Option<&Path>) -> Result<Option<OwnedFd>, OciError> {
    console_for(bundle.process()?.terminal().unwrap_or(false), path)
}

pub(super) fn console_for(terminal: bool, path: Option<&Path>) -> Result<Option<OwnedFd>, OciError> {
    match (terminal, path) {
        (false, None) => Ok(None),
        (true, None) => Err(OciError::Refused(
            "cannot allocate tty if runtime will detach without setting console socket (--console-socket)".to_owned(),
        )),
        (false, Some(_)) => Err(OciError::Refused(
            "cannot use console socket if runtime will not detach or allocate tty (process.terminal is false)"
                .to_owned(),
        )),
        (true, Some(path)) => {
            let open = || -> Result<OwnedFd, rustix::io::Errno> {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            };
            open().at("connect to the console socket", path).map(Some)
        }
    }
}

/// The socket that the first process waits at. The path may be longer than an address can be.
fn listener(directory: &Path) -> io::Result<OwnedFd> {
    let opened = rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}/start", opened.as_raw_fd()))?)?;
    listen(&socket, 1)?;
    Ok(socket)
}

/// Forks the first process. Namespaces of users and processes that are joined take effect for children only, or take rights
/// away that are needed later, so a process in between joins them and leaves its child to this one.
fn fork(bundle: &Bundle) -> Result<Forked, OciError> {
    let spaces = bundle.spaces()?;
    let birth = Birth {
        pid_namespace: spaces.makes(LinuxNamespaceType::Pid),
        user_namespace: spaces.makes(LinuxNamespaceType::User),
        sibling: false,
    };
    let joined: Vec<(&Path, &str)> = [(LinuxNamespaceType::User, "user"), (LinuxNamespaceType::Pid, "pid")]
        .into_iter()
        .filter_map(|(kind, name)| spaces.joins(kind).map(|path| (path, name)))
        .collect();
    if joined.is_empty() {
        return Ok(xbuild_sys::fork(birth).during(|| "start the first process".to_owned())?);
    }
    let join = || joined.iter().try_for_each(|(path, name)| namespaces::join_path(path, name));
    fork_between(&join, birth)
}

/// Forks with a process in between that does `join` first; the child is this process's own.
pub(super) fn fork_between(join: &dyn Fn() -> Result<(), Failure>, birth: Birth) -> Result<Forked, OciError> {
    let step = || "start the first process".to_owned();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).during(step)?;
    match xbuild_sys::fork(Birth::default()).during(step)? {
        Forked::Child => {
            drop(ours);
            let answer = match join().and_then(|()| xbuild_sys::fork(Birth { sibling: true, ..birth }).during(step)) {
                Ok(Forked::Child) => return Ok(Forked::Child),
                Ok(Forked::Parent { pid, .. }) => Ok(pid),
                Err(failure) => Err(failure),
            };
            let _ = send(theirs.as_fd(), &answer);
            xbuild_sys::exit_now(0)
        }
        Forked::Parent { pidfd, .. } => {
            drop(theirs);
            let answer = receive::<Result<u32, Failure>>(ours.as_fd()).during(step)?;
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            let pid = answer.ok_or_else(|| Failure::Refused("the process in between has ended".to_owned()))??;
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH).during(step)?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty()).during(step)?;
            Ok(Forked::Parent { pid, pidfd })
        }
    }
}

/// Waits for a report; another one, or none, is why the container cannot be made.
pub(super) fn expect(session: &OwnedFd, wanted: &Report) -> Result<(), OciError> {
    match receive::<Report>(session.as_fd()).during(|| "listen to the first process".to_owned())? {
        Some(Report::Failed(failure)) => Err(failure.into()),
        Some(report) if std::mem::discriminant(&report) == std::mem::discriminant(wanted) => Ok(()),
        _ => Err(OciError::Refused("the first process ended unexpectedly".to_owned())),
    }
}

/// Waits for the program to run, which is when nothing more can be said; a report is why it does not.
pub(super) fn expect_end(session: &OwnedFd) -> Result<(), OciError> {
    match receive::<Report>(session.as_fd()).during(|| "wait for the program to start".to_owned())? {
        None => Ok(()),
        Some(Report::Failed(failure)) => Err(failure.into()),
        Some(_) => Err(OciError::Refused("the new process is not understood".to_owned())),
    }
}

/// A container that could not be made was one for a moment, so whoever cleans up after it has to know.
fn tell_stopped(id: &str, bundle: &Bundle, _: &OciError) {
    let after = bundle.config().hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref());
    let state = serde_json::json!({
        "ociVersion": super::state::VERSION, "id": id, "status": Status::Stopped, "pid": 0, "bundle": bundle.directory(),
    });
    let _ = hooks::run_all("poststop", after, &state.to_string());
}

/// Whether processes of the container may set their groups.
fn maps_groups(bundle: &Bundle) -> Result<bool, OciError> {
    let linux = bundle.linux()?;
    let privileged = rustix::process::geteuid().is_root();
    Ok(privileged || linux.gid_mappings().iter().flatten().next().is_none())
}

fn map_ids(bundle: &Bundle, pid: u32, setgroups: bool) -> Result<(), OciError> {
    let spaces = bundle.spaces()?;
    if !spaces.makes(LinuxNamespaceType::User) {
        return Ok(());
    }
    let linux = bundle.linux()?;
    let text = |maps: &Option<Vec<LinuxIdMapping>>| {
        let line = |map: &LinuxIdMapping| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size());
        maps.iter().flatten().map(line).collect::<String>()
    };
    let write = |name: &str, text: &str| {
        let file = PathBuf::from(format!("/proc/{pid}/{name}"));
        fs::write(&file, text).at("write", &file)
    };
    if !setgroups {
        write("setgroups", "deny")?;
    }
    write("uid_map", &text(linux.uid_mappings()))?;
    write("gid_map", &text(linux.gid_mappings()))
}

/// Has the devices controller refuse what the configuration does not allow.
fn limit_devices(bundle: &Bundle, group: &CgroupSpec) -> Result<(), OciError> {
    let resources = bundle.linux()?.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    set_devices(rules, group)
}

pub(super) fn set_devices(rules: &[oci_spec::runtime::LinuxDeviceCgroup], group: &CgroupSpec) -> Result<(), OciError> {
    if rules.is_empty() {
        return Ok(());
    }
    let Some((directory, false)) = cgroup::directory(group, "devices") else {
        return Err(OciError::Refused(
            "linux.resources.devices: this host has no `devices` controller of version 1".to_owned(),
        ));
    };
    let own = ALLOWED.iter().map(|entry| ("devices.allow", (*entry).to_owned()));
    for (file, entry) in limits::device_rules(rules).into_iter().chain(own) {
        let file = directory.join(file);
        fs::write(&file, &entry).at("limit devices in", &file)?;
    }
    Ok(())
}
