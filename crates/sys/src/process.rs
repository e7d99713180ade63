//! Making, changing and ending processes.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The process that forked: the child's id and a descriptor of it, which becomes readable when it ends.
    Parent {
        /// Process id in the caller's pid namespace.
        pid: u32,
        /// Close-on-exec process descriptor.
        pidfd: OwnedFd,
    },
}

/// Reports whether the calling process has exactly one thread.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.take(2).count() == 1)
}

/// What a forked process begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// It is process 1 of a new pid namespace.
    pub pid_namespace: bool,
    /// It is in a new user namespace, which owns the other one.
    pub user_namespace: bool,
    /// It is a child of the caller's parent, which may then wait for it.
    pub sibling: bool,
}

/// Forks; the child is process 1 of a new pid namespace when `new_namespace`. See [`fork`].
pub fn fork_pid_namespace(new_namespace: bool) -> io::Result<Forked> {
    fork(Birth { pid_namespace: new_namespace, ..Birth::default() })
}

/// Forks. Linux 5.5 (`clone3` with a pidfd).
///
/// The process must be single-threaded: otherwise a lock held by another thread (the allocator's, for one) would stay
/// locked for ever in the child. That is a hang, not a memory error, so the function is safe to call; callers check
/// with [`is_single_threaded`] once at their start.
pub fn fork(birth: Birth) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain data for which all-zero bytes are a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    for (wanted, flag) in [
        (birth.pid_namespace, libc::CLONE_NEWPID),
        (birth.user_namespace, libc::CLONE_NEWUSER),
        (birth.sibling, libc::CLONE_PARENT),
    ] {
        if wanted {
            arguments.flags |= flag as u64;
        }
    }
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    // A sibling sends what its parent has said.
    arguments.exit_signal = if birth.sibling { 0 } else { libc::SIGCHLD as u64 };
    // SAFETY: without CLONE_VM the child has its own copy of the address space and continues on a copy of this stack,
    // as after fork(2), so no memory is shared; `arguments` outlives the call and its size is passed; the kernel writes
    // one descriptor to `pidfd`, which lives on this stack frame.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us and nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as u32, pidfd })
        }
    }
}

/// Reports whether this process has a descriptor with the number `number`.
pub fn is_open(number: u32) -> bool {
    // SAFETY: plain integers; nothing changes.
    i32::try_from(number).is_ok_and(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0)
}

