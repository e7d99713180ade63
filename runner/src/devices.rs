//! Which devices sandboxed processes may open.
//!
//! They may make device nodes (`CAP_MKNOD` is in docker's set), so something must stop them from opening the host's
//! disk by one. The helper puts itself into a group of the version 1 `devices` controller with docker's list; joining
//! once costs nothing per sandbox. A container's first process enters a group of its own. Where there is no such
//! controller, the root and all mounts are mounted `nodev`.

use crate::error::{During, Failure};
use crate::spec::CgroupSpec;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Docker's list: making any node; using null, zero, full, tty, console, ptmx, random, urandom, and pseudo-terminals.
pub(crate) const ALLOWED: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

const PREFIX: &str = "xbuild-";

const CONTROLLER: &str = "devices";

/// How device access of sandboxed processes is limited.
#[derive(Debug)]
pub(crate) enum DeviceControl {
    /// Not at all: devices have to be shut by mount flags.
    None,
    /// By the group that the helper made and is in, and they are born in.
    Inherited {
        /// Where the helper came from.
        original: PathBuf,
    },
    /// By a group of each one's own, with some devices more, as `devices.allow` takes them.
    Own {
        /// One entry each.
        more: Vec<String>,
    },
}

impl DeviceControl {
    /// Limits this process, which has one thread, and its future children as well as this host can.
    pub(crate) fn establish() -> DeviceControl {
        let own = |parent: &Path| parent.join(format!("{PREFIX}{}", std::process::id()));
        let enter = |parent: &Path| {
            sweep(parent);
            enter_new_group(&own(parent), parent, &[])
        };
        match find_group().filter(|group| enter(group).or_else(|_| enter(group)).is_ok()) {
            // Twice: another engine that starts now may have swept the still empty group away.
            Some(original) => DeviceControl::Inherited { original },
            None => DeviceControl::None,
        }
    }

    /// Has the limits apply to the calling process, which has one thread and is a sandbox's first; false where mount flags
    /// have to do it. `group` is what it is in otherwise.
    pub(crate) fn apply(&self, all_devices: bool, group: Option<&CgroupSpec>) -> Result<bool, Failure> {
        match self {
            DeviceControl::None => Ok(false),
            DeviceControl::Inherited { original } if all_devices => {
                move_thread(original).during(|| "lift the device limits".to_owned()).map(|()| true)
            }
            DeviceControl::Inherited { .. } => Ok(true),
            DeviceControl::Own { more } => {
                let directory = group.and_then(|group| crate::cgroup::directory(group, CONTROLLER));
                Ok(directory.is_some_and(|(own, unified)| !unified && limit(&own, more).is_ok()))
            }
        }
    }

    /// Leaves the group for good and removes it; to be called when all children are gone.
    pub(crate) fn dissolve(&self) {
        if let DeviceControl::Inherited { original } = self {
            // What stays is swept by the next helper.
            let _ = move_thread(original);
            let _ = fs::remove_dir(original.join(format!("{PREFIX}{}", std::process::id())));
        }
    }
}

/// Makes the group and those above it, and enters it.
fn limit(group: &Path, more: &[String]) -> io::Result<()> {
    let above = group.parent().unwrap_or(group);
    DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    enter_new_group(group, above, more)
}

/// The group of the controller that this process is in. In a container its path may be the host's and not lead anywhere
/// here; then it is the topmost that there is.
fn find_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let top = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - cgroup ")?;
        let options = after.rsplit(' ').next()?;
        options.split(',').any(|option| option == CONTROLLER).then(|| before.split(' ').nth(4)).flatten()
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        controllers.split(',').any(|controller| controller == CONTROLLER).then(|| fields.next()).flatten()
    })?;
    let group = Path::new(top).join(own.trim_start_matches('/'));
    Some(if group.is_dir() { group } else { PathBuf::from(top) })
}

/// Makes the group with docker's list and enters it; goes to `otherwise` where that fails.
fn enter_new_group(group: &Path, otherwise: &Path, more: &[String]) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Joined first, since an empty group may be swept by another engine that starts now.
    move_thread(group)?;
    let limited = write(&group.join("devices.deny"), "a")
        .and_then(|()| ALLOWED.iter().try_for_each(|entry| write(&group.join("devices.allow"), entry)))
        .and_then(|()| more.iter().try_for_each(|entry| write(&group.join("devices.allow"), entry)));
    if limited.is_err() {
        let _ = move_thread(otherwise);
        let _ = fs::remove_dir(group);
    }
    limited
}

/// Moves the only thread of this process. To move a process as one, the kernel would stop all forks on the machine, for
/// which it waits milliseconds.
fn move_thread(group: &Path) -> io::Result<()> {
    write(&group.join("tasks"), "0")
}

/// Removes groups of helpers that have ended. The kernel refuses to remove those in use.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}
