//! The way back: what a sandbox of ours is, as the configuration of a bundle. Another runtime makes the same of it.

use crate::capabilities;
use crate::error::{Failure, SandboxError};
use crate::sandbox::{account, seccomp, system};
use crate::spec::{
    Account, CgroupSpec, DeviceNode, Identity, MountSource, MountSpec, Network, Privileges, Rlimit, Seccomp, Space,
    Spec,
};
use crate::users::User;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A process of a container, in the words of both sides.
pub(crate) struct Process<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) user: &'a User,
    pub(crate) privileges: &'a Privileges,
    pub(crate) rlimits: &'a [Rlimit],
    pub(crate) console: Option<(u16, u16)>,
}

/// The configuration of a sandbox whose container lies in `directory`, with its user looked up in the texts of the root's
/// own files.
///
/// # Errors
/// What the specification has no words for, and a user that is not there.
pub fn configuration(spec: &Spec, directory: &Path, passwd: &[u8], group: &[u8]) -> Result<Value, SandboxError> {
    let known = |account: &Account| {
        account::look_up(account, passwd, group).map_err(|error| SandboxError::Refused(error.to_string()))
    };
    let user = match &spec.account {
        Some(account) => known(account)?,
        None => User { identity: spec.user.clone(), home: "/".to_owned() },
    };
    Ok(config(spec, &crate::container::rootfs_of_bundle(directory), &user)?)
}

/// The configuration of `spec` with the root file system at `rootfs` and its user, looked up. Namespaces that the caller
/// holds open are named by its process id.
pub(crate) fn config(spec: &Spec, rootfs: &Path, user: &User) -> Result<Value, Failure> {
    let privileges = spec.security.privileges();
    if spec.init {
        return Err(Failure::Refused("--init is not supported with another OCI runtime".to_owned()));
    }
    let mut process = process(&Process {
        args: &spec.args,
        env: &spec.env,
        cwd: &spec.cwd,
        user,
        privileges: &privileges,
        rlimits: &spec.rlimits,
        console: spec.console,
    });
    if let Some(score) = spec.oom_score_adj {
        process["oomScoreAdj"] = json!(score);
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": rootfs, "readonly": spec.readonly_root },
        "mounts": mounts(spec, &privileges)?,
        "linux": linux(spec, &privileges),
    });
    if spec.namespaces.uts == Space::Own {
        config["hostname"] = json!(spec.hostname);
        if !spec.domainname.is_empty() {
            // Older runtimes do not know the field.
            config["linux"]["sysctl"]["kernel.domainname"] = json!(spec.domainname);
        }
    }
    Ok(config)
}

/// `process`, as it also stands alone in the file of an `exec`.
pub(crate) fn process(process: &Process<'_>) -> Value {
    let Identity { uid, gid, groups } = &process.user.identity;
    // Runtimes fail with what cannot be granted here.
    let here = rustix::thread::capabilities(None).map_or(u64::MAX, |sets| sets.permitted.bits());
    let all = capabilities::names(process.privileges.capabilities & here);
    // The kernel takes these from everybody but root.
    let own = if *uid == 0 { all.clone() } else { Vec::new() };
    let says_something = |entry: &&str| entry.find('=').is_some_and(|at| at > 0) && *entry != "HOME=";
    let mut env: Vec<&str> = process.env.iter().map(String::as_str).filter(says_something).collect();
    let home = format!("HOME={}", process.user.home);
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(&home);
    }
    let mut extra: Vec<u32> = vec![*gid];
    extra.extend(groups.iter().filter(|group| *group != gid));
    let mut value = json!({
        "terminal": process.console.is_some(),
        "user": { "uid": uid, "gid": gid, "additionalGids": extra, "umask": 0o022 },
        "args": process.args,
        "env": env,
        "cwd": process.cwd,
        "capabilities": { "bounding": all, "effective": own, "permitted": own, "inheritable": [], "ambient": [] },
        "rlimits": process.rlimits.iter().map(rlimit).collect::<Vec<_>>(),
        "noNewPrivileges": process.privileges.no_new_privileges,
    });
    if let Some((rows, columns)) = process.console {
        value["consoleSize"] = json!({ "height": rows, "width": columns });
    }
    value
}

fn rlimit(limit: &Rlimit) -> Value {
    let bound = |value: Option<u64>| value.unwrap_or(u64::MAX);
    json!({ "type": format!("RLIMIT_{}", limit.name.to_uppercase()), "soft": bound(limit.soft), "hard": bound(limit.hard) })
}

