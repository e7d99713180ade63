//! Tests over whole operations.

use super::*;
use rustix::fs::{AtFlags, FileType, Mode, XattrFlags};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

mod archive;
mod copying;
mod deltas;
mod digests;
mod rootless;
mod roundtrip;
mod viewing;

/// True if the test can run; says why not otherwise.
fn needs_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped {test}: needs root for owners and device nodes");
    }
    root
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

/// Writes files, directories (ending in `/`) and links (`-> target` as content).
fn fill(root: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a name below the root")).expect("parents");
        if name.ends_with('/') {
            fs::create_dir_all(&path).expect("directory");
        } else if let Some(target) = content.strip_prefix("-> ") {
            symlink(target, &path).expect("link");
        } else {
            fs::write(&path, content).expect("file");
        }
    }
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).expect("whiteout");
}

fn opaque(path: &Path) {
    rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).expect("opaque");
}

/// One line for each entry: kind, mode, owner, content or target.
fn show(view: &View) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut todo = vec![view.require("/", true).expect("root")];
    while let Some(node) = todo.pop() {
        for child in view.read_dir(&node).expect("list") {
            let meta = child.meta;
            let rest = match meta.kind {
                Kind::File => {
                    let content = view.read_small(&child.path, 1 << 20).expect("read").expect("exists");
                    String::from_utf8_lossy(&content).into_owned()
                }
                Kind::Symlink => format!("-> {}", view.read_link(&child).expect("read link").display()),
                kind => format!("{kind:?}"),
            };
            let line = format!("{:o} {}:{} {rest}", meta.mode, meta.uid, meta.gid);
            lines.insert(child.path.display().to_string(), line);
            if meta.is_dir() {
                todo.push(child);
            }
        }
    }
    lines
}

fn simple_match(pattern: &str, name: &str) -> bool {
    fn go(p: &[u8], n: &[u8]) -> bool {
        match (p.first(), n.first()) {
            (None, None) => true,
            (Some(b'*'), _) => go(&p[1..], n) || (!n.is_empty() && n[0] != b'/' && go(p, &n[1..])),
            (Some(b'?'), Some(c)) if *c != b'/' => go(&p[1..], &n[1..]),
            (Some(a), Some(b)) if a == b => go(&p[1..], &n[1..]),
            _ => false,
        }
    }
    go(pattern.as_bytes(), name.as_bytes())
}

/// `**` for any number of components, at the beginning of a pattern only.
fn glob_match(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("**/") {
        Some(rest) => {
            simple_match(rest, name) || name.match_indices('/').any(|(at, _)| simple_match(rest, &name[at + 1..]))
        }
        None => simple_match(pattern, name),
    }
}

fn options(destination: &str) -> CopyOptions<'_> {
    CopyOptions {
        destination: Path::new(destination),
        owner: None,
        keep_owner: false,
        mode: None,
        unpack: false,
        parents: false,
        excludes: None,
        wildcard: &simple_match,
        glob: &glob_match,
        mtime: None,
        clamp: None,
        limits: Limits::default(),
        changes: None,
        digests: None,
    }
}

fn empty() -> View {
    View::layers::<&Path>(&[], Marks::Trusted).expect("empty view")
}

/// Copies in an own diff over `base` and answers the diff.
fn copied(base: &View, view: &View, sources: &[&str], options: &CopyOptions<'_>) -> Result<TempDir> {
    let diff = dir();
    let writer = DiffWriter::new(diff.path(), base, Marks::Trusted)?;
    let paths: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
    let sources: Vec<CopySource<'_>> = paths
        .iter()
        .map(|path| CopySource::Path { view, path, wildcard: path.to_string_lossy().contains('*'), required: true })
        .collect();
    writer.copy(&sources, options)?;
    writer.finish()?;
    Ok(diff)
}

fn lines(view: &View) -> Vec<String> {
    show(view).into_iter().map(|(path, line)| format!("{path} {line}")).collect()
}

fn mtime_of(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.mtime(), meta.mtime_nsec())
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn link_to(from: &Path, to: &Path) {
    rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, to, AtFlags::empty()).expect("link");
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("setxattr");
}

fn name(path: &str) -> &OsStr {
    OsStr::new(path)
}
