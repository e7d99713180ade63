//! Words of the shell in instructions: quotes, escapes, expansions with defaults and patterns.
#![no_main]

mod resolver;

use libfuzzer_sys::fuzz_target;
use xbuild_frontend::{Options, SourceFile, lower, parse};
use xbuild_graph::Platform;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if text.contains(['\n', '\r']) {
        return;
    }
    let options = Options::new(Platform::new("linux", "amd64", None));
    for instruction in ["ENV X=", "LABEL a=", "WORKDIR ", "COPY ", "CMD ", "EXPOSE ", "STOPSIGNAL "] {
        let dockerfile = format!("FROM base\nARG a=one b=\"two three\" c\nENV d=/a/b/c.tar.gz\n{instruction}{text}\n");
        let source = SourceFile::new("Dockerfile", dockerfile.as_str());
        if let Ok(plan) = lower(&parse(&source), &options, &resolver::Empty) {
            let expanded: usize = plan.images.iter().map(|i| i.config.config.env.iter().map(String::len).sum::<usize>()).sum();
            assert!(expanded < 1 << 24, "an expansion of {} bytes gave {expanded}", text.len());
        }
    }
});
