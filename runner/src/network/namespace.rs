//! Network namespaces, made on a thread of their own.

use super::dns;
use super::error::{NetworkError, Trying};
use super::links::Links;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// A network namespace; it lives as long as this descriptor or a process in it.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Namespace {
    /// Moves the calling thread to a new namespace, with loopback up, and for good: the thread has to be one that was made
    /// for this and starts no others.
    pub(super) fn enter_new() -> Result<(Self, Links), NetworkError> {
        xbuild_sys::unshare(UnshareFlags::NEWNET.bits()).trying(|| "make a network namespace".to_owned())?;
        let file = open_current()?;
        let mut links = Links::open().trying(|| "open the new network namespace".to_owned())?;
        links.start_loopback().trying(|| "bring the loopback interface up".to_owned())?;
        Ok((Self { file }, links))
    }

    /// The same, set up for a container: any port and ping for all its users, as docker has it; with the sockets of a name
    /// server.
    pub(super) fn prepare() -> Result<(Self, dns::Sockets), NetworkError> {
        let (namespace, _) = Self::enter_new()?;
        // Only groups that there are can be named.
        let groups = crate::rootless::ids_of_this_process().unwrap_or(u32::MAX).min(1 << 31) - 1;
        let settings = [("ip_unprivileged_port_start", "0"), ("ping_group_range", &format!("0 {groups}"))];
        for (name, value) in settings {
            let path = format!("/proc/sys/net/ipv4/{name}");
            std::fs::write(&path, value).trying(|| format!("write `{path}`"))?;
        }
        let sockets = dns::Sockets::bind().trying(|| "bind a name server".to_owned())?;
        Ok((namespace, sockets))
    }

    /// A path that leads to it in processes that are forked from this one, which need not be allowed to look into this one.
    #[must_use]
    pub fn inherited_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// A path that leads to it while this value lives, for [`crate::Network::Namespace`].
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }
}

/// The namespace that a thread starts in, to come back to.
#[derive(Debug)]
pub(super) struct Home {
    file: OwnedFd,
}

impl Home {
    /// That of the calling thread.
    pub(super) fn remember() -> Result<Self, NetworkError> {
        Ok(Self { file: open_current()? })
    }

    /// Moves the calling thread there.
    pub(super) fn enter(&self) -> Result<(), NetworkError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .trying(|| "return to the host's network namespace".to_owned())
    }
}

/// Whether this process may change the network that it is in.
pub fn is_ours() -> bool {
    // Going where one is changes nothing, and only who may do so can.
    Home::remember().and_then(|home| home.enter()).is_ok()
}

/// Moves the calling thread to a namespace, for good, and does something there.
pub(super) fn visit<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T) -> Result<T, NetworkError> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .trying(|| "enter the container's network namespace".to_owned())?;
    Ok(work())
}

fn open_current() -> Result<OwnedFd, NetworkError> {
    let file = File::open("/proc/thread-self/ns/net").trying(|| "open a network namespace".to_owned())?;
    Ok(file.into())
}

/// Runs `work` on a thread of its own, which may change its network namespace.
pub(super) fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work);
        let thread = thread.trying(|| "start a thread".to_owned())?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
