//! OCI runtimes both ways: containers of ours made by others, and bundles of others run by us.

use crate::{lab, program};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use xbuild_testkit::{Call, Lab, find, monitors_of, skip, wait_until};

/// What a container's environment is made of, as text in sections.
const PROBE: &str = include_str!("probe.sh");

/// The program under the name that makes it a runtime.
pub(crate) fn runtime(lab: &Lab) -> PathBuf {
    let path = lab.path("xbuild-oci");
    if !path.exists() {
        symlink(program(), &path).unwrap();
    }
    path
}

/// crun takes no hybrid control groups, so it is shown those of version 1 only. The kernel's own are the same.
fn crun(lab: &Lab) -> PathBuf {
    let path = lab.path("crun");
    let script = format!(
        "#!/bin/sh\nexec unshare -m --propagation slave sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec {} \"$@\"' crun \"$@\"\n",
        find("crun").expect("it was looked for").display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Other runtimes that are here, and our own as one of them.
fn runtimes(lab: &Lab) -> Vec<String> {
    let mut all = vec![runtime(lab).display().to_string()];
    match find("runc") {
        Some(path) => all.push(path.display().to_string()),
        None => skip("`runc` is not installed, so only other runtimes are compared"),
    }
    match find("crun") {
        Some(_) => all.push(crun(lab).display().to_string()),
        None => skip("`crun` is not installed, so only other runtimes are compared"),
    }
    all
}

/// The sections of the probe's output that are compared, with what is known to differ taken out:
/// - mounts: their order; what lies below `/proc` and `/sys`, which the section on masked files is about; the file system
///   behind a mask. `/sys/fs/cgroup` itself is read-only with us only, its parts are with all.
/// - why somebody who may not write in `/sys` cannot: with runc the file system itself is read-only, which is said first.
/// - `/dev/core`: runc makes it only where `/proc/kcore` is there.
/// - the device 10:200, which runc 1.1 allows to everybody although nothing asked for it.
fn comparable(output: &str) -> Vec<String> {
    let mut section = "";
    let mut kept = Vec::new();
    for line in output.lines() {
        if line.starts_with('[') {
            section = line;
            kept.push(line.to_owned());
            continue;
        }
        let known = match section {
            "[mounts]" => {
                let at = line.split(' ').next().unwrap_or_default();
                at.starts_with("/proc/")
                    || at.starts_with("/sys/firmware")
                    || at == "/sys/fs/cgroup"
                    || at.starts_with("/sys/devices/")
            }
            "[dev]" => line.contains(" core "),
            "[write]" => line.starts_with("/sys/kernel/") && output.contains("uid=7"),
            "[devices]" => line.starts_with("c 10 200"),
            _ => false,
        };
        if !known {
            kept.push(format!("{section} {line}"));
        }
    }
    kept.sort();
    kept
}

#[test]
fn other_runtimes_make_the_same_environment() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("shared/file", "text");
    let volume = format!("{}:/volume:ro", lab.path("shared").display());
    let root =
        ["-m", "64m", "--pids-limit", "50", "--cpus", "0.5", "--ulimit", "nofile=1000:2000", "--oom-score-adj", "100"];
    let user =
        ["-u", "7:8", "--group-add", "9", "--cap-add", "SYS_TIME", "--cap-drop", "MKNOD", "--read-only", "-v", &volume];
    let more = ["--sysctl", "kernel.msgmax=9000", "--tmpfs", "/t:size=1m,mode=700", "--shm-size", "1m", "-w", "/work"];
    let open = ["--privileged", "--security-opt", "no-new-privileges"];
    for flags in [[&root[..], &more].concat(), user.to_vec(), open.to_vec()] {
        let probe = |runtime: &str| {
            let run = [
                "run",
                "-i",
                "--rm",
                "--network",
                "none",
                "--hostname",
                "inside",
                "-e",
                "A=b",
                "--oci-runtime",
                runtime,
            ];
            let done = lab.xbuild(&run).args(&flags).args(&["busybox", "sh"]).input(PROBE).ok();
            comparable(&done.out())
        };
        let own = probe("xbuild");
        assert!(own.len() > 60, "the probe says too little: {own:?}");
        for runtime in runtimes(&lab) {
            let other = probe(&runtime);
            let only = |these: &[String], those: &[String]| {
                these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>().join("\n  ")
            };
            assert_eq!(
                own,
                other,
                "{flags:?}\nours only:\n  {}\n{runtime} only:\n  {}",
                only(&own, &other),
                only(&other, &own)
            );
        }
    }
}

#[test]
fn containers_of_other_runtimes_live_like_ours() {
    let Some(lab) = lab(&[]) else { return };
    for runtime in runtimes(&lab) {
        let run = |flags: &[&str]| lab.xbuild(&["run", "--network", "none", "--oci-runtime", &runtime]).args(flags);
        run(&["--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]).exits(7).says("err");
        run(&["--rm", "busybox", "no-such-program"]).exits(127).says("no-such-program");
        assert_eq!(run(&["-i", "--rm", "busybox", "cat"]).input("through").ok().out(), "through");
        let script = "trap 'exit 23' TERM; echo up; while :; do sleep 0.05; done";
        let id = run(&["-d", "--name", "web", "-m", "32m", "busybox", "sh", "-c", script]).ok().out();
        let ask = |template: &str| lab.xbuild(&["inspect", "--format", template, "web"]).ok().out();
        wait_until("it runs", || lab.xbuild(&["logs", "web"]).run().out() == "up");
        let exec = |arguments: &[&str]| lab.xbuild(&["exec"]).args(arguments);
        assert_eq!(
            exec(&["-e", "A=exec", "-u", "7:8", "-w", "/tmp", "web", "sh", "-c", "echo $A $PWD $(id -u):$(id -g)"])
                .ok()
                .out(),
            "exec /tmp 7:8"
        );
        exec(&["web", "sh", "-c", "echo err >&2; exit 17"]).exits(17).says("err");
        exec(&["web", "no-such-program"]).exits(127);
        assert_eq!(exec(&["-i", "web", "cat"]).input("through").ok().out(), "through");
        let limit = fs::read_to_string(format!("/sys/fs/cgroup/memory/xbuild/{id}/memory.limit_in_bytes"));
        assert!(limit.is_err() || limit.is_ok_and(|limit| limit.trim() == "33554432"));
        lab.xbuild(&["pause", "web"]).ok();
        assert_eq!(ask("{{.State.Status}}"), "paused");
        lab.xbuild(&["unpause", "web"]).ok();
        lab.xbuild(&["stop", "web"]).ok();
        assert_eq!(ask("{{.State.Status}} {{.State.ExitCode}}"), "exited 23");
        let states = lab.root().join("containers").join(&id).join("runtime/state");
        let nothing = || {
            fs::read_dir(&states).is_ok_and(|entries| {
                entries.flatten().all(|entry| fs::read_dir(entry.path()).is_ok_and(|mut below| below.next().is_none()))
            })
        };
        assert!(nothing(), "the runtime keeps a state of a container that has ended");
        lab.xbuild(&["restart", "web"]).ok();
        lab.xbuild(&["kill", "web"]).ok();
        assert_eq!(lab.xbuild(&["wait", "web"]).ok().out(), "137");
        lab.xbuild(&["rm", "web"]).ok();
        for controller in ["memory", "pids", "devices", "freezer", "unified", "systemd"] {
            assert!(!Path::new(&format!("/sys/fs/cgroup/{controller}/xbuild/{id}")).exists(), "{controller}");
        }
    }
    let missing = ["run", "--rm", "--oci-runtime", "no-such-runtime", "busybox", "true"];
    lab.xbuild(&missing).exits(125).says("no-such-runtime");
}

#[test]
fn policies_of_system_calls_come_from_files() {
    let Some(lab) = lab(&[]) else { return };
    let policy = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        { "name": "chmod", "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": { "caps": ["CAP_CHOWN"] } },
    ] });
    lab.write("policy.json", policy.to_string());
    for runtime in ["xbuild".to_owned(), runtime(&lab).display().to_string()] {
        let run = [
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "web",
            "--oci-runtime",
            &runtime,
            "--security-opt",
            "seccomp=policy.json",
        ];
        lab.xbuild(&run).args(&["busybox", "sleep", "1000"]).ok();
        let exec = |command: &[&str]| lab.xbuild(&["exec", "web"]).args(command);
        exec(&["mkdir", "/x"]).exits(1).says("Operation not supported");
        exec(&["chmod", "700", "/tmp"]).ok();
        lab.xbuild(&["rm", "-f", "web"]).ok();
    }
    lab.write("wrong.json", "{ \"defaultAction\": \"SCMP_ACT_NO\" }");
    for (file, says) in [("wrong.json", "SCMP_ACT_NO"), ("no-such-file", "no-such-file")] {
        let option = format!("seccomp={file}");
        lab.xbuild(&["run", "--rm", "--security-opt", &option, "busybox", "true"]).exits(125).says(says);
    }
}

