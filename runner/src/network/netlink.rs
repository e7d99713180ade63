//! Netlink: messages with nested attributes, and their answers.
//!
//! One small encoder for both families that are needed: links, addresses and routes (`NETLINK_ROUTE`), and nf_tables
//! (`NETLINK_NETFILTER`). A socket belongs to the network namespace in which it was opened, wherever its user is later.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use std::os::fd::OwnedFd;

/// Request that is to be answered.
pub(super) const REQUEST: u16 = 1;
/// Say whether it worked.
pub(super) const ACK: u16 = 4;
/// All that there are of a kind.
pub(super) const DUMP: u16 = 0x300;
/// Make it if it is not there …
pub(super) const CREATE: u16 = 0x400;
/// … and fail if it is.
pub(super) const EXCL: u16 = 0x200;
/// Behind what is there.
pub(super) const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

/// What a socket talks about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    /// Links, addresses, routes.
    Route,
    /// Packet filters.
    Netfilter,
}

/// One message, being written.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message with the fixed part that belongs to its kind.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let mut message = Self { bytes };
        message.bytes.extend_from_slice(fixed);
        message.pad();
        message
    }

    /// Adds an attribute.
    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes are written by this module's users, and short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a number in the machine's order.
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network order.
    pub(super) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds a text with its final zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds what `fill` writes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("nests are a few hundred bytes");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds bytes that are no attribute, as `VETH_INFO_PEER` wants them.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// What was written after the header.
    pub(super) fn content(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn wants_answer(&self) -> bool {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & ACK != 0
    }

    fn seal(&mut self, sequence: u32) {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// A message of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// What it is.
    pub(super) kind: u16,
    /// Fixed part and attributes.
    pub(super) body: Vec<u8>,
}

/// Attributes after a fixed part of `fixed` bytes.
pub(super) fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(fixed.next_multiple_of(4)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text attribute without its final zero.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number in the machine's order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// Which message of a list failed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Index into the list.
    pub(super) at: usize,
    /// The kernel's answer.
    pub(super) errno: Errno,
}

/// A socket to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open(subject: Subject) -> Result<Self, Errno> {
        let protocol = match subject {
            // Protocol 0, which is the family's first.
            Subject::Route => None,
            Subject::Netfilter => Some(netlink::NETFILTER),
        };
        let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, protocol)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 32 << 10] })
    }

    /// Sends messages together and waits until all that ask for it are answered. The first that is refused is the error;
    /// messages after it may have been carried out, unless the kernel takes the list as one transaction.
    pub(super) fn send(&mut self, mut messages: Vec<Message>) -> Result<(), Refused> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        for message in &mut messages {
            self.sequence += 1;
            message.seal(self.sequence);
            bytes.extend_from_slice(&message.bytes);
        }
        let refused = |errno| Refused { at: 0, errno };
        rustix::net::send(&self.socket, &bytes, SendFlags::empty()).map_err(refused)?;
        let mut open = messages.iter().filter(|m| m.wants_answer()).count();
        while open > 0 {
            for (sequence, answer) in self.receive().map_err(refused)? {
                if sequence < first || answer.kind != KIND_ERROR {
                    continue;
                }
                match errno_of(&answer.body) {
                    None => open = open.saturating_sub(1),
                    Some(errno) => return Err(Refused { at: (sequence - first) as usize, errno }),
                }
            }
        }
        Ok(())
    }

    /// Everything that a dump request lists.
    pub(super) fn dump(&mut self, mut message: Message) -> Result<Vec<Answer>, Errno> {
        self.sequence += 1;
        message.seal(self.sequence);
        rustix::net::send(&self.socket, &message.bytes, SendFlags::empty())?;
        let mut all = Vec::new();
        loop {
            for (sequence, answer) in self.receive()? {
                match answer.kind {
                    _ if sequence != self.sequence => {}
                    KIND_DONE => return Ok(all),
                    KIND_ERROR => match errno_of(&answer.body) {
                        Some(errno) => return Err(errno),
                        None => return Ok(all),
                    },
                    _ => all.push(answer),
                }
            }
        }
    }

    /// One datagram's messages, with their sequence numbers.
    fn receive(&mut self) -> Result<Vec<(u32, Answer)>, Errno> {
        let count = loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((count, _)) => break count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        };
        let mut rest = &self.buffer[..count];
        let mut messages = Vec::new();
        let word = |bytes: &[u8], at: usize| bytes.get(at..at + 4).and_then(number);
        while let Some(length) = word(rest, 0).map(|n| n as usize).filter(|n| (HEADER..=rest.len()).contains(n)) {
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let sequence = word(rest, 8).unwrap_or_default();
            messages.push((sequence, Answer { kind, body: rest[HEADER..length].to_vec() }));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// The error of an acknowledgement; none if it says that all is well.
fn errno_of(body: &[u8]) -> Option<Errno> {
    match body.get(..4).and_then(number).map_or(-libc::EIO, u32::cast_signed) {
        0 => None,
        code => Some(Errno::from_raw_os_error(-code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut message = Message::new(7, REQUEST, &[1, 2, 3, 4]);
        message.text(1, "eth0").u32(2, 7).nest(3, |m| {
            m.attr(4, &[9, 9, 9]);
        });
        assert_eq!(message.bytes.len() % 4, 0);
        let body = &message.bytes[HEADER..];
        let all: Vec<_> = attributes(body, 4).collect();
        assert_eq!(all.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(text(all[0].1), "eth0");
        assert_eq!(number(all[1].1), Some(7));
        assert_eq!(attributes(all[2].1, 0).next(), Some((4, &[9u8, 9, 9][..])));
    }

    #[test]
    fn damaged_attributes_end_the_list() {
        for body in [&[][..], &[1], &[0, 0, 1, 0], &[200, 0, 1, 0, 5], &[3, 0, 1, 0]] {
            assert_eq!(attributes(body, 0).count(), 0, "{body:?}");
        }
    }
}
