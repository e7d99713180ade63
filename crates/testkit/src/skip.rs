//! Tests that cannot run here.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Directories of programs, besides those of `PATH`.
const MORE: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds a program.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Says why what needs `programs`, root and a static busybox cannot run, if so.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if let Some(program) = programs.iter().find(|p| find(p).is_none()) {
        return Some(format!("`{program}` is not installed"));
    }
    match find("busybox") {
        None => Some("`busybox` is not installed".to_owned()),
        Some(path) if !is_static(&path) => Some(format!("`{}` is not static", path.display())),
        Some(_) => None,
    }
}

/// Prints that the current test was skipped, past the capture of the test harness. With `XBUILD_NO_SKIP` set it fails.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    assert!(std::env::var_os("XBUILD_NO_SKIP").is_none(), "{name} would be skipped: {reason}");
    // Explicit writes are not captured; nothing can be done where there is no standard error.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}

/// Whether a 64-bit ELF file names no interpreter.
fn is_static(path: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    let Ok(bytes) = std::fs::read(path) else {
        return false;
    };
    let number = |at: usize, len: usize| {
        let field = bytes.get(at..at + len)?;
        Some(field.iter().rev().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    let headers = || {
        let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        (0..count).map(|n| number(start + n * size, 4)).collect::<Option<Vec<_>>>()
    };
    bytes.starts_with(b"\x7fELF") && headers().is_some_and(|kinds| !kinds.contains(&(INTERPRETER as usize)))
}
