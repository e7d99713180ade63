//! How clients talk to a container's monitor: frames over a unix stream socket.
//!
//! A frame is one byte that says what it is, the length as `u32` (little endian), and that many bytes. Output travels as
//! it is, everything else as JSON.

use crate::network::ContainerNetwork;
use crate::spec::{Account, Privileges, Rlimit, Spec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::BorrowedFd;

/// The longest frame that is accepted.
const LIMIT: usize = 64 << 20;
/// Bytes before the content.
pub(crate) const HEADER: usize = 5;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Bytes for standard input; none is its end.
    Stdin = 0,
    /// A [`Request`].
    Request = 1,
    /// Bytes of standard output.
    Stdout = 2,
    /// Bytes of standard error.
    Stderr = 3,
    /// An [`Answer`].
    Answer = 4,
}

impl Tag {
    fn of(byte: u8) -> Option<Tag> {
        [Tag::Stdin, Tag::Request, Tag::Stdout, Tag::Stderr, Tag::Answer].into_iter().find(|tag| *tag as u8 == byte)
    }
}

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start the container; the first request to a new monitor.
    Start {
        /// Its process.
        spec: Box<Spec>,
        /// The network to make for it; without, that of `spec`.
        network: Option<Box<ContainerNetwork>>,
        /// Streams to pass on from the beginning.
        attach: Option<Streams>,
    },
    /// Pass streams of the container on.
    Attach(Streams),
    /// Run another process in it.
    Exec(Box<ExecRequest>),
    /// The terminal of this connection's process has another size: rows, columns.
    Resize(u16, u16),
    /// Send a signal to this connection's process, or to the container's.
    Signal(i32),
    /// End it: with the signal, and with SIGKILL after so many seconds; never if that is negative.
    Stop {
        /// Number of the signal.
        signal: i32,
        /// Seconds.
        timeout: i64,
    },
    /// Freeze its processes.
    Pause,
    /// Let them go on.
    Unpause,
    /// Answer when it has ended.
    Wait,
    /// The configuration has changed.
    Reload,
}

/// Which streams are passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the streams' own names")]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Another process in a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Its user.
    pub account: Account,
    /// What it may do.
    pub privileges: Privileges,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// A terminal with so many rows and columns.
    pub console: Option<(u16, u16)>,
    /// Streams to pass on; none for a process that nobody waits for.
    pub streams: Option<Streams>,
}

/// What the monitor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The process runs.
    Started {
        /// As the host sees it.
        pid: u32,
    },
    /// It could not be started.
    Failed {
        /// Why.
        message: String,
        /// The exit code that stands for it: 125, 126 or 127.
        code: u8,
    },
    /// It is done.
    Done,
    /// It cannot be done.
    Refused(String),
    /// The process has ended.
    Exited {
        /// Its exit code, 128 + signal if one ended it.
        code: i32,
    },
}

/// One frame as bytes.
pub(crate) fn frame(tag: Tag, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.push(tag as u8);
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes.extend(content);
    bytes
}

/// A frame with a value as JSON.
pub(crate) fn message<T: Serialize>(tag: Tag, value: &T) -> io::Result<Vec<u8>> {
    Ok(frame(tag, &serde_json::to_vec(value).map_err(io::Error::other)?))
}

/// Takes the first whole frame off `bytes`.
pub(crate) fn take(bytes: &mut Vec<u8>) -> io::Result<Option<(Tag, Vec<u8>)>> {
    let Some((tag, length)) = header(bytes)? else {
        return Ok(None);
    };
    if bytes.len() < HEADER + length {
        return Ok(None);
    }
    let content = bytes[HEADER..HEADER + length].to_vec();
    bytes.drain(..HEADER + length);
    Ok(Some((tag, content)))
}

fn header(bytes: &[u8]) -> io::Result<Option<(Tag, usize)>> {
    let [tag, a, b, c, d, ..] = bytes else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    match Tag::of(*tag) {
        Some(tag) if length <= LIMIT => Ok(Some((tag, length))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is not understood")),
    }
}

/// Reads one frame, blocking; `None` at the end of the stream.
pub(crate) fn read(from: BorrowedFd<'_>) -> io::Result<Option<(Tag, Vec<u8>)>> {
    let mut head = [0; HEADER];
    if !fill(from, &mut head)? {
        return Ok(None);
    }
    let Some((tag, length)) = header(&head)? else {
        return Ok(None);
    };
    let mut content = vec![0; length];
    Ok(fill(from, &mut content)?.then_some((tag, content)))
}

fn fill(from: BorrowedFd<'_>, mut into: &mut [u8]) -> io::Result<bool> {
    while !into.is_empty() {
        match rustix::io::read(from, &mut *into) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(false),
            Ok(count) => into = &mut into[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Writes all of `bytes`, blocking.
pub(crate) fn write(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(to, bytes, rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_and_in_order() {
        let mut bytes = [frame(Tag::Stdout, b"one"), frame(Tag::Stdin, b"")].concat();
        let rest = frame(Tag::Stderr, b"three");
        bytes.extend(&rest[..6]);
        assert_eq!(take(&mut bytes).unwrap(), Some((Tag::Stdout, b"one".to_vec())));
        assert_eq!(take(&mut bytes).unwrap(), Some((Tag::Stdin, Vec::new())));
        assert_eq!(take(&mut bytes).unwrap(), None);
        bytes.extend(&rest[6..]);
        assert_eq!(take(&mut bytes).unwrap(), Some((Tag::Stderr, b"three".to_vec())));
    }

    #[test]
    fn wrong_frames_are_refused() {
        assert!(take(&mut vec![9, 0, 0, 0, 0]).is_err());
        assert!(take(&mut vec![0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
