//! From what a container was written down as to its sandbox.

use super::mounts::clean;
use super::networks;
use crate::{Engine, EngineError};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use xbuild_cache::TreeId;
use xbuild_cache::tree::{Marks, View};
use xbuild_runner::container::config::{Config, Container, HostConfig, Mount};
use xbuild_runner::container::{Connection, ContainerError, Found, IdleMonitor, Lock, Request, Streams, group_of, log};
use xbuild_runner::network::{check_outlet, may_change_networks};
use xbuild_runner::{
    Account, CAPABILITIES, DEFAULT_CAPABILITIES, DEFAULT_PATH, DeviceNode, MountSource, MountSpec, Namespaces, Network,
    Privileges, Propagation, Rlimit, Rootfs, Seccomp, Security, Space, Spec, users,
};

/// Who starts a container, and how.
#[derive(Debug, Default)]
pub struct StartRequest {
    /// Streams that are passed on from the beginning.
    pub attach: Option<Streams>,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
    /// Started ahead.
    pub monitor: Option<IdleMonitor>,
}

/// The variables of a process in a container: those that all get, in place of which the container's own may stand, and `more`.
#[must_use]
pub fn environment(config: &Config, tty: bool, more: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={}", config.hostname)];
    env.extend(tty.then(|| "TERM=xterm".to_owned()));
    for entry in config.env.iter().chain(more) {
        match env.iter_mut().find(|before| name(before) == name(entry)) {
            Some(before) => before.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    env
}

impl Engine {
    /// Starts a container that does not run; the answer comes over the connection.
    pub fn start(&self, found: &Found, lock: Lock, request: StartRequest) -> Result<Connection, EngineError> {
        let StartRequest { attach, size, monitor } = request;
        self.check_sandbox("a container")?;
        let runtime = &found.container.oci_runtime;
        if !runtime.is_empty() && !Path::new(runtime).is_file() {
            return Err(ContainerError::Refused(format!(
                "the OCI runtime of container {} is gone: there is no file `{runtime}`",
                found.container.name
            ))
            .into());
        }
        let mut found = found.clone();
        if self.network_shortfall(&found.container).is_some() {
            "host".clone_into(&mut found.container.host_config.network_mode);
        }
        let spec = self.spec_of(&found, size)?;
        let network = networks::wanted(&found.container)?.map(Box::new);
        let monitor = monitor.map_or_else(|| IdleMonitor::start(network.is_some()), Ok)?;
        let connection = monitor.take(&found.directory, &found.container.name, lock)?;
        connection.send(&Request::Start { spec: Box::new(spec), network, attach })?;
        Ok(connection)
    }

    /// Why a container that wants a network of its own, and publishes nothing, gets the host's; none if it gets its own.
    pub fn network_shortfall(&self, container: &Container) -> Option<String> {
        let host = &container.host_config;
        let is_default = matches!(host.network_mode.as_str(), "" | "default" | "bridge");
        let publishes = host.publish_all_ports || !host.port_bindings.is_empty();
        if !is_default || publishes || may_change_networks() {
            return None;
        }
        check_outlet().err()
    }

    /// The sandbox that a container's process, or a look at its files, needs.
    pub fn spec_of(&self, found: &Found, size: Option<(u16, u16)>) -> Result<Spec, EngineError> {
        self.write_files(found)?;
        self.described(found, size)
    }

    /// What `runtime-spec` says of a container: the configuration of the bundle that another OCI runtime is given. Networks
    /// of ours are made when the container starts, so there is no path of theirs.
    pub fn bundle_of(&self, found: &Found) -> Result<serde_json::Value, EngineError> {
        let spec = self.described(found, None)?;
        let mut directories = vec![found.directory.join("fs")];
        if !found.container.native {
            directories.extend(self.store().dirs(TreeId::from(found.container.tree))?);
        }
        let view = View::layers(&directories, self.store().marks())?;
        let file = |path: &str| view.read_small(path, users::FILE_LIMIT as u64).ok().flatten().unwrap_or_default();
        Ok(xbuild_runner::oci::configuration(&spec, &found.directory, &file("/etc/passwd"), &file("/etc/group"))?)
    }

    fn described(&self, found: &Found, size: Option<(u16, u16)>) -> Result<Spec, EngineError> {
        let container = &found.container;
        let (config, host) = (&container.config, &container.host_config);
        let network = self.network_of(host)?;
        let cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() };
        let privileges = privileges(host)?;
        let root = self.root_of(found)?;
        Ok(Spec {
            env: environment(config, config.tty, &[]),
            cwd,
            account: Some(Account { user: config.user.clone(), groups: host.group_add.clone().unwrap_or_default() }),
            mounts: self.mounts_of(found)?,
            network,
            devices: devices(host)?,
            security: Security::Custom(privileges),
            hostname: config.hostname.clone(),
            domainname: config.domainname.clone(),
            namespaces: Namespaces {
                pid: self.space(&host.pid_mode, "pid")?,
                ipc: self.ipc_space(&host.ipc_mode)?,
                uts: self.space(&host.uts_mode, "uts")?,
                cgroup: self.space(&host.cgroupns_mode, "cgroupns")?,
            },
            readonly_root: host.readonly_rootfs,
            sysctls: host.sysctls.clone().into_iter().collect(),
            oom_score_adj: Some(host.oom_score_adj).filter(|score| *score != 0),
            show_cgroups: true,
            shm_size: match host.ipc_mode.as_str() {
                "none" => Some(0),
                _ => Some(host.shm_size).filter(|size| *size > 0),
            },
            rlimits: rlimits(host),
            cgroup: Some(group_of(container)),
            console: config.tty.then(|| size.unwrap_or((0, 0))),
            init: host.init.unwrap_or(false),
            ..Spec::new(root, container.command())
        })
    }

    /// A sandbox that shows a container's files as its process would see them, for one that does not run.
    pub fn files_of(&self, found: &Found) -> Result<Spec, EngineError> {
        self.write_files(found)?;
        let host = &found.container.host_config;
        let mut spec = Spec::new(self.root_of(found)?, vec!["files".to_owned()]);
        spec.mounts = self.mounts_of(found)?;
        spec.readonly_root = host.readonly_rootfs;
        Ok(spec)
    }

    /// The image's layers under the container's own.
    fn root_of(&self, found: &Found) -> Result<Rootfs, EngineError> {
        if found.container.native {
            return Ok(Rootfs::Directory(found.directory.join("fs")));
        }
        let mut lower = self.store().dirs(TreeId::from(found.container.tree))?;
        lower.push(self.containers().skeleton()?);
        let volatile = found.container.host_config.auto_remove;
        let work = found.directory.join("work");
        if volatile && work.join("work").exists() {
            // The kernel's mark of an earlier mount: it refuses another one that might follow a crash. This one does not,
            // and what a crash would lose is thrown away in any case.
            std::fs::remove_dir_all(&work)
                .and_then(|()| std::fs::create_dir(&work))
                .map_err(|error| EngineError::io("make", &work, error))?;
        }
        Ok(Rootfs::Overlay {
            lower,
            upper: found.directory.join("fs"),
            work,
            // What is thrown away when it ends needs no care.
            volatile,
            userxattr: self.store().marks() == Marks::User,
        })
    }

    /// `hosts`, `hostname` and `resolv.conf`, which belong to the container.
    fn write_files(&self, found: &Found) -> Result<(), EngineError> {
        let (config, host) = (&found.container.config, &found.container.host_config);
        let hosts = if host.network_mode == "host" {
            std::fs::read("/etc/hosts").unwrap_or_default()
        } else {
            b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
              ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_vec()
        };
        let mut hosts = String::from_utf8_lossy(&hosts).into_owned();
        for (name, address) in host.extra_hosts.iter().flatten().filter_map(|entry| entry.split_once(':')) {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
        let hostname = format!("{}\n", config.hostname);
        let files = [("hosts", hosts), ("hostname", hostname), ("resolv.conf", networks::resolv_conf(host))];
        for (name, text) in files {
            let path = found.directory.join(name);
            std::fs::write(&path, text).map_err(|error| EngineError::io("write", &path, error))?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                .map_err(|error| EngineError::io("set the mode of", &path, error))?;
        }
        Ok(())
    }

    /// All mounts over the root, the outer ones first.
    fn mounts_of(&self, found: &Found) -> Result<Vec<MountSpec>, EngineError> {
        let host = &found.container.host_config;
        let mut mounts = Vec::new();
        for name in ["hosts", "hostname", "resolv.conf"] {
            mounts.push(MountSpec {
                source: MountSource::Bind {
                    path: found.directory.join(name),
                    selector: String::new(),
                    recursive: false,
                },
                destination: format!("/etc/{name}"),
                readonly: host.readonly_rootfs,
            });
        }
        let mut asked = Vec::new();
        for mount in &found.container.mounts {
            let (path, recursive) = (self.source_of(mount)?, mount.kind == "bind" && !mount.non_recursive);
            let source = match Propagation::parse(&mount.propagation).filter(|propagation| !propagation.is_private()) {
                Some(propagation) => MountSource::Propagated { path, recursive, propagation },
                None => MountSource::Bind { path, selector: String::new(), recursive },
            };
            asked.push(MountSpec { source, destination: mount.destination.clone(), readonly: !mount.rw });
        }
        for (target, options) in &host.tmpfs {
            asked.push(tmpfs(target, options)?);
        }
        for one in host.mounts.iter().filter(|one| one.kind == "tmpfs") {
            asked.push(MountSpec {
                source: MountSource::Tmpfs {
                    size: one.tmpfs_size,
                    mode: one.tmpfs_mode.unwrap_or(0o1777),
                    noexec: true,
                    options: Vec::new(),
                },
                destination: one.target.clone(),
                readonly: one.read_only,
            });
        }
        asked.sort_by_key(|mount| Path::new(&clean(&mount.destination)).components().count());
        mounts.retain(|own| !asked.iter().any(|mount| clean(&mount.destination) == own.destination));
        mounts.extend(asked);
        Ok(mounts)
    }

    fn source_of(&self, mount: &Mount) -> Result<PathBuf, EngineError> {
        if mount.kind == "volume" {
            return Ok(self.volumes().data(&mount.name));
        }
        let path = PathBuf::from(&mount.source);
        if std::fs::metadata(&path).is_err() {
            std::fs::create_dir_all(&path).map_err(|error| EngineError::io("make", &path, error))?;
        }
        path.canonicalize().map_err(|error| EngineError::io("open", &path, error))
    }

    fn space(&self, mode: &str, what: &str) -> Result<Space, EngineError> {
        match mode {
            "" | "private" | "shareable" => Ok(Space::Own),
            "host" => Ok(Space::Host),
            other => match other.strip_prefix("container:") {
                Some(name) => Ok(Space::Of(self.process_of(name)?)),
                None => Err(EngineError::Source(format!("--{what}: invalid mode: {other}"))),
            },
        }
    }

    /// `--ipc`, which other containers join only where their owner says so.
    fn ipc_space(&self, mode: &str) -> Result<Space, EngineError> {
        let Some(name) = mode.strip_prefix("container:") else {
            return match mode {
                "none" => Ok(Space::Own),
                "" | "private" | "shareable" | "host" => self.space(mode, "ipc"),
                other => Err(EngineError::Source(format!("invalid IPC mode: {other}"))),
            };
        };
        let donor = self.containers().find(name)?.container;
        if !matches!(donor.host_config.ipc_mode.as_str(), "shareable" | "host") {
            return Err(EngineError::Source(format!(
                "failed to join IPC namespace: container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                donor.id
            )));
        }
        self.space(mode, "ipc")
    }

    /// Process 1 of a container that runs.
    fn process_of(&self, name: &str) -> Result<u32, EngineError> {
        let found = self.containers().find(name)?;
        match found.state.pid {
            0 => Err(ContainerError::Refused(format!(
                "cannot join namespaces of a non running container: container {} is not running",
                found.container.name
            ))
            .into()),
            pid => Ok(pid),
        }
    }

    /// Where the container's network comes from.
    fn network_of(&self, host: &HostConfig) -> Result<Network, EngineError> {
        match host.network_mode.as_str() {
            "host" => Ok(Network::Host),
            "none" => Ok(Network::None),
            other => match other.strip_prefix("container:") {
                Some(name) => Ok(Network::Namespace(PathBuf::from(format!("/proc/{}/ns/net", self.process_of(name)?)))),
                // Made by the monitor.
                None => Ok(Network::None),
            },
        }
    }
}

/// The host name of a container that was given none.
pub fn host_name(engine: &Engine, host: &HostConfig, id: &str) -> Result<String, EngineError> {
    let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    if host.network_mode == "host" || host.uts_mode == "host" {
        return Ok(own());
    }
    match host.network_mode.strip_prefix("container:") {
        Some(name) => Ok(engine.containers().find(name)?.container.config.hostname),
        None => Ok(id[..12].to_owned()),
    }
}

/// `--tmpfs PATH:OPTIONS`.
fn tmpfs(target: &str, options: &str) -> Result<MountSpec, EngineError> {
    let (mut size, mut mode, mut noexec, mut readonly) = (None, 0o1777, true, false);
    let mut more = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let wrong = || EngineError::Source(format!("invalid tmpfs option [\"{option}\"]"));
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => size = Some(log::parse_size(value).ok_or_else(wrong)?),
            ("mode", value) => mode = u32::from_str_radix(value, 8).map_err(|_| wrong())?,
            ("exec", "") => noexec = false,
            ("noexec", "") => noexec = true,
            ("ro", "") => readonly = true,
            ("rw" | "nosuid" | "nodev" | "noatime" | "relatime", "") => {}
            (key @ ("uid" | "gid" | "nr_inodes" | "nr_blocks" | "mpol" | "huge"), value) if !value.is_empty() => {
                more.push((key.to_owned(), value.to_owned()));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(MountSpec {
        source: MountSource::Tmpfs { size, mode, noexec, options: more },
        destination: target.to_owned(),
        readonly,
    })
}

/// What `exec --privileged` may do in a container.
pub fn exec_privileges(host: &HostConfig, all: bool) -> Result<Privileges, EngineError> {
    let own = privileges(host)?;
    Ok(match all {
        true => Privileges { capabilities: u64::MAX, seccomp: Seccomp::Unconfined, ..own },
        false => own,
    })
}

fn privileges(host: &HostConfig) -> Result<Privileges, EngineError> {
    let mut privileges = Privileges {
        capabilities: capabilities(host)?,
        seccomp: if host.privileged { Seccomp::Unconfined } else { Seccomp::Default },
        no_new_privileges: false,
        masked: !host.privileged,
        all_devices: host.privileged,
    };
    for option in host.security_opt.iter().flatten() {
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => privileges.no_new_privileges = true,
            ("no-new-privileges", "false") => {}
            ("seccomp", "unconfined") => privileges.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin") => privileges.seccomp = Seccomp::Default,
            ("seccomp", text) => {
                let profile = xbuild_runner::seccomp_profile(text, privileges.capabilities)
                    .map_err(|why| EngineError::Source(format!("--security-opt seccomp: {why}")))?;
                privileges.seccomp = Seccomp::Profile(profile);
            }
            // Neither is there on hosts without those modules, and docker's default is none of them then.
            ("apparmor" | "label", "unconfined" | "disable") => {}
            ("systempaths", "unconfined") => privileges.masked = false,
            _ => return Err(EngineError::Source(format!("invalid --security-opt 2: {option}"))),
        }
    }
    Ok(privileges)
}

fn capabilities(host: &HostConfig) -> Result<u64, EngineError> {
    if host.privileged {
        return Ok(u64::MAX);
    }
    let all = (1 << CAPABILITIES.len()) - 1;
    let bits = |names: &Option<Vec<String>>| {
        names.iter().flatten().try_fold((0u64, false), |(bits, every), name| {
            let upper = name.to_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if short == "ALL" {
                return Ok((bits, true));
            }
            let at = CAPABILITIES.iter().position(|known| *known == short);
            let at = at.ok_or_else(|| EngineError::Source(format!("invalid capability: \"CAP_{short}\"")))?;
            Ok::<_, EngineError>((bits | 1 << at, every))
        })
    };
    let (added, add_all) = bits(&host.cap_add)?;
    let (dropped, drop_all) = bits(&host.cap_drop)?;
    Ok(match (add_all, drop_all) {
        (true, _) => all & !dropped,
        (false, true) => added,
        (false, false) => (DEFAULT_CAPABILITIES | added) & !dropped,
    })
}

fn rlimits(host: &HostConfig) -> Vec<Rlimit> {
    let bound = |value: i64| u64::try_from(value).ok();
    host.ulimits
        .iter()
        .map(|limit| Rlimit { name: limit.name.clone(), soft: bound(limit.soft), hard: bound(limit.hard) })
        .collect()
}

fn devices(host: &HostConfig) -> Result<Vec<DeviceNode>, EngineError> {
    let mut nodes = Vec::new();
    if host.privileged {
        all_devices(Path::new("/dev"), &mut nodes);
    }
    for device in &host.devices {
        let path = Path::new(&device.path_on_host);
        let access = if device.cgroup_permissions.is_empty() { "rwm" } else { &device.cgroup_permissions };
        if !access.bytes().all(|byte| b"rwm".contains(&byte)) {
            return Err(EngineError::Source(format!("bad mode specified: {access}")));
        }
        let about = std::fs::metadata(path).map_err(|error| {
            EngineError::Source(format!(
                "error gathering device information while adding custom device \"{}\": {error}",
                path.display()
            ))
        })?;
        let target = clean(&device.path_in_container);
        if about.is_dir() {
            let mut below = Vec::new();
            all_devices(path, &mut below);
            let base = target.trim_start_matches("/dev/").to_owned();
            for mut node in below {
                node.path = format!("{base}/{}", node.path.rsplit('/').next().unwrap_or_default());
                node.access = access.to_owned();
                nodes.push(node);
            }
            continue;
        }
        let inside = target.strip_prefix("/dev/").ok_or_else(|| {
            EngineError::Source(format!("device {target}: devices can only be made below /dev of the container"))
        })?;
        let node = node(&about, inside, access)
            .ok_or_else(|| EngineError::Source(format!("{} is not a device node", path.display())))?;
        nodes.retain(|before: &DeviceNode| before.path != node.path);
        nodes.push(node);
    }
    Ok(nodes)
}

fn node(about: &std::fs::Metadata, path: &str, access: &str) -> Option<DeviceNode> {
    let kind = about.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceNode {
        path: path.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(about.rdev()),
        minor: rustix::fs::minor(about.rdev()),
        mode: about.mode() & 0o777,
        uid: about.uid(),
        gid: about.gid(),
        access: access.to_owned(),
    })
}

/// Every device node of the host, but terminals, which the container has of its own.
fn all_devices(directory: &Path, nodes: &mut Vec<DeviceNode>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(about) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let name = path.strip_prefix("/dev").unwrap_or(&path).to_string_lossy().into_owned();
        if about.is_dir() && !matches!(name.as_str(), "pts" | "shm" | "fd" | "mqueue" | ".lxc" | ".lxd-mounts") {
            all_devices(&path, nodes);
        } else if !matches!(name.as_str(), "console" | "ptmx") {
            nodes.extend(node(&about, &name, "rwm"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str]) -> Result<u64, EngineError> {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        capabilities(&HostConfig { cap_add: list(add), cap_drop: list(drop), ..HostConfig::default() })
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        assert_eq!(caps(&[], &[]).unwrap(), 0xa804_25fb);
        assert_eq!(caps(&[], &["all"]).unwrap(), 0);
        assert_eq!(caps(&["CHOWN"], &["ALL"]).unwrap(), 1);
        assert_eq!(caps(&[], &["CAP_NET_RAW"]).unwrap(), 0xa804_05fb);
        assert_eq!(caps(&["net_admin"], &[]).unwrap(), 0xa804_35fb);
        assert_eq!(caps(&["ALL"], &["CHOWN"]).unwrap(), (1 << 41) - 2);
        assert!(caps(&["NO_SUCH"], &[]).is_err());
    }

    #[test]
    fn options_of_a_tmpfs_are_read() {
        let mount = tmpfs("/t", "size=1m,mode=700,exec,uid=5").unwrap();
        let options = vec![("uid".to_owned(), "5".to_owned())];
        let want = MountSource::Tmpfs { size: Some(1 << 20), mode: 0o700, noexec: false, options };
        assert_eq!(mount.source, want);
        assert!(tmpfs("/t", "nonsense").is_err());
    }
}
