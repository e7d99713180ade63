//! What a process is and may do, read from a configuration.

use crate::capabilities::CAPABILITIES;
use crate::error::{During, Failure};
use crate::sandbox::identity::{self, CapabilityBits};
use crate::sandbox::seccomp::{Filter, Policy};
use crate::spec::{Identity, Rlimit};
use oci_spec::runtime::{Capabilities, LinuxSeccomp, Process};
use std::fs;
use std::path::Path;

/// Everything that a process is given, or gives up, right before its program runs.
#[derive(Debug)]
pub(super) struct Rights {
    pub(super) user: Identity,
    pub(super) umask: u32,
    capabilities: CapabilityBits,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    apparmor: Option<String>,
    filter: Option<Filter>,
}

impl Rights {
    pub(super) fn of(process: &Process, filter: Option<Filter>) -> Result<Rights, Failure> {
        let user = process.user();
        Ok(Rights {
            user: Identity {
                uid: user.uid(),
                gid: user.gid(),
                groups: user.additional_gids().clone().unwrap_or_default(),
            },
            umask: user.umask().unwrap_or(0o022),
            capabilities: capabilities(process),
            rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            apparmor: process.apparmor_profile().clone().filter(|name| !name.is_empty()),
            filter,
        })
    }

    /// What is set through the host's `/proc`, which nothing in a container can have replaced (CVE-2025-52881). `/proc` has
    /// to be the host's still.
    pub(super) fn set_by_proc(&self) -> Result<(), Failure> {
        if let Some(profile) = &self.apparmor {
            let file = Path::new("/proc/self/attr/apparmor/exec");
            if !Path::new("/sys/module/apparmor").exists() || !file.exists() {
                return Err(Failure::Refused(format!(
                    "process.apparmorProfile is `{profile}`, but this kernel has no AppArmor"
                )));
            }
            fs::write(file, format!("exec {profile}")).during(|| format!("take the AppArmor profile `{profile}`"))?;
        }
        Ok(())
    }

    /// Gives up everything else; `setgroups` as in [`identity::become_exactly`].
    pub(super) fn apply(&self, setgroups: bool) -> Result<(), Failure> {
        identity::set_limits(&self.rlimits)?;
        identity::limit_capabilities(self.capabilities.bounding)?;
        // Without no_new_privs a filter needs CAP_SYS_ADMIN; with it, the later the less it has to allow.
        if !self.no_new_privileges {
            self.load_filter()?;
        }
        identity::become_exactly(&self.user, setgroups, self.capabilities)?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
            self.load_filter()?;
        }
        Ok(())
    }

    fn load_filter(&self) -> Result<(), Failure> {
        match &self.filter {
            None => Ok(()),
            Some(filter) => xbuild_sys::load_filter_with(&filter.program, filter.flags)
                .during(|| "load the system-call filter".to_owned()),
        }
    }
}

/// Sets the badness of the process `pid`, which needs rights that it may not have itself.
pub(super) fn set_oom_score(process: &Process, pid: u32) -> Result<(), Failure> {
    match process.oom_score_adj() {
        None => Ok(()),
        Some(score) => fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
            .during(|| format!("set the OOM score adjustment to {score}")),
    }
}

/// The filter that a configuration describes.
pub(super) fn filter(seccomp: Option<&LinuxSeccomp>) -> Result<Option<Filter>, Failure> {
    match seccomp {
        None => Ok(None),
        Some(seccomp) => Policy::read(seccomp)?.filter().map(Some),
    }
}

fn capabilities(process: &Process) -> CapabilityBits {
    let Some(sets) = process.capabilities() else {
        // As other runtimes: what is not given is not there.
        return CapabilityBits::default();
    };
    CapabilityBits {
        bounding: bits(sets.bounding().as_ref()),
        effective: bits(sets.effective().as_ref()),
        permitted: bits(sets.permitted().as_ref()),
        inheritable: bits(sets.inheritable().as_ref()),
        ambient: bits(sets.ambient().as_ref()),
    }
}

fn bits(set: Option<&Capabilities>) -> u64 {
    let number = |name: String| CAPABILITIES.iter().position(|known| *known == name);
    set.into_iter().flatten().filter_map(|one| number(one.to_string())).fold(0, |bits, number| bits | 1 << number)
}

fn rlimit(limit: &oci_spec::runtime::PosixRlimit) -> Rlimit {
    let bound = |value: u64| Some(value).filter(|value| *value != u64::MAX);
    let name = limit.typ().to_string().trim_start_matches("RLIMIT_").to_lowercase();
    Rlimit { name, soft: bound(limit.soft()), hard: bound(limit.hard()) }
}
