//! Control groups: version 1, version 2, and both at once.
//!
//! A limit that cannot be set is an error, never ignored. Where both versions are mounted, a controller is taken from
//! the hierarchy that has it.

use crate::error::{During, Failure};
use crate::spec::CgroupSpec;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const UNDELEGATED: &str = "limits need control groups that belong to this user";

/// Controllers of version 2 for which a container is in a group of it where version 1 is there, too.
const SERVING: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    root: PathBuf,
    unified: bool,
    controllers: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|has| has == controller)
    }

    fn group(&self, spec: &CgroupSpec) -> PathBuf {
        self.root.join(&spec.parent).join(&spec.name)
    }
}

/// Reports whether `/sys/fs/cgroup` is the unified hierarchy, as on a host with version 2 only.
pub(crate) fn is_unified() -> bool {
    const CGROUP2_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|about| about.f_type as u64 == CGROUP2_MAGIC)
}

/// Makes the group, sets its limits and moves the calling process into it, which has one thread.
pub(crate) fn join(spec: &CgroupSpec) -> Result<(), Failure> {
    // Not the devices: the group that limits those is the sandbox's own affair. Nor what neither limits nor counts.
    let serves = |one: &Hierarchy| !one.unified || SERVING.iter().any(|controller| one.has(controller));
    let wanted = |one: &Hierarchy| spec.everywhere && !one.has("devices") && serves(one);
    place(spec, &settings(spec), None, &wanted)
}

/// The same for the process `pid`, in every hierarchy.
pub(crate) fn place_everywhere(spec: &CgroupSpec, settings: &[Setting], pid: u32) -> Result<(), Failure> {
    place(spec, settings, Some(pid), &|_| true)
}

/// Makes the group where settings need one and where it is `wanted`, and moves a process into it: `pid`, or the calling
/// one.
fn place(
    spec: &CgroupSpec,
    settings: &[Setting],
    pid: Option<u32>,
    wanted: &dyn Fn(&Hierarchy) -> bool,
) -> Result<(), Failure> {
    check_names(spec)?;
    let hierarchies = hierarchies().during(|| "list the control group hierarchies".to_owned())?;
    for Setting { controller, .. } in settings {
        if !hierarchies.iter().any(|hierarchy| hierarchy.has(controller)) {
            return Err(Failure::Refused(format!("this host has no `{controller}` control group controller")));
        }
    }
    // The first that has a controller counts, should several say that they have it.
    let first = |controller: &str| hierarchies.iter().position(|hierarchy| hierarchy.has(controller));
    let needed: Vec<Option<usize>> = settings.iter().map(|setting| first(setting.controller)).collect();
    let chosen = |(index, hierarchy): &(usize, &Hierarchy)| wanted(hierarchy) || needed.contains(&Some(*index));
    let mut joined: Vec<&Hierarchy> =
        hierarchies.iter().enumerate().filter(chosen).map(|(_, hierarchy)| hierarchy).collect();
    // Without limits a group still serves to find and end what runs in it.
    if let (true, Some(unified)) = (joined.is_empty(), hierarchies.iter().find(|one| one.unified)) {
        joined.push(unified);
    }
    for hierarchy in joined {
        match join_one(hierarchy, spec, settings, pid) {
            // A group without limits serves order only, which whoever may not make groups does without.
            Err(failure) if settings.is_empty() && failure.is_denial() => {
                let _ = fs::remove_dir(hierarchy.group(spec));
            }
            Err(failure) if failure.is_denial() => return Err(failure.because(UNDELEGATED)),
            joined => joined?,
        }
    }
    Ok(())
}

fn join_one(hierarchy: &Hierarchy, spec: &CgroupSpec, settings: &[Setting], pid: Option<u32>) -> Result<(), Failure> {
    let group = make_group(hierarchy, spec, settings)?;
    set(hierarchy, &group, settings)?;
    move_into(hierarchy, &group, pid)
}

/// Moves the process `pid` into a group, or the calling one, which has one thread: moving that alone needs no lock that all
/// forks of the machine take, for which the kernel waits milliseconds. Version 2 moves processes only.
fn move_into(hierarchy: &Hierarchy, group: &Path, pid: Option<u32>) -> Result<(), Failure> {
    let file = if pid.is_none() && !hierarchy.unified { "tasks" } else { "cgroup.procs" };
    write(&group.join(file), &pid.unwrap_or(0).to_string())
        .during(|| format!("join the control group `{}`", group.display()))
}

