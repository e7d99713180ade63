//! Volumes, binds and memory file systems of containers.

use crate::lab;
use xbuild_testkit::Lab;

fn sh(lab: &Lab, flags: &[&str], image: &str, script: &str) -> String {
    let arguments = [&["run", "--rm"], flags, &[image, "sh", "-c", script]].concat();
    lab.xbuild(&arguments).ok().out()
}

#[test]
fn named_volumes_stay_and_nameless_ones_go_with_their_container() {
    let Some(lab) = lab(&[]) else { return };
    sh(&lab, &["-v", "data:/v"], "busybox", "echo kept > /v/f");
    assert_eq!(sh(&lab, &["-v", "data:/w:ro"], "busybox", "cat /w/f; touch /w/x || echo ro"), "kept\nro");
    lab.xbuild(&["create", "--name", "user", "-v", "data:/v", "-v", "/own", "busybox"]).ok();
    lab.xbuild(&["volume", "rm", "data"]).exits(1).says("in use");
    assert_eq!(lab.xbuild(&["volume", "ls", "-q"]).ok().out().lines().count(), 2);
    lab.xbuild(&["rm", "-v", "user"]).ok();
    assert_eq!(lab.xbuild(&["volume", "ls", "-q"]).ok().out(), "data");
    let volume = lab.xbuild(&["volume", "inspect", "data"]).ok().json();
    assert_eq!(volume[0]["Name"], "data");
    lab.xbuild(&["volume", "rm", "data"]).ok();
    lab.xbuild(&["volume", "inspect", "data"]).exits(1).says("no such volume");
    lab.xbuild(&["volume", "create", "../x"]).exits(1).says("invalid");
}

#[test]
fn a_new_volume_takes_what_the_image_has() {
    let Some(lab) = lab(&[]) else { return };
    let lines = "RUN mkdir /data && echo seed > /data/seed && chown 7:8 /data && chmod 750 /data\nVOLUME /data\n";
    lab.write("app/Dockerfile", format!("FROM busybox\n{lines}"));
    lab.xbuild(&["-t", "app", "app"]).ok();
    let look = "stat -c '%a %u:%g' /data; cat /data/*";
    assert_eq!(sh(&lab, &[], "app", look), "750 7:8\nseed");
    assert_eq!(sh(&lab, &["-v", "named:/data"], "app", look), "750 7:8\nseed");
    sh(&lab, &["-v", "named:/data"], "app", "rm /data/seed; echo own > /data/own");
    assert_eq!(sh(&lab, &["-v", "named:/data"], "app", "ls /data"), "own");
    assert_eq!(sh(&lab, &["-v", "bare:/data:nocopy"], "app", "ls /data"), "");
}

#[test]
fn binds_are_the_host_s_directories() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("dir/in", "from host\n");
    let dir = lab.path("dir").display().to_string();
    assert_eq!(sh(&lab, &["-v", &format!("{dir}:/m")], "busybox", "cat /m/in; echo back > /m/out"), "from host");
    assert_eq!(lab.read("dir/out"), "back");
    let readonly = format!("type=bind,source={dir},target=/m,readonly");
    assert_eq!(sh(&lab, &["--mount", &readonly], "busybox", "touch /m/x || echo ro"), "ro");
    let missing = format!("type=bind,source={dir}/missing,target=/m");
    lab.xbuild(&["run", "--mount", &missing, "busybox", "true"]).exits(125).says("does not exist");
    let made = format!("{dir}/made/for/me:/m");
    sh(&lab, &["-v", &made], "busybox", "echo x > /m/f");
    assert_eq!(lab.read("dir/made/for/me/f"), "x");
    let nested = [&*format!("{dir}:/a/b"), "-v", "inner:/a/b/made"];
    assert_eq!(sh(&lab, &["-v", nested[0], nested[1], nested[2]], "busybox", "ls /a/b/made | wc -l"), "0");
}

