//! What the process is and may do: limits, capabilities, user and groups.

use crate::error::{During, Failure};
use crate::spec::{Identity, Rlimit};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Takes everything beyond `keep` out of the bounding set, so that no later exec can bring it back.
pub(crate) fn limit_capabilities(keep: u64) -> Result<(), Failure> {
    for number in 0..64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The first number this kernel does not know ends the list.
            Err(Errno::INVAL) if number > 37 && capability_is_in_bounding_set(one).is_err() => {
                break;
            }
            Err(error) => return Err(error).during(|| format!("drop capability {number}")),
        }
    }
    Ok(())
}

/// Where there is one id only, it gets the user's number, in a namespace below: there it is that user, and no longer root.
/// True if that was done.
pub(super) fn take_number(user: &Identity) -> Result<bool, Failure> {
    if !crate::rootless::has_one_id() || (user.uid, user.gid) == (0, 0) {
        return Ok(false);
    }
    let step = || format!("become user {}:{} in a namespace of one id", user.uid, user.gid);
    xbuild_sys::unshare(UnshareFlags::NEWUSER.bits()).during(step)?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{} 0 1", user.gid)),
        ("uid_map", format!("{} 0 1", user.uid)),
    ];
    for (file, value) in maps {
        std::fs::write(format!("/proc/self/{file}"), value).during(step)?;
    }
    Ok(user.uid != 0)
}

/// Becomes `user`, with empty inheritable and ambient sets.
///
/// For root the remaining sets are cut to the bounding set; for others the kernel clears them with the change of user.
pub(crate) fn become_user(user: &Identity, capabilities_wanted: u64) -> Result<(), Failure> {
    for id in [user.uid, user.gid].iter().chain(&user.groups) {
        if *id == u32::MAX {
            return Err(Failure::Refused(format!("{id} is not a user or group id")));
        }
    }
    let mut groups = vec![Gid::from_raw(user.gid)];
    groups.extend(user.groups.iter().filter(|group| **group != user.gid).map(|group| Gid::from_raw(*group)));
    match set_thread_groups(&groups) {
        // In a namespace of one id nothing may give up groups: those of the user outside stay, who are nobody inside.
        Err(Errno::PERM) if crate::rootless::has_one_id() => {}
        answer => answer.during(|| "set the supplementary groups".to_owned())?,
    }
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).during(|| format!("become group {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).during(|| format!("become user {}", user.uid))?;
    clear_ambient_capability_set().during(|| "clear the ambient capabilities".to_owned())?;
    let now = capabilities(None).during(|| "read the capabilities".to_owned())?;
    let allowed = now.permitted & CapabilitySet::from_bits_retain(capabilities_wanted);
    let sets =
        CapabilitySets { effective: now.effective & allowed, permitted: allowed, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).during(|| "set the capabilities".to_owned())
}

/// Capabilities in full, one bit for each number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilityBits {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// Becomes `user` with exactly these groups and capabilities; the bounding set has been cut before.
///
/// `setgroups` says whether the groups may be set, which a user namespace can forbid.
pub(crate) fn become_exactly(user: &Identity, setgroups: bool, bits: CapabilityBits) -> Result<(), Failure> {
    // As the specification says: what cannot be granted here is not granted, and the container runs without it.
    let here = capabilities(None).during(|| "read the capabilities".to_owned())?.permitted.bits();
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(bits.effective & bits.permitted & here),
        permitted: CapabilitySet::from_bits_retain(bits.permitted & here),
        inheritable: CapabilitySet::from_bits_retain(bits.inheritable & bits.bounding & here),
    };
    rustix::thread::set_keep_capabilities(true).during(|| "keep the capabilities".to_owned())?;
    if setgroups || !user.groups.is_empty() {
        let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups).during(|| "set the supplementary groups".to_owned())?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).during(|| format!("become group {}", user.gid))?;
    set_thread_res_uid(uid, uid, uid).during(|| format!("become user {}", user.uid))?;
    rustix::thread::set_keep_capabilities(false).during(|| "keep no capabilities".to_owned())?;
    set_capabilities(None, sets).during(|| "set the capabilities".to_owned())?;
    clear_ambient_capability_set().during(|| "clear the ambient capabilities".to_owned())?;
    // The kernel has no ambient ones beyond these; configurations that common tools make ask for some.
    let ambient = bits.ambient & sets.permitted.bits() & sets.inheritable.bits();
    for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .during(|| format!("make capability {number} ambient"))?;
    }
    Ok(())
}

/// Sets resource limits. A hard limit above the current one needs `CAP_SYS_RESOURCE`; without it that is an error, for
/// a limit must not be ignored.
pub(crate) fn set_limits(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let resource = resource(&limit.name)
            .ok_or_else(|| Failure::Refused(format!("`{}` is not a resource limit", limit.name)))?;
        let wanted = rustix::process::Rlimit { current: limit.soft, maximum: limit.hard };
        setrlimit(resource, wanted).during(|| {
            let now = getrlimit(resource);
            format!(
                "set the limit {}={}:{} (the engine has {}:{})",
                limit.name,
                shown(limit.soft),
                shown(limit.hard),
                shown(now.current),
                shown(now.maximum)
            )
        })?;
    }
    Ok(())
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}
