//! The fork server: one small single-threaded process between the engine and its sandboxes.
//!
//! It waits for session sockets on its control socket, forks one process per session (process 1 of a new pid
//! namespace), and reports each one's end on its session. A session whose peer stops writing after the request asks
//! for the sandbox to be ended; so does a peer that vanishes, which covers a killed engine. When the control socket
//! ends, everything still running is killed and the helper ends.

use crate::descriptors;
use crate::devices::DeviceControl;
use crate::error::{During, Failure};
use crate::protocol::{Frame, HELPER_NAME, send};
use crate::sandbox;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior, waitid,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use xbuild_sys::Forked;

/// Becomes the sandbox helper if that is what this process was started as, and then never returns.
///
/// To be called first in `main`, before threads, descriptors or handlers exist.
pub fn main_if_requested() {
    if std::env::args_os().next().is_none_or(|name| name != HELPER_NAME) {
        return;
    }
    let code = match serve() {
        Ok(()) => 0,
        Err(_) => 1,
    };
    xbuild_sys::exit_now(code);
}

/// One session's descriptors: the socket, then standard input, output and error.
type SessionFds = [OwnedFd; 4];

struct Child {
    pidfd: OwnedFd,
    session: OwnedFd,
}

const CONTROL: u64 = 0;

fn serve() -> io::Result<()> {
    // A session of its own: what ends the engine's process group must not keep us from cleaning up after it.
    let _ = rustix::process::setsid();
    // What the engine was started with and did not open itself is none of ours.
    xbuild_sys::close_inherited(3)?;
    // Neither processes of the sandbox nor other users may trace us or reach our files through /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if !xbuild_sys::is_single_threaded()? {
        return Err(io::Error::other("the sandbox helper must be single-threaded"));
    }
    let control = xbuild_sys::adopt(0)?;
    // Inherited by every sandbox, so done once: default signals (Rust ignores SIGPIPE), the compiled filter, and the
    // control group that says which devices may be opened.
    xbuild_sys::reset_signals()?;
    sandbox::get_ready();
    let _ = crate::rootless::has_one_id();
    let devices = DeviceControl::establish();
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poller, &control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
    let mut server = Server { poller, children: HashMap::new(), next: 1, devices };
    let mut open = true;
    let mut events = Vec::with_capacity(16);
    while open || !server.children.is_empty() {
        events.clear();
        match epoll::wait(&server.poller, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key != CONTROL {
                server.child_event(key);
            } else if open {
                open = server.control_event(&control);
                if !open {
                    epoll::delete(&server.poller, &control)?;
                    server.kill_all();
                }
            }
        }
    }
    server.devices.dissolve();
    Ok(())
}

struct Server {
    poller: OwnedFd,
    children: HashMap<u64, Child>,
    next: u64,
    devices: DeviceControl,
}

impl Server {
    /// Takes one session; false when the engine is gone.
    fn control_event(&mut self, control: &OwnedFd) -> bool {
        match descriptors::receive(control.as_fd(), &mut [0]) {
            Ok(Some(fds)) => {
                self.start(fds);
                true
            }
            Ok(None) => false,
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    fn start(&mut self, fds: SessionFds) {
        let forked = match xbuild_sys::fork_pid_namespace(true) {
            Ok(Forked::Child) => sandbox::enter(fds, &self.devices),
            Ok(Forked::Parent { pidfd, .. }) => pidfd,
            Err(error) => {
                let failure = Err::<(), _>(error).during(|| "start of a process in a new pid namespace".to_owned());
                report_not_started(&fds[0], failure);
                return;
            }
        };
        let [session, ..] = fds;
        let key = self.next;
        self.next += 1;
        let child = Child { pidfd: forked, session };
        if let Err(error) = self.watch(key, &child) {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            report_not_started(&child.session, Err(error).during(|| "watch over a new process".to_owned()));
            return;
        }
        self.children.insert(key, child);
    }

    fn watch(&self, key: u64, child: &Child) -> Result<(), Errno> {
        epoll::add(&self.poller, &child.pidfd, epoll::EventData::new_u64(key * 2), epoll::EventFlags::IN)?;
        // Only the half-close is of interest: the bytes that arrive are for the child.
        epoll::add(&self.poller, &child.session, epoll::EventData::new_u64(key * 2 + 1), epoll::EventFlags::RDHUP)
    }

    fn child_event(&mut self, event: u64) {
        let key = event / 2;
        let Some(child) = self.children.get(&key) else {
            return;
        };
        if event % 2 == 1 {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ = epoll::delete(&self.poller, &child.session);
            return;
        }
        let (code, signal) = match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            Ok(None) | Err(Errno::INTR) => return,
            Err(_) => (None, None),
        };
        let _ = send(child.session.as_fd(), &Frame::Ended { code, signal });
        // A descriptor leaves the poll set only when all its duplicates are closed, so it is taken out by name.
        let _ = epoll::delete(&self.poller, &child.pidfd);
        let _ = epoll::delete(&self.poller, &child.session);
        self.children.remove(&key);
    }

    fn kill_all(&self) {
        for child in self.children.values() {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
        }
    }
}

fn report_not_started(session: &OwnedFd, failure: Result<(), Failure>) {
    if let Err(failure) = failure {
        let _ = send(session.as_fd(), &Frame::NotStarted(failure));
    }
}
