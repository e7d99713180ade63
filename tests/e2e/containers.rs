//! Containers that outlive their command: states, other processes in them, logs, limits, and what a kill leaves.

use crate::lab;
use std::fs;
use xbuild_testkit::{Done, Lab, monitors_of, wait_until};

/// A container that stops when it is asked to.
const WAITING: [&str; 3] = ["sh", "-c", "trap 'exit 23' TERM; echo up; while :; do sleep 0.05; done"];

fn start(lab: &Lab, name: &str, flags: &[&str], command: &[&str]) -> String {
    let flags = [&["run", "-d", "--network", "none", "--name", name], flags, &["busybox"], command].concat();
    let id = lab.xbuild(&flags).ok().out();
    assert_eq!(id.len(), 64, "{id}");
    id
}

fn ask(lab: &Lab, name: &str, template: &str) -> String {
    lab.xbuild(&["inspect", "--format", template, name]).ok().out()
}

fn wait_for_log(lab: &Lab, name: &str, text: &str) {
    wait_until(&format!("the log of {name} has `{text}`"), || lab.xbuild(&["logs", name]).run().out().contains(text));
}

/// Whether a process with this text in its command line runs.
fn process(text: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let alive = !stat.rsplit(") ").next()?.starts_with('Z');
        (alive && line.contains(text)).then(|| entry.file_name().to_string_lossy().parse().ok()).flatten()
    })
}

#[test]
fn logs_keep_the_order_of_both_streams() {
    let Some(lab) = lab(&[]) else { return };
    let script = "for i in 1 2 3; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; done";
    lab.xbuild(&["run", "--name=both", "-eA=1", "-p0:80", "busybox", "sh", "-c", script]).ok();
    let program = crate::program().to_str().unwrap();
    let logs = lab.tool("sh", &["-c", "\"$0\" logs both 2>&1", program]).env("XBUILD_ROOT", lab.root()).ok().out();
    assert_eq!(logs, "o1\ne1\no2\ne2\no3\ne3");
}

#[test]
fn start_attaches_to_what_runs_already() {
    let Some(lab) = lab(&[]) else { return };
    let reads = ["run", "-di", "--name", "cat", "busybox", "sh", "-c", "read line; echo $line"];
    lab.xbuild(&reads).ok();
    let done = lab.xbuild(&["start", "-ai", "cat"]).input("passed on\n").ok();
    assert_eq!(done.out(), "passed on");
    assert_eq!(lab.xbuild(&["start", "cat"]).ok().out(), "cat");
    assert_eq!(lab.xbuild(&["start", "cat"]).ok().out(), "cat", "it runs already");
    lab.xbuild(&["rm", "-f", "cat"]).ok();
}

