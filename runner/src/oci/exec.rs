//! Another process in a container.

use super::bundle::check_process;
use super::create::{console_for, expect_end, fork_between, kept, write_pid};
use super::error::{At, OciError};
use super::init::{Go, Report, become_root};
use super::rights::{self, Rights};
use super::state::{Record, Runtime, Status};
use crate::cgroup;
use crate::error::{During, Failure};
use crate::protocol::{receive, send};
use crate::sandbox::program::Program;
use crate::sandbox::resolve::{Root, open_inside};
use crate::sandbox::{self, account, console, namespaces};
use crate::spec::Account;
use oci_spec::runtime::Process;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, setsid, waitid};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use xbuild_sys::{Birth, Forked};

/// What `exec` is told beside the process.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Where the process's id is written.
    pub pid_file: Option<PathBuf>,
    /// Socket that takes the controlling side of a terminal.
    pub console_socket: Option<PathBuf>,
    /// So many descriptors from 3 on belong to the program.
    pub preserve_fds: u32,
}

/// What the new process is forked with.
struct Joining<'a> {
    record: &'a Record,
    process: &'a Process,
    rights: Rights,
    session: OwnedFd,
    console: Option<OwnedFd>,
    keep: u32,
}

impl Runtime {
    /// The process that a container was made with, as a pattern for others.
    pub fn process_of(&self, id: &str) -> Result<Process, OciError> {
        self.bundle_of(&self.get(id)?)?.process().cloned()
    }

    /// Starts another process in a container and gives its id; the caller is its parent.
    pub fn exec(&self, id: &str, process: &Process, options: &ExecOptions) -> Result<u32, OciError> {
        let record = self.get(id)?;
        match self.status(&record) {
            Status::Running | Status::Created => {}
            Status::Paused => return Err(OciError::Refused("cannot exec in a paused container".to_owned())),
            _ => return Err(OciError::Refused("cannot exec in a stopped container".to_owned())),
        }
        check_process(process)?;
        let bundle = self.bundle_of(&record)?;
        let keep = kept(options.preserve_fds)?;
        let console = console_for(process.terminal().unwrap_or(false), options.console_socket.as_deref())?;
        let rights = Rights::of(process, rights::filter(bundle.linux()?.seccomp().as_ref())?)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .at("talk to a process of", &record.bundle)?;
        let join = || {
            let space =
                namespaces::open(record.pid, "pid").during(|| "open the container's pid namespace".to_owned())?;
            namespaces::enter(&space, "pid").during(|| "join the container's pid namespace".to_owned())
        };
        match fork_between(&join, Birth::default())? {
            Forked::Child => {
                drop(ours);
                become_process(&Joining { record: &record, process, rights, session: theirs, console, keep })
            }
            Forked::Parent { pid, pidfd } => {
                drop((theirs, console));
                let done = attend(&record, process, pid, &ours, options.pid_file.as_deref());
                if done.is_err() {
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                }
                done.map(|()| pid)
            }
        }
    }
}

/// Leads the new process through its set-up.
fn attend(
    record: &Record,
    process: &Process,
    pid: u32,
    session: &OwnedFd,
    pid_file: Option<&Path>,
) -> Result<(), OciError> {
    cgroup::enter(&record.group(), Some(pid))?;
    rights::set_oom_score(process, pid)?;
    let _ = send(session.as_fd(), &Go { state: String::new() });
    expect_end(session)?;
    match pid_file {
        None => Ok(()),
        Some(file) => write_pid(file, pid),
    }
}

fn become_process(joining: &Joining<'_>) -> ! {
    let work = std::panic::AssertUnwindSafe(|| set_up(joining));
    let failure = match std::panic::catch_unwind(work) {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Refused("internal error: the set-up panicked".to_owned()),
    };
    let _ = send(joining.session.as_fd(), &Report::Failed(failure));
    xbuild_sys::exit_now(1)
}

/// The order; its reasons are those of the container's first process.
fn set_up(joining: &Joining<'_>) -> Result<Infallible, Failure> {
    let Joining { record, process, rights, session, .. } = joining;
    xbuild_sys::reset_signals().during(|| "give signals their defaults".to_owned())?;
    let go = receive::<Go>(session.as_fd()).during(|| "wait for the runtime".to_owned())?;
    go.ok_or_else(|| Failure::Refused("the runtime was ended".to_owned()))?;
    rights.set_by_proc()?;
    let env: &[String] = process.env().as_deref().unwrap_or_default();
    let mut program = Program::new(process.args().as_deref().unwrap_or_default(), env)?;
    let in_user_namespace = join(record)?;
    let root = Root::new(sandbox::open_directory("/")?)?;
    let terminal = match &joining.console {
        None => None,
        Some(socket) => {
            let pts = open_inside(root.fd(), "dev/pts").during(|| "open `/dev/pts`".to_owned())?;
            let short = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
            let size =
                process.console_size().as_ref().map_or((0, 0), |size| (short(size.height()), short(size.width())));
            Some(console::open(pts.as_fd(), size, socket.as_fd())?.0)
        }
    };
    if in_user_namespace {
        become_root()?;
    }
    if let Ok(user) = account::resolve(root.fd(), &Account { user: rights.user.uid.to_string(), groups: Vec::new() }) {
        program.set_home(&user.home)?;
    }
    let cwd = process.cwd().to_str().ok_or_else(|| Failure::Refused("process.cwd is not UTF-8".to_owned()))?;
    sandbox::join::enter_directory(&root, cwd)?;
    drop(root);
    setsid().during(|| "start a session".to_owned())?;
    if let Some(terminal) = terminal {
        sandbox::take_terminal(&terminal)?;
    }
    sandbox::give_streams(&rights.user);
    program.check()?;
    xbuild_sys::close_from(joining.keep).during(|| "close descriptors".to_owned())?;
    rights.apply(record.setgroups)?;
    program.execute()
}

/// Goes into the container's other namespaces; reports whether one of users is among them. That is the last, since the
/// rights that the others need are the host's.
fn join(record: &Record) -> Result<bool, Failure> {
    let open = |name: &str| {
        namespaces::open(record.pid, name).during(|| format!("open the {name} namespace of the container"))
    };
    let names = ["cgroup", "ipc", "uts", "net", "mnt"];
    let spaces = names.iter().map(|name| Ok((*name, open(name)?))).collect::<Result<Vec<_>, Failure>>()?;
    let users = open("user")?;
    let own = namespaces::open_own("user").during(|| "open the own user namespace".to_owned())?;
    // The process whose namespaces these are must be the container's still.
    if !record.is_alive() {
        return Err(Failure::Refused("the container has stopped".to_owned()));
    }
    for (name, space) in &spaces {
        namespaces::enter(space, name).during(|| format!("join the {name} namespace of the container"))?;
    }
    let number = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|about| about.st_ino);
    if number(&users).ok() == number(&own).ok() {
        return Ok(false);
    }
    namespaces::enter(&users, "user").during(|| "join the user namespace of the container".to_owned())?;
    Ok(true)
}
