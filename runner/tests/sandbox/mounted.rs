//! What is mounted, and what stays of it.

use crate::Case;
use crate::world::World;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use xbuild_runner::{MountSource, MountSpec, Rootfs, SandboxError};

pub(crate) const CASES: &[Case] = &[
    ("a_step_finds_what_it_expects", expected),
    ("nothing_of_the_engine_stays_in_the_upper", nothing_left),
    ("scratch_images_keep_three_directories", scratch),
    ("bind_mounts_with_selectors", bind),
    ("selectors_stay_inside_their_source", selector_inside),
    ("tmpfs_file_and_socket_mounts", memory),
    ("overlay_mounts_and_scratch_writes", overlay),
    ("targets_through_links_stay_inside_the_root", links),
    ("nothing_of_the_host_stays_mounted", only_own_root),
    ("the_stub_cleaner_follows_no_link", cleaner),
    ("what_the_step_put_into_a_stub_stays", stub_used),
    ("times_of_parents_stay", times),
    ("linked_proc_is_refused", linked_proc),
    ("mounts_inside_proc_are_refused", inside_proc),
    ("hosts_may_be_a_fifo_or_a_link", odd_hosts),
    ("cwd_through_proc_fd_stays_inside", cwd_fd),
];

fn mount(source: MountSource, destination: &str, readonly: bool) -> MountSpec {
    MountSpec { source, destination: destination.to_owned(), readonly }
}

fn bound(path: std::path::PathBuf, selector: &str) -> MountSource {
    MountSource::Bind { path, selector: selector.to_owned(), recursive: false }
}

fn expected(world: &World) {
    let script = "set -e; test -c /dev/null; test -c /dev/zero; test -c /dev/urandom; echo x > /dev/null
        test -w /dev/shm; test -d /sys/fs; test -d /dev/mqueue; test -e /dev/ptmx; test -e /dev/fd/1
        grep -q localhost /etc/hosts; grep -q nameserver /etc/resolv.conf
        df -k /dev/shm | awk 'NR==2{print $2}'; cat <&0 | wc -c; ls /proc/self/fd | wc -l";
    assert_eq!(world.sh(script).text(), "65536\n0\n4\n");
    let mut spec = world.spec("df -k /dev/shm | awk 'NR==2{print $2}'");
    spec.shm_size = Some(128 << 20);
    assert_eq!(world.run(&spec).text(), "131072\n");
}

fn nothing_left(world: &World) {
    let script = "echo x > /etc/hosts 2>/dev/null; touch /proc/x /sys/x /dev/x 2>/dev/null; rm -f /etc/hosts; true";
    assert_eq!(world.sh(script).left(), Vec::<String>::new());
    let mut spec = world.spec("touch /deep/er/x");
    spec.mounts = vec![
        mount(MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() }, "/deep/er", false),
        mount(MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() }, "/opt/a/b", false),
        mount(bound(world.lower(), "/etc/passwd"), "/one.txt", true),
        mount(
            MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() },
            "/deep/er/inner",
            false,
        ),
    ];
    let ran = world.run(&spec);
    ran.text();
    assert_eq!(ran.left(), Vec::<String>::new());
}

fn scratch(world: &World) {
    let bare = world.path("bare");
    fs::create_dir(&bare).expect("bare");
    fs::copy("/bin/busybox", bare.join("busybox")).expect("busybox");
    let mut spec = world.spec("");
    spec.root = world.overlay(vec![bare]);
    spec.args = ["/busybox", "touch", "/made"].map(str::to_owned).to_vec();
    let ran = world.run(&spec);
    ran.text();
    assert_eq!(ran.left(), ["dev/", "made", "proc/", "sys/"]);
}

fn bind(world: &World) {
    let source = world.path("source");
    fs::create_dir_all(source.join("real/in")).expect("source");
    fs::write(source.join("real/in/f"), "data\n").expect("file");
    symlink("/real", source.join("abs")).expect("link");
    let mut spec = world.spec("cat /a/f /b; touch /a/n 2>/dev/null || echo ro; touch /rw/n && echo rw");
    spec.mounts = vec![
        mount(bound(source.clone(), "/abs/in"), "/a", true),
        mount(bound(source.clone(), "real/in/f"), "/b", true),
        mount(bound(source.clone(), ""), "/rw", false),
    ];
    assert_eq!(world.run(&spec).text(), "data\ndata\nro\nrw\n");
    assert!(source.join("n").exists());
}

