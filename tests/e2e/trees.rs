//! Trees in forms that most builds never need.

use crate::lab;
use std::fmt::Write;
use xbuild_testkit::Image;

/// The kernel mounts 500 directories at most, so the lower ones of a longer chain become one.
#[test]
fn more_layers_than_the_kernel_mounts_at_once() {
    let Some(lab) = lab(&[]) else { return };
    let mut dockerfile = "FROM busybox\n".to_owned();
    for n in 0..600 {
        writeln!(dockerfile, "COPY --chmod=600 f /d/f{n}").expect("a string can be written to");
    }
    dockerfile.push_str(
        "RUN ls /d | wc -l > /count && rm /d/f7 && echo changed > /d/f9\nRUN cat /d/f9 > /seen; ls /d/f7; true\n",
    );
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/f", "value\n");
    lab.xbuild(&["build", "-o", "type=oci,dest=long.tar", "app"]).ok();
    let image = Image::only(&lab.path("long.tar"));
    assert_eq!((image.text("count"), image.text("seen")), ("600".into(), "changed".into()));
    let files = image.files();
    assert!(!files.contains_key("d/f7") && files.contains_key("d/f599"));
    assert!(image.layers.len() > 602);
    lab.xbuild(&["store", "check"]).ok();
}

/// What every kind of change looks like in a layer.
const CHANGES: &str = "FROM busybox
RUN mkdir -p /a/b /gone /again/x /kind /keep/deep && echo 1 > /a/b/f && echo 2 > /gone/f && echo 3 > /again/x/old \\
    && echo 4 > /kind/file && mkdir /kind/dir && echo 5 > /kind/dir/f && echo 6 > /keep/deep/f && ln /a/b/f /a/link \\
    && echo 7 > /h1 && ln /h1 /h2
RUN echo new > /a/b/new && mkdir -p /fresh/deep && echo f > /fresh/deep/f
RUN echo more >> /a/b/f && rm -r /gone && rm /a/link
RUN rm -r /again && mkdir -p /again/x && echo now > /again/x/new
RUN rm /kind/file && mkdir /kind/file && echo in > /kind/file/f && rm -r /kind/dir && ln -s ../a /kind/dir
RUN chmod 700 /a/b && chown 7:8 /keep/deep/f && mkfifo /fresh/pipe && mv /fresh/deep /moved
RUN touch -d @1500000000 /keep/deep/f && ln /keep/deep/f /keep/second
RUN ln /h1 /h3 && mv /kind/dir /kind/link
RUN true
RUN --mount=type=bind,target=/ctx,rw --mount=type=bind,from=busybox,source=/bin,target=/tools \\
    echo x > /ctx/new && /tools/cat /ctx/Dockerfile /ctx/new > /read
";

#[test]
fn copies_of_roots_give_the_layers_of_overlays() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", CHANGES);
    let built = |snapshotter: &str| {
        let root = lab.other_root(snapshotter);
        lab.load_busybox(&root);
        let output = format!("type=oci,dest={snapshotter}.tar");
        let call = lab.xbuild(&["build", "--progress=plain", "-o", &output, "app"]);
        let done = call.env("XBUILD_ROOT", &root).env("XBUILD_SNAPSHOTTER", snapshotter).ok();
        assert!(!done.stderr.contains("cannot be used"), "{done}");
        lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &root).ok();
        Image::only(&lab.path(&format!("{snapshotter}.tar")))
    };
    let (overlay, native) = (built("overlay"), built("native"));
    assert_eq!(overlay.layers.len(), native.layers.len());
    for (n, (one, other)) in overlay.layers.iter().zip(&native.layers).enumerate() {
        let told = |tree: &xbuild_testkit::Tree| -> Vec<String> {
            let line = |(path, e): (&String, &xbuild_testkit::Entry)| {
                format!("{path} {} {:o} {:?} {}", e.kind, e.mode, e.owner, String::from_utf8_lossy(&e.data))
            };
            tree.iter().map(line).collect()
        };
        assert_eq!(told(&one.entries), told(&other.entries), "layer {n}");
    }
    assert_eq!(native.text("read"), format!("{CHANGES}x").trim());
}

#[test]
fn an_unknown_way_to_make_roots_is_refused() {
    let Some(lab) = lab(&[]) else { return };
    let done = lab.xbuild(&["images"]).env("XBUILD_SNAPSHOTTER", "btrfs").exits(1);
    assert!(done.stderr.contains("XBUILD_SNAPSHOTTER is none of `auto`, `overlay`, `native`"), "{done}");
}

#[test]
fn a_container_can_stand_on_a_copy() {
    let Some(lab) = lab(&[]) else { return };
    let script = "echo new > /etc/file && rm /bin/zcat && cat /etc/file && ls / | head -1";
    let run = lab.xbuild(&["run", "--rm", "--network=none", "busybox", "sh", "-c", script]);
    assert_eq!(run.env("XBUILD_SNAPSHOTTER", "native").ok().out(), "new\nbin");
    assert_eq!(lab.xbuild(&["run", "--rm", "--network=none", "busybox", "ls", "/bin/zcat"]).ok().out(), "/bin/zcat");
}

/// An overlay cannot be the upper directory of another one.
#[test]
fn where_overlays_do_not_work_copies_are_made() {
    let Some(lab) = lab(&["unshare", "mount"]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo one > /one\nRUN cat /one > /two\n");
    for name in ["lower", "upper", "work", "at"] {
        std::fs::create_dir(lab.path(name)).expect("a directory can be made");
    }
    let script = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work at && export XBUILD_ROOT=$PWD/at/root \
                  && \"$0\" load && exec \"$0\" build --progress=plain -o type=local,dest=out app";
    let program = crate::program().to_str().expect("a plain name");
    let call = lab.tool("unshare", &["--mount", "sh", "-c", script, program]);
    let done = call.input(xbuild_testkit::busybox(crate::program())).ok();
    assert_eq!(done.stderr.matches("overlayfs cannot be used, every RUN copies its root").count(), 1, "{done}");
    assert_eq!(lab.read("out/two"), "one");
}