/// The file systems that every container has, in the order in which the sandbox mounts them, then its own.
fn mounts(spec: &Spec, privileges: &Privileges) -> Result<Vec<Value>, Failure> {
    let one = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let size = format!("size={}", spec.shm_size.unwrap_or(64 << 20));
    let write = if privileges.masked { "ro" } else { "rw" };
    let mut mounts = vec![
        one("/proc", "proc", &["nosuid", "nodev", "noexec"]),
        one("/dev", "tmpfs", &["nosuid", "strictatime", "mode=0755", "size=65536k"]),
        one("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        one("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
        one("/sys", "sysfs", &["nosuid", "nodev", "noexec", write]),
    ];
    if spec.show_cgroups || crate::cgroup::is_unified() {
        mounts.push(one("/sys/fs/cgroup", "cgroup", &["nosuid", "nodev", "noexec", write]));
    }
    mounts.extend(match spec.namespaces.ipc {
        Space::Own if spec.shm_size == Some(0) => None,
        Space::Own => Some(one("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", &size])),
        Space::Host => Some(json!({
            "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rprivate"],
        })),
        Space::Of(_) => {
            return Err(Failure::Refused(
                "--ipc container: is not supported with another OCI runtime, since /dev/shm cannot be shared"
                    .to_owned(),
            ));
        }
    });
    for mount in &spec.mounts {
        mounts.push(own_mount(mount)?);
    }
    Ok(mounts)
}

fn own_mount(mount: &MountSpec) -> Result<Value, Failure> {
    let write = if mount.readonly { "ro" } else { "rw" };
    match &mount.source {
        MountSource::Bind { path, selector, recursive } if selector.is_empty() => {
            let bind = if *recursive { "rbind" } else { "bind" };
            Ok(json!({
                "destination": mount.destination, "type": "bind", "source": path, "options": [bind, "rprivate", write],
            }))
        }
        MountSource::Propagated { path, recursive, propagation } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            Ok(json!({
                "destination": mount.destination, "type": "bind", "source": path, "options": [bind, propagation.to_string(), write],
            }))
        }
        MountSource::Tmpfs { size, mode, noexec, options } => {
            let mut all = vec!["nosuid".to_owned(), "nodev".to_owned(), write.to_owned(), format!("mode={mode:o}")];
            all.extend(noexec.then(|| "noexec".to_owned()));
            all.extend(size.map(|size| format!("size={size}")));
            all.extend(options.iter().map(|(key, value)| format!("{key}={value}")));
            Ok(json!({ "destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": all }))
        }
        _ => Err(Failure::Refused(format!("the mount `{}` cannot be put into a bundle", mount.destination))),
    }
}

/// How far the root has to be cut off from the host: a runtime does so before it makes the mounts.
fn root_propagation(spec: &Spec) -> &'static str {
    let connected = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Propagated { propagation, .. } => Some(propagation),
        _ => None,
    });
    let mut connected = connected.peekable();
    match connected.peek().is_some() {
        true if connected.any(|propagation| propagation.is_shared()) => "shared",
        true => "slave",
        false => "rprivate",
    }
}

fn linux(spec: &Spec, privileges: &Privileges) -> Value {
    let mut linux = json!({
        "namespaces": namespaces(spec),
        "devices": spec.devices.iter().map(device).collect::<Vec<_>>(),
        "resources": resources(spec.cgroup.as_ref(), &device_rules(spec, privileges)),
        "sysctl": spec.sysctls.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>(),
        "rootfsPropagation": root_propagation(spec),
    });
    if let Some(group) = &spec.cgroup {
        linux["cgroupsPath"] = json!(format!("/{}/{}", group.parent.trim_matches('/'), group.name));
    }
    if privileges.masked {
        let below = |root: &str, paths: &[&str]| paths.iter().map(|path| format!("{root}/{path}")).collect::<Vec<_>>();
        linux["maskedPaths"] =
            json!([below("/proc", &system::MASKED_PROC), below("/sys", &system::MASKED_SYS)].concat());
        linux["readonlyPaths"] = json!(below("/proc", &system::READONLY_PROC));
    }
    match &privileges.seccomp {
        Seccomp::Unconfined => {}
        Seccomp::Default => linux["seccomp"] = seccomp::described(privileges.capabilities),
        // It was read before, so it is JSON.
        Seccomp::Profile(text) => linux["seccomp"] = serde_json::from_str(text).unwrap_or_default(),
    }
    linux
}

fn namespaces(spec: &Spec) -> Vec<Value> {
    let mut all = vec![json!({ "type": "mount" })];
    let spaces = &spec.namespaces;
    for (kind, name, space) in [
        ("pid", "pid", &spaces.pid),
        ("ipc", "ipc", &spaces.ipc),
        ("uts", "uts", &spaces.uts),
        ("cgroup", "cgroup", &spaces.cgroup),
    ] {
        match space {
            Space::Own => all.push(json!({ "type": kind })),
            Space::Host => {}
            Space::Of(pid) => all.push(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") })),
        }
    }
    match &spec.network {
        Network::Host => {}
        Network::None => all.push(json!({ "type": "network" })),
        Network::Namespace(path) => all.push(json!({ "type": "network", "path": path })),
    }
    all
}

/// A path below `/proc/self`, as others see it.
pub(crate) fn seen_by_others(path: &Path, pid: u32) -> PathBuf {
    match path.strip_prefix("/proc/self") {
        Ok(rest) => PathBuf::from(format!("/proc/{pid}")).join(rest),
        Err(_) => path.to_owned(),
    }
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": format!("/dev/{}", node.path),
        "type": if node.block { "b" } else { "c" },
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    })
}

