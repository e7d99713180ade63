//! What the published advisories on container runtimes did, tried on ours: as a runtime for others, and in `exec`.

use crate::oci::{bundle, oci, runtime};
use crate::{lab, program};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

/// CVE-2024-21626: a descriptor of the host's, open by accident, as the working directory.
#[test]
fn no_descriptor_of_the_host_is_a_working_directory() {
    let Some(lab) = lab(&[]) else { return };
    let directory = bundle(&lab, "bundle", &["sleep", "1000"], |_| {});
    oci(&lab, &["run", "-d", "--bundle", text(&directory), "one"]).ok();
    let own = runtime(&lab);
    lab.xbuild(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "web",
        "--oci-runtime",
        text(&own),
        "busybox",
        "sleep",
        "1000",
    ])
    .ok();
    for descriptor in 3..16 {
        let path = format!("/proc/self/fd/{descriptor}");
        let leak = ["sh", "-c", "ls ../../../../../../../../root/../home && cat ../../../../../../etc/machine-id"];
        assert_ne!(oci(&lab, &["exec", "--cwd", &path, "one"]).args(&leak).run().code, 0, "{path}");
        assert_ne!(lab.xbuild(&["exec", "-w", &path, "web"]).args(&leak).run().code, 0, "{path}");
        let at = bundle(&lab, &format!("at{descriptor}"), &leak, |config| config["process"]["cwd"] = json!(path));
        assert_ne!(oci(&lab, &["run", "--bundle", text(&at), "two"]).run().code, 0, "{path}");
    }
    // And none of ours is there at all: 0 to 2, and the one that the listing needs.
    let count = oci(&lab, &["exec", "one", "sh", "-c", "ls /proc/self/fd | grep -c ."]).ok().out();
    assert_eq!(count, "4");
    oci(&lab, &["delete", "-f", "one"]).ok();
    lab.xbuild(&["rm", "-f", "web"]).ok();
}

