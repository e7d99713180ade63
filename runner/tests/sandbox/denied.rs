//! What a sandboxed process may not do.

use crate::Case;
use crate::world::World;
use xbuild_runner::Security;

pub(crate) const CASES: &[Case] = &[
    ("capabilities_are_dockers_and_a_filter_is_on", status),
    ("insecure_has_what_the_engine_has", insecure),
    ("kernel_files_are_masked_and_protected", masked),
    ("namespaces_and_mounts_are_denied", denied),
    ("no_descriptor_leaks", descriptors),
    ("host_devices_cannot_be_read", devices),
    ("setuid_programs_work", setuid),
];

const DOCKER: u64 = 0xa804_25fb;

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    u64::from_str_radix(line.trim(), 16).expect("number")
}

fn status(world: &World) {
    let ran = world.sh("cat /proc/self/status");
    let text = ran.text();
    for (name, expected) in
        [("CapInh:", 0), ("CapAmb:", 0), ("CapBnd:", DOCKER), ("CapEff:", DOCKER), ("CapPrm:", DOCKER)]
    {
        assert_eq!(field(text, name), expected, "{name}");
    }
    assert_eq!(field(text, "Seccomp:"), 2);
    assert_eq!(field(text, "NoNewPrivs:"), 0);
    let mut spec = world.spec("cat /proc/self/status");
    spec.user.uid = 1000;
    let ran = world.run(&spec);
    for (name, expected) in [("CapInh:", 0), ("CapAmb:", 0), ("CapBnd:", DOCKER), ("CapEff:", 0), ("CapPrm:", 0)] {
        assert_eq!(field(ran.text(), name), expected, "{name}");
    }
}

fn insecure(world: &World) {
    let mut spec = world.spec("cat /proc/self/status; mount -t tmpfs x /opt && echo mounted");
    spec.security = Security::Insecure;
    let ran = world.run(&spec);
    assert!(field(ran.text(), "CapEff:") & (1 << 21) != 0);
    assert_eq!(field(ran.text(), "Seccomp:"), 0);
    assert_eq!(field(ran.text(), "CapInh:"), 0);
    assert!(ran.stdout.ends_with("mounted\n"));
}

fn masked(world: &World) {
    let script = "for f in kcore keys timer_list; do test -e /proc/$f && wc -c < /proc/$f; done | sort -u
        for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/profiling; do
            (: >> $f) 2>/dev/null && echo wrote $f; done
        umount /proc/kcore 2>/dev/null && echo unmounted; mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
        ls /sys/firmware | wc -l";
    assert_eq!(world.sh(script).text(), "0\n0\n");
}

fn denied(world: &World) {
    let script = "mount -t tmpfs none /tmp 2>/dev/null && echo mount; unshare -U true 2>/dev/null && echo unshare-user
        unshare -m true 2>/dev/null && echo unshare-mount; nsenter -t 1 -m true 2>/dev/null && echo nsenter
        hostname other 2>/dev/null && echo hostname; chroot / true && echo chroot
        echo -1000 2>/dev/null > /proc/self/oom_score_adj && echo oom; true";
    assert_eq!(world.sh(script).text().replace("sh: write error: Permission denied\n", ""), "chroot\n");
}

fn descriptors(world: &World) {
    let outside = std::fs::File::open("/etc/hostname").expect("file");
    rustix::io::fcntl_setfd(&outside, rustix::io::FdFlags::empty()).expect("inheritable");
    let script = "for f in /proc/self/fd/* /proc/1/fd/*; do readlink $f; done | grep -v -E '^(/dev/null|pipe:|/proc/)'";
    assert_eq!(world.sh(script).stdout, "");
    let mut spec = world.spec(script);
    spec.init = true;
    assert_eq!(world.run(&spec).stdout, "");
}

fn devices(world: &World) {
    let script = "mknod /tmp/mem c 1 1 && dd if=/tmp/mem of=/dev/null bs=1 count=1 2>/dev/null && echo mem
        mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null bs=512 count=1 2>/dev/null && echo disk
        mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null; ls /dev | grep -E '^(kmsg|mem|vda|kvm)$'; true";
    assert_eq!(world.sh(script).text(), "null\n");
}

fn setuid(world: &World) {
    let mut spec = world.spec("id -u");
    spec.user.uid = 1000;
    std::fs::copy("/bin/busybox", world.lower().join("bin/id.real")).expect("copy");
    let set = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(world.lower().join("bin/id.real"), set).expect("mode");
    spec.args = ["/bin/id.real", "id", "-u"].map(str::to_owned).to_vec();
    let ran = world.run(&spec);
    // busybox drops privileges for most applets unless configured; the saved id shows that it had them.
    assert_eq!(ran.code(), 0);
}
