//! Processes and what is mounted for them.

use super::{LlbError, Writer, index, malformed, unsupported};
use crate::{
    CacheSharing, ExecOp, Meta, Mount, MountKind, NetworkMode, Platform, SecretEnv, SecurityMode, Ulimit, Unkeyed,
};
use bollard_buildkit_proto::pb;
use std::collections::BTreeMap;

/// Where `shm_size` is a mount of memory.
const SHM: &str = "/dev/shm";
/// Path of a cache's first content inside the tree that is made for it.
const SEED: &str = "/cache";

/// The op; inputs that only LLB needs are appended to `inputs`.
pub(super) fn write(exec: &ExecOp, inputs: &mut Vec<pb::Input>, writer: &mut Writer) -> pb::ExecOp {
    let mut mounts: Vec<pb::Mount> = exec.mounts.iter().map(|m| write_mount(m, inputs, writer)).collect();
    if let Some(size) = exec.shm_size {
        let kind = MountKind::Tmpfs { size: Some(size) };
        let (destination, selector) = (SHM.to_owned(), String::new());
        let shm = Mount { destination, input: None, selector, output: None, readonly: false, kind };
        mounts.push(write_mount(&shm, inputs, writer));
    }
    pb::ExecOp {
        meta: Some(pb::Meta {
            args: exec.args.clone(),
            env: exec.env.clone(),
            cwd: exec.cwd.clone(),
            user: exec.user.clone(),
            proxy_env: write_proxies(&exec.proxy_env.0),
            extra_hosts: exec
                .extra_hosts
                .iter()
                .map(|(host, ip)| pb::HostIp { host: host.clone(), ip: ip.clone() })
                .collect(),
            hostname: exec.hostname.clone(),
            ulimit: exec
                .ulimits
                .iter()
                .map(|u| pb::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard })
                .collect(),
            cgroup_parent: exec.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        }),
        mounts,
        network: match exec.network {
            NetworkMode::Default => pb::NetMode::Unset,
            NetworkMode::None => pb::NetMode::None,
            NetworkMode::Host => pb::NetMode::Host,
        }
        .into(),
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        }
        .into(),
        secretenv: exec
            .secret_env
            .iter()
            .map(|s| pb::SecretEnv { id: s.id.clone(), name: s.name.clone(), optional: s.optional })
            .collect(),
        cdi_devices: Vec::new(),
    }
}

fn write_mount(mount: &Mount, inputs: &mut Vec<pb::Input>, writer: &mut Writer) -> pb::Mount {
    let mut out = pb::Mount {
        input: mount.input.map_or(-1, |n| n as i64),
        selector: mount.selector.clone(),
        dest: mount.destination.clone(),
        output: mount.output.map_or(-1, i64::from),
        readonly: mount.readonly,
        ..pb::Mount::default()
    };
    let kind = match &mount.kind {
        MountKind::Bind => pb::MountType::Bind,
        MountKind::Cache { id, sharing, mode, uid, gid, .. } => {
            let sharing = match sharing.0 {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            };
            out.cache_opt = Some(pb::CacheOpt { id: id.0.clone(), sharing: sharing.into() });
            if mount.input.is_none() && (*mode, *uid, *gid) != (0o755, 0, 0) {
                let seed = super::file::directory(SEED, *mode, *uid, *gid);
                let seed = pb::Op { op: Some(pb::op::Op::File(seed)), ..pb::Op::default() };
                out.input = inputs.len() as i64;
                out.selector = SEED.to_owned();
                inputs.push(pb::Input { digest: writer.add(&seed, &Meta::default()), index: 0 });
            }
            pb::MountType::Cache
        }
        MountKind::Tmpfs { size } => {
            let size = size.map_or(0, |size| i64::try_from(size).unwrap_or(i64::MAX));
            out.tmpfs_opt = Some(pb::TmpfsOpt { size });
            pb::MountType::Tmpfs
        }
        MountKind::Secret { id, mode, uid, gid, optional } => {
            let (id, mode, uid, gid, optional) = (id.clone(), *mode, *uid, *gid, *optional);
            out.secret_opt = Some(pb::SecretOpt { id, uid, gid, mode, optional });
            pb::MountType::Secret
        }
        MountKind::Ssh { id, mode, uid, gid, optional } => {
            let (id, mode, uid, gid, optional) = (id.clone(), *mode, *uid, *gid, *optional);
            out.ssh_opt = Some(pb::SshOpt { id, uid, gid, mode, optional });
            pb::MountType::Ssh
        }
    };
    out.mount_type = kind.into();
    out
}