#[test]
fn a_container_of_another_runtime_ends_with_its_monitor() {
    let Some(lab) = lab(&["runc"]) else { return };
    let token = lab.token();
    let id = lab
        .xbuild(&[
            "run",
            "-d",
            "--network",
            "none",
            "--oci-runtime",
            "runc",
            "--name",
            "web",
            "busybox",
            "sleep",
            &token,
        ])
        .ok()
        .out();
    lab.wait_for_process(&token);
    // The supervisor is the younger one, and has to outlive the monitor for a moment.
    let monitor = rustix::process::Pid::from_raw(*monitors_of(&id).first().expect("there is a monitor")).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    lab.assert_no_traces(&token);
    let state = lab.xbuild(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "web"]).ok().out();
    assert_eq!(state, "exited 137");
    lab.xbuild(&["rm", "web"]).ok();
    lab.assert_no_traces(&id);
}

/// A bundle with busybox, in the directory `name`; what `edit` makes of the configuration is kept.
pub(crate) fn bundle(lab: &Lab, name: &str, command: &[&str], edit: impl FnOnce(&mut Value)) -> PathBuf {
    let directory = lab.path(name);
    let root = directory.join("rootfs");
    for below in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(below)).unwrap();
    }
    fs::copy(find("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "echo", "grep", "head", "id", "ls", "mkdir", "readlink", "sh", "sleep", "stat", "touch", "true", "umask",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let container = lab.xbuild(&["create", "--network", "none", "busybox"]).args(command).ok().out();
    let mut config = lab.xbuild(&["oci", "spec", &container]).ok().json();
    lab.xbuild(&["rm", &container]).ok();
    config["root"]["path"] = json!("rootfs");
    let host = |mount: &Value| mount["destination"].as_str().is_some_and(|at| at.starts_with("/etc/"));
    config["mounts"].as_array_mut().unwrap().retain(|mount| !host(mount));
    config["linux"]["cgroupsPath"] = json!(format!("/xbuild-test/{}", lab.token()));
    edit(&mut config);
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    directory
}

/// A call of the runtime, with states in the lab.
pub(crate) fn oci(lab: &Lab, arguments: &[&str]) -> Call {
    lab.xbuild(&["oci", "--root"]).arg(lab.path("states")).args(arguments)
}

#[test]
fn bundles_live_as_the_specification_says() {
    let Some(lab) = lab(&[]) else { return };
    let trace = lab.path("trace");
    let hook = |text: &str| {
        let script = format!("cat > {0}.{text}; echo {text} >> {0}", trace.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    let script = "trap 'exit 9' TERM; echo started > /tmp/started; while :; do sleep 0.05; done";
    let directory = bundle(&lab, "bundle", &["sh", "-c", script], |config| {
        config["annotations"] = json!({ "some": "thing" });
        config["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
            "startContainer": [{ "path": "/bin/touch", "args": ["touch", "/tmp/hooked"] }],
        });
    });
    let name = directory.to_str().unwrap();
    oci(&lab, &["state", "one"]).exits(1).says("does not exist");
    oci(&lab, &["create", "--bundle", name, "--pid-file", "pid", "one"]).ok();
    let state = || oci(&lab, &["state", "one"]).ok().json();
    let created = state();
    assert_eq!((&created["status"], &created["annotations"]["some"]), (&json!("created"), &json!("thing")));
    assert_eq!(created["pid"].to_string(), lab.read("pid"));
    assert!(!directory.join("rootfs/tmp/started").exists(), "the program runs before it was started");
    oci(&lab, &["create", "--bundle", name, "one"]).exits(1).says("already exists");
    oci(&lab, &["start", "one"]).ok();
    wait_until("the program runs", || directory.join("rootfs/tmp/started").exists());
    assert!(directory.join("rootfs/tmp/hooked").exists(), "startContainer hooks run in the container");
    assert_eq!(state()["status"], "running");
    oci(&lab, &["start", "one"]).exits(1).says("running");
    oci(&lab, &["delete", "one"]).exits(1).says("not stopped");
    let exec = |arguments: &[&str]| oci(&lab, &["exec"]).args(arguments);
    assert_eq!(
        exec(&["-u", "7:8", "-e", "A=exec", "--cwd", "/tmp", "one", "sh", "-c", "echo $A $(id -u):$(id -g); ls"])
            .ok()
            .out(),
        "exec 7:8\nhooked\nstarted"
    );
    exec(&["one", "sh", "-c", "exit 17"]).exits(17);
    exec(&["one", "no-such-program"]).exits(1).says("not found in $PATH");
    oci(&lab, &["pause", "one"]).ok();
    assert_eq!(state()["status"], "paused");
    oci(&lab, &["resume", "one"]).ok();
    assert_eq!(oci(&lab, &["list", "-q"]).ok().out(), "one");
    oci(&lab, &["kill", "one", "NO"]).exits(1).says("unknown signal");
    oci(&lab, &["kill", "one", "TERM"]).ok();
    wait_until("it has ended", || state()["status"] == "stopped");
    oci(&lab, &["kill", "one"]).exits(1).says("not running");
    oci(&lab, &["delete", "one"]).ok();
    oci(&lab, &["delete", "one"]).exits(1).says("does not exist");
    oci(&lab, &["delete", "--force", "one"]).ok();
    assert_eq!(lab.read("trace"), "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop");
    for (hook, status) in [("createRuntime", "creating"), ("poststart", "running"), ("poststop", "stopped")] {
        let told: Value = serde_json::from_str(&lab.read(&format!("trace.{hook}"))).unwrap();
        assert_eq!((&told["id"], &told["status"]), (&json!("one"), &json!(status)));
    }
    // In the foreground it passes signals on.
    let running = oci(&lab, &["run", "--bundle", name, "--keep", "two"]).start();
    wait_until("the second container runs", || lab.read("trace").matches("poststart").count() == 2);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().code, 9);
    oci(&lab, &["delete", "two"]).ok();
    assert_eq!(oci(&lab, &["list", "-q"]).ok().out(), "");
}

#[test]
fn what_a_bundle_cannot_have_is_said() {
    let Some(lab) = lab(&[]) else { return };
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit); 11] = [
        ("intelRdt", |config| config["linux"]["intelRdt"] = json!({ "closID": "x" })),
        ("mountLabel", |config| config["linux"]["mountLabel"] = json!("label")),
        ("selinuxLabel", |config| config["process"]["selinuxLabel"] = json!("label")),
        ("remount", |config| config["mounts"][0]["options"] = json!(["remount"])),
        ("SCMP_ACT_NOTIFY", |config| config["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY")),
        ("not-own", |config| config["linux"]["sysctl"] = json!({ "kernel.not-own": "1" })),
        ("mount namespace", |config| config["linux"]["namespaces"] = json!([{ "type": "pid" }])),
        ("uidMappings", |config| config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }))),
        ("process.args", |config| config["process"]["args"] = json!([])),
        ("no-such-net", |config| {
            config["hostname"] = Value::Null;
            config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "network", "path": "/no-such-net" }]);
        }),
        ("console", |config| config["process"]["terminal"] = json!(true)),
    ];
    for (index, (says, edit)) in cases.into_iter().enumerate() {
        let directory = bundle(&lab, &format!("b{index}"), &["true"], edit);
        let done =
            oci(&lab, &["--log", "log", "--log-format", "json", "create", "-b", directory.to_str().unwrap(), "one"]);
        done.exits(1).says(says);
        let line = lab.read("log");
        let last: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
        assert!(last["level"] == "error" && last["msg"].as_str().unwrap().contains(says), "{line}");
        assert!(!lab.path("states/one").exists(), "a failed container is left behind");
    }
    oci(&lab, &["--systemd-cgroup", "list"]).exits(1).says("systemd");
    oci(&lab, &["state", "../x"]).exits(1).says("invalid container ID");
}