#[test]
fn states_follow_what_is_done() {
    let Some(lab) = lab(&[]) else { return };
    let create = ["create", "--network", "none", "--name", "web", "busybox"];
    lab.xbuild(&create).args(&WAITING).ok();
    assert_eq!(ask(&lab, "web", "{{.State.Status}} {{.State.Pid}}"), "created 0");
    lab.xbuild(&create).exits(125).says("already in use");
    assert_eq!(lab.xbuild(&["start", "web"]).ok().out(), "web");
    wait_for_log(&lab, "web", "up");
    lab.xbuild(&["rm", "web"]).exits(1).says("running");
    lab.xbuild(&["pause", "web"]).ok();
    assert_eq!(ask(&lab, "web", "{{.State.Status}} {{.State.Paused}}"), "paused true");
    lab.xbuild(&["exec", "web", "true"]).exits(1).says("paused");
    lab.xbuild(&["unpause", "web"]).ok();
    lab.xbuild(&["rename", "web", "front"]).ok();
    lab.xbuild(&["inspect", "web"]).exits(1).says("No such");
    assert_eq!(lab.xbuild(&["stop", "front"]).ok().out(), "front");
    assert_eq!(ask(&lab, "front", "{{.State.Status}} {{.State.ExitCode}}"), "exited 23");
    assert_eq!(lab.xbuild(&["wait", "front"]).ok().out(), "23");
    let line = lab.xbuild(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok().out();
    assert!(line.starts_with("front Exited (23) "), "{line}");
    assert_eq!(lab.xbuild(&["ps", "-q"]).ok().out(), "");
    lab.xbuild(&["rm", "front", "nobody"]).exits(1).says("No such container: nobody");
    assert_eq!(lab.xbuild(&["ps", "-aq"]).ok().out(), "");
}

#[test]
fn a_killed_monitor_takes_its_container_along_and_is_noticed() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    let id = start(&lab, "web", &[], &["sh", "-c", &format!("echo kept > /f; sleep {token} & exec sleep {token}")]);
    lab.wait_for_process(&token);
    let monitor = *monitors_of(&id).first().expect("there is a monitor");
    let monitor = rustix::process::Pid::from_raw(monitor).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    wait_until("the container is seen to have ended", || ask(&lab, "web", "{{.State.Status}}") == "exited");
    assert_eq!(ask(&lab, "web", "{{.State.ExitCode}} {{.State.Pid}}"), "137 0");
    assert!(ask(&lab, "web", "{{.State.Error}}").contains("monitor"));
    wait_until("its processes are gone", || process(&format!("sleep {token}")).is_none());
    lab.xbuild(&["start", "web"]).ok();
    assert_eq!(lab.xbuild(&["exec", "web", "cat", "/f"]).ok().out(), "kept");
    lab.xbuild(&["rm", "-f", "web"]).ok();
    lab.assert_no_traces(&token);
    let groups = ["memory", "pids", "freezer", "unified"].map(|name| format!("/sys/fs/cgroup/{name}/xbuild/{id}"));
    assert!(groups.iter().all(|group| !std::path::Path::new(group).exists()));
    assert!(!lab.root().join("containers").join(&id).exists());
}

#[test]
fn a_container_outlives_its_command() {
    let Some(lab) = lab(&[]) else { return };
    let command = ["run", "--network", "none", "--name", "web", "busybox", "sh", "-c", "echo up; read x < /go; exit 7"];
    let running = lab.xbuild(&command).start();
    wait_until("it runs", || lab.xbuild(&["logs", "web"]).run().out() == "up");
    running.signal(rustix::process::Signal::KILL);
    let _ = running.wait();
    lab.xbuild(&["exec", "web", "sh", "-c", "mkfifo /go && echo x > /go"]).run();
    lab.xbuild(&["kill", "web"]).run();
    assert_ne!(lab.xbuild(&["wait", "web"]).ok().out(), "");
    assert_eq!(ask(&lab, "web", "{{.State.Status}}"), "exited");
}

#[test]
fn exec_is_in_the_container_and_no_way_out() {
    let Some(lab) = lab(&[]) else { return };
    start(&lab, "web", &["-e", "A=run", "-w", "/tmp", "-u", "7:8"], &["sleep", "1000"]);
    let exec = |arguments: &[&str]| lab.xbuild(&["exec"]).args(arguments);
    assert_eq!(exec(&["web", "sh", "-c", "echo $A $PWD $(id -u):$(id -g)"]).ok().out(), "run /tmp 7:8");
    let options = ["-e", "A=exec", "-w", "/etc", "-u", "0", "web", "sh", "-c", "echo $A $PWD $(id -u)"];
    assert_eq!(exec(&options).ok().out(), "exec /etc 0");
    exec(&["web", "sh", "-c", "echo out; echo err >&2; exit 17"]).exits(17).says("err");
    exec(&["web", "no-such-program"]).exits(127);
    exec(&["-u", "nosuch", "web", "true"]).exits(126).says("nosuch");
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert!(exec(&["-i", "web", "cat"]).input(bytes.clone()).ok().stdout == bytes);
    for descriptor in 3..12 {
        let path = format!("/proc/self/fd/{descriptor}");
        let done = exec(&["-w", &path, "web", "ls", ".."]).run();
        assert_ne!(done.code, 0, "{path}: {done}");
    }
    let status = exec(&["-u", "0", "web", "cat", "/proc/self/status"]).ok().out();
    let has = |line: &str| status.lines().any(|own| own.replace('\t', " ") == line);
    assert!(has("CapEff: 00000000a80425fb") && has("Seccomp: 2"), "{status}");
    let descriptors = exec(&["web", "sh", "-c", "ls /proc/self/fd | wc -l"]).ok().out();
    assert!(descriptors.parse::<u32>().unwrap() <= 4, "{descriptors}");
    lab.xbuild(&["rm", "-f", "web"]).ok();
    exec(&["web", "true"]).exits(1).says("No such");
}

