//! Users without root: with ranges of ids, with one id, and without user namespaces.

use crate::{UNIQUE, lab, program};
use rustix::process::Signal;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use xbuild_testkit::{Call, Entry, Image, Lab, Registry, Tree, busybox, entries, skip};

/// Nobody else's here.
const UID: u32 = 61_234;

/// Mounts what belongs to the user only, and becomes that user. The store's program is shown where the user can reach it.
const BECOME: &str = r#"set -e
place=$1 uid=$2 program=$3 before=$4; shift 4
mount --make-rprivate /
for file in passwd subuid subgid; do
    if [ -e "/etc/$file" ]; then mount --bind "$place/$file" "/etc/$file"; fi
done
mount --bind "$program" "$place/xbuild"
mount -t tmpfs tmpfs "$place/dev"
if mknod "$place/dev/tun" c 10 200 && chmod 666 "$place/dev/tun" && [ -e /dev/net/tun ]; then
    mount --bind "$place/dev/tun" /dev/net/tun
fi
eval "$before"
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups -- "$@""#;

/// What a user has been given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// Ranges in `/etc/subuid` and `/etc/subgid`.
    Many,
    One,
}

/// A user of this machine, for one test.
struct User {
    lab: Lab,
    place: std::path::PathBuf,
}

impl User {
    /// With `busybox` in the user's store and in root's.
    fn with(ids: Ids) -> Option<User> {
        let mut programs = vec!["unshare", "setpriv", "mount"];
        if ids == Ids::Many {
            programs.push("newuidmap");
        }
        let lab = lab(&programs)?;
        if ids == Ids::Many && !Path::new("/etc/subuid").exists() {
            skip("there is no /etc/subuid to put another one over");
            return None;
        }
        let place = lab.other_root("user");
        let make = |name: &str| std::fs::create_dir_all(place.join(name)).expect("a directory can be made");
        ["dev", "home", "work"].iter().for_each(|name| make(name));
        let write = |name: &str, text: String| std::fs::write(place.join(name), text).expect("a file can be written");
        let others = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        write("passwd", format!("{others}tester:x:{UID}:{UID}::{}:/bin/sh\n", place.join("home").display()));
        for file in ["subuid", "subgid"] {
            write(file, format!("root:0:100000\n{}", if ids == Ids::Many { "tester:700000:65536\n" } else { "" }));
        }
        write("xbuild", String::new());
        for name in ["home", "work"] {
            chown(place.join(name), Some(UID), Some(UID)).expect("root may give directories away");
        }
        let above = place.parent().expect("a lab has a directory");
        std::fs::set_permissions(above, PermissionsExt::from_mode(0o755)).expect("a directory can be opened");
        let user = User { lab, place };
        user.xbuild(&["load"]).input(busybox(program())).ok();
        Some(user)
    }

    fn xbuild(&self, arguments: &[&str]) -> Call {
        self.after("", &[]).args(arguments)
    }

    /// The same after `before` was done as root, and through `wrapper`.
    fn after(&self, before: &str, wrapper: &[&str]) -> Call {
        let place = self.place.to_str().expect("temporary directories have plain names");
        let call = self.lab.tool("unshare", &["--mount", "sh", "-c", BECOME, "sh", place]);
        let call = call.args(&[&UID.to_string()]).arg(program()).args(&[before]).args(wrapper);
        call.arg(self.place.join("xbuild")).env("HOME", self.place.join("home")).env("USER", "tester")
    }

    /// Writes a context that both may read.
    fn write(&self, name: &str, content: &str) {
        self.lab.write(name, content);
        let mut path = self.lab.path(name);
        while path.pop() && path.starts_with(self.place.parent().expect("a lab has a directory")) {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a directory can be opened");
        }
    }

    /// A file that the user makes.
    fn output(&self, name: &str) -> std::path::PathBuf {
        self.place.join("work").join(name)
    }

    /// The files of an image, exported by the user.
    fn files(&self, context: &str) -> Tree {
        let tar = self.output("files.tar");
        self.xbuild(&["build", "-o", &format!("type=tar,dest={}", tar.display()), context]).ok();
        entries(&std::fs::read(tar).expect("the output is there"))
    }
}

