//! Running, ending, identity, environment.

use crate::Case;
use crate::world::{World, launcher};
use std::time::{Duration, Instant};
use xbuild_runner::{CgroupSpec, End, Identity, Network, Rlimit, Rootfs, SandboxError, Stdio};

pub(crate) const CASES: &[Case] = &[
    ("a_command_runs_and_its_changes_are_in_the_upper", changes),
    ("exit_codes_and_signals_come_back", codes),
    ("commands_that_cannot_be_executed_read_as_docker_users_know", not_executable),
    ("the_shell_is_process_one", process_one),
    ("a_process_left_behind_does_not_hold_the_step", background),
    ("kill_ends_everything_within_a_second", kill),
    ("dropping_ends_the_sandbox", dropped),
    ("users_groups_and_umask", identity),
    ("missing_working_directories_are_made", cwd),
    ("limits_are_set_or_refused", limits),
    ("network_none_has_only_loopback", network),
    ("many_at_once", parallel),
    ("many_lower_directories", deep),
    ("init_reaps_and_passes_the_code", init),
    ("environment_entries_without_equals_carry_nothing", environment),
    ("a_plain_directory_can_be_the_root", directory),
    ("try_wait_does_not_block", try_wait),
    ("cgroup_limits_hold_and_oom_is_told", cgroups),
    ("missing_lower_directory_is_named", missing_lower),
];

fn changes(world: &World) {
    let ran = world.sh("echo hello > /made; rm /etc/passwd; cat /made");
    assert_eq!(ran.text(), "hello\n");
    assert_eq!(ran.left(), ["etc/", "etc/passwd", "made"]);
}

fn codes(world: &World) {
    assert_eq!(world.sh("exit 42").code(), 42);
    assert_eq!(world.sh("exit 0").code(), 0);
    let mut spec = world.spec("");
    spec.init = true;
    spec.args = ["sh", "-c", "kill -TERM $$"].map(str::to_owned).to_vec();
    assert_eq!(world.run(&spec).code(), 128 + 15);
}

fn not_executable(world: &World) {
    for (program, text, code) in [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH", 127),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory", 127),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied", 126),
        ("/etc", "exec: \"/etc\": is a directory", 126),
        ("/proc/self/exe", "exec: \"/proc/self/exe\": permission denied", 126),
    ] {
        let mut spec = world.spec("");
        spec.args = vec![program.to_owned()];
        let error = world.run(&spec).outcome.expect_err(program);
        assert_eq!(error.to_string(), text);
        assert_eq!(error.exit_code(), Some(code));
    }
}

fn process_one(world: &World) {
    assert_eq!(world.sh("echo $$; kill -9 $$; echo alive").text(), "1\nalive\n");
}

fn background(world: &World) {
    let start = Instant::now();
    assert_eq!(world.sh("sleep 300 >/dev/null 2>&1 & echo started").text(), "started\n");
    assert!(start.elapsed() < Duration::from_secs(5));
}

fn kill(world: &World) {
    let spec = world.spec("trap '' TERM INT; (trap '' TERM; sleep 300) & while :; do sleep 100; done");
    let running = launcher().start(&spec, Stdio::default()).expect("start");
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    running.kill();
    assert_eq!(running.wait().expect("outcome").end, End::Signaled(9));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

fn dropped(world: &World) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let stdio = Stdio { stdout: Some(writer.into()), ..Stdio::default() };
    drop(launcher().start(&world.spec("sleep 300"), stdio).expect("start"));
    // The pipe ends when the last process that holds it does.
    let start = Instant::now();
    std::io::read_to_string(reader).expect("end");
    assert!(start.elapsed() < Duration::from_secs(5));
}

fn identity(world: &World) {
    assert_eq!(world.sh("umask; id -u; id -G").text(), "0022\n0\n0\n");
    let mut spec = world.spec("id -u; id -g; id -G; touch /tmp/mine; stat -c '%u:%g %a' /tmp/mine; cat /root/x");
    spec.user = Identity { uid: 1000, gid: 50, groups: vec![7, 50] };
    let ran = world.run(&spec);
    assert!(ran.stdout.starts_with("1000\n50\n50 7\n1000:50 644\n"), "{}", ran.stdout);
    let mut spec = world.spec("true");
    spec.user.uid = u32::MAX;
    assert!(matches!(world.run(&spec).outcome, Err(SandboxError::Refused(_))));
}

fn cwd(world: &World) {
    let mut spec = world.spec("pwd; stat -c '%a %u' .");
    spec.cwd = "/gone/../new/deep".to_owned();
    spec.user.uid = 1000;
    let ran = world.run(&spec);
    assert_eq!(ran.text(), "/new/deep\n755 0\n");
    assert!(ran.left().contains(&"new/deep/".to_owned()));
}