/// Changes the limits of a group that is there.
pub(crate) fn update(spec: &CgroupSpec) -> Result<(), Failure> {
    change(spec, &settings(spec))
}

/// The same with settings that are no part of the group's description.
pub(crate) fn change(spec: &CgroupSpec, settings: &[Setting]) -> Result<(), Failure> {
    check_names(spec)?;
    for hierarchy in hierarchies().during(|| "list the control group hierarchies".to_owned())? {
        let group = hierarchy.group(spec);
        if group.is_dir() {
            set(hierarchy, &group, settings)?;
        }
    }
    Ok(())
}

/// Moves a process into a group that is there: `pid`, or the calling one, which has one thread.
pub(crate) fn enter(spec: &CgroupSpec, pid: Option<u32>) -> Result<(), Failure> {
    for hierarchy in hierarchies().during(|| "list the control group hierarchies".to_owned())? {
        let group = hierarchy.group(spec);
        if group.is_dir() {
            move_into(hierarchy, &group, pid)?;
        }
    }
    Ok(())
}

/// Stops or goes on with all processes of a group.
pub(crate) fn freeze(spec: &CgroupSpec, frozen: bool) -> Result<(), Failure> {
    let hierarchies = hierarchies().during(|| "list the control group hierarchies".to_owned())?;
    for hierarchy in hierarchies {
        let group = hierarchy.group(spec);
        let (file, value) = match hierarchy.unified {
            true => (group.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            false if hierarchy.has("freezer") => {
                (group.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
            }
            false => continue,
        };
        if file.exists() {
            write(&file, value).during(|| format!("write {value} to `{}`", file.display()))?;
            return Ok(());
        }
    }
    Err(Failure::Refused("this host has no control groups that can freeze processes".to_owned()))
}

/// Whether the processes of a group are stopped.
pub(crate) fn is_frozen(spec: &CgroupSpec) -> bool {
    let reads = |file: PathBuf, text: &str| fs::read_to_string(file).is_ok_and(|read| read.trim() == text);
    hierarchies().unwrap_or_default().iter().any(|hierarchy| {
        let group = hierarchy.group(spec);
        match hierarchy.unified {
            true => reads(group.join("cgroup.freeze"), "1"),
            false => hierarchy.has("freezer") && !reads(group.join("freezer.state"), "THAWED") && group.is_dir(),
        }
    })
}

/// The ids of all processes of a group, as the caller sees them.
pub(crate) fn processes(spec: &CgroupSpec) -> Vec<i32> {
    for hierarchy in hierarchies().unwrap_or_default() {
        if let Ok(list) = fs::read_to_string(hierarchy.group(spec).join("cgroup.procs")) {
            return list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        }
    }
    Vec::new()
}

/// The directory of a group in the hierarchy of `controller`; whether that is version 2.
pub(crate) fn directory(spec: &CgroupSpec, controller: &str) -> Option<(PathBuf, bool)> {
    let hierarchies = hierarchies().ok()?;
    let found = hierarchies.iter().find(|one| one.has(controller))?;
    Some((found.group(spec), found.unified))
}

/// The mounted hierarchies of version 1: name of the mount point and options that mount it again.
pub(crate) fn legacy_mounts() -> Vec<(String, String)> {
    let named = |one: &Hierarchy| {
        let name = one.root.file_name()?.to_str()?.to_owned();
        let options = one.controllers.iter().filter(|option| !matches!(option.as_str(), "rw" | "ro"));
        Some((name, options.cloned().collect::<Vec<_>>().join(",")))
    };
    hierarchies().unwrap_or_default().iter().filter(|one| !one.unified).filter_map(named).collect()
}

fn set(hierarchy: &Hierarchy, group: &Path, settings: &[Setting]) -> Result<(), Failure> {
    let mut late = Vec::new();
    for setting in settings.iter().filter(|setting| hierarchy.has(setting.controller)) {
        let version = if hierarchy.unified { &setting.unified } else { &setting.legacy };
        let Some((file, value)) = version else {
            let version = if hierarchy.unified { 2 } else { 1 };
            return Err(Failure::Refused(format!(
                "version {version} of the control group controller `{}` has no `{}`",
                setting.controller,
                setting.name()
            )));
        };
        let file = group.join(file);
        match write(&file, value) {
            // Memory alone may never be above memory and swap together, so raising them goes the other way round.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && setting.controller == "memory" => {
                late.push((file, value));
            }
            done => done.during(|| format!("set the limit `{}` to {value}", file.display()))?,
        }
    }
    for (file, value) in late {
        write(&file, value).during(|| format!("set the limit `{}` to {value}", file.display()))?;
    }
    Ok(())
}

/// Whether the kernel ended a process of the group for want of memory.
pub(crate) fn ran_out_of_memory(spec: &CgroupSpec) -> bool {
    let Some((group, unified)) = directory(spec, "memory") else {
        return false;
    };
    let file = if unified { "memory.events" } else { "memory.oom_control" };
    let counts = fs::read_to_string(group.join(file)).unwrap_or_default();
    let killed = counts.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok());
    killed.sum::<u64>() > 0
}

