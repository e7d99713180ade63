//! The tar of a layer: unpacked within its directory and limits, and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use xbuild_cache::tree::{Limits, Marks, TarOptions, View, decompress, unpack_layer, write_layer};

fuzz_target!(|data: &[u8]| {
    let outside = tempfile::tempdir_in("/dev/shm").expect("a directory can be made");
    let target = outside.path().join("layer");
    std::fs::create_dir(&target).expect("a directory can be made");
    let none = || View::layers::<&Path>(&[], Marks::Plain);
    let limits = Limits { bytes: 1 << 20, entries: 1000 };
    let Ok(mut stream) = decompress(data) else { return };
    let unpacked = unpack_layer(&mut stream, &target, &none, Marks::Plain, limits);
    let entries = std::fs::read_dir(outside.path()).expect("a directory can be read").count();
    assert_eq!(entries, 1, "something was written beside the target");
    if let Ok(unpacked) = unpacked {
        assert!(unpacked.bytes <= limits.bytes && unpacked.entries <= limits.entries);
        let mut tar = Vec::new();
        write_layer(&[&target], Marks::Plain, TarOptions { clamp: None }, &mut tar)
            .expect("what was unpacked can be packed");
    }
});
