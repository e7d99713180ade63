//! Which devices sandboxed processes may open.
//!
//! They may make device nodes (`CAP_MKNOD` is in docker's set), so something must stop them from opening the host's
//! disk by one. The helper puts itself into a group of the version 1 `devices` controller with docker's list; joining
//! once costs nothing per sandbox. Where there is no such controller, the root and all mounts are mounted `nodev`.

use crate::error::{During, Failure};
use std::fs;
use std::io::{self, Write};
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

/// How device access is limited for the children of this process.
#[derive(Debug)]
pub(crate) struct DeviceControl {
    /// The group that this process came from.
    original: Option<PathBuf>,
}

impl DeviceControl {
    /// Limits this process and its future children as well as this host can.
    pub(crate) fn establish() -> DeviceControl {
        DeviceControl::with(&[])
    }

    /// The same, with some devices more, as `devices.allow` takes them.
    pub(crate) fn with(more: &[String]) -> DeviceControl {
        let original = find_group()
            // Twice: another engine that starts now may have swept the still empty group away.
            .filter(|group| enter_new_group(group, more).or_else(|_| enter_new_group(group, more)).is_ok());
        DeviceControl { original }
    }

    /// No control at all: devices have to be shut by mount flags.
    pub(crate) fn none() -> DeviceControl {
        DeviceControl { original: None }
    }

    /// Reports whether a controller limits device access.
    pub(crate) fn is_on(&self) -> bool {
        self.original.is_some()
    }

    /// Leaves the group for good and removes it; to be called when all children are gone.
    pub(crate) fn dissolve(&self) {
        if let Some(group) = &self.original {
            // What stays is swept by the next helper.
            let _ = write(&group.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(group.join(format!("{PREFIX}{}", std::process::id())));
        }
    }

    /// Takes the calling process out of the limits.
    pub(crate) fn leave(&self) -> Result<(), Failure> {
        match &self.original {
            Some(group) => write(&group.join("cgroup.procs"), "0").during(|| "lift the device limits".to_owned()),
            None => Ok(()),
        }
    }
}

/// Has the kernel get ready to move processes between control groups, which takes it some milliseconds when nobody did so
/// lately: the first to ask waits for all processors to have passed a certain point. To be called from a thread of its
/// own, as soon as it is known that a container will be started. Moves nothing.
pub fn expect_moves() {
    if let Some((_, group)) = own_group() {
        // Who may not do this waits later, or needs no move.
        let _ = write(&group.join("cgroup.procs"), "0");
    }
}

/// The group of the `devices` controller that this process is in. In a container its path may be the host's and not lead
/// anywhere here; then it is the topmost that there is.
fn find_group() -> Option<PathBuf> {
    own_group().map(|(top, group)| if group.is_dir() { group } else { top })
}

/// The topmost group of the `devices` controller, and the one that this process says it is in.
fn own_group() -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let root = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - cgroup ")?;
        let options = after.rsplit(' ').next()?;
        options.split(',').any(|option| option == "devices").then(|| before.split(' ').nth(4)).flatten()
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        controllers.split(',').any(|controller| controller == "devices").then(|| fields.next()).flatten()
    })?;
    Some((PathBuf::from(root), Path::new(root).join(own.trim_start_matches('/'))))
}

fn enter_new_group(parent: &Path, more: &[String]) -> io::Result<()> {
    sweep(parent);
    let group = parent.join(format!("{PREFIX}{}", std::process::id()));
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Joined first, since an empty group may be swept by another engine that starts now.
    write(&group.join("cgroup.procs"), "0")?;
    let limited = write(&group.join("devices.deny"), "a")
        .and_then(|()| ALLOWED.iter().try_for_each(|entry| write(&group.join("devices.allow"), entry)))
        .and_then(|()| more.iter().try_for_each(|entry| write(&group.join("devices.allow"), entry)));
    if limited.is_err() {
        let _ = write(&parent.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&group);
    }
    limited
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
