//! Programs of the user's own: `git`, helpers that know passwords. They look at who runs them, so they run as the user, in a
//! namespace below where he has his number again.

use rustix::thread::UnshareFlags;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

const NAME: &str = "xbuild-as-user";

/// A command that runs `program` as the user who started this one.
#[must_use]
pub fn command(program: &str) -> Command {
    match super::ids::outside() {
        // Root outside as well, or nowhere else.
        Ok(Some((uid, gid))) if uid != 0 => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0(NAME).arg(uid.to_string()).arg(gid.to_string()).arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// Becomes the user and his program if that is what this process was started for, and then never returns.
///
/// To be called first in `main`, before threads, descriptors or handlers exist.
pub fn main_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != NAME) {
        return;
    }
    let (uid, gid, program) = (arguments.next(), arguments.next(), arguments.next());
    let (Some(uid), Some(gid), Some(program)) = (uid, gid, program) else {
        xbuild_sys::exit_now(125);
    };
    // Most programs do as root of the namespace, too.
    let _ = become_user(&uid, &gid);
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("cannot execute `{}`: {error}", program.display());
    xbuild_sys::exit_now(127);
}

fn become_user(uid: &OsStr, gid: &OsStr) -> std::io::Result<()> {
    xbuild_sys::unshare(UnshareFlags::NEWUSER.bits())?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{} 0 1", gid.display()))?;
    std::fs::write("/proc/self/uid_map", format!("{} 0 1", uid.display()))
}