/// The op, for a vertex with so many inputs.
pub(super) fn read(exec: pb::ExecOp, platform: Option<Platform>, inputs: usize) -> Result<ExecOp, LlbError> {
    let (network, security) = (exec.network(), exec.security());
    known(exec.network, network.into(), "network mode")?;
    known(exec.security, security.into(), "security mode")?;
    let meta = exec.meta.ok_or_else(|| malformed("a process without arguments"))?;
    if meta.args.is_empty() {
        return Err(malformed("a process without arguments"));
    }
    if meta.valid_exit_codes.iter().any(|code| *code != 0) {
        return Err(unsupported("exit codes other than 0"));
    }
    if !exec.cdi_devices.is_empty() {
        return Err(unsupported("CDI devices"));
    }
    let mut mounts = exec.mounts.into_iter().map(|m| read_mount(m, inputs)).collect::<Result<Vec<_>, _>>()?;
    mounts.sort_by_key(|m| m.destination != "/");
    if mounts.iter().filter(|m| m.destination == "/").count() != 1 {
        return Err(malformed("a process has not exactly one root"));
    }
    let shm_size = take_shm(&mut mounts);
    Ok(ExecOp {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        mounts,
        network: match network {
            pb::NetMode::Unset => NetworkMode::Default,
            pb::NetMode::None => NetworkMode::None,
            pb::NetMode::Host => NetworkMode::Host,
        },
        security: match security {
            pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
            pb::SecurityMode::Insecure => SecurityMode::Insecure,
        },
        extra_hosts: meta.extra_hosts.into_iter().map(|h| (h.host, h.ip)).collect(),
        hostname: meta.hostname,
        secret_env: exec
            .secretenv
            .into_iter()
            .map(|s| SecretEnv { id: s.id, name: s.name, optional: s.optional })
            .collect(),
        shm_size,
        ulimits: meta.ulimit.into_iter().map(|u| Ulimit { name: u.name, soft: u.soft, hard: u.hard }).collect(),
        cgroup_parent: meta.cgroup_parent,
        proxy_env: Unkeyed(read_proxies(meta.proxy_env.unwrap_or_default())),
        platform,
    })
}

/// Memory at `/dev/shm` is the size of the one that every process has.
fn take_shm(mounts: &mut Vec<Mount>) -> Option<u64> {
    let plain = |m: &Mount| m.destination == SHM && m.input.is_none() && m.selector.is_empty() && !m.readonly;
    let size = |m: &Mount| match m.kind {
        MountKind::Tmpfs { size } if plain(m) && m.output.is_none() => size,
        _ => None,
    };
    let at = mounts.iter().rposition(|m| size(m).is_some())?;
    size(&mounts.remove(at))
}

fn read_mount(mount: pb::Mount, inputs: usize) -> Result<Mount, LlbError> {
    let (kind, sharing) = (mount.mount_type(), mount.cache_opt.as_ref().map(pb::CacheOpt::sharing));
    known(mount.mount_type, kind.into(), "kind of mount")?;
    let missing = |what| malformed(format!("a {what} mount without options"));
    let kind = match kind {
        pb::MountType::Bind => MountKind::Bind,
        pb::MountType::Cache => {
            let (cache, sharing) = mount.cache_opt.zip(sharing).ok_or_else(|| missing("cache"))?;
            known(cache.sharing, sharing.into(), "sharing of a cache")?;
            let id = if cache.id.is_empty() { mount.dest.clone() } else { cache.id };
            MountKind::Cache {
                named: id != mount.dest,
                id: Unkeyed(id),
                sharing: Unkeyed(match sharing {
                    pb::CacheSharingOpt::Shared => CacheSharing::Shared,
                    pb::CacheSharingOpt::Private => CacheSharing::Private,
                    pb::CacheSharingOpt::Locked => CacheSharing::Locked,
                }),
                mode: 0o755,
                uid: 0,
                gid: 0,
            }
        }
        pb::MountType::Tmpfs => {
            let size = mount.tmpfs_opt.unwrap_or_default().size;
            MountKind::Tmpfs { size: u64::try_from(size).ok().filter(|size| *size > 0) }
        }
        pb::MountType::Secret => {
            let pb::SecretOpt { id, uid, gid, mode, optional } = mount.secret_opt.ok_or_else(|| missing("secret"))?;
            MountKind::Secret { id, mode, uid, gid, optional }
        }
        pb::MountType::Ssh => {
            let pb::SshOpt { id, uid, gid, mode, optional } = mount.ssh_opt.ok_or_else(|| missing("ssh"))?;
            MountKind::Ssh { id, mode, uid, gid, optional }
        }
    };
    let output = match mount.output {
        -1 => None,
        n => Some(u32::try_from(n).map_err(|_| malformed(format!("output {n} of a mount")))?),
    };
    let input = index(mount.input, inputs)?;
    let (destination, selector, readonly) = (mount.dest, mount.selector, mount.readonly);
    Ok(Mount { destination, input, selector, output, readonly, kind })
}

/// Protobuf reads numbers that name nothing as the first name: an error, since they were meant as something else.
fn known(written: i32, read: i32, what: &str) -> Result<(), LlbError> {
    match written == read {
        true => Ok(()),
        false => Err(unsupported(format!("the {what} {written}"))),
    }
}

fn write_proxies(proxies: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let of = |name: &str| {
        let found = proxies.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    (!proxies.is_empty()).then(|| pb::ProxyEnv {
        http_proxy: of("http_proxy"),
        https_proxy: of("https_proxy"),
        ftp_proxy: of("ftp_proxy"),
        no_proxy: of("no_proxy"),
        all_proxy: of("all_proxy"),
    })
}

/// Each name in both cases, as clients look for either.
fn read_proxies(proxies: pb::ProxyEnv) -> BTreeMap<String, String> {
    let pb::ProxyEnv { http_proxy, https_proxy, ftp_proxy, no_proxy, all_proxy } = proxies;
    let named = [
        ("http_proxy", http_proxy),
        ("https_proxy", https_proxy),
        ("ftp_proxy", ftp_proxy),
        ("no_proxy", no_proxy),
        ("all_proxy", all_proxy),
    ];
    let given = named.into_iter().filter(|(_, value)| !value.is_empty());
    given.flat_map(|(name, value)| [(name.to_uppercase(), value.clone()), (name.to_owned(), value)]).collect()
}
