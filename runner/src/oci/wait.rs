//! Waiting for a process as its parent.

use rustix::process::WaitOptions;
use std::io;

/// Has signals kept for [`wait_for`], which passes them on. To be called before the process is made.
pub fn forward_signals() -> io::Result<()> {
    xbuild_sys::block_signals()
}

/// Waits for the end of a child, passes signals on to it meanwhile, and gives its exit code, 128 + signal if one ended it.
#[must_use]
pub fn wait_for(pid: u32) -> u8 {
    loop {
        while let Ok(Some((ended, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if ended.as_raw_nonzero().get() as u32 == pid {
                let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
                return code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
            }
        }
        match xbuild_sys::wait_signal() {
            Ok(libc::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                // It may have ended a moment ago.
                let _ = xbuild_sys::kill(pid, signal);
            }
        }
    }
}