#[test]
fn a_link_of_the_image_does_not_lead_a_mount_out() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("secret/token", "do not read");
    lab.write("dir/in", "x");
    let secret = lab.path("secret").display().to_string();
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN ln -s {secret} /esc\n"));
    lab.xbuild(&["-t", "app", "app"]).ok();
    let bind = format!("{}:/esc/keep", lab.path("dir").display());
    let seen = sh(&lab, &["-v", &bind], "app", "cat /esc/keep/in /esc/token 2>/dev/null; true");
    assert!(!seen.contains("do not read"), "{seen}");
    assert!(!lab.path("secret/keep").exists());
}

#[test]
fn memory_is_empty_every_time() {
    let Some(lab) = lab(&[]) else { return };
    let mounted = sh(&lab, &["--tmpfs", "/t:size=1m,mode=700"], "busybox", "grep ' /t ' /proc/mounts");
    assert!(mounted.starts_with("tmpfs /t tmpfs rw,nosuid,nodev,noexec"), "{mounted}");
    assert!(mounted.contains("size=1024k") && mounted.contains("mode=700"), "{mounted}");
    let flags = ["run", "--name", "web", "--tmpfs", "/t", "busybox", "sh", "-c", "ls /t; touch /t/f"];
    assert_eq!(lab.xbuild(&flags).ok().out(), "");
    assert_eq!(lab.xbuild(&["start", "-a", "web"]).ok().out(), "");
    lab.xbuild(&["run", "--read-only", "busybox", "touch", "/x"]).exits(1).says("Read-only");
}

/// Runs in a mount namespace of its own, where a directory is a shared mount.
const PROPAGATION: &str = r#"
mkdir d plain && mount -t tmpfs one d && mount --make-shared d
for how in rslave rshared rprivate; do
    "$0" run -d --name $how --network none --privileged -v "$PWD/d:/d:$how" busybox sleep 600 > /dev/null
    mkdir d/$how && mount -t tmpfs two d/$how && echo seen > d/$how/f
    "$0" exec $how cat /d/$how/f || echo unseen
    "$0" exec $how sh -c "mkdir /d/back-$how && mount -t tmpfs three /d/back-$how"
    grep -c " $PWD/d/back-$how " /proc/self/mountinfo
    "$0" inspect --format '{{(index .Mounts 0).Propagation}}' $how
    "$0" rm -f $how > /dev/null
done
"$0" run --rm --mount "type=bind,src=$PWD/plain,dst=/p,bind-propagation=rslave" busybox true 2>&1 || echo $?
"#;

#[test]
fn mounts_are_passed_on_as_a_bind_says() {
    let Some(lab) = lab(&["unshare", "mount"]) else { return };
    lab.write("here", "");
    let program = lab.program().to_str().unwrap();
    let call = lab.tool("unshare", &["--mount", "sh", "-c", PROPAGATION, program]).env("XBUILD_ROOT", lab.root());
    let said = call.run().out();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["seen", "0", "rslave"], "{said}");
    assert_eq!(lines[3..6], ["seen", "1", "rshared"], "{said}");
    assert_eq!(lines[6..9], ["unseen", "0", "rprivate"], "{said}");
    assert!(lines[9].contains("but it is not a shared or slave mount"), "{said}");
    assert_eq!(lines[10], "125", "{said}");
}

#[test]
fn a_volume_can_be_a_directory_of_the_host() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("dir/f", "host\n");
    let device = format!("device={}", lab.path("dir").display());
    lab.xbuild(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "own"]).ok();
    assert_eq!(sh(&lab, &["-v", "own:/v"], "busybox", "cat /v/f; echo back > /v/g"), "host");
    assert_eq!(lab.read("dir/g"), "back");
    let shown = lab.xbuild(&["volume", "inspect", "own"]).ok().json();
    assert_eq!((&shown[0]["Options"]["o"], &shown[0]["Labels"]), (&"bind".into(), &serde_json::Value::Null));
    lab.xbuild(&["volume", "rm", "own"]).ok();
    assert_eq!(lab.read("dir/f"), "host");
    for options in [&["type=nfs"][..], &["type=none", "o=bind", "device=rel"], &["size=1"]] {
        let flags: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
        lab.xbuild(&["volume", "create"]).args(&flags).arg("odd").exits(1);
    }
}
