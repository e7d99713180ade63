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
