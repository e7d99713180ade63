//! Loading of a seccomp filter.

use std::io;

/// One instruction of a classic BPF program, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// The operation's constant.
    pub constant: u32,
}

/// Puts `program` over the calling thread and everything it starts. It cannot be taken off again.
///
/// Needs `CAP_SYS_ADMIN` or `no_new_privs`; the kernel refuses programs that are empty, longer than 4096 instructions
/// or could run out of bounds.
pub fn load_filter(program: &[Instruction]) -> io::Result<()> {
    load_filter_with(program, 0)
}

/// The same with flags: `SECCOMP_FILTER_FLAG_LOG`, `_SPEC_ALLOW` and `_TSYNC`; others are refused.
pub fn load_filter_with(program: &[Instruction], flags: u32) -> io::Result<()> {
    const KNOWN: u32 =
        (libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | libc::SECCOMP_FILTER_FLAG_TSYNC) as u32;
    if flags & !KNOWN != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast::<libc::sock_filter>() };
    // SAFETY: `Instruction` has the layout of `sock_filter` (repr(C), same field types and order; checked below);
    // `header` points to `length` initialised instructions that outlive the call. The kernel copies them and writes
    // nothing back, so casting away const is sound.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<Instruction>() == align_of::<libc::sock_filter>());
const _: () = assert!(std::mem::offset_of!(Instruction, constant) == std::mem::offset_of!(libc::sock_filter, k));
