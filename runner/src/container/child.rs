//! A process that the monitor started, with its streams.

use super::external::{External, Task};
use super::wire::ExecRequest;
use crate::descriptors;
use crate::devices::DeviceControl;
use crate::error::SandboxError;
use crate::protocol::{Frame, receive};
use crate::sandbox;
use crate::sandbox::join::Joining;
use crate::spec::{CgroupSpec, Space, Spec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use xbuild_sys::{Birth, Forked};

/// What the process has for standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Nothing,
    Pipe,
}

/// A process, from fork to its end.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: u32,
    /// Readable at its end, which this process is told of.
    pub(super) pidfd: OwnedFd,
    /// Who stands for the process is another, which ends like it.
    supervised: bool,
    /// The process itself, where another stands for it.
    target: Option<OwnedFd>,
    /// Reports of the set-up; gone when the program runs or has failed to.
    pub(super) session: Option<OwnedFd>,
    pub(super) failure: Option<SandboxError>,
    pub(super) ended: Option<i32>,
    pub(super) streams: Streams,
    /// Its mounts, which stay until this is closed: taking them off may take as long as writing out what the host's file
    /// system has in memory.
    pub(super) mounts: Option<OwnedFd>,
}

/// Our ends of a process's streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) terminal: bool,
    /// Where the controlling side of a terminal is to arrive.
    pub(super) console: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// Bytes for standard input that did not fit yet.
    pub(super) input: VecDeque<u8>,
    /// No more will come.
    pub(super) input_ends: bool,
}

/// What processes are started with.
#[derive(Debug)]
pub(super) struct Home {
    null: OwnedFd,
}

impl Home {
    pub(super) fn of_this_process() -> io::Result<Home> {
        let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        Ok(Home { null: open("/dev/null", OFlags::RDWR)? })
    }
}

/// Forks with the children's pid namespace that `space` says.
fn fork(space: &Space) -> io::Result<Forked> {
    match space {
        Space::Of(pid) => fork_into(*pid),
        space => xbuild_sys::fork_pid_namespace(*space == Space::Own),
    }
}

/// Forks a process in the pid namespace of another. A process in between enters it, since root of a user namespace could not
/// come back.
fn fork_into(pid: u32) -> io::Result<Forked> {
    let other = sandbox::namespaces::open(pid, "pid")?;
    let (answer, say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let between = match xbuild_sys::fork_pid_namespace(false)? {
        Forked::Parent { pidfd, .. } => pidfd,
        Forked::Child => {
            // Of the children to come, not of this process.
            let entered = move_into_link_name_space(other.as_fd(), Some(LinkNameSpaceType::ProcessID));
            let forked = entered
                .map_err(io::Error::from)
                .and_then(|()| xbuild_sys::fork(Birth { sibling: true, ..Birth::default() }));
            let number = match forked {
                Ok(Forked::Child) => return Ok(Forked::Child),
                Ok(Forked::Parent { pid, .. }) => i64::from(pid),
                Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
            };
            let told = rustix::io::write(&say, &number.to_ne_bytes());
            xbuild_sys::exit_now(u8::from(told.is_err()));
        }
    };
    drop(say);
    let mut number = [0; 8];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&answer, &mut number));
    waitid(WaitId::PidFd(between.as_fd()), WaitIdOptions::EXITED)?;
    if read? != number.len() {
        return Err(io::Error::other("a process ended on its way into a container"));
    }
    match i64::from_ne_bytes(number) {
        error @ ..=0 => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EIO))),
        pid => {
            let pid = u32::try_from(pid).map_err(io::Error::other)?;
            let own = rustix::process::Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?;
            // It is a child of this process, so its number is its own until it is waited for.
            let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())?;
            Ok(Forked::Parent { pid, pidfd })
        }
    }
}

impl Child {
    /// Starts the container's own process, which sets itself up and waits for [`Child::let_go`].
    pub(super) fn start(home: &Home, spec: &Spec, devices: &DeviceControl, input: Input) -> io::Result<Child> {
        let (streams, theirs) = Streams::new(home, input, spec.console.is_some())?;
        Child::fork(&spec.namespaces.pid, streams, |session| sandbox::enter_with(&session, theirs, devices, spec))
    }

    /// Starts another process beside the one whose id is `main`.
    pub(super) fn join(
        home: &Home,
        main: u32,
        request: &ExecRequest,
        cgroup: &CgroupSpec,
        input: Input,
    ) -> io::Result<Child> {
        let (streams, theirs) = Streams::new(home, input, request.console.is_some())?;
        let joining = Joining {
            pid: main,
            args: &request.args,
            env: &request.env,
            cwd: &request.cwd,
            account: &request.account,
            privileges: &request.privileges,
            rlimits: &request.rlimits,
            console: request.console,
            cgroup,
        };
        Child::fork(&Space::Of(main), streams, |session| sandbox::join::enter(&session, theirs, &joining))
    }

    /// Has another runtime start the container's own process, or one beside it.
    pub(super) fn supervised(home: &Home, external: &External, task: &Task<'_>, input: Input) -> io::Result<Child> {
        let terminal = match task {
            Task::Container(spec) => spec.console.is_some(),
            Task::Process(_, request) => request.console.is_some(),
        };
        let (mut streams, theirs) = Streams::new(home, Input::Pipe, terminal)?;
        if input == Input::Nothing {
            // An end at once, not the host's `/dev/null`: crun makes the container's user the owner of what it is given.
            streams.stdin = None;
        }
        let mut child = Child::fork(&Space::Host, streams, |session| external.supervise(session, theirs, task))?;
        child.supervised = true;
        Ok(child)
    }

