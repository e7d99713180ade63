//! What other programs make of xbuild's archives.

use crate::lab;
use xbuild_testkit::{Image, Lab, find, skip};

fn context(lab: &Lab) {
    let dockerfile = "FROM busybox\nCOPY --chmod=640 --chown=7:8 a /dir/a\nRUN ln -s a /dir/link && ln /dir/a /dir/hard \
                      && rm /etc/group && echo ran > /ran\nLABEL key=value\nENV NAME=text\nUSER 7:8\nCMD [\"cat\", \"/ran\"]\n";
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/a", "content\n");
}

#[test]
fn skopeo_reads_oci_layouts() {
    let Some(lab) = lab(&["skopeo"]) else { return };
    context(&lab);
    for (tar, kind) in [("true", "oci-archive"), ("false", "oci")] {
        for packing in ["gzip", "zstd", "uncompressed"] {
            let (dest, copy) = (format!("{packing}.{kind}"), format!("{packing}.{kind}.dir"));
            let output = format!("type=oci,dest={dest},tar={tar},compression={packing},force-compression=true");
            lab.xbuild(&["-t", "app:1.0", "-o", &output, "app"]).ok();
            let image = Image::only(&lab.path(&dest));

            let source = format!("{kind}:{dest}");
            let found = lab.tool("skopeo", &["inspect", &source]).ok().json();
            assert_eq!(found["Digest"], image.digest);
            assert_eq!(found["Labels"]["key"], "value");
            assert_eq!(found["Layers"].as_array().unwrap().len(), image.layers.len());
            let copied = lab.tool("skopeo", &["copy", "--insecure-policy", &source, &format!("dir:{copy}")]).run();
            assert_eq!(copied.code, 0, "{copied}");
            for layer in &image.layers {
                let blob = lab.path(&copy).join(layer.digest.trim_start_matches("sha256:"));
                assert!(blob.is_file(), "{} was not copied", layer.digest);
            }
        }
    }
}

#[test]
fn umoci_unpacks_oci_layouts() {
    let Some(lab) = lab(&["umoci"]) else { return };
    context(&lab);
    lab.xbuild(&["-t", "app:1.0", "-o", "type=oci,dest=layout,tar=false", "app"]).ok();
    let image = Image::only(&lab.path("layout"));
    lab.tool("umoci", &["unpack", "--image", "layout:1.0", "bundle"]).ok();
    let root = lab.path("bundle/rootfs");
    for (path, entry) in image.files() {
        use std::os::unix::fs::MetadataExt;
        let path = root.join(path);
        let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!((u64::from(meta.uid()), u64::from(meta.gid())), entry.owner, "{}", path.display());
        if entry.kind == "file" {
            assert_eq!(std::fs::read(&path).unwrap(), entry.data, "{}", path.display());
        }
        if entry.kind != "link" {
            assert_eq!(meta.mode() & 0o7777, entry.mode, "{}", path.display());
        }
    }
    assert!(!root.join("etc/group").exists(), "a removed file stays away");
    assert_eq!(std::fs::read_link(root.join("dir/link")).unwrap().to_str(), Some("a"));
    let config: serde_json::Value = serde_json::from_str(&lab.read("bundle/config.json")).unwrap();
    assert_eq!(config["process"]["args"], serde_json::json!(["cat", "/ran"]));
    assert_eq!(config["process"]["user"]["uid"], 7);
}

#[test]
fn skopeo_reads_docker_archives() {
    let Some(lab) = lab(&["skopeo"]) else { return };
    context(&lab);
    lab.xbuild(&["-t", "app:1.0", "-o", "type=docker,dest=app.tar", "app"]).ok();
    let image = Image::only(&lab.path("app.tar"));
    let found = lab.tool("skopeo", &["inspect", "docker-archive:app.tar"]).ok().json();
    assert_eq!(found["Labels"]["key"], "value");
    let by_name = "docker-archive:app.tar:docker.io/library/app:1.0";
    lab.tool("skopeo", &["copy", "--insecure-policy", by_name, "oci:copy:1.0"]).ok();
    let copy = Image::only(&lab.path("copy"));
    assert_eq!(copy.diff_ids(), image.diff_ids());
    assert_eq!(copy.files(), image.files());
    assert_eq!(copy.config["config"], image.config["config"]);
}

#[test]
fn podman_loads_and_runs_docker_archives() {
    let Some(lab) = lab(&["podman"]) else { return };
    context(&lab);
    let (root, runroot) = (lab.path("podman"), lab.path("podman-run"));
    let podman = |arguments: &[&str]| {
        let call = lab.tool("podman", &["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        call.arg("--root").arg(&root).arg("--runroot").arg(&runroot).args(arguments)
    };
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
    let run = |runtime: &str| podman(&["--runtime", runtime, "run", "--rm", "--network", "host"]).args(&limits);
    // Whether podman works at all shows with files that it packed itself.
    lab.write("probe/Dockerfile", "FROM busybox\n");
    lab.xbuild(&["-o", "type=tar,dest=probe.tar", "probe"]).ok();
    podman(&["import", "-q", "probe.tar", "probe"]).run();
    let works = |runtime: &&str| run(runtime).args(&["probe", "/bin/busybox", "true"]).run().code == 0;
    let Some(runtime) = ["crun", "runc"].into_iter().filter(|r| find(r).is_some()).find(works) else {
        skip("podman does not run containers here, neither with crun nor with runc");
        return;
    };
    lab.xbuild(&["-t", "app:1.0", "-o", "type=docker,dest=app.tar", "app"]).ok();
    let image = Image::only(&lab.path("app.tar"));
    podman(&["load", "-q", "-i", "app.tar"]).ok();
    let found = podman(&["image", "inspect", "app:1.0"]).ok().json();
    assert_eq!(found[0]["Id"], image.id.trim_start_matches("sha256:"));
    assert_eq!(run(runtime).args(&["app:1.0"]).ok().out(), "ran");
    let printed = run(runtime).args(&["app:1.0", "sh", "-c", "echo $NAME $(id -u):$(id -g)"]).ok().out();
    assert_eq!(printed, "text 7:8");
}
