//! Why a user namespace cannot be had, and what would allow it.

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::UnshareFlags;
use std::os::fd::AsFd;
use xbuild_sys::Forked;

const APPARMOR: &str = "AppArmor keeps user namespaces from this program; `sysctl -w \
                        kernel.apparmor_restrict_unprivileged_userns=0` allows them";

/// What can be known without trying, or by letting another process try.
pub(super) fn beforehand() -> Option<String> {
    let zero = |name: &str| setting(name).as_deref() == Some("0");
    if zero("user/max_user_namespaces") {
        return Some("this machine allows no user namespaces; `sysctl -w user.max_user_namespaces=10000` does".into());
    }
    if zero("kernel/unprivileged_userns_clone") {
        let allow = "`sysctl -w kernel.unprivileged_userns_clone=1` does";
        return Some(format!("this machine allows user namespaces to root only; for others {allow}"));
    }
    // There a namespace can be made, but without any rights in it, and no way leads back.
    let restricted = setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    (restricted && !another_can()).then(|| APPARMOR.to_owned())
}

/// What an answer of the kernel means.
pub(super) fn told(error: Errno) -> String {
    match error {
        Errno::NOSPC | Errno::USERS => {
            "there are too many user namespaces; `sysctl -w user.max_user_namespaces=10000` \
                                        allows more"
                .into()
        }
        Errno::INVAL | Errno::NOSYS => "this kernel has no user namespaces".into(),
        Errno::PERM => "user namespaces are forbidden here; in a container, `--security-opt seccomp=unconfined` or a \
                        profile with `unshare` and `clone` allows them"
            .into(),
        other => format!("no user namespace can be made: {other}"),
    }
}

fn setting(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned())
}

fn another_can() -> bool {
    match xbuild_sys::fork_pid_namespace(false) {
        Ok(Forked::Child) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let made =
                xbuild_sys::unshare(UnshareFlags::NEWUSER.bits()).and_then(|()| super::ids::take_one((uid, gid)));
            xbuild_sys::exit_now(u8::from(made.is_err()));
        }
        Ok(Forked::Parent { pidfd, .. }) => {
            let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            ended.ok().flatten().and_then(|status| status.exit_status()) == Some(0)
        }
        Err(_) => false,
    }
}
