//! JSON of images, references and digests: what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xbuild_oci::{Digest, Document, ImageConfig, Reference};

fuzz_target!(|data: &[u8]| {
    match Document::parse(data, "") {
        Ok(Document::Manifest(manifest)) => {
            let bytes = serde_json::to_vec(&manifest).expect("a manifest can be written");
            assert!(matches!(Document::parse(&bytes, ""), Ok(Document::Manifest(again)) if again == manifest));
        }
        Ok(Document::Index(index)) => {
            let bytes = serde_json::to_vec(&index).expect("an index can be written");
            assert!(matches!(Document::parse(&bytes, ""), Ok(Document::Index(again)) if again == index));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let bytes = serde_json::to_vec(&config).expect("a configuration can be written");
        let again: ImageConfig = serde_json::from_slice(&bytes).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("a configuration can be written"), bytes);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(reference) = text.parse::<Reference>() {
            assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
        }
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
        }
    }
});