    fn fork(space: &Space, streams: Streams, become_it: impl FnOnce(OwnedFd)) -> io::Result<Child> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        match fork(space)? {
            Forked::Child => {
                drop(ours);
                become_it(theirs);
                // It never comes back.
                xbuild_sys::exit_now(125)
            }
            Forked::Parent { pid, pidfd } => {
                let (supervised, session) = (false, Some(ours));
                let (target, failure, ended, mounts) = (None, None, None, None);
                Ok(Child { pid, pidfd, supervised, target, session, failure, ended, streams, mounts })
            }
        }
    }

    /// Lets the program begin. One that has ended has reported why.
    pub(super) fn let_go(&self) {
        if let Some(session) = self.session.as_ref().filter(|_| !self.supervised) {
            let _ = rustix::net::send(session, b"g", rustix::net::SendFlags::NOSIGNAL);
        }
    }

    /// Ends it for good.
    pub(super) fn end(self) {
        self.signal(libc::SIGKILL);
        // There is nothing to learn.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }

    /// Takes a report of the set-up. The end of the session means that the program runs, unless it failed before.
    pub(super) fn take_report(&mut self) {
        let Some(session) = &self.session else {
            return;
        };
        match receive::<Frame>(session.as_fd()) {
            Ok(Some(Frame::Failed(failure, _) | Frame::NotStarted(failure))) => self.failure = Some(failure.into()),
            // The last moment in which it is sure to be there. Who may not look has to wait at the end.
            Ok(Some(Frame::Ready(_))) => self.mounts = sandbox::namespaces::open(self.pid, "mnt").ok(),
            Ok(Some(Frame::Ended { .. })) => {}
            Ok(Some(Frame::Runs(pid))) => {
                self.pid = pid;
                let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
                self.target = raw.and_then(|raw| pidfd_open(raw, PidfdFlags::empty()).ok());
            }
            Ok(None) => self.session = None,
            Err(error) => {
                self.failure = Some(SandboxError::Protocol(error.to_string()));
                self.session = None;
            }
        }
    }

    /// Takes the end of the process: its exit code, or 128 and the signal.
    pub(super) fn take_end(&mut self) {
        let code = match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => 255,
            },
            Ok(None) | Err(Errno::INTR) => return,
            Err(_) => 255,
        };
        // What it had to say comes before.
        while self.session.is_some() {
            self.take_report();
        }
        self.ended = Some(code);
    }

    /// Sends a signal; a process that has ended takes none.
    pub(super) fn signal(&self, signal: i32) {
        if self.ended.is_none() {
            let _ = xbuild_sys::pidfd_kill(self.target.as_ref().unwrap_or(&self.pidfd).as_fd(), signal);
        }
    }

    /// Whether what comes from its streams is its own: another runtime may write there until it has started it.
    pub(super) fn speaks(&self) -> bool {
        !self.supervised || (self.session.is_none() && self.failure.is_none())
    }
}

impl Streams {
    fn new(home: &Home, input: Input, terminal: bool) -> io::Result<(Streams, [OwnedFd; 3])> {
        let null = || home.null.try_clone();
        if terminal {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            let streams = Streams { terminal: true, console: Some(ours), ..Streams::default() };
            return Ok((streams, [theirs, null()?, null()?]));
        }
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((out, their_out), (err, their_err)) = (pipe()?, pipe()?);
        let mut streams = Streams { stdout: Some(out), stderr: Some(err), ..Streams::default() };
        let their_in = match input {
            Input::Nothing => null()?,
            Input::Pipe => {
                let (theirs, ours) = pipe()?;
                streams.stdin = Some(ours);
                theirs
            }
        };
        for ours in [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten() {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        Ok((streams, [their_in, their_out, their_err]))
    }

    /// Takes the controlling side of the terminal.
    pub(super) fn take_console(&mut self) -> io::Result<()> {
        let Some(console) = self.console.take() else {
            return Ok(());
        };
        if let Some(controller) = receive_terminal(&console)? {
            rustix::io::ioctl_fionbio(&controller, true)?;
            self.stdin = Some(controller.try_clone()?);
            self.stdout = Some(controller);
        }
        Ok(())
    }

    /// Sets the terminal's size, if there is one.
    pub(super) fn resize(&self, rows: u16, columns: u16) {
        if let (true, Some(controller)) = (self.terminal, &self.stdout) {
            let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is closing has no size any more.
            let _ = rustix::termios::tcsetwinsize(controller, size);
        }
    }

    /// Keeps bytes for standard input.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.stdin.is_some() || self.console.is_some() {
            self.input.extend(data);
        }
    }

    /// Writes what fits to standard input, and closes it behind the last byte.
    pub(super) fn push(&mut self) {
        while let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
            match rustix::io::write(stdin, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // Nobody reads any more.
                    self.input.clear();
                    self.stdin = None;
                }
            }
        }
        if self.input.is_empty() && self.input_ends {
            self.stdin = None;
        }
    }

    /// Whether output can still come.
    pub(super) fn is_open(&self) -> bool {
        self.console.is_some() || self.stdout.is_some() || self.stderr.is_some()
    }
}

/// Takes the terminal that comes with the next message, which names it.
pub(super) fn receive_terminal(from: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    Ok(descriptors::receive(from.as_fd(), &mut [0; 4096])?.map(|[terminal]| terminal))
}
