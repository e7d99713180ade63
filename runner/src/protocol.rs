//! Messages between engine, helper and the new process.
//!
//! The control socket (`SEQPACKET`) carries only descriptors: a session socket and the three standard streams. The
//! session (`STREAM`) then carries one [`crate::Spec`] towards the new process and [`Frame`]s back: `u32` length in
//! native order, then JSON. Nothing travels in arguments or the environment, since requests hold secrets.

use crate::error::Failure;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::BorrowedFd;

/// Name the helper is started under.
pub(crate) const HELPER_NAME: &str = "xbuild-sandbox";

/// The longest frame that is accepted.
pub(crate) const FRAME_LIMIT: usize = 64 << 20;

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// The set-up is done and exec is next.
    Ready(Leftovers),
    /// Another runtime has made the process, which has this id on the host; `Ready` or `Failed` follows.
    Runs(u32),
    /// The set-up or the exec failed; an `Ended` follows.
    Failed(Failure, Leftovers),
    /// The helper could not make a process.
    NotStarted(Failure),
    /// The process was reaped and all of its namespace is gone.
    Ended { code: Option<i32>, signal: Option<i32> },
}

/// What the set-up made that is to be removed after the run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leftovers {
    pub(crate) stubs: Vec<Stub>,
    pub(crate) parents: Vec<TouchedParent>,
    pub(crate) cgroups: Vec<std::path::PathBuf>,
}

/// A mount point made in the root for the time of the run. The path is real: no links, no dots.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stub {
    pub(crate) path: Vec<String>,
    pub(crate) directory: bool,
}

/// A directory that a stub was made in: its times are put back afterwards.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TouchedParent {
    pub(crate) path: Vec<String>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) atime: (i64, i64),
}

/// Writes one frame, whole.
pub(crate) fn send<T: Serialize>(to: BorrowedFd<'_>, value: &T) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > FRAME_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the sandbox request is too large"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        // MSG_NOSIGNAL: a closed peer is an error to report, not a signal to die of.
        match rustix::net::send(to, rest, rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads one frame, whole; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(from: BorrowedFd<'_>) -> io::Result<Option<T>> {
    let mut header = [0; 4];
    if !fill(from, &mut header)? {
        return Ok(None);
    }
    let length = u32::from_ne_bytes(header) as usize;
    if length > FRAME_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut body = vec![0; length];
    if !fill(from, &mut body)? {
        return Ok(None);
    }
    serde_json::from_slice(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn fill(from: BorrowedFd<'_>, mut into: &mut [u8]) -> io::Result<bool> {
    while !into.is_empty() {
        match rustix::io::read(from, &mut *into) {
            Ok(0) => return Ok(false),
            Ok(count) => into = &mut into[count..],
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
