//! `--output`: several at once, contents, and bytes that are the same each time.

use crate::lab;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use xbuild_testkit::{Image, Lab, Tree, entries};

const EPOCH: u64 = 1_700_000_000;

fn context(lab: &Lab) {
    let dockerfile = "FROM busybox AS one\nRUN mkdir /made && date +%s%N > /tmp/now && echo one > /made/one && ln -s one /made/link\n\
                      FROM busybox\nCOPY --from=one /made /made\nCOPY a /a\nRUN chmod 4750 /a && mkdir -m 700 /private \
                      && echo two > /private/two && touch -d @1800000000 /future\n";
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/a", "content\n");
}

#[test]
fn several_outputs_at_once_agree() {
    let Some(lab) = lab(&[]) else { return };
    context(&lab);
    let mut build = lab.xbuild(&["-t", "app:1", "--iidfile", "iid", "--metadata-file", "meta.json"]);
    for output in
        ["type=oci,dest=oci.tar", "type=docker,dest=docker.tar", "type=tar,dest=files.tar", "out", "type=image"]
    {
        build = build.args(&["-o", output]);
    }
    build.arg("app").ok();

    let (oci, docker) = (Image::only(&lab.path("oci.tar")), Image::only(&lab.path("docker.tar")));
    assert_eq!(oci.id, docker.id);
    assert_eq!(lab.read("iid"), oci.id);
    let stored = lab.xbuild(&["inspect", "app:1"]).ok().json();
    assert_eq!(stored[0]["Id"], oci.id);
    assert_eq!(stored[0]["RootFS"]["Layers"], oci.config["rootfs"]["diff_ids"]);

    let meta: serde_json::Value = serde_json::from_str(&lab.read("meta.json")).unwrap();
    assert_eq!(meta["containerimage.config.digest"], oci.id);
    assert_eq!(meta["image.name"], "docker.io/library/app:1");
    let digests = [&oci.digest, &docker.digest, stored[0]["Descriptor"]["digest"].as_str().unwrap()].map(str::to_owned);
    assert!(digests.contains(&meta["containerimage.digest"].as_str().unwrap().to_owned()), "{meta} {digests:?}");
    assert_eq!(meta["containerimage.descriptor"]["digest"], meta["containerimage.digest"]);

    let files = oci.files();
    same_files(&entries(&std::fs::read(lab.path("files.tar")).unwrap()), &files);
    for (path, entry) in &files {
        let path = lab.path("out").join(path);
        let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        match entry.kind {
            "file" => assert_eq!(std::fs::read(&path).unwrap(), entry.data, "{}", path.display()),
            "link" => {
                let target = std::fs::read_link(&path).unwrap();
                assert_eq!(target.as_os_str().as_encoded_bytes(), entry.data, "{}", path.display());
            }
            _ => {}
        }
        if entry.kind != "link" {
            assert_eq!(meta.permissions().mode() & 0o7777, entry.mode, "{}", path.display());
            assert_eq!(meta.mtime(), entry.time as i64, "time of {}", path.display());
        }
    }
}

/// Both have the same paths; a hard link may be any of its names.
fn same_files(found: &Tree, wanted: &Tree) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, entry) in found {
        let wanted = &wanted[path];
        assert_eq!((entry.mode, entry.owner), (wanted.mode, wanted.owner), "{path}");
        if entry.kind == wanted.kind {
            assert_eq!(entry.data, wanted.data, "{path}");
        }
    }
}

#[test]
fn archives_go_to_standard_output() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM scratch\nCOPY a /a\n");
    lab.write("app/a", "content\n");
    for (flag, image) in [("-", false), ("type=tar", false), ("type=oci", true), ("type=docker,dest=-", true)] {
        let bytes = lab.xbuild(&["-o", flag, "app"]).ok().stdout;
        if image {
            lab.write("image.tar", bytes);
            assert_eq!(Image::only(&lab.path("image.tar")).text("a"), "content");
        } else {
            assert_eq!(entries(&bytes)["a"].data, b"content\n");
        }
    }
}