#[test]
fn a_bundle_has_what_its_configuration_says() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("given/file", "text\n");
    let given = lab.path("given");
    let script = "id; umask; cat /proc/self/status | grep -E '^(CapAmb|CapEff|NoNewPrivs)'; stat -c '%n %F %a %u' /dev/pipe; \
                  cat /proc/self/uid_map; cat /given/file; (echo x > /given/file) 2>&1; mkdir /tmp/denied 2>&1; ls /tmp; readlink /proc/self/fd/3; ls /given-copy";
    let directory = bundle(&lab, "bundle", &["sh", "-c", script], |config| {
        let user = json!({ "uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o027 });
        config["process"]["user"] = user;
        let caps = json!(["CAP_SYS_TIME"]);
        config["process"]["capabilities"] =
            json!({ "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps });
        config["process"]["noNewPrivileges"] = json!(true);
        config["linux"]["devices"] = json!([
            { "path": "/dev/pipe", "type": "p", "fileMode": 0o600 },
        ]);
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        config["linux"]["seccomp"]["syscalls"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }));
        for rule in config["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap() {
            if rule["errnoRet"].is_null() {
                rule["names"].as_array_mut().unwrap().retain(|name| name != "mkdir" && name != "mkdirat");
            }
        }
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "cgroup");
        mounts.push(
            json!({ "destination": "/given", "type": "bind", "source": given, "options": ["rbind", "ro", "nodev"] }),
        );
        mounts.push(
            json!({ "destination": "/given-copy", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"] }),
        );
    });
    for path in [&directory, &directory.join("rootfs")] {
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    fs::create_dir(directory.join("rootfs/given-copy")).unwrap();
    fs::write(directory.join("rootfs/given-copy/below"), "").unwrap();
    // The mapped root has to find its way there.
    for path in lab.path("").ancestors().take(2) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let out = oci(&lab, &["run", "--bundle", directory.to_str().unwrap(), "one"]).ok().out();
    let expected = "uid=7 gid=8 groups=9\n0027\nCapEff:\t0000000002000000\nCapAmb:\t0000000002000000\nNoNewPrivs:\t1\n\
                    /dev/pipe fifo 600 0\n         0     100000      65536\ntext\n\
                    sh: can't create /given/file: Read-only file system\nmkdir: can't create directory '/tmp/denied': Operation not supported\n\
                    below";
    assert_eq!(out, expected);
}

#[test]
fn podman_takes_us_for_its_runtime() {
    let Some(lab) = lab(&["podman", "conmon"]) else { return };
    let own = runtime(&lab);
    let (root, runroot) = (lab.path("podman"), lab.path("podman-run"));
    let podman = |arguments: &[&str]| {
        let call = lab.tool("podman", &["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        call.arg("--runtime").arg(&own).arg("--root").arg(&root).arg("--runroot").arg(&runroot).args(arguments)
    };
    lab.xbuild(&["save", "-o", "busybox.tar", "busybox"]).ok();
    podman(&["load", "-q", "-i", "busybox.tar"]).ok();
    let flags = ["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
    let run = |more: &[&str]| podman(&["run"]).args(&flags).args(more);
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null || echo 67108864; id -u";
    let out =
        run(&["--rm", "-m", "64m", "--pids-limit", "50", "--user", "7", "busybox", "sh", "-c", limits]).ok().out();
    assert!(out.starts_with("67108864") && out.ends_with("\n7"), "{out}");
    run(&["--rm", "busybox", "sh", "-c", "exit 5"]).exits(5);
    run(&["--rm", "busybox", "no-such-program"]).exits(127);
    run(&["-d", "--name", "web", "--health-cmd", "test -e /ok", "--health-interval", "0", "busybox", "sleep", "1000"])
        .ok();
    podman(&["exec", "web", "sh", "-c", "exit 6"]).exits(6);
    assert_eq!(podman(&["exec", "-i", "web", "cat"]).input("through").ok().out(), "through");
    podman(&["healthcheck", "run", "web"]).exits(1);
    podman(&["exec", "web", "touch", "/ok"]).ok();
    podman(&["healthcheck", "run", "web"]).ok();
    podman(&["pause", "web"]).ok();
    podman(&["unpause", "web"]).ok();
    podman(&["kill", "web"]).ok();
    assert_eq!(podman(&["wait", "web"]).ok().out(), "137");
    assert_eq!(podman(&["inspect", "--format", "{{.OCIRuntime}}", "web"]).ok().out(), own.display().to_string());
    podman(&["rm", "web"]).ok();
}