/// Everything that has to do with owners.
const OWNERS: &str = "FROM busybox AS made
RUN mkdir -p /d/e && echo 1 > /d/e/x && ln -s x /d/e/l && mkfifo /d/p && chmod 4755 /d/e/x && ln /d/e/x /d/h
RUN chown 7:8 /d/e && chown -h 9:10 /d/e/l && chown 11 /d/p && chmod 700 /d/e && rm -rf /usr && mkdir /usr
FROM busybox
COPY --from=made /d /d
COPY --chown=5:6 --chmod=640 f /f
RUN rm -r /d/e && mkdir /d/e && echo t > /tmp/t
USER 7:8
RUN id -u > /tmp/mine
CMD [\"cat\", \"/tmp/mine\"]
";

fn reproducible(call: Call, context: &str, file: &Path) {
    let output = format!("type=oci,dest={},rewrite-timestamp=true", file.display());
    call.args(&["build", "-o", &output, context]).env("SOURCE_DATE_EPOCH", "1000000").ok();
}

#[test]
fn a_user_with_ranges_builds_the_image_that_root_builds() {
    let Some(user) = User::with(Ids::Many) else { return };
    user.write("app/Dockerfile", OWNERS);
    user.write("app/f", "f");
    let (own, roots) = (user.output("own.tar"), user.output("roots.tar"));
    reproducible(user.xbuild(&[]), "app", &own);
    reproducible(user.lab.xbuild(&[]), "app", &roots);
    let layers =
        |file: &Path| -> Vec<String> { Image::only(file).layers.into_iter().map(|layer| layer.digest).collect() };
    assert_eq!(layers(&own), layers(&roots));
    assert!(std::fs::read(&own).expect("an archive") == std::fs::read(&roots).expect("an archive"));
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&own).expect("an archive")), UID);
}

#[test]
fn the_first_use_says_what_there_is() {
    let Some(user) = User::with(Ids::One) else { return };
    std::fs::remove_dir_all(user.place.join("home/.local")).expect("the store can be removed");
    let first = user.xbuild(&["images"]).ok();
    let line = first.stderr.lines().find(|line| line.starts_with("rootless: one id only")).expect("a line");
    assert!(line.contains("usermod --add-subuids") && line.contains("tester"), "{line}");
    assert_eq!(user.xbuild(&["images"]).ok().stderr, "");
    let info = user.xbuild(&["info", "--format", "json"]).ok().json();
    assert!(info["Rootless"].as_str().is_some_and(|mode| mode.starts_with("one id only")), "{info}");
    assert_eq!(user.xbuild(&["--version"]).ok().stderr, "");
}

#[test]
fn steps_of_users_are_recorded_and_their_containers_end_as_their_processes_do() {
    for ids in [Ids::Many, Ids::One] {
        let Some(user) = User::with(ids) else { return };
        user.write("app/Dockerfile", &format!("FROM busybox\nRUN {UNIQUE} > /id\nCMD [\"cat\", \"/id\"]\n"));
        user.xbuild(&["-t", "app", "app"]).ok();
        let run = |arguments: &[&str]| user.xbuild(&["run", "--rm"]).args(arguments);
        let first = run(&["app"]).ok().out();
        assert!(!first.is_empty());
        let again = user.xbuild(&["--progress=plain", "-t", "app", "app"]).ok();
        assert!(again.stderr.contains("CACHED"), "{again}");
        assert_eq!(run(&["app"]).ok().out(), first);
        run(&["app", "sh", "-c", "exit 42"]).exits(42);
        run(&["app", "nosuch"]).exits(127);
        assert_eq!(run(&["-u", "7:8", "app", "sh", "-c", "echo $(id -u):$(id -g)"]).ok().out(), "7:8");
        assert_eq!(user.xbuild(&["store", "check"]).ok().out(), "0 problems");
    }
}

