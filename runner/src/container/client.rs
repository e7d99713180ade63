//! The commands' side of a monitor: starting one, and talking to it.

use super::error::{At, ContainerError};
use super::files::{Found, Lock};
use super::monitor::{MONITOR_NAME, NETWORKED};
use super::wire::{self, Answer, Request, Tag};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

type Result<T> = std::result::Result<T, ContainerError>;

/// A connection to a monitor. Clones share it: one thread may read while others send.
#[derive(Clone, Debug)]
pub struct Connection {
    socket: Arc<OwnedFd>,
    name: String,
}

/// What comes from a monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// Anything else.
    Answer(Answer),
}

/// A monitor without a container. Started ahead, it gets ready while the container is made; dropped, it ends.
#[derive(Debug)]
pub struct IdleMonitor {
    socket: OwnedFd,
}

impl IdleMonitor {
    /// Starts one. With `networked` it makes a network namespace, which its container is going to need.
    pub fn start(networked: bool) -> Result<IdleMonitor> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| not_started(error.into()))?;
        // Nobody waits for it: it outlives the commands that start one, and is another's child then.
        spawn(theirs, networked).map(drop).map_err(not_started)?;
        Ok(IdleMonitor { socket })
    }

    /// Has it look after the container in `directory`; it takes the lock over and waits for its first request.
    pub fn take(self, directory: &Path, name: &str, lock: Lock) -> Result<Connection> {
        const ACTION: &str = "start the monitor in";
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty()).at(ACTION, directory)?;
        let lock = lock.into_file();
        crate::descriptors::send(self.socket.as_fd(), &[opened.as_fd(), lock.as_fd()]).at(ACTION, directory)?;
        Ok(Connection { socket: Arc::new(self.socket), name: name.to_owned() })
    }
}

fn spawn(stdin: OwnedFd, networked: bool) -> io::Result<Child> {
    let program = crate::launcher::own_program()?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(MONITOR_NAME)
        .args(networked.then_some(NETWORKED))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn not_started(source: io::Error) -> ContainerError {
    ContainerError::Io { action: "start a monitor by", path: "/proc/self/exe".into(), source }
}

impl Connection {
    /// Connects to the monitor of a container; `None` when there is none.
    pub fn open(found: &Found) -> Result<Option<Connection>> {
        let directory = &found.directory;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(directory, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => opened.at("open", directory)?,
        };
        // The path itself may be longer than an address can be.
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/socket", opened.as_raw_fd()))
            .at("connect to the monitor in", directory)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .at("connect to the monitor in", directory)?;
        match connect(&socket, &address) {
            Ok(()) => Ok(Some(Connection { socket: Arc::new(socket), name: found.container.name.clone() })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error).at("connect to the monitor in", directory),
        }
    }

    /// Sends a request.
    pub fn send(&self, request: &Request) -> Result<()> {
        let bytes = wire::message(Tag::Request, request).map_err(|error| self.gone(&error))?;
        wire::write(self.socket.as_fd(), &bytes).map_err(|error| self.gone(&error))
    }

    /// Sends bytes for standard input; none is its end.
    pub fn feed(&self, data: &[u8]) -> Result<()> {
        wire::write(self.socket.as_fd(), &wire::frame(Tag::Stdin, data)).map_err(|error| self.gone(&error))
    }

    /// Waits for what comes next; `None` when the monitor has closed the connection.
    pub fn next(&self) -> Result<Option<Event>> {
        let Some((tag, content)) = wire::read(self.socket.as_fd()).map_err(|error| self.gone(&error))? else {
            return Ok(None);
        };
        match tag {
            Tag::Stdout => Ok(Some(Event::Stdout(content))),
            Tag::Stderr => Ok(Some(Event::Stderr(content))),
            _ => match serde_json::from_slice(&content) {
                Ok(answer) => Ok(Some(Event::Answer(answer))),
                Err(_) => Err(ContainerError::MonitorGone(self.name.clone())),
            },
        }
    }

    /// Waits for the next answer; output that comes before it is lost.
    pub fn answer(&self) -> Result<Answer> {
        loop {
            match self.next()? {
                Some(Event::Answer(answer)) => return Ok(answer),
                Some(_) => {}
                None => return Err(ContainerError::MonitorGone(self.name.clone())),
            }
        }
    }

    /// Sends a request and waits until it is done.
    pub fn ask(&self, request: &Request) -> Result<Answer> {
        self.send(request)?;
        match self.answer()? {
            Answer::Refused(why) => Err(ContainerError::Refused(why)),
            Answer::Failed { message, code } => Err(ContainerError::Start { message, code }),
            other => Ok(other),
        }
    }

    /// Closes the connection; whoever waits for it is told.
    pub fn hang_up(&self) {
        // A connection that is gone already is what is wanted.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
    }

    fn gone(&self, _: &io::Error) -> ContainerError {
        ContainerError::MonitorGone(self.name.clone())
    }
}