/// Removes the group everywhere.
pub(crate) fn remove(spec: &CgroupSpec) {
    for hierarchy in hierarchies().unwrap_or_default() {
        // One that is in use stays.
        let _ = fs::remove_dir(hierarchy.group(spec));
    }
}

/// One limit: the controller that it is of, and file and value in each version that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) legacy: Option<(String, String)>,
    pub(crate) unified: Option<(String, String)>,
}

impl Setting {
    /// A limit that both versions have; files and values, version 1 first.
    pub(crate) fn new(controller: &'static str, files: [&str; 2], values: [String; 2]) -> Setting {
        let [legacy, unified] = values;
        Setting {
            controller,
            legacy: Some((files[0].to_owned(), legacy)),
            unified: Some((files[1].to_owned(), unified)),
        }
    }

    /// With the same value in both.
    pub(crate) fn same(controller: &'static str, files: [&str; 2], value: &str) -> Setting {
        Setting::new(controller, files, [value.to_owned(), value.to_owned()])
    }

    fn name(&self) -> &str {
        self.legacy.as_ref().or(self.unified.as_ref()).map_or("", |(file, _)| file)
    }
}

fn settings(spec: &CgroupSpec) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    // Before anything joins: a cpuset without memory nodes cannot be joined in version 1.
    for (file, wanted) in [("cpuset.cpus", &spec.cpuset_cpus), ("cpuset.mems", &spec.cpuset_mems)] {
        if let Some(list) = wanted {
            settings.push(Setting::same("cpuset", [file, file], list));
        }
    }
    if let Some(bytes) = spec.memory {
        settings.push(Setting::same("memory", ["memory.limit_in_bytes", "memory.max"], &bytes.to_string()));
    }
    if let Some(total) = spec.memory_swap {
        settings.push(swap(total, spec.memory));
    }
    if let Some(bytes) = spec.memory_reservation {
        settings.push(Setting::same("memory", ["memory.soft_limit_in_bytes", "memory.low"], &bytes.to_string()));
    }
    if let Some(weight) = spec.blkio_weight {
        settings.push(Setting::same("blkio", ["blkio.weight", "io.bfq.weight"], &weight.to_string()));
    }
    settings.extend(cpu_time(spec.cpu_period, spec.cpu_quota.and_then(|quota| i64::try_from(quota).ok())));
    settings.extend(spec.cpu_shares.map(cpu_shares));
    if let Some(count) = spec.pids {
        settings.push(Setting::same("pids", ["pids.max", "pids.max"], &count.to_string()));
    }
    settings
}

/// Memory and swap together, -1 for no limit; version 2 counts swap alone.
pub(crate) fn swap(total: i64, memory: Option<u64>) -> Setting {
    let swap = match (u64::try_from(total), memory) {
        (Ok(total), Some(memory)) => total.saturating_sub(memory).to_string(),
        _ => "max".to_owned(),
    };
    Setting::new("memory", ["memory.memsw.limit_in_bytes", "memory.swap.max"], [total.to_string(), swap])
}

/// Microseconds of a period, and of processor time in it; a negative one is no limit.
pub(crate) fn cpu_time(period: Option<u64>, quota: Option<i64>) -> Vec<Setting> {
    if period.is_none() && quota.is_none() {
        return Vec::new();
    }
    let period = period.unwrap_or(100_000);
    let unified = match quota.map(u64::try_from) {
        Some(Ok(quota)) => format!("{quota} {period}"),
        _ => format!("max {period}"),
    };
    let one = |file: &str, value: String| Setting::new("cpu", [file, "cpu.max"], [value, unified.clone()]);
    let mut settings = vec![one("cpu.cfs_period_us", period.to_string())];
    settings.extend(quota.map(|quota| one("cpu.cfs_quota_us", quota.to_string())));
    settings
}