/// CVE-2019-5736: the runtime's own program, got hold of while it runs in the container, and written later.
#[test]
fn the_runtime_s_program_cannot_be_written() {
    let Some(lab) = lab(&[]) else { return };
    let own = lab.path("xbuild-oci");
    fs::copy(program(), &own).unwrap();
    let before = fs::metadata(&own).unwrap().len();
    let call = |arguments: &[&str]| lab.tool(text(&own), &["--root"]).arg(lab.path("states")).args(arguments);
    let all = oci(&lab, &["features"]).ok().json()["linux"]["capabilities"].clone();
    let directory = bundle(&lab, "bundle", &["true"], |config| {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            config["process"]["capabilities"][set] = all.clone();
        }
        config["linux"]["seccomp"] = Value::Null;
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    });
    call(&["create", "--bundle", text(&directory), "one"]).ok();
    // Process 1 is the runtime still, and this has every right that a container can be given.
    let attack =
        "exec 3< /proc/1/exe || exit 3; (echo broken > /proc/self/fd/3) 2>&1; (echo broken > /proc/1/exe) 2>&1; true";
    let done = call(&["exec", "one", "sh", "-c", attack]).run();
    assert!(done.code == 3 || done.out().matches("Read-only file system").count() == 2, "{done}");
    call(&["delete", "-f", "one"]).ok();
    assert_eq!(fs::metadata(&own).unwrap().len(), before);
    // Nor executed: as the program itself, or as the interpreter of a script.
    for (name, command) in [("itself", "/proc/self/exe"), ("script", "/script")] {
        let directory = bundle(&lab, name, &[command], |_| {});
        fs::write(directory.join("rootfs/script"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(directory.join("rootfs/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        assert_ne!(call(&["run", "--bundle", text(&directory), "two"]).run().code, 0, "{command}");
        assert_eq!(fs::metadata(&own).unwrap().len(), before);
    }
}

/// CVE-2025-31133: a container's own `/dev/null` as the source of masks.
#[test]
fn masks_are_made_of_the_host_s_null_device() {
    let Some(lab) = lab(&[]) else { return };
    let probe = "stat -c '%F %t:%T' /proc/interrupts; head -c 1 /proc/interrupts | grep -c .; cat /target";
    let directory = bundle(&lab, "bundle", &["sh", "-c", probe], |config| {
        // Its `/dev` is a directory that it could have prepared.
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        config["linux"]["maskedPaths"] = json!(["/proc/interrupts"]);
    });
    fs::write(directory.join("rootfs/target"), "target").unwrap();
    symlink("/target", directory.join("rootfs/dev/null")).unwrap();
    let out = oci(&lab, &["run", "--bundle", text(&directory), "one"]).run().out();
    assert_eq!(out, "character special file 1:3\n0\ntarget");
}

/// CVE-2025-52565: a link where the terminal is to be shown.
#[test]
fn a_terminal_is_not_shown_through_a_link() {
    let Some(lab) = lab(&[]) else { return };
    let directory = bundle(&lab, "bundle", &["sleep", "1000"], |config| {
        config["process"]["terminal"] = json!(true);
        // Only the terminals themselves are the runtime's; the rest of `/dev` is as the image has it.
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| {
            mount["destination"] == "/dev/pts" || !mount["destination"].as_str().unwrap().starts_with("/dev")
        });
    });
    fs::write(directory.join("rootfs/target"), "target").unwrap();
    symlink("/target", directory.join("rootfs/dev/console")).unwrap();
    let socket = lab.path("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let create = ["create", "--console-socket", text(&socket), "--bundle", text(&directory), "one"];
    oci(&lab, &create).exits(1).says("/dev/console");
    assert_eq!(fs::read_to_string(directory.join("rootfs/target")).unwrap(), "target");
}

/// CVE-2025-52881: writes to the kernel's files led elsewhere by what is mounted at `/proc`.
#[test]
fn settings_are_not_written_through_the_container_s_proc() {
    let Some(lab) = lab(&[]) else { return };
    let fake = lab.path("fake");
    fs::create_dir_all(fake.join("sys/kernel")).unwrap();
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    for file in ["sys/kernel/msgmax", "self/oom_score_adj"] {
        fs::write(fake.join(file), "fake").unwrap();
    }
    let probe = "cat /real/sys/kernel/msgmax /real/self/oom_score_adj";
    let directory = bundle(&lab, "bundle", &["sh", "-c", probe], |config| {
        config["linux"]["sysctl"] = json!({ "kernel.msgmax": "9001" });
        config["process"]["oomScoreAdj"] = json!(321);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/proc", "type": "bind", "source": fake, "options": ["bind", "rw"] }));
        mounts.push(json!({ "destination": "/real", "type": "proc", "source": "proc" }));
    });
    assert_eq!(oci(&lab, &["run", "--bundle", text(&directory), "one"]).ok().out(), "9001\n321");
    for file in ["sys/kernel/msgmax", "self/oom_score_adj"] {
        assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "fake", "{file}");
    }
}

/// CVE-2019-16884, CVE-2023-28642: `/proc` or `/sys` of the image as a link, so that masks go elsewhere.
#[test]
fn kernel_file_systems_are_not_mounted_through_links() {
    let Some(lab) = lab(&[]) else { return };
    for name in ["proc", "sys"] {
        let directory = bundle(&lab, name, &["true"], |_| {});
        fs::remove_dir(directory.join("rootfs").join(name)).unwrap();
        symlink("tmp", directory.join("rootfs").join(name)).unwrap();
        oci(&lab, &["run", "--bundle", text(&directory), "one"]).exits(1).says("not a directory");
    }
    // Nor may a mount cover what the runtime is going to protect.
    let directory = bundle(&lab, "covered", &["true"], |config| {
        let cover = json!({ "destination": "/proc/sys", "type": "bind", "source": "/tmp", "options": ["bind"] });
        config["mounts"].as_array_mut().unwrap().push(cover);
    });
    oci(&lab, &["run", "--bundle", text(&directory), "one"]).exits(1).says("inside /proc");
}

/// CVE-2021-30465, CVE-2024-45310: the target of a mount as a link that leads out.
#[test]
fn mounts_stay_inside_whatever_their_targets_are() {
    let Some(lab) = lab(&[]) else { return };
    let outside = lab.path("outside");
    fs::create_dir(&outside).unwrap();
    let directory =
        bundle(&lab, "bundle", &["sh", "-c", "ls -d /escape/made && cat /proc/mounts | grep -c /made"], |config| {
            let mount = json!({ "destination": "/escape/made", "type": "tmpfs", "source": "tmpfs" });
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
    let up = format!("../../../../../../../../..{}", outside.display());
    symlink(up, directory.join("rootfs/escape")).unwrap();
    oci(&lab, &["run", "--bundle", text(&directory), "one"]).ok();
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "the runtime made something outside of the root");
}