#[test]
fn with_one_id_owners_are_kept_beside_the_files() {
    let Some(user) = User::with(Ids::One) else { return };
    user.write(
        "app/Dockerfile",
        "FROM busybox\nCOPY --chown=5:6 . /d/\nRUN chown 9 /tmp && touch /d/new /d/f && id -u > /root/id\n\
         USER 7:8\nRUN mkdir /tmp/own && id -u > /tmp/own/id && id -g >> /tmp/own/id && echo more >> /etc/group\n",
    );
    user.write("app/f", "f");
    user.write("app/sub/g", "g");
    std::os::unix::fs::symlink("g", user.lab.path("app/sub/l")).expect("a link can be made");
    let files = user.files("app");
    let owner = |path: &str| files.get(path).map(|entry: &Entry| entry.owner);
    assert_eq!(owner("d/f"), Some((5, 6)), "after RUN has touched it");
    for path in ["d/sub", "d/sub/g", "d/sub/l"] {
        assert_eq!(owner(path), Some((5, 6)), "{path}");
    }
    for path in ["d/new", "tmp", "bin/busybox"] {
        assert_eq!(owner(path), Some((0, 0)), "{path}");
    }
    assert_eq!(files["root/id"].data, b"0\n");
    assert_eq!(files["tmp/own/id"].data, b"7\n8\n");
    for (path, whose) in [("tmp/own", (7, 8)), ("tmp/own/id", (7, 8)), ("etc/group", (0, 0))] {
        assert_eq!(owner(path), Some(whose), "{path}");
    }
    // Without owners set by RUN, it is root's image.
    user.write("same/Dockerfile", "FROM busybox\nCOPY --chown=5:6 f /f\nRUN echo x >> /f; rm /etc/group\n");
    user.write("same/f", "f");
    let (own, roots) = (user.output("own.tar"), user.output("roots.tar"));
    reproducible(user.xbuild(&[]), "same", &own);
    reproducible(user.lab.xbuild(&[]), "same", &roots);
    assert!(std::fs::read(own).expect("an archive") == std::fs::read(roots).expect("an archive"));
}

#[test]
fn a_user_can_do_without_overlayfs() {
    let Some(user) = User::with(Ids::One) else { return };
    user.write(
        "app/Dockerfile",
        "FROM busybox\nCOPY --chown=5:6 f /f\nRUN echo x > /x; rm /etc/group; echo more >> /f\n",
    );
    user.write("app/f", "f");
    let archives = ["overlay", "native"].map(|snapshotter| {
        let archive = user.output(snapshotter);
        let root = format!("--root={}", user.output(&format!("{snapshotter}.root")).display());
        let xbuild = || user.xbuild(&[&root]).env("XBUILD_SNAPSHOTTER", snapshotter);
        xbuild().args(&["load"]).input(busybox(program())).ok();
        reproducible(xbuild(), "app", &archive);
        std::fs::read(archive).expect("an archive")
    });
    assert!(archives[0] == archives[1]);
}

#[test]
fn ctrl_c_ends_a_users_build_and_what_it_runs() {
    let Some(user) = User::with(Ids::Many) else { return };
    let token = user.lab.token();
    user.write("app/Dockerfile", &format!("FROM busybox\nRUN trap '' INT TERM; echo runs; sleep {token}\n"));
    let mut build = user.xbuild(&["--progress=plain", "app"]).start();
    build.wait_for(" runs\n");
    user.lab.wait_for_process(&token);
    build.signal(Signal::INT);
    let done = build.wait();
    assert_eq!(done.code, 130, "{done}");
    user.lab.assert_no_traces(&token);
}

#[test]
fn without_user_namespaces_files_are_built_and_run_says_what_to_set() {
    let Some(user) = User::with(Ids::One) else { return };
    if xbuild_testkit::find("newuidmap").is_none() || !Path::new("/etc/subuid").exists() {
        return skip("there is no newuidmap to make a namespace with that forbids others");
    }
    // Nobody in a namespace below may have further ones. The user is somebody there.
    let forbid = "exec unshare --user --map-users=0,0,100000 --map-groups=0,0,100000 sh -c '\
                  echo 0 > /proc/sys/user/max_user_namespaces; \
                  uid=$0; exec setpriv --reuid=$uid --regid=$uid --clear-groups -- \"$@\"' \"$uid\" \"$@\"";
    let xbuild = |arguments: &[&str]| user.after(forbid, &[]).args(arguments);
    user.write("files/Dockerfile", "FROM busybox\nCOPY --chown=5:6 f /f\n");
    user.write("files/f", "f");
    let tar = user.output("files.tar");
    xbuild(&["build", "-o", &format!("type=tar,dest={}", tar.display()), "files"]).ok();
    let files = entries(&std::fs::read(tar).expect("the output is there"));
    assert_eq!((files["f"].owner, files["bin"].owner), ((5, 6), (0, 0)));
    user.write("runs/Dockerfile", "FROM busybox\nRUN true\n");
    xbuild(&["runs"]).exits(1).says("RUN needs a user namespace").says("user.max_user_namespaces");
    xbuild(&["run", "--rm", "busybox", "true"]).exits(125).says("user.max_user_namespaces");
}

