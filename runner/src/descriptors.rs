//! Descriptors that travel over sockets.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The most that one message has.
const MOST: usize = 4;

/// Sends up to four descriptors, with a byte that says nothing.
pub(crate) fn send(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(b"d")], &mut ancillary, SendFlags::NOSIGNAL)).map(drop)
}

/// Takes the `N` descriptors that come with the next message, whose words, up to the length of the buffer, do not matter;
/// `None` at the end. Another number of them is an error.
pub(crate) fn receive<const N: usize>(socket: BorrowedFd<'_>, words: &mut [u8]) -> Result<Option<[OwnedFd; N]>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(words)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(received) => Some(received),
        _ => None,
    });
    let received: Vec<OwnedFd> = received.flatten().collect();
    if message.bytes == 0 && received.is_empty() {
        return Ok(None);
    }
    // Fewer come when this process has no room for more: the kernel cuts the list.
    <[OwnedFd; N]>::try_from(received).map(Some).map_err(|_| Errno::AGAIN)
}
