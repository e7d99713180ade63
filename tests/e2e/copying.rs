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
fn the_whole_root_goes_without_what_the_kernel_shows() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("bound/file", "bound");
    let bind = format!("{}:/bound", lab.path("bound").display());
    let create = ["create", "--name", "web", "--network", "none", "-v", "data:/vol", "-v", &bind, "busybox"];
    lab.xbuild(&create).args(&["sleep", "1000"]).ok();
    lab.write("given", "gift");
    lab.xbuild(&["cp", "given", "web:/vol/x"]).ok();
    let check = |to: &str| {
        assert_eq!(
            (lab.read(&format!("{to}/vol/x")), lab.read(&format!("{to}/bound/file"))),
            ("gift".into(), "bound".into())
        );
        assert!(lab.path(to).join("bin/busybox").exists());
        for empty in ["proc", "sys", "dev"] {
            let path = lab.path(to).join(empty);
            assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "{}", path.display());
        }
    };
    lab.xbuild(&["cp", "web:/", "stopped"]).ok();
    check("stopped");
    lab.xbuild(&["start", "web"]).ok();
    lab.xbuild(&["cp", "web:/.", "running"]).ok();
    check("running");
    lab.xbuild(&["cp", "web:/", "-"]).ok();
    lab.xbuild(&["rm", "-f", "web"]).ok();
}

#[test]
fn links_at_both_ends_are_resolved_as_docker_does() {
    let Some(lab) = lab(&[]) else { return };
    let script =
        "ln -s tmp/o /okl; ln -s /tmp/chain /b; ln -s b /a; ln -s no/where /lost; mkdir /d; echo 1 > /d/f; ln -s d /lv";
    lab.xbuild(&["run", "--name", "web", "busybox", "sh", "-c", script]).ok();
    let cp = |from: &str, to: &str| lab.xbuild(&["cp", from, to]);
    lab.write("one", "one");
    lab.write("two", "two");
    for content in ["one", "two"] {
        cp(content, "web:/okl").ok();
        cp(content, "web:/a").ok();
        cp("web:/tmp/o", "o").ok();
        cp("web:/tmp/chain", "chain").ok();
        assert_eq!((lab.read("o"), lab.read("chain")), (content.to_owned(), content.to_owned()));
    }
    cp("web:/okl", "kept").ok();
    assert_eq!(std::fs::read_link(lab.path("kept")).unwrap().to_str(), Some("tmp/o"));
    cp("one", "web:/lost").exits(1).says("could not find the directory");
    lab.write("file", "old");
    symlink("file", lab.path("link")).unwrap();
    symlink("fresh", lab.path("dangling")).unwrap();
    cp("web:/d/f", "link").ok();
    cp("web:/d/f", "dangling").ok();
    assert!(lab.path("link").is_symlink() && lab.path("dangling").is_symlink());
    assert_eq!((lab.read("file"), lab.read("fresh")), ("1".to_owned(), "1".to_owned()));
    lab.write("tree/leaf", "leaf");
    symlink("tree", lab.path("sl")).unwrap();
    cp("sl/", "web:/t1").ok();
    cp("web:/t1/leaf", "leaf").ok();
    assert_eq!(lab.read("leaf"), "leaf");
    cp("web:/lv/", "o2").ok();
    assert!(!lab.path("o2").is_symlink());
    assert_eq!(lab.read("o2/f"), "1");
}

/// The files of a container that does not run are mounted where the host's processes can be seen.
#[test]
fn links_of_the_kernel_do_not_lead_to_the_host() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("victim/keep", "x");
    lab.write("evil", "evil");
    let target = format!("/proc/{}/root{}", std::process::id(), lab.path("victim").display());
    let script = format!("ln -s {target} /out; ln -s {target}/evil /file");
    lab.xbuild(&["run", "--name", "web", "busybox", "sh", "-c", &script]).ok();
    for to in ["web:/out/evil", "web:/out", "web:/out/", "web:/file"] {
        assert_ne!(lab.xbuild(&["cp", "evil", to]).run().code, 0, "{to}");
    }
    for from in ["web:/out/keep", "web:/out/.", "web:/out/"] {
        assert_ne!(lab.xbuild(&["cp", from, "got"]).run().code, 0, "{from}");
    }
    assert_ne!(lab.xbuild(&["cp", "-L", "web:/out", "got"]).run().code, 0);
    assert!(!lab.path("victim/evil").exists() && !lab.path("got").exists());
}

#[test]
fn lists_and_inspect_answer_as_docker_does() {
    let Some(lab) = lab(&[]) else { return };
    let bind = format!("{}:/bound", lab.path("").display());
    let run = ["run", "-d", "--name", "web", "--label", "a=b", "-p", "127.0.0.1::80", "--expose", "90", "-v", &bind];
    lab.xbuild(&run).args(&["-v", "data:/data", "busybox", "sleep", "1000"]).ok();
    let address = lab.xbuild(&["port", "web", "80"]).ok().out();
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let listed = |filter: &str| lab.xbuild(&["ps", "--format", "{{.Names}}", "-f", filter]).ok().out();
    for fits in [
        format!("publish={port}"),
        format!("publish={}-{port}/tcp", port - 1),
        "expose=80-85".into(),
        "expose=90".into(),
    ] {
        assert_eq!(listed(&fits), "web", "{fits}");
    }
    for other in ["publish=80".to_owned(), format!("publish={port}/udp"), "expose=81-89".into()] {
        assert_eq!(listed(&other), "", "{other}");
    }
    for (command, filter, why) in [
        ("ps", "publish=abc", "invalid port"),
        ("ps", "exited=abc", "invalid filter 'exited=[abc]'"),
        ("images", "dangling=maybe", "invalid filter 'dangling=[maybe]'"),
    ] {
        lab.xbuild(&[command, "-f", filter]).exits(1).says(why);
    }
    lab.xbuild(&["volume", "ls", "-f", "dangling=x"]).exits(1).says("invalid filter 'dangling=[x]'");
    let inspected = |format: &str| lab.xbuild(&["inspect", "-f", format, "web"]).ok().out();
    assert_eq!(inspected("{{range .Mounts}}[{{.Name}} {{.Driver}}]{{end}}"), "[ ][data local]");
    assert_eq!(inspected("{{range .Mounts}}{{if .Name}}{{.Name}}{{end}}{{end}}"), "data");
    assert!(!inspected("{{json (index .Mounts 0)}}").contains("Name"));
    let settings = "{{.HairpinMode}} {{.LinkLocalIPv6Address}} {{.LinkLocalIPv6PrefixLen}} {{.SecondaryIPAddresses}}";
    assert_eq!(inspected(&format!("{{{{with .NetworkSettings}}}}{settings}{{{{end}}}}")), "false  0 []");
    let host = "{{.Links}}{{.MaskedPaths}}{{.StorageOpt}}{{.CpuCount}}{{.Isolation}}{{.DeviceRequests}}";
    assert_eq!(inspected(&format!("{{{{with .HostConfig}}}}{host}{{{{end}}}}")), "[][]map[]0[]");
    let shown = |format: &str| lab.xbuild(&["ps", "--format", format]).ok().out();
    assert_eq!(shown("{{json .}}"), shown("json"));
    assert!(shown("").starts_with("CONTAINER ID"));
    assert!(shown("table {{.Label \"a\"}}").starts_with("a\nb"));
    let raw = shown("raw");
    assert!(raw.starts_with("container_id: ") && raw.contains("\nlabels: a=b\nports: 127.0.0.1:"), "{raw}");
    lab.xbuild(&["rm", "-f", "web"]).ok();
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
