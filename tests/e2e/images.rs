//! Commands on images of the store.

use crate::lab;
use xbuild_testkit::{Image, Lab, entries};

fn app(lab: &Lab) {
    lab.write(
        "app/Dockerfile",
        "FROM busybox\nCOPY a /a\nRUN rm /etc/group && ln /a /b\nENV E=1\nCMD [\"cat\", \"/b\"]\n",
    );
    lab.write("app/a", "content\n");
    lab.xbuild(&["-t", "app:1", "--label", "key=value", "app"]).ok();
}

fn names(lab: &Lab) -> Vec<String> {
    let text = lab.xbuild(&["images"]).ok().out();
    let lines = text.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(":"));
    let mut names: Vec<_> = lines.collect();
    names.sort();
    names
}

#[test]
fn a_saved_image_is_the_same_after_load() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    lab.xbuild(&["save", "-o", "app.tar", "app:1"]).ok();
    let saved = Image::only(&lab.path("app.tar"));
    let inspect =
        |root: &std::path::Path| lab.xbuild(&["inspect", "app:1"]).env("XBUILD_ROOT", root).ok().json()[0].clone();
    let here = inspect(&lab.root());
    assert_eq!(here["Id"], saved.id);

    let other = lab.other_root("other");
    let bytes = lab.xbuild(&["save", "app:1"]).ok().stdout;
    let loaded = lab.xbuild(&["load"]).input(bytes).env("XBUILD_ROOT", &other).ok();
    assert!(loaded.out().contains("app:1"), "{loaded}");
    let there = inspect(&other);
    for key in ["Id", "Config", "RootFS", "Created", "Architecture"] {
        assert_eq!(there[key], here[key], "{key}");
    }
    assert_eq!(lab.xbuild(&["run", "--rm", "app:1"]).env("XBUILD_ROOT", &other).ok().out(), "content");
    lab.xbuild(&["save", "-o", "again.tar", "app:1"]).env("XBUILD_ROOT", &other).ok();
    let again = Image::only(&lab.path("again.tar"));
    assert_eq!((again.id.as_str(), again.files()), (saved.id.as_str(), saved.files()));
    lab.write("next/Dockerfile", "FROM app:1\nRUN test ! -e /etc/group && cat /b > /c\n");
    lab.xbuild(&["-o", "out", "next"]).env("XBUILD_ROOT", &other).ok();
    assert_eq!(lab.read("out/c"), "content");
    assert_eq!(lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &other).ok().out(), "0 problems");
}

#[test]
fn several_images_are_saved_into_one_archive() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    lab.xbuild(&["tag", "app:1", "app:2"]).ok();
    lab.xbuild(&["save", "-o", "all.tar", "app", "busybox:latest"]).ok();
    let archive = entries(&std::fs::read(lab.path("all.tar")).unwrap());
    let images: serde_json::Value = serde_json::from_slice(&archive["manifest.json"].data).unwrap();
    let mut tags: Vec<&str> = images[0]["RepoTags"].as_array().unwrap().iter().filter_map(|t| t.as_str()).collect();
    tags.sort();
    assert_eq!((tags, &images[1]["RepoTags"][0]), (vec!["app:1", "app:2"], &"busybox:latest".into()), "{images}");
    let other = lab.other_root("other");
    lab.xbuild(&["load", "-i", "all.tar"]).env("XBUILD_ROOT", &other).ok();
    let there = lab.xbuild(&["images"]).env("XBUILD_ROOT", &other).ok().out();
    assert_eq!(there.lines().skip(1).count(), names(&lab).len(), "{there}");
}

#[test]
fn load_reads_archives_of_older_dockers() {
    let Some(lab) = lab(&["skopeo"]) else { return };
    app(&lab);
    lab.xbuild(&["-t", "app:1", "-o", "type=oci,dest=app,tar=false", "app"]).ok();
    // skopeo writes the form without index.json.
    lab.tool("skopeo", &["copy", "oci:app:1", "docker-archive:old.tar:app:old"]).ok();
    lab.tool("gzip", &["old.tar"]).ok();
    let other = lab.other_root("other");
    lab.xbuild(&["load", "-i", "old.tar.gz"]).env("XBUILD_ROOT", &other).ok();
    assert_eq!(lab.xbuild(&["run", "--rm", "app:old"]).env("XBUILD_ROOT", &other).ok().out(), "content");
    assert_eq!(lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &other).ok().out(), "0 problems");
}

#[test]
fn load_reads_what_builds_write() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    for (n, output) in
        ["type=oci", "type=docker", "type=oci,compression=zstd,force-compression=true"].iter().enumerate()
    {
        lab.xbuild(&["-t", "app:1", "-o", &format!("{output},dest=app{n}.tar"), "app"]).ok();
        let id = Image::only(&lab.path(&format!("app{n}.tar"))).id;
        let root = lab.other_root(&format!("root{n}"));
        lab.xbuild(&["load", "-i", &format!("app{n}.tar")]).env("XBUILD_ROOT", &root).ok();
        let run = lab.xbuild(&["run", "--rm", "app:1"]).env("XBUILD_ROOT", &root).ok();
        assert_eq!(run.out(), "content", "{output}");
        let found = lab.xbuild(&["inspect", "app:1"]).env("XBUILD_ROOT", &root).ok().json();
        assert_eq!(found[0]["Id"], id, "{output}");
    }
}

