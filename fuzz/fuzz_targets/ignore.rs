//! `.dockerignore`, and the wildcards of COPY, against paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xbuild_frontend::{contains_wildcards, glob_match, glob_valid, ignore};

fuzz_target!(|data: &[u8]| {
    let (patterns, path) = match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &b"a/b/c.txt"[..]),
    };
    let path = String::from_utf8_lossy(path).trim_matches('/').to_owned();
    if let Ok(parsed) = ignore::parse(patterns)
        && let Ok(matcher) = ignore::Matcher::new(&parsed)
    {
        let excluded = matcher.excluded(&path);
        if let Some((directory, _)) = path.rsplit_once('/')
            && matcher.excluded(directory)
            && !excluded
        {
            assert!(matcher.may_hold_exceptions(directory), "`{path}` is visible below the hidden `{directory}`");
        }
    }
    let pattern = String::from_utf8_lossy(patterns);
    if glob_valid(&pattern) && !contains_wildcards(&pattern) && !pattern.contains('\\') {
        assert_eq!(glob_match(&pattern, &path), pattern == path, "{pattern:?} {path:?}");
    } else {
        glob_match(&pattern, &path);
    }
});