fn selector_inside(world: &World) {
    let source = world.path("source");
    fs::create_dir(&source).expect("source");
    fs::write(world.path("secret"), "outside\n").expect("secret");
    symlink(world.path("secret"), source.join("abs")).expect("link");
    symlink("../secret", source.join("rel")).expect("link");
    symlink("/proc/self/root", source.join("magic")).expect("link");
    for selector in ["abs", "rel", "../secret", "magic/etc", "nope"] {
        let mut spec = world.spec("cat /m");
        spec.mounts = vec![mount(bound(source.clone(), selector), "/m", true)];
        let error = world.run(&spec).outcome.expect_err(selector);
        assert!(error.to_string().contains(selector), "{error}");
    }
}

fn memory(world: &World) {
    let socket = world.path("agent");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
    let mut spec = world.spec(
        "cat /run/secrets/tok; stat -c '%a %u:%g' /run/secrets/tok /agent; test -S /agent; \
         df -k /t | awk 'NR==2{print $2}'; stat -c %a /t; grep ' /t ' /proc/mounts | cut -d' ' -f3; sh /dev/pipes/EOF",
    );
    let file = |data: &str, mode, uid, gid| MountSource::File { data: data.as_bytes().to_vec(), mode, uid, gid };
    spec.mounts = vec![
        mount(file("s3cret\n", 0o440, 1000, 50), "/run/secrets/tok", true),
        mount(MountSource::Socket { path: socket, mode: 0o600, uid: 1000, gid: 0 }, "/agent", false),
        mount(MountSource::Tmpfs { size: Some(2 << 20), mode: 0o700, noexec: false, options: Vec::new() }, "/t", false),
        mount(file("echo script\n", 0o755, 0, 0), "/dev/pipes/EOF", true),
    ];
    assert!(!format!("{spec:?}").contains("115, 51"), "the secret shows in Debug");
    let ran = world.run(&spec);
    assert_eq!(ran.text(), "s3cret\n440 1000:50\n600 1000:0\n2048\n700\ntmpfs\nscript\n");
    assert_eq!(ran.left(), Vec::<String>::new());
}

fn overlay(world: &World) {
    let (one, two) = (world.path("one"), world.path("two"));
    for (folder, name) in [(&one, "a"), (&two, "b")] {
        fs::create_dir_all(folder.join("sub")).expect("folder");
        fs::write(folder.join("sub").join(name), name).expect("file");
    }
    let (upper, work) = (world.path("scratch-upper"), world.path("scratch-work"));
    fs::create_dir(&upper).expect("upper");
    fs::create_dir(&work).expect("work");
    let lower = vec![one, two.clone()];
    let source =
        |lower: Vec<_>, scratch, selector: &str| MountSource::Overlay { lower, scratch, selector: selector.to_owned() };
    let mut spec = world.spec("ls /ro /rw/sub /single; touch /ro/x 2>/dev/null || echo ro; touch /rw/x && echo rw");
    spec.mounts = vec![
        mount(source(lower.clone(), None, "/sub"), "/ro", true),
        mount(source(lower, Some((upper.clone(), work)), ""), "/rw", false),
        mount(source(vec![two], None, "sub"), "/single", true),
    ];
    assert_eq!(world.run(&spec).text(), "/ro:\na\nb\n\n/rw/sub:\na\nb\n\n/single:\nb\nro\nrw\n");
    assert!(upper.join("x").exists());
}

/// A mount of the host that stays over the root would be reached by `..` from a directory of it.
fn only_own_root(world: &World) {
    let spec = world.spec("awk '$5 == \"/\" { n++ } END { print n }' /proc/self/mountinfo; cd /proc; ls -d ../proc/1");
    assert_eq!(world.run(&spec).text(), "1\n../proc/1\n");
}

