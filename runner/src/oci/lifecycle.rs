//! What is done with containers that are there.

use super::error::{At, OciError};
use super::state::{Record, Runtime, Status, described};
use super::{hooks, limits};
use crate::cgroup;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// For processes that were killed to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Lets the program of a container run. Gives what went wrong with hooks that come after that.
    pub fn start(&self, id: &str) -> Result<Vec<String>, OciError> {
        let record = self.get(id)?;
        match self.status(&record) {
            Status::Created => {}
            Status::Stopped => {
                return Err(OciError::Refused(format!("cannot start a container that has stopped: `{id}`")));
            }
            status => return Err(OciError::Refused(format!("cannot start an already {} container", status.name()))),
        }
        let directory = self.directory(id)?;
        let (waiting, taken) = (directory.join("start"), directory.join("starting"));
        // Only one can take it.
        fs::rename(&waiting, &taken).at("start the container in", &directory)?;
        let connection = knock(&directory).at("start the container in", &directory)?;
        fs::remove_file(&taken).at("remove", &taken)?;
        super::create::expect_end(&connection)?;
        let bundle = self.bundle_of(&record)?;
        let after = bundle.config().hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
        Ok(hooks::run_all("poststart", after, &described(&record, Status::Running).to_string()))
    }

    /// Sends a signal to a container's first process, or to all.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), OciError> {
        let record = self.get(id)?;
        if all {
            return signal_all(&record, signal);
        }
        if !record.is_alive() {
            return Err(OciError::Refused("container not running".to_owned()));
        }
        signal_process(record.pid, signal)
    }

    /// Removes a container that has ended; with `force` also one that has not, or that is not there. Gives what went wrong
    /// with hooks.
    pub fn delete(&self, id: &str, force: bool) -> Result<Vec<String>, OciError> {
        let directory = self.directory(id)?;
        let record = match self.find(id) {
            Err(OciError::Missing(_)) if force => return Ok(Vec::new()),
            // Whoever made it has ended before it was there.
            Ok(None) if force => {
                fs::remove_dir_all(&directory).at("remove", &directory)?;
                return Ok(Vec::new());
            }
            Ok(None) => return Err(OciError::Refused(format!("container `{id}` is being created"))),
            found => found?.ok_or_else(|| OciError::Missing(id.to_owned()))?,
        };
        match self.status(&record) {
            Status::Stopped => {}
            // It has not begun, so nothing is lost.
            Status::Created => end(&record)?,
            _ if force => end(&record)?,
            status => {
                return Err(OciError::Refused(format!(
                    "cannot delete container {id} that is not stopped: {}",
                    status.name()
                )));
            }
        }
        // Those that do not share the first one's namespace of processes are there still.
        end_rest(&record);
        let bundle = self.bundle_of(&record);
        cgroup::remove(&record.group());
        fs::remove_dir_all(&directory).at("remove", &directory)?;
        let bundle = bundle?;
        let after = bundle.config().hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref());
        Ok(hooks::run_all("poststop", after, &described(&record, Status::Stopped).to_string()))
    }

    /// Stops all processes of a container for the time being, or lets them go on.
    pub fn freeze(&self, id: &str, frozen: bool) -> Result<(), OciError> {
        let record = self.get(id)?;
        match (frozen, self.status(&record)) {
            (true, Status::Running | Status::Created) | (false, Status::Paused) => {}
            (true, status) => {
                return Err(OciError::Refused(format!("container not running: it is {}", status.name())));
            }
            (false, _) => return Err(OciError::Refused("container not paused".to_owned())),
        }
        Ok(cgroup::freeze(&record.group(), frozen)?)
    }

    /// The processes of a container, as the host sees them.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>, OciError> {
        Ok(cgroup::processes(&self.get(id)?.group()))
    }

    /// Sets other limits.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<(), OciError> {
        let record = self.get(id)?;
        if self.status(&record) == Status::Stopped {
            return Err(OciError::Refused("container not running".to_owned()));
        }
        cgroup::change(&record.group(), &limits::settings(Some(resources))?)?;
        super::create::set_devices(resources.devices().as_deref().unwrap_or_default(), &record.group())
    }
}

/// Connects to the first process. The path may be longer than an address can be.
fn knock(directory: &Path) -> io::Result<OwnedFd> {
    let opened = rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}/starting", opened.as_raw_fd()))?)?;
    Ok(socket)
}

fn signal_process(pid: u32, signal: i32) -> Result<(), OciError> {
    xbuild_sys::kill(pid, signal).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => OciError::Refused("container not running".to_owned()),
        _ => OciError::Setup { step: format!("send signal {signal} to process {pid}"), source: error },
    })
}

fn signal_all(record: &Record, signal: i32) -> Result<(), OciError> {
    for pid in cgroup::processes(&record.group()).into_iter().filter_map(|pid| u32::try_from(pid).ok()) {
        match xbuild_sys::kill(pid, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(OciError::Setup { step: format!("send signal {signal} to process {pid}"), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills the first process, and waits until it is gone.
fn end(record: &Record) -> Result<(), OciError> {
    // A frozen process takes a signal when it goes on.
    let group = record.group();
    match xbuild_sys::kill(record.pid, libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            return Err(OciError::Setup { step: format!("kill process {}", record.pid), source: error });
        }
        _ => {}
    }
    if cgroup::is_frozen(&group) {
        cgroup::freeze(&group, false)?;
    }
    let deadline = Instant::now() + PATIENCE;
    while record.is_alive() {
        if Instant::now() > deadline {
            return Err(OciError::Refused(format!("process {} does not end", record.pid)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Kills what is left in the group.
fn end_rest(record: &Record) {
    let deadline = Instant::now() + PATIENCE;
    while !cgroup::processes(&record.group()).is_empty() && Instant::now() < deadline {
        // A group that cannot be emptied stays, which its removal tells nobody; the next container of that name does.
        let _ = signal_all(record, libc::SIGKILL);
        std::thread::sleep(Duration::from_millis(1));
    }
}
