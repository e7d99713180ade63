//! The base image of tests: busybox, built by the program that is tested.

use crate::Lab;
use std::path::Path;
use std::sync::OnceLock;

/// An archive of the image `busybox`, made from the static busybox of this machine at the first call.
pub fn busybox(program: &Path) -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let lab = Lab::empty(program);
        let busybox = crate::find("busybox").expect("busybox is there when tests are not skipped");
        std::fs::create_dir(lab.path("base")).expect("a directory can be made");
        std::fs::copy(busybox, lab.path("base/busybox")).expect("busybox can be copied");
        lab.write("base/Dockerfile", include_str!("../../../examples/base/busybox/Dockerfile"));
        lab.xbuild(&["-t", "busybox", "base"]).ok();
        lab.xbuild(&["save", "busybox"]).ok().stdout
    })
}