fn limits(world: &World) {
    let limit = |soft, hard| Rlimit { name: "nofile".to_owned(), soft: Some(soft), hard: Some(hard) };
    let mut spec = world.spec("ulimit -n; ulimit -Hn");
    spec.rlimits = vec![limit(123, 234)];
    assert_eq!(world.run(&spec).text(), "123\n234\n");
    let mut spec = world.spec("true");
    spec.rlimits = vec![limit(5, 1 << 40)];
    let error = world.run(&spec).outcome.expect_err("beyond the kernel's own limit");
    assert!(error.to_string().contains("nofile=5:1099511627776"), "{error}");
    let mut spec = world.spec("true");
    spec.rlimits = vec![limit(5, 5)];
    spec.rlimits[0].name = "wind".to_owned();
    assert!(world.run(&spec).outcome.is_err());
}

fn network(world: &World) {
    let script = "ip -o link | awk '{print $2}'; ip -o addr | grep -c 127.0.0.1; hostname";
    assert_eq!(world.sh(script).text(), "lo:\n1\nbuildkitsandbox\n");
    let mut spec = world.spec("readlink /proc/self/ns/net");
    spec.network = Network::Host;
    let host = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
    assert_eq!(world.run(&spec).text().trim(), host.to_string_lossy());
}

fn parallel(world: &World) {
    std::thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                for round in 0..10 {
                    let ran = world.sh(&format!("echo {worker}-{round}; exit {worker}"));
                    assert_eq!(ran.stdout, format!("{worker}-{round}\n"));
                    assert_eq!(ran.code(), worker);
                }
            });
        }
    });
}

fn deep(world: &World) {
    let mut lower = Vec::new();
    for number in 0..450 {
        let path = world.path(&format!("layers/{number}"));
        std::fs::create_dir_all(&path).expect("layer");
        std::fs::write(path.join(format!("f{number}")), "x").expect("file");
        lower.push(path);
    }
    lower.push(world.lower());
    let mut spec = world.spec("ls /f* | wc -l");
    spec.root = world.overlay(lower.clone());
    assert_eq!(world.run(&spec).text(), "450\n");
    spec.root = Rootfs::ReadOnlyOverlay { lower };
    (spec.hosts_file, spec.resolv_conf) = (None, None);
    assert_eq!(world.run(&spec).text(), "450\n");
}

fn init(world: &World) {
    // In the end there are the init and this shell.
    let count =
        "n=0; while set -- /proc/[0-9]*; [ $# -gt 2 ] && [ $n -lt 500 ]; do n=$((n + 1)); sleep 0.01; done; echo $#";
    let mut spec = world.spec(&format!("echo $$; (sleep 0.01 &); {count}; exit 7"));
    spec.init = true;
    let ran = world.run(&spec);
    assert_eq!(ran.code(), 7);
    assert_eq!(ran.stdout, "2\n2\n");
}

fn environment(world: &World) {
    let mut spec = world.spec("env | sort");
    spec.env = ["PATH=/bin", "A=with space", "B=", "HOME", "=x"].map(str::to_owned).to_vec();
    let ran = world.run(&spec);
    assert!(ran.text().contains("A=with space\nB=\n"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("HOME"), "{}", ran.stdout);
}

fn directory(world: &World) {
    let mut spec = world.spec("touch /here; test -c /dev/null");
    spec.root = Rootfs::Directory(world.lower());
    assert_eq!(world.run(&spec).text(), "");
    assert!(world.lower().join("here").exists());
    assert!(!world.lower().join("etc/hosts").exists());
}

fn try_wait(world: &World) {
    let mut running = launcher().start(&world.spec("sleep 0.2"), Stdio::default()).expect("start");
    assert_eq!(running.try_wait().expect("running"), None);
    for _ in 0..200 {
        if let Some(outcome) = running.try_wait().expect("outcome") {
            assert_eq!(outcome.end, End::Exited(0));
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never ended");
}

fn cgroups(world: &World) {
    let mut spec = world.spec("dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo $?");
    spec.cgroup = Some(CgroupSpec {
        parent: "xbuild-test".to_owned(),
        name: format!("t{}", std::process::id()),
        memory: Some(32 << 20),
        pids: Some(50),
        cpu_quota: Some(50_000),
        ..CgroupSpec::default()
    });
    let ran = world.run(&spec);
    match &ran.outcome {
        Ok(outcome) => assert!(outcome.oom, "{outcome:?} {}", ran.stdout),
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string)),
    }
}

fn missing_lower(world: &World) {
    let mut spec = world.spec("true");
    spec.root = world.overlay(vec![world.path("nothing"), world.lower()]);
    let error = world.run(&spec).outcome.expect_err("refused");
    assert!(matches!(error, SandboxError::Setup { .. }), "{error}");
    assert!(error.to_string().contains("nothing"), "{error}");
}