fn links(world: &World) {
    let lower = world.lower();
    fs::create_dir_all(lower.join("opt/tree")).expect("folder");
    symlink("/opt/tree", lower.join("lnk")).expect("link");
    symlink("../../../../../../escape", lower.join("up")).expect("link");
    let outside = world.path("outside");
    fs::create_dir(&outside).expect("folder");
    symlink(&outside, lower.join("out")).expect("link");
    let mut spec = world.spec("ls -d /opt/tree/into /escape/d; echo 1 > /out/x/f");
    let tmpfs = || MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() };
    spec.mounts =
        vec![mount(tmpfs(), "/lnk/into", false), mount(tmpfs(), "/up/d", false), mount(tmpfs(), "/out/x", false)];
    let ran = world.run(&spec);
    assert_eq!(ran.text(), "/escape/d\n/opt/tree/into\n");
    assert_eq!(ran.left(), Vec::<String>::new());
    assert_eq!(fs::read_dir(&outside).expect("outside").count(), 0);
}

fn cleaner(world: &World) {
    let canary = world.path("canary");
    fs::create_dir_all(canary.join("keep")).expect("canary");
    fs::write(canary.join("victim"), "").expect("canary");
    let script = format!("mv /p /q; ln -s {} /p", canary.display());
    let mut spec = world.spec(&script);
    spec.mounts = vec![
        mount(MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() }, "/p/keep", false),
        mount(bound(world.lower(), "etc/passwd"), "/p/victim", true),
    ];
    world.run(&spec);
    assert!(canary.join("keep").exists() && canary.join("victim").exists());
}

fn stub_used(world: &World) {
    let mut spec = world.spec("touch /deep/beside; chmod 700 /opt");
    spec.mounts = vec![
        mount(MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() }, "/deep/er", false),
        mount(MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() }, "/opt/x", false),
    ];
    assert_eq!(world.run(&spec).left(), ["deep/", "deep/beside", "opt/"]);
}

fn times(world: &World) {
    let before = fs::metadata(world.lower().join("etc")).expect("etc");
    let ran = world.sh("stat -c %Y /etc; echo more >> /etc/passwd");
    assert_eq!(ran.text().trim(), before.mtime().to_string());
    let after = fs::metadata(ran.upper.join("etc")).expect("etc");
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

fn linked_proc(world: &World) {
    for name in ["proc", "sys", "dev"] {
        let top = world.path(&format!("linked-{name}"));
        let canary = world.path(&format!("canary-{name}"));
        fs::create_dir(&top).expect("layer");
        fs::create_dir(&canary).expect("canary");
        symlink(&canary, top.join(name)).expect("link");
        let mut spec = world.spec("true");
        spec.root = world.overlay(vec![top, world.lower()]);
        let error = world.run(&spec).outcome.expect_err(name);
        assert!(matches!(error, SandboxError::Refused(_)), "{error}");
        assert_eq!(fs::read_dir(&canary).expect("canary").count(), 0);
    }
}

fn inside_proc(world: &World) {
    symlink("/proc/self", world.lower().join("me")).expect("link");
    for target in ["/proc/sys", "/proc", "/proc/../proc/1", "/me"] {
        let mut spec = world.spec("true");
        spec.mounts = vec![mount(
            MountSource::Tmpfs { size: None, mode: 0o755, noexec: false, options: Vec::new() },
            target,
            false,
        )];
        assert!(world.run(&spec).outcome.is_err(), "{target}");
    }
}

fn odd_hosts(world: &World) {
    let etc = world.lower().join("etc");
    let out = world.path("outside-hosts");
    symlink(&out, etc.join("hosts")).expect("link");
    std::process::Command::new("mkfifo").arg(etc.join("resolv.conf")).status().expect("mkfifo");
    assert_eq!(world.sh("grep -c localhost /etc/hosts; grep -c nameserver /etc/resolv.conf").text(), "1\n1\n");
    assert!(!out.exists());
}

fn cwd_fd(world: &World) {
    for number in 0..20 {
        let mut spec = world.spec("pwd; ls");
        spec.cwd = format!("/proc/self/fd/{number}");
        let ran = world.run(&spec);
        assert!(!ran.stdout.contains("lost+found") && !ran.stdout.contains("boot"), "{}", ran.stdout);
    }
    let mut spec = world.spec("true");
    spec.root = Rootfs::ReadOnlyOverlay { lower: vec![world.lower()] };
    (spec.hosts_file, spec.resolv_conf) = (None, None);
    spec.cwd = "/new".to_owned();
    assert!(world.run(&spec).outcome.is_err());
}