/// Lets the descriptors from 3 up to `end`, exclusively, stay open through exec: those that were handed in to be handed
/// on.
pub fn keep_open(end: u32) -> io::Result<()> {
    for number in 3..end {
        let number = i32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: plain integers; one flag of one descriptor changes.
        if unsafe { libc::fcntl(number, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes ownership of the standard descriptor `number` (0, 1 or 2) that this process was started with.
///
/// The number is left open on something harmless (`/dev/null`), so that later opens cannot land on it.
pub fn adopt(number: u8) -> io::Result<OwnedFd> {
    if number > 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the calls take plain integers and a static string. The duplicate is a new descriptor that nothing else
    // owns. Replacing what stands behind 0–2 is what dup2 is for: std's handles name the number, not the file.
    unsafe {
        let copy = libc::fcntl(i32::from(number), libc::F_DUPFD_CLOEXEC, 3);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        let copy = OwnedFd::from_raw_fd(copy);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null < 0 {
            return Err(io::Error::last_os_error());
        }
        let null = OwnedFd::from_raw_fd(null);
        if libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), i32::from(number)) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(copy)
    }
}

/// Marks every descriptor from `first` on close-on-exec. Linux 5.11.
///
/// Closing at once would pull descriptors from under their owners; marking has the same effect for the program that is
/// about to be executed.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: plain integers; with CLOSE_RANGE_CLOEXEC nothing is closed now, only a flag is set.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts every signal to its default action and unblocks all of them (Rust's start-up ignores SIGPIPE, which would be
/// inherited through exec).
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: `sigaction` and `sigset_t` are plain data for which all-zero bytes are valid (SIG_DFL is 0); the pointers
    // are to this stack frame. Default actions run no code of this process, so no handler's assumptions break.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            // Fails with EINVAL for SIGKILL, SIGSTOP and the two that libc keeps; their actions are default anyway.
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Replaces this process by the program at `path`; returns only when that failed.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> Result<Infallible, io::Error> {
    let argv = pointers(arguments);
    let envp = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings, all of which outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Ends the process at once, without running exit handlers or flushing anything that a fork has copied.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` takes an integer and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Closes every descriptor from `first` on that this process was started with. Linux 5.9.
///
/// To be called first in `main`, before anything owns a descriptor; `first` must be above the standard ones.
pub fn close_inherited(first: u32) -> io::Result<()> {
    if first < 3 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: plain integers. No memory is touched; that nothing owns these descriptors yet is the caller's promise,
    // and a broken one shows as EBADF.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on but those in `keep`, in a process that was forked and goes on as another: what it
/// has of its parent is not to be used, nor dropped, again. Linux 5.9.
pub fn close_others(first: u32, keep: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(std::os::fd::AsRawFd::as_raw_fd(fd)).ok()).collect();
    kept.sort_unstable();
    let mut from = first;
    for number in kept.into_iter().filter(|number| *number >= first).chain([u32::MAX]) {
        if number > from {
            // SAFETY: plain integers; no memory is touched. What is closed belongs to copies of the parent's values, which
            // the caller promises not to use; a broken promise shows as EBADF.
            if unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Moves the calling process to new namespaces. `flags` are `CLONE_NEW*`; others are refused.
///
/// `CLONE_FILES` is what makes `unshare` unsafe elsewhere: it would separate the descriptor tables of threads.
pub fn unshare(flags: u32) -> io::Result<()> {
    const NAMESPACES: u32 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWTIME
        | libc::CLONE_NEWCGROUP) as u32;
    if flags & !NAMESPACES != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an integer goes in; none of the flags let through touches memory or descriptors of this process.
    if unsafe { libc::unshare(flags as libc::c_int) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps every signal that can be kept from the calling thread, for [`wait_signal`].
pub fn block_signals() -> io::Result<()> {
    // SAFETY: `sigset_t` is plain data for which all-zero bytes are valid; the pointers are to this stack frame.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits for the next signal of any kind, all of which must be blocked, and takes it.
pub fn wait_signal() -> io::Result<i32> {
    // SAFETY: as above; the kernel writes nothing, since no place for details is given.
    let signal = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, ptr::null_mut())
    };
    if signal < 0 { Err(io::Error::last_os_error()) } else { Ok(signal) }
}

/// Sends a signal by number, also a real-time one, to the process `pid`.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: plain integers.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal by number, also a real-time one, to the process behind a descriptor. Linux 5.1.
pub fn pidfd_kill(pidfd: std::os::fd::BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let raw = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
    // SAFETY: a descriptor that is open for the borrow and plain integers; no details are given.
    let answer = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, raw, signal, ptr::null::<libc::siginfo_t>(), 0 as libc::c_uint)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets go of the pages of this program that are as they are in its files, code above all: they are read again when they
/// are touched next. For a process that has done its start-up and mostly waits from then on.
pub fn release_code() -> io::Result<()> {
    // Another thread could put something else in place of a mapping.
    if !is_single_threaded()? {
        return Ok(());
    }
    let mut mapping = None;
    for line in std::fs::read_to_string("/proc/self/smaps")?.lines() {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            (Some(range), Some(rights)) if !range.ends_with(':') => {
                let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
                mapping = range.split_once('-').filter(|_| is_file && matches!(rights, "r-xp" | "r--p"));
            }
            (Some("Anonymous:"), Some(size)) if size != "0" => mapping = None,
            (Some("Swap:"), Some("0")) => {
                let number = |text: &str| usize::from_str_radix(text, 16).ok();
                let Some((from, to)) = mapping.take().and_then(|(from, to)| number(from).zip(number(to))) else {
                    continue;
                };
                // SAFETY: the range is a mapping of a file that is not writable and has no page of its own, neither in memory
                // nor swapped out, so its pages come back unchanged when they are touched, also those that run this function. No other
                // mapping can have taken its place meanwhile, as this is the only thread.
                if unsafe { libc::madvise(ptr::with_exposed_provenance_mut(from), to - from, libc::MADV_DONTNEED) } != 0
                {
                    return Err(io::Error::last_os_error());
                }
            }
            _ => {}
        }
    }
    Ok(())
}
