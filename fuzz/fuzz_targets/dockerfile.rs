//! A Dockerfile: parsed, checked, lowered; every diagnostic is rendered.
#![no_main]

mod resolver;

use libfuzzer_sys::fuzz_target;
use xbuild_frontend::{Options, SourceFile, check, lower, outline, parse, render_plain, targets};
use xbuild_graph::Platform;

fuzz_target!(|data: &[u8]| {
    let source = SourceFile::new("Dockerfile", data.to_vec());
    let parsed = parse(&source);
    let options = Options::new(Platform::new("linux", "amd64", None));
    let (again, plan) = (parse(&source), lower(&parsed, &options, &resolver::Empty));
    match (&plan, lower(&again, &options, &resolver::Empty)) {
        (Ok(one), Ok(two)) => assert_eq!(one.graph.in_order().len(), two.graph.in_order().len()),
        (Err(one), Err(two)) => {
            assert!(!one.is_empty() && one.len() == two.len());
            for diagnostic in one {
                assert!(!render_plain(diagnostic, &source).is_empty());
            }
        }
        _ => panic!("one text, two answers"),
    }
    let _ = check(&parsed, &source, &options, &resolver::Empty);
    let _ = outline(&parsed, &source, &options, &resolver::Empty);
    let _ = targets(&parsed, &source);
});