/// A weight in docker's 2 to 262144.
pub(crate) fn cpu_shares(shares: u64) -> Setting {
    let shares = shares.clamp(2, 262_144);
    // The runtimes' common mapping of 2–262144 to 1–10000.
    let weight = 1 + (shares - 2) * 9999 / 262_142;
    Setting::new("cpu", ["cpu.shares", "cpu.weight"], [shares.to_string(), weight.to_string()])
}

fn make_group(hierarchy: &Hierarchy, spec: &CgroupSpec, settings: &[Setting]) -> Result<PathBuf, Failure> {
    let mut at = hierarchy.root.clone();
    let components = spec.parent.split('/').filter(|part| !part.is_empty()).chain([spec.name.as_str()]);
    for component in components {
        if hierarchy.unified {
            // Each parent hands the controllers on that are needed below it.
            for Setting { controller, .. } in settings {
                if hierarchy.has(controller) {
                    write(&at.join("cgroup.subtree_control"), &format!("+{controller}"))
                        .during(|| format!("delegate `{controller}` in `{}`", at.display()))?;
                }
            }
        }
        at.push(component);
        // Explicitly, since the process that makes a group has no umask.
        match std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o755).create(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).during(|| format!("make the control group `{}`", at.display()));
            }
            _ => {}
        }
        if hierarchy.has("cpuset") && !hierarchy.unified {
            inherit_cpuset(&at).during(|| format!("fill the cpuset of `{}`", at.display()))?;
        }
    }
    Ok(at)
}

/// A new version 1 cpuset is empty and takes no process.
fn inherit_cpuset(group: &Path) -> io::Result<()> {
    let Some(parent) = group.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(group.join(file))?.trim().is_empty() {
            write(&group.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Names come from flags and must stay below the hierarchy.
pub(crate) fn check_names(spec: &CgroupSpec) -> Result<(), Failure> {
    let climbs = spec.parent.split('/').any(|part| part == ".." || part == ".");
    let single = !spec.name.is_empty() && !spec.name.contains('/') && spec.name != "." && spec.name != "..";
    if climbs || !single || spec.parent.starts_with('/') {
        return Err(Failure::Refused(format!("`{}/{}` is not a control group path", spec.parent, spec.name)));
    }
    Ok(())
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The hierarchies of this host, as they were when this process first asked.
pub(crate) fn hierarchies() -> io::Result<&'static [Hierarchy]> {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    match FOUND.get() {
        Some(found) => Ok(found),
        None => find_hierarchies().map(|found| FOUND.get_or_init(|| found).as_slice()),
    }
}

fn find_hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mut found = parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?);
    for hierarchy in found.iter_mut().filter(|hierarchy| hierarchy.unified) {
        let list = fs::read_to_string(hierarchy.root.join("cgroup.controllers"))?;
        hierarchy.controllers = list.split_whitespace().map(str::to_owned).collect();
    }
    Ok(found)
}

/// Reads the hierarchies out of a mountinfo text; see proc_pid_mountinfo(5).
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut after = after.split(' ');
        let (Some(kind), Some(_source), Some(options)) = (after.next(), after.next(), after.next()) else {
            continue;
        };
        let Some(point) = before.split(' ').nth(4) else {
            continue;
        };
        if !matches!(kind, "cgroup" | "cgroup2") || found.iter().any(|one| one.root == Path::new(point)) {
            continue;
        }
        found.push(Hierarchy {
            root: PathBuf::from(point),
            unified: kind == "cgroup2",
            controllers: options.split(',').map(str::to_owned).collect(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let text = "31 23 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
                    32 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 23 0:28 / /proc rw - proc proc rw\n";
        let found = parse_mounts(text);
        assert_eq!(found.len(), 2);
        assert!(found[0].controllers.contains(&"memory".to_owned()) && !found[0].unified);
        assert!(found[1].unified);
    }

    #[test]
    fn group_names_stay_below_the_hierarchy() {
        for (parent, name) in [("..", "a"), ("a/../..", "b"), ("a", ".."), ("a", "b/c"), ("/a", "b"), ("a", "")] {
            let spec = CgroupSpec { parent: parent.to_owned(), name: name.to_owned(), ..CgroupSpec::default() };
            assert!(check_names(&spec).is_err(), "{parent} {name}");
        }
    }
}
