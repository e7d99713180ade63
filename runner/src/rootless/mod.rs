//! Work without root: this process as root of a user namespace of its own.
//!
//! [`enter`] moves the calling process, which has one thread yet, into a new user namespace; it keeps its process id,
//! terminal, mounts and files. Inside it is user 0, which outside is still the user who called. Where `/etc/subuid` and
//! `/etc/subgid` have ranges for that user, the namespace has these ids, too; else it has the one.
//!
//! Invariants: nothing is entered by root of the machine; what cannot be entered is found out before anything changes, so
//! that the process can go on as it is.

mod ids;
mod program;
mod refused;

use ids::Plan;
pub use ids::count as ids_of_this_process;
pub use program::{command, main_if_requested};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, getegid, geteuid, waitid};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags, capabilities, move_into_link_name_space};
use std::io;
use std::os::fd::AsFd;
use xbuild_sys::Forked;

/// What this process may do on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The machine's root.
    #[default]
    Root,
    /// Root of a user namespace.
    Namespace {
        /// How many users and groups it has.
        ids: u32,
        /// Why there is only one, and what would give more.
        shortfall: Option<String>,
    },
    /// An ordinary user who cannot have a user namespace.
    User {
        /// Why, and what would allow it.
        why: String,
    },
}

impl Standing {
    /// Whether files can belong to several users.
    #[must_use]
    pub fn has_many_ids(&self) -> bool {
        match self {
            Standing::Root => true,
            Standing::Namespace { ids, .. } => *ids > 1,
            Standing::User { .. } => false,
        }
    }
}

/// Becomes root of a user namespace where this process is neither root of the machine nor of another namespace: of that which
/// one of the user's processes `others` is in, if there is one, else of a new one. `login` is the user's name where
/// `/etc/passwd` does not have it.
///
/// To be called while the process has one thread.
///
/// # Errors
/// A namespace was entered and is of no use; the process cannot go on.
pub fn enter(login: Option<&str>, others: impl IntoIterator<Item = u32>) -> io::Result<Standing> {
    if geteuid().is_root() && may_administrate() {
        return Ok(match ids::is_whole()? {
            true => Standing::Root,
            false => Standing::Namespace { ids: ids::count()?, shortfall: None },
        });
    }
    if others.into_iter().any(join) {
        return Ok(Standing::Namespace { ids: ids::count()?, shortfall: None });
    }
    if let Some(why) = refused::beforehand() {
        return Ok(Standing::User { why });
    }
    let plan = Plan::of_this_user(login);
    match enter_with(&plan) {
        Ok(shortfall) => Ok(Standing::Namespace { ids: ids::count()?, shortfall }),
        Err(Entering::Refused(why)) => Ok(Standing::User { why: refused::told(why) }),
        Err(Entering::Failed(error)) => Err(error),
    }
}

/// Goes into the user namespace of a process, if that is one below and the user's.
fn join(pid: u32) -> bool {
    let is_own = || {
        let own = std::fs::metadata("/proc/self/ns/user").ok()?;
        let other = std::fs::metadata(format!("/proc/{pid}/ns/user")).ok()?;
        Some(std::os::unix::fs::MetadataExt::ino(&own) == std::os::unix::fs::MetadataExt::ino(&other))
    };
    if is_own() != Some(false) {
        return false;
    }
    // The kernel lets only a namespace's maker in.
    crate::sandbox::namespaces::open(pid, "user")
        .and_then(|space| move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::User)))
        .is_ok()
}

/// Whether this process's user namespace, if it is not the machine's, has one id only: all files are its.
#[must_use]
pub fn has_one_id() -> bool {
    static ONE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ONE.get_or_init(|| ids::count().is_ok_and(|count| count == 1))
}

fn may_administrate() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

enum Entering {
    /// Nothing has changed.
    Refused(Errno),
    /// In between.
    Failed(io::Error),
}

impl From<io::Error> for Entering {
    fn from(error: io::Error) -> Self {
        Entering::Failed(error)
    }
}

/// Makes the namespace; why it has one id only, if so.
fn enter_with(plan: &Plan) -> Result<Option<String>, Entering> {
    let unshare = || {
        xbuild_sys::unshare(UnshareFlags::NEWUSER.bits())
            .map_err(|error| Entering::Refused(Errno::from_io_error(&error).unwrap_or(Errno::PERM)))
    };
    let own = (geteuid().as_raw(), getegid().as_raw());
    let shortfall = match plan {
        Plan::One { why } => {
            unshare()?;
            Some(why.clone())
        }
        Plan::Many(maps) => {
            // Ids are given by a process that stays outside.
            let parent = std::process::id();
            let (wait, go) = std::io::pipe()?;
            match xbuild_sys::fork_pid_namespace(false)? {
                Forked::Child => {
                    drop(go);
                    xbuild_sys::exit_now(ids::give_when_told(wait, parent, maps));
                }
                Forked::Parent { pidfd, .. } => {
                    drop(wait);
                    let entered = unshare();
                    if entered.is_ok() {
                        rustix::io::write(&go, b"g").map_err(io::Error::from)?;
                    }
                    drop(go);
                    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).map_err(io::Error::from)?;
                    entered?;
                    let code = ended.and_then(|status| status.exit_status());
                    (code != Some(0)).then(|| ids::refusal(code))
                }
            }
        }
    };
    if shortfall.is_some() {
        ids::take_one(own)?;
    }
    Ok(shortfall)
}
