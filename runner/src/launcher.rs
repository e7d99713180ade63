//! The engine's side: one helper per launcher, any number of sandboxes at once.

use crate::cleanup;
use crate::descriptors;
use crate::error::SandboxError;
use crate::protocol::{Frame, HELPER_NAME, Leftovers, receive, send};
use crate::spec::{Rootfs, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::sync::{Arc, Mutex, PoisonError};

/// Standard streams of a sandboxed process; an absent one is `/dev/null`.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// How a sandboxed process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code or signal.
    pub end: End,
    /// The kernel killed a process of the sandbox's control group for want of memory. Only known with a
    /// [`crate::CgroupSpec`].
    pub oom: bool,
}

/// Exit code or signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ended by itself with this code.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
}

impl Outcome {
    /// The code a shell would show: 128 + signal when one ended it.
    #[must_use]
    pub fn code(self) -> i32 {
        match self.end {
            End::Exited(code) => code,
            End::Signaled(signal) => 128 + signal,
        }
    }
}

/// Starts sandboxes through a helper process, which is started at first use and kept.
///
/// The helper is this program executed again (see [`crate::helper::main_if_requested`]): single-threaded, so that it
/// may fork, which the many-threaded engine must not. It ends, with everything it started, when the launcher is
/// dropped or the engine dies in any way. Cloning is cheap; clones share the helper.
#[derive(Clone, Debug)]
pub struct Launcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    null: OwnedFd,
    helper: Mutex<Option<Arc<Helper>>>,
}

#[derive(Debug)]
struct Helper {
    control: OwnedFd,
    child: Mutex<Child>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The end of the control stream tells the helper to end what it started and then itself.
        let _ = shutdown(&self.control, Shutdown::Both);
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.wait();
    }
}

impl Launcher {
    /// A launcher whose helper is not started yet.
    pub fn new() -> Result<Launcher, SandboxError> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| SandboxError::Helper(error.into()))?;
        Ok(Launcher { shared: Arc::new(Shared { null, helper: Mutex::new(None) }) })
    }

    /// Starts the helper now, so that the first sandbox does not pay for it.
    pub fn warm_up(&self) -> Result<(), SandboxError> {
        self.helper().map(drop)
    }

    /// Hands `spec` to the helper and returns at once; what goes wrong in the set-up is answered by
    /// [`Running::wait`]. Callable from any number of threads.
    pub fn start(&self, spec: &Spec, stdio: Stdio) -> Result<Running, SandboxError> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(helper_error)?;
        self.announce(&theirs, &stdio)?;
        drop((theirs, stdio));
        // A failed write means that the process is gone already; why, is in the frames that `wait` reads.
        match send(ours.as_fd(), spec) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(SandboxError::Helper(error));
            }
            _ => {}
        }
        let writable = match &spec.root {
            Rootfs::Overlay { upper, .. } => Some(upper.clone()),
            Rootfs::Directory(path) => Some(path.clone()),
            Rootfs::ReadOnlyOverlay { .. } => None,
        };
        Ok(Running { session: ours, writable, cgroup: spec.cgroup.clone(), state: Progress::default() })
    }

    /// Sends the descriptors; a helper that has died since its last use is replaced once.
    fn announce(&self, session: &OwnedFd, stdio: &Stdio) -> Result<(), SandboxError> {
        let null = self.shared.null.as_fd();
        let fds = [
            session.as_fd(),
            stdio.stdin.as_ref().map_or(null, AsFd::as_fd),
            stdio.stdout.as_ref().map_or(null, AsFd::as_fd),
            stdio.stderr.as_ref().map_or(null, AsFd::as_fd),
        ];
        let helper = self.helper()?;
        match descriptors::send(helper.control.as_fd(), &fds) {
            Ok(()) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                self.discard(&helper);
                let helper = self.helper()?;
                descriptors::send(helper.control.as_fd(), &fds).map_err(helper_error)
            }
            Err(error) => Err(helper_error(error)),
        }
    }

    fn helper(&self) -> Result<Arc<Helper>, SandboxError> {
        let mut slot = self.shared.helper.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = &*slot {
            return Ok(Arc::clone(helper));
        }
        let helper = Arc::new(Helper::spawn().map_err(SandboxError::Helper)?);
        *slot = Some(Arc::clone(&helper));
        Ok(helper)
    }

    fn discard(&self, dead: &Arc<Helper>) {
        let mut slot = self.shared.helper.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            *slot = None;
        }
    }
}

impl Helper {
    fn spawn() -> io::Result<Helper> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let program = own_program()?;
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0(HELPER_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(ProcessStdio::from(theirs))
            .stdout(ProcessStdio::null())
            .spawn()?;
        Ok(Helper { control: ours, child: Mutex::new(child) })
    }
}