#[test]
fn a_clamped_image_is_the_same_in_two_stores() {
    let Some(lab) = lab(&[]) else { return };
    context(&lab);
    let other = lab.other_root("other");
    lab.load_busybox(&other);
    let outputs = ["oci", "docker", "tar"].map(|kind| (kind, format!("type={kind},rewrite-timestamp=true,dest=")));
    let build = |root: &std::path::Path, name: &str| {
        let mut call =
            lab.xbuild(&["-t", "app:1"]).env("XBUILD_ROOT", root).env("SOURCE_DATE_EPOCH", EPOCH.to_string());
        for (kind, output) in &outputs {
            call = call.args(&["-o", &format!("{output}{name}.{kind}")]);
        }
        call.arg("app").ok();
    };
    build(&lab.root(), "first");
    // Times of files in a layer have seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    lab.write("app/a", "content\n");
    build(&other, "second");

    for (kind, _) in outputs {
        let read = |name: &str| std::fs::read(lab.path(&format!("{name}.{kind}"))).unwrap();
        assert!(read("first") == read("second"), "the archives of type={kind} differ");
    }
    let image = Image::only(&lab.path("first.oci"));
    assert_eq!(image.config["created"], "2023-11-14T22:13:20Z");
    let own = image.layers.len() - 3;
    for layer in &image.layers[own..] {
        let late = layer.entries.iter().find(|(_, entry)| entry.time > EPOCH);
        assert_eq!(late, None, "a time that is not clamped");
    }
}

#[test]
fn an_output_that_fails_leaves_nothing_behind() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN exit 3\n");
    lab.write("there.tar", "as it was");
    let flags =
        ["-o", "type=oci,dest=there.tar", "-o", "type=local,dest=out", "--iidfile", "iid", "--metadata-file", "m"];
    lab.xbuild(&flags).arg("app").exits(1);
    assert_eq!(lab.read("there.tar"), "as it was");
    let mut names: Vec<_> = std::fs::read_dir(lab.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["app", "there.tar"]);
}

#[test]
fn mode_delete_removes_what_the_result_does_not_have() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM scratch\nCOPY a /a\nCOPY a /dir/a\n");
    lab.write("app/a", "content\n");
    for old in ["out/old", "out/dir/old", "out/olddir/old", "out/a/was/a/directory"] {
        lab.write(old, "old\n");
    }
    lab.xbuild(&["-o", "type=local,dest=out,mode=delete", "app"]).ok();
    for old in ["out/old", "out/dir/old", "out/olddir"] {
        assert!(!lab.path(old).exists(), "{old}");
    }
    assert_eq!((lab.read("out/a"), lab.read("out/dir/a")), ("content".into(), "content".into()));
    lab.write("out/old", "old\n");
    lab.xbuild(&["-o", "out", "app"]).ok();
    assert_eq!(lab.read("out/old"), "old");
}

/// Exit code with a reader that takes a little of standard output and goes.
fn code_without_reader(lab: &Lab, arguments: &[&str]) -> String {
    let script = "{ \"$0\" \"$@\"; echo $? > code; } | head -c 1 > part";
    let program = crate::program().to_str().expect("the program has a plain path");
    lab.tool("sh", &["-c", script, program]).args(arguments).env("XBUILD_ROOT", lab.root()).ok();
    lab.read("code")
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some(lab) = lab(&[]) else { return };
    for arguments in [&["du"][..], &["images"], &["history", "busybox"], &["inspect", "busybox"]] {
        assert_eq!(code_without_reader(&lab, arguments), "0", "{arguments:?}");
    }
}

/// Half an image is not what was asked for.
#[test]
fn a_reader_of_an_image_that_goes_away_is_an_error() {
    let Some(lab) = lab(&[]) else { return };
    assert_eq!(code_without_reader(&lab, &["save", "busybox"]), "1");
    lab.write("app/Dockerfile", "FROM busybox\n");
    for output in ["type=tar", "type=oci", "type=docker,dest=-"] {
        assert_eq!(code_without_reader(&lab, &["-o", output, "app"]), "1", "{output}");
    }
}

#[test]
fn layers_are_packed_as_asked() {
    let Some(lab) = lab(&[]) else { return };
    context(&lab);
    let mut ids = Vec::new();
    for (packing, ending) in [("gzip", "tar+gzip"), ("zstd", "tar+zstd"), ("uncompressed", "tar")] {
        let output = format!("type=oci,dest={packing}.tar,force-compression=true,compression={packing}");
        lab.xbuild(&["-o", &output, "app"]).ok();
        let image = Image::only(&lab.path(&format!("{packing}.tar")));
        for layer in &image.layers {
            assert!(layer.media_type.ends_with(ending), "{}", layer.media_type);
        }
        ids.push((image.id.clone(), image.diff_ids(), image.files()));
    }
    assert!(ids.windows(2).all(|two| two[0] == two[1]), "packing changes no content");
}