#[test]
fn logs_keep_streams_order_and_ends() {
    let Some(lab) = lab(&[]) else { return };
    let script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done; printf 'no end'";
    lab.xbuild(&["run", "--name", "web", "busybox", "sh", "-c", script]).ok();
    let done: Done = lab.xbuild(&["logs", "web"]).ok();
    assert_eq!((done.out().as_str(), done.stderr.as_str()), ("o1\no2\no3\nno end", "e1\ne2\ne3\n"));
    assert_eq!(lab.xbuild(&["logs", "--tail", "1", "web"]).ok().out(), "no end");
    let stamped = lab.xbuild(&["logs", "-t", "-n", "all", "web"]).ok().out();
    let second = stamped.lines().nth(1).and_then(|line| line.split(' ').next()).unwrap().to_owned();
    assert!(second.ends_with('Z'), "{stamped}");
    lab.xbuild(&["run", "--name", "mute", "--log-driver", "none", "busybox", "echo", "x"]).ok();
    lab.xbuild(&["logs", "mute"]).exits(1).says("none");
    start(&lab, "slow", &[], &["sh", "-c", "echo old; until [ -e /go ]; do sleep 0.05; done; echo new"]);
    wait_for_log(&lab, "slow", "old");
    let follower = lab.xbuild(&["logs", "-f", "slow"]).start();
    lab.xbuild(&["exec", "slow", "touch", "/go"]).ok();
    assert_eq!(follower.wait().out(), "old\nnew");
}

#[test]
fn policies_and_checks_act_by_themselves() {
    let Some(lab) = lab(&[]) else { return };
    start(&lab, "tries", &["--restart", "on-failure:2"], &["sh", "-c", "echo run; exit 7"]);
    let state = || ask(&lab, "tries", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}");
    wait_until("two more tries were made", || state() == "2 exited 7");
    assert_eq!(lab.xbuild(&["logs", "tries"]).ok().out(), "run\nrun\nrun");
    let check = ["--health-cmd", "cat /ok", "--health-interval", "50ms", "--health-retries", "2"];
    start(&lab, "checked", &check, &["sleep", "1000"]);
    let health = || ask(&lab, "checked", "{{.State.Health.Status}}");
    wait_until("it is seen to be ill", || health() == "unhealthy");
    lab.xbuild(&["exec", "checked", "touch", "/ok"]).ok();
    wait_until("it is seen to be well", || health() == "healthy");
    let status = lab.xbuild(&["ps", "--filter", "health=healthy", "--format", "{{.Status}}"]).ok().out();
    assert!(status.starts_with("Up ") && status.ends_with(" (healthy)"), "{status}");
    lab.xbuild(&["rm", "-f", "checked"]).ok();
}