/// This program's file through a read-only mount, so that no process that gets hold of `/proc/PID/exe` of the helper
/// can ever open it for writing (CVE-2019-5736). Where that cannot be mounted, the file as it is.
pub(crate) fn own_program() -> io::Result<OwnedFd> {
    let readonly = || {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, "/proc/self/exe", flags)?;
        let readonly = xbuild_sys::MountFlags { readonly: true, ..Default::default() };
        xbuild_sys::set_mount_flags(tree.as_fd(), readonly, false).map(|()| tree)
    };
    if let Ok(tree) = readonly() {
        return Ok(tree);
    }
    if let Ok(Ok(tree)) = crate::sandbox::namespaces::with_own_mounts(readonly) {
        return Ok(tree);
    }
    Ok(rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn helper_error(error: Errno) -> SandboxError {
    SandboxError::Helper(error.into())
}

/// A sandboxed process that was started. Dropping it ends the process.
///
/// [`AsFd`] gives a descriptor that is readable when [`Running::try_wait`] has something to do, for an event loop.
#[derive(Debug)]
pub struct Running {
    session: OwnedFd,
    writable: Option<PathBuf>,
    cgroup: Option<crate::spec::CgroupSpec>,
    state: Progress,
}

#[derive(Debug, Default)]
struct Progress {
    leftovers: Option<Leftovers>,
    failure: Option<SandboxError>,
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

impl Running {
    /// Ends every process of the sandbox with SIGKILL. Returns at once; [`Running::wait`] tells when they are gone.
    pub fn kill(&self) {
        // Nothing but the request ever goes this way, so its end has one meaning.
        let _ = shutdown(&self.session, Shutdown::Write);
    }

    /// Blocks until the sandbox is gone with its mounts, and what was made for it is removed from the upper directory.
    pub fn wait(mut self) -> Result<Outcome, SandboxError> {
        loop {
            if let Some(outcome) = self.step()? {
                return Ok(outcome);
            }
        }
    }

    /// As [`Running::wait`], without blocking; `None` when it still runs. After an answer or an error, drop it.
    pub fn try_wait(&mut self) -> Result<Option<Outcome>, SandboxError> {
        while self.is_readable()? {
            if let Some(outcome) = self.step()? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// A handle that can end the sandbox while another thread waits for it.
    pub fn killer(&self) -> io::Result<Killer> {
        Ok(Killer { session: self.session.try_clone()? })
    }

    fn is_readable(&self) -> Result<bool, SandboxError> {
        let mut fds = [PollFd::new(&self.session, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(helper_error(error)),
        }
    }

    /// Takes one frame.
    fn step(&mut self) -> Result<Option<Outcome>, SandboxError> {
        match receive::<Frame>(self.session.as_fd()) {
            Ok(Some(Frame::Ready(leftovers))) => self.state.leftovers = Some(leftovers),
            Ok(Some(Frame::Failed(failure, leftovers))) => {
                self.state.leftovers = Some(leftovers);
                self.state.failure = Some(failure.into());
            }
            // Those that speak of other runtimes are containers'.
            Ok(Some(Frame::Runs(_))) => {}
            Ok(Some(Frame::NotStarted(failure))) => return Err(failure.into()),
            Ok(Some(Frame::Ended { code, signal })) => return self.finish(code, signal).map(Some),
            Ok(None) => {
                return Err(self.state.failure.take().unwrap_or(SandboxError::HelperGone));
            }
            Err(error) => return Err(SandboxError::Protocol(error.to_string())),
        }
        Ok(None)
    }

    fn finish(&mut self, code: Option<i32>, signal: Option<i32>) -> Result<Outcome, SandboxError> {
        let oom = self.cgroup.as_ref().is_some_and(crate::cgroup::ran_out_of_memory);
        self.cgroup.iter().for_each(crate::cgroup::remove);
        let ready = self.state.leftovers.is_some();
        if let (Some(leftovers), Some(root)) = (self.state.leftovers.take(), &self.writable) {
            cleanup::remove_stubs(root, &leftovers)?;
        }
        if let Some(failure) = self.state.failure.take() {
            return Err(failure);
        }
        match (code, signal) {
            (Some(code), _) if ready => Ok(Outcome { end: End::Exited(code), oom }),
            (None, Some(signal)) => Ok(Outcome { end: End::Signaled(signal), oom }),
            _ => Err(SandboxError::Protocol("the process ended before it was set up".to_owned())),
        }
    }
}

/// Ends a sandbox from elsewhere.
#[derive(Debug)]
pub struct Killer {
    session: OwnedFd,
}

impl Killer {
    /// As [`Running::kill`].
    pub fn kill(&self) {
        let _ = shutdown(&self.session, Shutdown::Write);
    }
}
