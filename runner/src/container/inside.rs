//! Work on the files of a container, as the container itself sees them.
//!
//! Every name and link there is the container's own, so the work is done by a process (this program executed again) that
//! has the container's root for its own: it joins the mount namespace of a container that runs, and mounts what the
//! container would see for one that does not. No path that it resolves can lead out.

use super::archive::{self, Side};
use super::error::{At, ContainerError};
use crate::error::Failure;
use crate::protocol::{receive, send};
use crate::sandbox;
use crate::spec::Spec;
use rustix::fs::{CWD, FileType, OFlags, fstat, readlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const WORKER_NAME: &str = "xbuild-files";
/// How many links are followed at the end of a path: as many as the kernel follows.
const LINK_LIMIT: u32 = 40;

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
    Find { path: PathBuf },
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
    Looked(Option<About>),
    Found(Destination),
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
    pub fn of(side: Side, path: &Path, follow: bool) -> io::Result<Option<About>> {
        let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let kind = match side.open(CWD, path, OFlags::PATH | nofollow) {
            Ok(opened) => FileType::from_raw_mode(fstat(opened)?.st_mode),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (directory, link) = (kind == FileType::Directory, kind == FileType::Symlink);
        Ok(Some(About { directory, link, special: !directory && !link && kind != FileType::RegularFile }))
    }
}

/// Where a copy goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The path that was named, or the one that a link there leads to.
    pub path: PathBuf,
    /// What stands there.
    pub about: Option<About>,
    /// The directory that it is in, or would be in, is there.
    pub has_parent: bool,
}

impl Destination {
    /// Looks at a path of this process. A link at its end is followed, also to what is not there yet.
    pub fn of(side: Side, path: &Path) -> io::Result<Destination> {
        let path = end_of_links(side, path)?;
        let about = About::of(side, &path, true)?;
        let parent = About::of(side, path.parent().unwrap_or(Path::new("/")), true)?;
        Ok(Destination { path, about, has_parent: parent.is_some_and(|parent| parent.directory) })
    }
}

fn end_of_links(side: Side, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINK_LIMIT {
        let link = match side.open(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) if FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::Symlink => opened,
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(path),
            Err(error) => return Err(error.into()),
        };
        let target = readlinkat(link, "", Vec::new())?;
        let above = path.parent().unwrap_or(Path::new("/"));
        path = above.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
    }
    Err(Errno::LOOP.into())
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
        Work::Look { path, follow } => About::of(Side::Container, path, *follow).map(Answer::Looked),
        Work::Find { path } => Destination::of(Side::Container, path).map(Answer::Found),
        Work::Pack { path, name, follow } => {
            let out = io::BufWriter::with_capacity(256 << 10, data);
            archive::pack(Side::Container, path, name, *follow, out)?;
            Ok(Answer::Done)
        }
        Work::Unpack { directory } => {
            archive::unpack(Side::Container, directory, io::BufReader::with_capacity(256 << 10, data))?;
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

    /// Has something answered that takes no data.
    fn ask<T>(place: Place, work: Work, wanted: impl FnOnce(Answer) -> Option<T>) -> io::Result<T> {
        let answer = Worker::start(place, work)?.finish()?;
        wanted(answer).ok_or_else(|| io::Error::other("an answer that was not asked for"))
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
    let answer = Worker::ask(place, Work::Look { path: path.to_owned(), follow }, |answer| match answer {
        Answer::Looked(about) => Some(about),
        _ => None,
    });
    answer.at("look at", path)
}

/// Looks where a copy to a path of a container goes.
pub fn destination(place: Place, path: &Path) -> Result<Destination, ContainerError> {
    let answer = Worker::ask(place, Work::Find { path: path.to_owned() }, |answer| match answer {
        Answer::Found(destination) => Some(destination),
        _ => None,
    });
    answer.at("look at", path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_at_the_end_of_a_destination_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/file"), "").unwrap();
        for (link, target) in
            [("one", "d/file"), ("two", "one"), ("gone", "d/new"), ("lost", "no/new"), ("loop", "loop")]
        {
            symlink(target, at(link)).unwrap();
        }
        let of = |name: &str| Destination::of(Side::Container, &at(name));
        let file = About { directory: false, link: false, special: false };
        assert_eq!(of("two").unwrap(), Destination { path: at("d/file"), about: Some(file), has_parent: true });
        assert_eq!(of("gone").unwrap(), Destination { path: at("d/new"), about: None, has_parent: true });
        assert_eq!(of("lost").unwrap(), Destination { path: at("no/new"), about: None, has_parent: false });
        assert!(of("d/").unwrap().about.is_some_and(|about| about.directory));
        assert!(of("loop").is_err());
    }
}
