//! Work on the files of a container, as the container itself sees them.
//!
//! Every name and link there is the container's own, so the work is done by a process (this program executed again) that
//! has the container's root for its own: it joins the mount namespace of a container that runs, and mounts what the
//! container would see for one that does not. No path that it resolves can lead out.

use super::archive;
use super::error::{At, ContainerError};
use crate::error::Failure;
use crate::protocol::{receive, send};
use crate::sandbox;
use crate::spec::Spec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const WORKER_NAME: &str = "xbuild-files";

/// Whose files.
#[derive(Debug, Serialize, Deserialize)]
pub enum Place {
    /// Those that a process sees, by its id on the host.
    Process(u32),
    /// Those that a sandbox would see.
    Sandbox(Box<Spec>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Work {
    Look { path: PathBuf, follow: bool },
    Pack { path: PathBuf, name: PathBuf, follow: bool },
    Unpack { directory: PathBuf },
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    place: Place,
    work: Work,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Found(Option<About>),
    Done,
    Failed(String),
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// A directory.
    pub directory: bool,
    /// A link that was not followed.
    pub link: bool,
    /// Something else than these and files: it is copied as what it is.
    pub special: bool,
}

impl About {
    /// Looks at a path of this process; `None` if there is nothing.
    pub fn of(path: &Path, follow: bool) -> io::Result<Option<About>> {
        let about = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
        match about {
            Ok(about) => {
                let kind = about.file_type();
                let special = kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket();
                Ok(Some(About { directory: kind.is_dir(), link: kind.is_symlink(), special }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Becomes the worker if that is what this process was started as, and then never returns.
///
/// To be called first in `main`, before threads, descriptors or handlers exist.
pub fn main_if_requested() {
    if std::env::args_os().next().is_none_or(|name| name != WORKER_NAME) {
        return;
    }
    let code = match serve() {
        Ok(()) => 0,
        Err(_) => 1,
    };
    xbuild_sys::exit_now(code);
}

fn serve() -> io::Result<()> {
    xbuild_sys::close_inherited(3)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let orders = xbuild_sys::adopt(0)?;
    let data = File::from(xbuild_sys::adopt(1)?);
    let Some(order) = receive::<Order>(orders.as_fd())? else {
        return Ok(());
    };
    let entered = match &order.place {
        Place::Process(pid) => sandbox::visit(*pid),
        Place::Sandbox(spec) => sandbox::show_files(spec),
    };
    let answer = match entered {
        Err(failure) => Answer::Failed(told(failure)),
        Ok(()) => match work(&order.work, data) {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(error.to_string()),
        },
    };
    send(orders.as_fd(), &answer)
}

fn told(failure: Failure) -> String {
    let error = crate::error::SandboxError::from(failure);
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn work(work: &Work, data: File) -> io::Result<Answer> {
    match work {
        Work::Look { path, follow } => About::of(path, *follow).map(Answer::Found),
        Work::Pack { path, name, follow } => {
            archive::pack(path, name, *follow, io::BufWriter::with_capacity(256 << 10, data))?;
            Ok(Answer::Done)
        }
        Work::Unpack { directory } => {
            archive::unpack(directory, io::BufReader::with_capacity(256 << 10, data))?;
            Ok(Answer::Done)
        }
    }
}

/// A worker, and our ends of its streams.
struct Worker {
    child: Child,
    orders: OwnedFd,
    data: File,
}

impl Worker {
    fn start(place: Place, work: Work) -> io::Result<Worker> {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let ((orders, their_orders), (data, their_data)) = (pair()?, pair()?);
        let program = crate::launcher::own_program()?;
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0(WORKER_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(their_orders))
            .stdout(Stdio::from(their_data))
            .stderr(Stdio::null())
            .spawn()?;
        send(orders.as_fd(), &Order { place, work })?;
        Ok(Worker { child, orders, data: File::from(data) })
    }

    fn finish(mut self) -> io::Result<Answer> {
        let answer = receive::<Answer>(self.orders.as_fd())?;
        self.child.wait()?;
        match answer {
            Some(Answer::Failed(why)) => Err(io::Error::other(why)),
            Some(answer) => Ok(answer),
            None => Err(io::Error::other("the process that works on the container's files ended unexpectedly")),
        }
    }
}

/// Looks at a path of a container; `None` if there is nothing.
pub fn look(place: Place, path: &Path, follow: bool) -> Result<Option<About>, ContainerError> {
    let done = (|| {
        let worker = Worker::start(place, Work::Look { path: path.to_owned(), follow })?;
        match worker.finish()? {
            Answer::Found(found) => Ok(found),
            _ => Err(io::Error::other("an answer that was not asked for")),
        }
    })();
    done.at("look at", path)
}

/// Writes what stands at a path of a container as a tar in which it is called `name`.
pub fn pack(place: Place, path: &Path, name: &Path, follow: bool, out: &mut dyn Write) -> Result<(), ContainerError> {
    let done = (|| {
        let order = Work::Pack { path: path.to_owned(), name: name.to_owned(), follow };
        let mut worker = Worker::start(place, order)?;
        io::copy(&mut worker.data, out)?;
        out.flush()?;
        worker.finish().map(drop)
    })();
    done.at("copy", path)
}

/// Unpacks a tar into a directory of a container.
pub fn unpack(place: Place, directory: &Path, input: &mut dyn Read) -> Result<(), ContainerError> {
    let done = (|| {
        let mut worker = Worker::start(place, Work::Unpack { directory: directory.to_owned() })?;
        let copied = io::copy(input, &mut worker.data);
        let ended = rustix::net::shutdown(&worker.data, rustix::net::Shutdown::Write);
        // What the worker says of it is nearer to the cause than a pipe that broke.
        worker.finish()?;
        copied.and(ended.map_err(Into::into))
    })();
    done.at("copy to", directory)
}