#[test]
fn root_of_a_container_works_with_what_it_has() {
    let Some(user) = User::with(Ids::One) else { return };
    user.write("app/Dockerfile", "FROM busybox\nRUN --network=none cat /proc/self/comm > /comm; ls /sys > /sys.txt\n");
    let output = |name: &str| format!("type=local,dest={}", user.output(name).display());
    let namespace = ["unshare", "--user", "--map-root-user"];
    user.after("", &namespace).args(&["build", "-o", &output("one"), "app"]).ok();
    assert_eq!(std::fs::read_to_string(user.output("one/comm")).expect("a file"), "cat\n");
    // Where a container hides parts of /proc and /sys, no further ones can be mounted.
    let hide = "for path in /proc/scsi /proc/acpi /proc/tty /sys/firmware; do \
                if [ -d $path ]; then mount -t tmpfs tmpfs $path; fi; done";
    for wrapper in [&namespace[..], &[]] {
        let call = user.after(hide, wrapper).args(&["build", "--no-cache", "-o", &output("two"), "app"]);
        call.ok();
        assert_eq!(std::fs::read_to_string(user.output("two/comm")).expect("a file"), "cat\n");
    }
}

#[test]
fn programs_of_the_user_run_as_the_user() {
    let Some(user) = User::with(Ids::One) else { return };
    if xbuild_testkit::find("docker-registry").is_none() {
        return skip("`docker-registry` is not installed");
    }
    let registry = Registry::with_users(crate::registry::USERS);
    let (home, bin) = (user.place.join("home"), user.place.join("bin"));
    let write = |path: &Path, text: String| {
        std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory can be made");
        std::fs::write(path, text).expect("a file can be written");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a mode can be set");
    };
    let answer = r#"{"Username": "tester", "Secret": "right-password"}"#;
    let asked = home.join("asked");
    write(&bin.join("docker-credential-mine"), format!("#!/bin/sh\nid -u > {}\necho '{answer}'\n", asked.display()));
    write(&home.join(".docker/config.json"), format!(r#"{{"credHelpers": {{"{}": "mine"}}}}"#, registry.host));
    let name = format!("{}/app:1", registry.host);
    user.xbuild(&["tag", "busybox", &name]).ok();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    user.xbuild(&["push", &name]).env("PATH", path).ok();
    assert_eq!(std::fs::read_to_string(asked).expect("the helper was asked").trim(), UID.to_string());
}

#[test]
fn a_store_of_somebody_else_is_refused() {
    let Some(user) = User::with(Ids::Many) else { return };
    let root = user.lab.root();
    user.xbuild(&["images", "--root"]).arg(&root).exits(1).says("belongs to another user");
    let own = user.place.join("home/.local/share/xbuild");
    user.lab.xbuild(&["images", "--root"]).arg(own).exits(1).says("belongs to another user");
}

#[test]
fn ports_of_a_users_container_are_reached_through_slirp4netns() {
    let Some(user) = User::with(Ids::Many) else { return };
    if xbuild_testkit::find("slirp4netns").is_none() || !Path::new("/dev/net/tun").exists() {
        return skip("there is no slirp4netns, or no /dev/net/tun");
    }
    let serve = "echo hello > /index.html; exec httpd -f -p 80 -h /";
    user.xbuild(&["run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "sh", "-c", serve]).ok();
    let port = user.xbuild(&["port", "web", "80"]).ok().out();
    let fetch = || user.lab.tool("busybox", &["wget", "-qO-", &format!("http://{port}/index.html")]).run();
    xbuild_testkit::wait_until("the server answers", || fetch().code == 0);
    assert_eq!(fetch().out(), "hello");
    assert_eq!(user.xbuild(&["exec", "web", "cat", "/index.html"]).ok().out(), "hello");
    let copied = user.xbuild(&["cp", "web:/index.html", "-"]).ok();
    assert_eq!(entries(&copied.stdout)["index.html"].data, b"hello\n");
    user.xbuild(&["network", "create", "net"]).ok();
    user.xbuild(&["run", "--rm", "--network", "net", "busybox", "true"]).exits(125).says("without root");
    user.xbuild(&["rm", "-f", "web"]).ok();
    assert_ne!(fetch().code, 0);
}
