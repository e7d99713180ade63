//! Files between containers, the host, archives and images.

use crate::lab;
use std::os::unix::fs::symlink;
use xbuild_testkit::{FileServer, Reply};

#[test]
fn cp_goes_both_ways_under_the_rules_of_cp() {
    let Some(lab) = lab(&[]) else { return };
    lab.xbuild(&["create", "--name", "web", "-v", "data:/vol", "busybox", "cat", "/given"]).ok();
    lab.write("given", "gift\n");
    lab.write("d/a", "1");
    lab.write("d/sub/b", "2");
    let cp = |from: &str, to: &str| lab.xbuild(&["cp", from, to]);
    cp("given", "web:/given").ok();
    cp("given", "web:/vol/x").ok();
    assert_eq!(lab.xbuild(&["start", "-a", "web"]).ok().out(), "gift");
    cp("web:/given", "back").ok();
    assert_eq!(lab.read("back"), "gift");
    assert_eq!(lab.xbuild(&["run", "--rm", "-v", "data:/v", "busybox", "cat", "/v/x"]).ok().out(), "gift");
    cp("d", "web:/tmp/new").ok();
    cp("d", "web:/tmp").ok();
    cp("d/.", "web:/var").ok();
    cp("web:/tmp/new", "one").ok();
    assert_eq!(lab.read("one/sub/b"), "2");
    cp("web:/tmp/d/.", "two").ok();
    assert_eq!(lab.read("two/a"), "1");
    cp("web:/var/sub", "two").ok();
    assert_eq!(lab.read("two/sub/b"), "2");
    cp("d", "web:/etc/passwd").exits(1).says("directory");
    cp("given", "web:/no/such/dir/x").exits(1).says("no such");
    cp("web:/nothing", "x").exits(1).says("no such");
}

#[test]
fn links_of_a_container_stay_inside() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("victim/keep", "x");
    lab.write("evil", "evil");
    let victim = lab.path("victim").display().to_string();
    let script = format!("ln -s {victim} /out; ln -s /etc/hostname /up; sleep 1000");
    lab.xbuild(&["run", "-d", "--network", "none", "--name", "web", "-h", "inside", "busybox", "sh", "-c", &script])
        .ok();
    xbuild_testkit::wait_until("the links are there", || {
        lab.xbuild(&["exec", "web", "test", "-L", "/up"]).run().code == 0
    });
    assert_ne!(lab.xbuild(&["cp", "evil", "web:/out/evil"]).run().code, 0);
    assert!(!lab.path("victim/evil").exists());
    lab.xbuild(&["cp", "-L", "web:/up", "name"]).ok();
    assert_eq!(lab.read("name"), "inside");
    symlink(lab.path("victim"), lab.path("way")).unwrap();
    lab.xbuild(&["cp", "web:/up", "aslink"]).ok();
    assert!(lab.path("aslink").is_symlink());
    lab.xbuild(&["rm", "-f", "web"]).ok();
}

#[test]
fn copies_between_containers_are_refused_at_once() {
    let Some(lab) = lab(&[]) else { return };
    lab.xbuild(&["create", "--name", "web", "busybox"]).ok();
    let refusal = "copying between containers is not supported";
    lab.xbuild(&["cp", "web:/etc", "web:/tmp"]).exits(1).says(refusal);
    lab.xbuild(&["cp", "web:/etc", "other:/tmp"]).exits(1).says(refusal);
}

#[test]
fn changes_become_images() {
    let Some(lab) = lab(&[]) else { return };
    let script = "echo new > /new; rm /etc/group; echo v > /vol/f";
    lab.xbuild(&["run", "--name", "web", "-e", "KEPT=1", "-v", "/vol", "busybox", "sh", "-c", script]).ok();
    let diff = lab.xbuild(&["diff", "web"]).ok().out();
    for line in ["A /new", "D /etc/group", "C /etc"] {
        assert!(diff.lines().any(|own| own == line), "{line} in\n{diff}");
    }
    assert!(!diff.contains("/vol/f") && !diff.contains("/etc/hosts"), "{diff}");
    let changes = ["--change", "CMD [\"cat\", \"/new\"]", "--change", "LABEL who=me", "-m", "remark"];
    let id = lab.xbuild(&["commit"]).args(&changes).args(&["web", "kept:1"]).ok().out();
    let image = lab.xbuild(&["inspect", "kept:1"]).ok().json();
    assert_eq!((image[0]["Id"].as_str(), image[0]["Comment"].as_str()), (Some(&*id), Some("remark")));
    assert_eq!(lab.xbuild(&["run", "--rm", "kept:1"]).ok().out(), "new");
    lab.xbuild(&["run", "--rm", "kept:1", "test", "-e", "/etc/group"]).exits(1);
    lab.xbuild(&["export", "-o", "fs.tar", "web"]).ok();
    lab.xbuild(&["import", "--change", "CMD cat /new", "fs.tar", "flat:1"]).ok();
    assert_eq!(lab.xbuild(&["run", "--rm", "flat:1"]).ok().out(), "new");
    assert_eq!(lab.xbuild(&["inspect", "-f", "{{len .RootFS.Layers}}", "flat:1"]).ok().out(), "1");
    let server = FileServer::start();
    let address = server.put("/fs.tar", Reply::File(std::fs::read(lab.path("fs.tar")).unwrap()));
    lab.xbuild(&["import", &address, "flat:2"]).ok();
    assert_eq!(lab.xbuild(&["run", "--rm", "flat:2", "cat", "/new"]).ok().out(), "new");
    lab.xbuild(&["import", &(address + ".gone")]).exits(1).says("404");
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}

#[test]
fn images_in_use_stay() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo 1 > /v\n");
    lab.xbuild(&["-t", "app:1", "app"]).ok();
    let id = lab.xbuild(&["inspect", "-f", "{{.Id}}", "app:1"]).ok().out();
    lab.xbuild(&["create", "--name", "web", "app:1", "cat", "/v"]).ok();
    lab.xbuild(&["rmi", "app:1"]).exits(1).says("using");
    lab.xbuild(&["rmi", "-f", "app:1"]).ok();
    lab.xbuild(&["prune", "-a", "-f"]).ok();
    assert_eq!(lab.xbuild(&["start", "-a", "web"]).ok().out(), "1", "its files are there as long as it is");
    lab.xbuild(&["rm", "web"]).ok();
    lab.xbuild(&["inspect", &id]).exits(1).says("No such");
    lab.xbuild(&["-t", "app:1", "app"]).ok();
    let old = lab.xbuild(&["inspect", "-f", "{{.Id}}", "app:1"]).ok().out();
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo 2 > /v\n");
    lab.xbuild(&["-t", "app:1", "app"]).ok();
    let dangling = ["images", "-q", "--no-trunc", "-f", "dangling=true"];
    assert_eq!(lab.xbuild(&dangling).ok().out(), old);
    lab.xbuild(&["image", "prune", "-f"]).ok();
    assert_eq!(lab.xbuild(&dangling).ok().out(), "");
    lab.xbuild(&["inspect", &old]).exits(1).says("No such");
}