#[test]
fn limits_hold_and_can_be_changed() {
    let Some(lab) = lab(&[]) else { return };
    start(&lab, "small", &["-m", "32m", "--memory-swap", "32m", "--pids-limit", "20"], &["sleep", "1000"]);
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | head -n 1";
    let inside = || lab.xbuild(&["exec", "small", "sh", "-c", limit]).ok().out();
    assert_eq!(inside(), (32 << 20).to_string());
    lab.xbuild(&["update", "-m", "48m", "--memory-swap", "48m", "small"]).ok();
    assert_eq!(inside(), (48 << 20).to_string());
    let many = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); sleep 2 & done; wait";
    let done = lab.xbuild(&["exec", "small", "sh", "-c", many]).run();
    assert!(done.code != 0 || done.stderr.contains("fork"), "{done}");
    let eat =
        ["run", "--name", "big", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", "exec tail /dev/zero"];
    lab.xbuild(&eat).exits(137);
    assert_eq!(ask(&lab, "big", "{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137");
    lab.xbuild(&["run", "-m", "1k", "busybox", "true"]).exits(125).says("memory");
    lab.xbuild(&["run", "--cpus", "10000", "busybox", "true"]).exits(125).says("CPUs");
    lab.xbuild(&["rm", "-f", "small"]).ok();
}

#[test]
fn what_goes_by_itself_leaves_nothing() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    lab.xbuild(&["run", "--rm", "--name", "once", "-v", "/data", "busybox", "sh", "-c", "echo x > /data/f; exit 4"])
        .exits(4);
    lab.xbuild(&["run", "--rm", "--name", "once", "busybox", "no-such-program"]).exits(127);
    start(&lab, "back", &["--rm"], &["sleep", &token]);
    assert_eq!(ask(&lab, "back", "{{.HostConfig.AutoRemove}}"), "true");
    lab.xbuild(&["restart", "-t", "0", "back"]).ok();
    lab.xbuild(&["stop", "-t", "0", "back"]).ok();
    assert_eq!(lab.xbuild(&["ps", "-aq"]).ok().out(), "");
    assert_eq!(lab.xbuild(&["volume", "ls", "-q"]).ok().out(), "");
    lab.assert_no_traces(&token);
    let left = fs::read_dir(lab.root().join("containers")).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|name| !name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn names_cannot_leave_their_place() {
    let Some(lab) = lab(&[]) else { return };
    for name in ["../../x", "a/b", "", ".", "x\ny", &"a".repeat(5000)] {
        lab.xbuild(&["run", "-d", "--name", name, "busybox", "true"]).exits(125).says("nvalid container name");
    }
    lab.xbuild(&["inspect", "../../x"]).exits(1).says("No such");
}

#[test]
fn memory_is_shared_with_those_who_may() {
    let Some(lab) = lab(&[]) else { return };
    start(&lab, "private", &[], &["sleep", "100"]);
    start(&lab, "open", &["--ipc", "shareable"], &["sh", "-c", "echo shared > /dev/shm/f; sleep 100"]);
    wait_until("it has written", || lab.xbuild(&["exec", "open", "cat", "/dev/shm/f"]).run().code == 0);
    let run = |ipc: &str, command: &[&str]| lab.xbuild(&["run", "--rm", "--ipc", ipc, "busybox"]).args(command);
    assert_eq!(run("container:open", &["cat", "/dev/shm/f"]).ok().out(), "shared");
    run("container:private", &["true"]).exits(125).says("non-shareable IPC");
    run("none", &["test", "-e", "/dev/shm"]).exits(1);
    run("nonsense", &["true"]).exits(125).says("invalid IPC mode: nonsense");
    lab.xbuild(&["rm", "-f", "private", "open"]).ok();
}

#[test]
fn events_say_who_ended_a_container() {
    let Some(lab) = lab(&[]) else { return };
    let ended = |name: &str, commands: &[&[&str]]| {
        start(&lab, name, &[], &["sleep", "100"]);
        commands.iter().for_each(|command| drop(lab.xbuild(command).arg(name).ok()));
        let filter = format!("container={name}");
        let seen = ["events", "--since", "1h", "--until", "0s", "--filter", &filter, "--format", "{{.Action}}"];
        let seen = lab.xbuild(&seen).ok().out();
        seen.lines().skip_while(|action| *action != "kill").map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ended("stopped", &[&["stop", "-t", "0"]]), "kill die stop");
    assert_eq!(ended("killed", &[&["kill"], &["wait"]]), "kill die");
    assert_eq!(ended("removed", &[&["rm", "-f"]]), "kill die destroy");
}