fn device_rules(spec: &Spec, privileges: &Privileges) -> Vec<Value> {
    if privileges.all_devices {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    for entry in crate::devices::ALLOWED {
        rules.extend(rule(entry));
    }
    for node in &spec.devices {
        let kind = if node.block { "b" } else { "c" };
        rules.push(json!({
            "allow": true, "type": kind, "major": node.major, "minor": node.minor, "access": node.access,
        }));
    }
    rules
}

/// `c 1:3 rwm` in the specification's words; what is not said is all.
fn rule(entry: &str) -> Option<Value> {
    let mut fields = entry.split([' ', ':']);
    let (kind, major, minor, access) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let mut rule = json!({ "allow": true, "type": kind, "access": access });
    for (key, number) in [("major", major), ("minor", minor)] {
        if let Ok(number) = number.parse::<u32>() {
            rule[key] = json!(number);
        }
    }
    Some(rule)
}

fn resources(group: Option<&CgroupSpec>, devices: &[Value]) -> Value {
    let mut all = json!({ "devices": devices });
    let Some(group) = group else { return all };
    let table = |entries: &[(&str, Option<Value>)]| {
        let given = entries.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)));
        Some(given.collect::<Map<_, _>>()).filter(|table| !table.is_empty()).map(Value::Object)
    };
    let number = |value: Option<u64>| value.map(Value::from);
    let parts = [
        (
            "memory",
            table(&[
                ("limit", number(group.memory)),
                ("swap", group.memory_swap.map(Value::from)),
                ("reservation", number(group.memory_reservation)),
            ]),
        ),
        (
            "cpu",
            table(&[
                ("shares", number(group.cpu_shares)),
                ("quota", number(group.cpu_quota)),
                ("period", number(group.cpu_period)),
                ("cpus", group.cpuset_cpus.clone().map(Value::from)),
                ("mems", group.cpuset_mems.clone().map(Value::from)),
            ]),
        ),
        ("pids", table(&[("limit", number(group.pids))])),
        ("blockIO", table(&[("weight", number(group.blkio_weight))])),
    ];
    for (name, part) in parts {
        if let Some(part) = part {
            all[name] = part;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Rootfs;

    fn user(uid: u32) -> User {
        User { identity: Identity { uid, gid: 5, groups: vec![5, 6] }, home: "/h".to_owned() }
    }

    #[test]
    fn a_generated_configuration_is_one_of_the_specification() {
        let mut spec = Spec::new(Rootfs::Directory("/r".into()), vec!["true".to_owned()]);
        spec.cgroup = Some(CgroupSpec { parent: "p".to_owned(), name: "n".to_owned(), ..CgroupSpec::default() });
        spec.rlimits.push(Rlimit { name: "nofile".to_owned(), soft: Some(1), hard: None });
        let config = config(&spec, Path::new("rootfs"), &user(0)).unwrap();
        let read: oci_spec::runtime::Spec = serde_json::from_value(config.clone()).unwrap();
        assert_eq!(read.process().as_ref().unwrap().user().additional_gids().as_deref(), Some(&[5, 6][..]));
        assert_eq!(config["linux"]["cgroupsPath"], "/p/n");
        assert_eq!(config["process"]["rlimits"][0]["hard"], u64::MAX);
        assert!(config["process"]["env"].as_array().unwrap().contains(&json!("HOME=/h")));
    }

    #[test]
    fn only_root_has_capabilities_in_effect() {
        let spec = Spec::new(Rootfs::Directory("/r".into()), vec!["true".to_owned()]);
        let of = |uid| config(&spec, Path::new("rootfs"), &user(uid)).unwrap()["process"]["capabilities"].clone();
        assert_eq!(of(0)["effective"], of(0)["bounding"]);
        assert_eq!((&of(7)["effective"], &of(7)["bounding"]), (&json!([]), &of(0)["bounding"]));
    }

    #[test]
    fn rules_of_devices_are_translated() {
        assert_eq!(rule("c 136:* rwm"), Some(json!({ "allow": true, "type": "c", "major": 136, "access": "rwm" })));
        assert_eq!(rule("b *:* m"), Some(json!({ "allow": true, "type": "b", "access": "m" })));
    }
}