#[test]
fn load_refuses_what_is_damaged() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    let bytes = lab.xbuild(&["save", "app:1"]).ok().stdout;
    let root = lab.other_root("other");
    let mut flipped = bytes.clone();
    flipped[600_000] ^= 1;
    let cases: [(&str, &[u8]); 4] =
        [("cut", &bytes[..bytes.len() / 2]), ("flipped", &flipped), ("text", b"no archive"), ("empty", b"")];
    for (what, bytes) in cases {
        let done = lab.xbuild(&["load"]).input(bytes).env("XBUILD_ROOT", &root).exits(1).says("ERROR");
        assert!(!done.stderr.contains("panicked"), "{what}: {done}");
    }
    assert_eq!(lab.xbuild(&["images", "-q"]).env("XBUILD_ROOT", &root).ok().out(), "");
    assert_eq!(lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &root).ok().out(), "0 problems");
}

#[test]
fn names_come_and_go() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    assert_eq!(names(&lab), ["app:1", "busybox:latest"]);
    lab.xbuild(&["tag", "app:1", "team/app"]).ok();
    let id = lab.xbuild(&["inspect", "app:1"]).ok().json()[0]["Id"].as_str().unwrap().to_owned();
    let short = &id["sha256:".len()..][..12];
    lab.xbuild(&["tag", short, "by-id:2"]).ok();
    assert_eq!(names(&lab), ["app:1", "busybox:latest", "by-id:2", "team/app:latest"]);
    assert_eq!(lab.xbuild(&["images", "-q", "app"]).ok().out(), short);
    assert_eq!(lab.xbuild(&["images", "-q", "--no-trunc", "team/app"]).ok().out(), id);

    lab.xbuild(&["rmi", "app:1"]).ok();
    lab.xbuild(&["inspect", "app:1"]).exits(1).says("app:1");
    assert_eq!(lab.xbuild(&["run", "team/app"]).ok().out(), "content");
    lab.xbuild(&["rmi", short]).exits(1);
    lab.xbuild(&["rmi", "-f", short]).ok();
    assert_eq!(names(&lab), ["busybox:latest"]);
    lab.xbuild(&["rmi", "app:1"]).exits(1).says("app:1");
    lab.xbuild(&["tag", "app:1", "other"]).exits(1).says("app:1");
}

#[test]
fn inspect_and_history_tell_how_it_was_made() {
    let Some(lab) = lab(&[]) else { return };
    app(&lab);
    lab.xbuild(&["save", "-o", "app.tar", "app:1"]).ok();
    let image = Image::only(&lab.path("app.tar"));
    let found = lab.xbuild(&["inspect", "app:1", "busybox"]).ok().json();
    assert_eq!(found.as_array().unwrap().len(), 2);
    assert_eq!(found[0]["Config"]["Labels"]["key"], "value");
    assert_eq!(found[0]["Config"]["Cmd"], image.config["config"]["Cmd"]);
    assert_eq!(found[0]["RootFS"]["Layers"], image.config["rootfs"]["diff_ids"]);

    let history = lab.xbuild(&["history", "--no-trunc", "app:1"]).ok().out();
    let lines: Vec<_> = history.lines().skip(1).collect();
    assert_eq!(lines.len(), image.config["history"].as_array().unwrap().len());
    for (line, part) in lines.iter().zip(["CMD [\"cat\"", "ENV E=1", "RUN /bin/sh -c rm", "COPY a /a"]) {
        assert!(line.contains(part), "`{part}` is not in `{line}`");
    }
}

#[test]
fn an_image_whose_container_runs_loses_its_name_only_by_force() {
    let Some(lab) = lab(&[]) else { return };
    lab.xbuild(&["run", "-d", "--name", "user", "busybox", "sleep", "100"]).ok();
    lab.xbuild(&["rmi", "busybox"]).exits(1).says("(must force)");
    let id = lab.xbuild(&["images", "-q", "busybox"]).ok().out();
    lab.xbuild(&["rmi", "-f", &id]).exits(1).says("(cannot be forced)");
    assert_eq!(lab.xbuild(&["rmi", "-f", "busybox"]).ok().out(), "Untagged: busybox:latest");
    lab.xbuild(&["run", "--pull", "never", "busybox"]).exits(125).says("No such image: busybox:latest");
    assert_eq!(lab.xbuild(&["exec", "user", "echo", "still"]).ok().out(), "still");
    lab.xbuild(&["rm", "-f", "user"]).ok();
}
