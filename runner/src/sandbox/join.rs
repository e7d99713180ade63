//! Another process in a sandbox that is there: what happens between fork and exec.

use super::program::Program;
use super::resolve::{Root, open_inside};
use super::{console, die_with_helper, load_policy, namespaces, open_directory, restrict, take_stdio};
use crate::error::{During, Failure};
use crate::protocol::{Frame, Leftovers, send};
use crate::spec::{Account, CgroupSpec, Privileges, Rlimit};
use rustix::process::{fchdir, getcwd, setsid, umask};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

/// A process to come.
pub(crate) struct Joining<'request> {
    /// Process 1 of the sandbox, as the host sees it; the caller is in its pid namespace already.
    pub(crate) pid: u32,
    pub(crate) args: &'request [String],
    pub(crate) env: &'request [String],
    pub(crate) cwd: &'request str,
    pub(crate) account: &'request Account,
    pub(crate) privileges: &'request Privileges,
    pub(crate) rlimits: &'request [Rlimit],
    pub(crate) console: Option<(u16, u16)>,
    pub(crate) cgroup: &'request CgroupSpec,
}

/// Becomes the process, or reports why not and ends.
pub(crate) fn enter(session: &OwnedFd, stdio: [OwnedFd; 3], joining: &Joining<'_>) -> ! {
    let work = std::panic::AssertUnwindSafe(|| set_up(session, stdio, joining));
    let failure = match std::panic::catch_unwind(work) {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Refused("internal error: the set-up panicked".to_owned()),
    };
    let code = if let Failure::Exec { code, .. } = &failure { *code } else { 125 };
    let _ = send(session.as_fd(), &Frame::Failed(failure, Leftovers::default()));
    xbuild_sys::exit_now(code);
}

fn set_up(session: &OwnedFd, stdio: [OwnedFd; 3], joining: &Joining<'_>) -> Result<Infallible, Failure> {
    die_with_helper()?;
    xbuild_sys::reset_signals().during(|| "give signals their defaults".to_owned())?;
    // While /proc is the host's, which the program's own file is told by.
    let mut program = Program::new(joining.args, joining.env)?;
    let filter = load_policy(joining.privileges)?;
    crate::cgroup::enter(joining.cgroup, None)?;
    // All descriptors first: once inside, /proc is the container's.
    let spaces = ["cgroup", "ipc", "uts", "net", "mnt"].map(|name| (name, namespaces::open(joining.pid, name)));
    for (name, space) in spaces {
        space
            .and_then(|space| namespaces::enter(&space, name))
            .during(|| format!("join the {name} namespace of the container"))?;
    }
    let root = Root::new(open_directory("/")?)?;
    let user = super::account::resolve(root.fd(), joining.account)?;
    program.set_home(&user.home)?;
    umask(rustix::fs::Mode::empty());
    let terminal = match joining.console {
        None => None,
        Some(size) => {
            let pts = open_inside(root.fd(), "dev/pts").during(|| "open `/dev/pts`".to_owned())?;
            Some(console::open(pts.as_fd(), size, stdio[0].as_fd())?.0)
        }
    };
    enter_directory(&root, joining.cwd)?;
    drop(root);
    setsid().during(|| "start a session".to_owned())?;
    take_stdio(stdio, terminal, false)?;
    super::give_streams(&user.identity);
    restrict(joining.rlimits, joining.privileges, filter.as_ref(), &user.identity)?;
    xbuild_sys::close_from(3).during(|| "close descriptors".to_owned())?;
    send(session.as_fd(), &Frame::Ready(Leftovers::default())).during(|| "report to the monitor".to_owned())?;
    program.execute()
}

/// By descriptor, never through a link of `/proc`, and checked to be inside (CVE-2024-21626).
pub(crate) fn enter_directory(root: &Root, path: &str) -> Result<(), Failure> {
    let refused = |why: &str| Failure::Exec { message: format!("chdir to cwd (\"{path}\"): {why}"), code: 126 };
    let directory = open_inside(root.fd(), path).map_err(|errno| refused(&std::io::Error::from(errno).to_string()))?;
    fchdir(&directory).map_err(|errno| refused(&std::io::Error::from(errno).to_string()))?;
    let shown = getcwd(Vec::new()).during(|| format!("change to `{path}`"))?;
    if shown.as_bytes().starts_with(b"/") { Ok(()) } else { Err(refused("it is outside of the container")) }
}
