//! Definitions of clients: what is taken can be written, is taken again, and is then written alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xbuild_graph::{ImageSource, Platform, llb};

fuzz_target!(|data: &[u8]| {
    let mut image = |reference: &str, platform: &Platform| match reference.len() {
        0 => Err("it has no name".to_owned()),
        _ => Ok(ImageSource {
            reference: reference.to_owned(),
            manifest: String::new(),
            chain_id: reference.to_owned(),
            origin: String::new(),
            platform: Some(platform.clone()),
        }),
    };
    match llb::decode(data, &mut image) {
        Ok((graph, result)) => {
            let written = llb::encode(&graph, result).expect("what was read can be written");
            let (again, result) = llb::decode(&written, &mut image).expect("what was written can be read");
            assert_eq!(llb::encode(&again, result).expect("once more"), written);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
