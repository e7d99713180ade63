//! Supervision of system calls: a seccomp filter that asks a descriptor what is to become of a call.

use crate::Instruction;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupervisedCall {
    /// Names the call in its answer.
    pub id: u64,
    /// Thread that made it.
    pub thread: u32,
    /// Number of the system call.
    pub number: i64,
    /// Its arguments, as they are in registers.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel does it.
    Continue,
    /// It is not done and returns this.
    Return(i64),
    /// It is not done and fails with this error number.
    Fail(i32),
}

/// The other end of a filter.
#[derive(Debug)]
pub struct Supervisor(OwnedFd);

const _: () = assert!(size_of::<libc::seccomp_notif>() == 80 && size_of::<libc::seccomp_notif_resp>() == 24);
/// `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND`, made of direction, size, `!` and number.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// As [`crate::load_filter`], with the answer `SECCOMP_RET_USER_NOTIF` (0x7fc00000) going to the supervisor. Linux 5.0.
pub fn load_supervised_filter(program: &[Instruction]) -> io::Result<Supervisor> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast::<libc::sock_filter>() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: as in `load_filter`: `header` points to `length` instructions of the kernel's layout, which it only reads.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    match i32::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us and nobody else knows it.
        Ok(fd @ 0..) => Ok(Supervisor(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Supervisor {
    /// Waits for a call; none when everything under the filter has ended.
    pub fn next(&self) -> io::Result<Option<SupervisedCall>> {
        loop {
            let mut ready = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !ready[0].revents().contains(rustix::event::PollFlags::IN) {
                return Ok(None);
            }
            // SAFETY: the structure is plain numbers, for which zeros are a value, and the kernel wants zeros.
            let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the request names a structure of this size (checked above), which is writable and outlives the call.
            let answer = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), RECEIVE, &raw mut call) };
            if answer == 0 {
                let (number, arguments) = (i64::from(call.data.nr), call.data.args);
                return Ok(Some(SupervisedCall { id: call.id, thread: call.pid, number, arguments }));
            }
            // The caller died or was interrupted before we came to it.
            match io::Error::last_os_error() {
                e if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                e => return Err(e),
            }
        }
    }

    /// Answers a call. False if its caller is gone.
    pub fn answer(&self, id: u64, verdict: Verdict) -> io::Result<bool> {
        let (val, error, flags) = match verdict {
            Verdict::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Verdict::Return(value) => (value, 0, 0),
            Verdict::Fail(error) => (0, -error, 0),
        };
        let mut response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: the request names a structure of this size (checked above), which outlives the call.
        let answer = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), SEND, &raw mut response) };
        match answer {
            0 => Ok(true),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                e => Err(e),
            },
        }
    }
}
