//! Looking a user up in the files of the root itself.

use crate::error::{During, Failure};
use crate::spec::Account;
use crate::users::{self, FILE_LIMIT, User, UserError};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::BorrowedFd;

/// Resolves `account` by `/etc/passwd` and `/etc/group` below `root`.
pub(crate) fn resolve(root: BorrowedFd<'_>, account: &Account) -> Result<User, Failure> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    look_up(account, &passwd, &group).map_err(|error| Failure::Refused(error.to_string()))
}

/// The same with the content of the two files.
pub(crate) fn look_up(account: &Account, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let mut user = users::resolve(&account.user, passwd, group)?;
    for name in &account.groups {
        let gid = users::resolve_group(name, group)?;
        if !user.identity.groups.contains(&gid) {
            user.identity.groups.push(gid);
        }
    }
    Ok(user)
}

/// The content of a regular file, empty if there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Failure> {
    let step = || format!("read `/{path}`");
    // Without blocking: a pipe of that name would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        answer => answer.during(step)?,
    };
    if FileType::from_raw_mode(fstat(&file).during(step)?.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut content = Vec::new();
    std::fs::File::from(file).take(FILE_LIMIT as u64 + 1).read_to_end(&mut content).during(step)?;
    Ok(content)
}
