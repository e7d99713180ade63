//! Faults of the file system, given to a program from outside.
//!
//! Every system call of the program's process that changes files below some directories is numbered, from 1 on, and one of them
//! meets a fault. What other processes of it do is left alone. It works with any program and covers libraries, too; nothing is
//! compiled into the program for it.

use crate::{Call, Done};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use xbuild_sys::{Instruction, SupervisedCall, Supervisor, Verdict, load_supervised_filter};

/// What happens at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an input/output error.
    Io,
    /// The file system is full: it, and everything after it that wants room, fails.
    Full,
    /// Only half of the bytes are written.
    Short,
    /// The process is killed before it.
    Kill,
}

/// What a program did to files, in order.
#[derive(Debug, Default)]
pub struct Journal {
    /// The calls that were numbered, as `NAME PATH`.
    pub calls: Vec<String>,
    /// Files whose content changed since they were last synced, with the size that is on disk.
    pub unsynced: BTreeMap<PathBuf, u64>,
    /// Whether the fault happened.
    pub hit: bool,
}

/// Runs `call` with `fault` at the `at`th change below `places`; with none if `at` is 0.
pub fn with_fault(call: Call, places: &[&Path], fault: Fault, at: usize) -> (Done, Journal) {
    let places: Vec<PathBuf> = places.iter().map(|p| p.canonicalize().expect("a place that is there")).collect();
    let target = AtomicU32::new(0);
    let (give, take) = mpsc::channel();
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            // The filter is this thread's and of what it starts.
            give.send(load_supervised_filter(&filter()).expect("a filter can be loaded by root"))
                .expect("is waited for");
            let running = call.start();
            target.store(running.id(), Ordering::SeqCst);
            running.wait()
        });
        let supervisor = take.recv().expect("the thread loads a filter first");
        let mut watch = Watch { places, fault, at, target: &target, journal: Journal::default() };
        watch.serve(&supervisor).expect("the kernel asks and is answered");
        (runner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), watch.journal)
    })
}

/// Where a call says which file it is about.
#[derive(Clone, Copy)]
enum Place {
    /// A descriptor.
    Fd(usize),
    /// A path.
    Path(usize),
    /// A directory and a path.
    At(usize, usize),
}

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Needs room.
    Grow,
    /// Writes from memory: descriptor, buffer, length.
    Write,
    /// Makes changes durable.
    Sync,
    /// Anything else.
    Change,
}

struct Watched {
    number: i64,
    name: &'static str,
    place: Place,
    effect: Effect,
    /// Only if this argument has one of these bits, or is this value.
    only: Option<(u32, Only)>,
}

#[derive(Clone, Copy)]
enum Only {
    Bits(u32),
    Value(u32),
}

const CREATES: Only = Only::Bits((libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u32);
/// `FICLONE`.
const CLONES: Only = Only::Value(0x4004_9409);

const fn watched(number: i64, name: &'static str, place: Place, effect: Effect) -> Watched {
    Watched { number, name, place, effect, only: None }
}

#[rustfmt::skip]
const WATCHED: &[Watched] = &[
    Watched { number: libc::SYS_openat, name: "create", place: Place::At(0, 1), effect: Effect::Grow, only: Some((2, CREATES)) },
    Watched { number: libc::SYS_ioctl, name: "clone", place: Place::Fd(0), effect: Effect::Grow, only: Some((1, CLONES)) },
    #[cfg(target_arch = "x86_64")]
    Watched { number: libc::SYS_open, name: "create", place: Place::Path(0), effect: Effect::Grow, only: Some((1, CREATES)) },
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_rename, "rename", Place::Path(1), Effect::Grow),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_mkdir, "mkdir", Place::Path(0), Effect::Grow),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_rmdir, "rmdir", Place::Path(0), Effect::Change),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_unlink, "unlink", Place::Path(0), Effect::Change),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_symlink, "symlink", Place::Path(1), Effect::Grow),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_link, "link", Place::Path(1), Effect::Grow),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_chmod, "chmod", Place::Path(0), Effect::Change),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_chown, "chown", Place::Path(0), Effect::Change),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_mknod, "mknod", Place::Path(0), Effect::Grow),
    #[cfg(target_arch = "x86_64")]
    watched(libc::SYS_renameat, "rename", Place::At(2, 3), Effect::Grow),
    watched(libc::SYS_renameat2, "rename", Place::At(2, 3), Effect::Grow),
    watched(libc::SYS_mkdirat, "mkdir", Place::At(0, 1), Effect::Grow),
    watched(libc::SYS_unlinkat, "unlink", Place::At(0, 1), Effect::Change),
    watched(libc::SYS_symlinkat, "symlink", Place::At(1, 2), Effect::Grow),
    watched(libc::SYS_linkat, "link", Place::At(2, 3), Effect::Grow),
    watched(libc::SYS_mknodat, "mknod", Place::At(0, 1), Effect::Grow),
    watched(libc::SYS_write, "write", Place::Fd(0), Effect::Write),
    watched(libc::SYS_pwrite64, "write", Place::Fd(0), Effect::Write),
    watched(libc::SYS_writev, "write", Place::Fd(0), Effect::Grow),
    watched(libc::SYS_pwritev, "write", Place::Fd(0), Effect::Grow),
    watched(libc::SYS_sendfile, "write", Place::Fd(0), Effect::Grow),
    watched(libc::SYS_copy_file_range, "write", Place::Fd(2), Effect::Grow),
    watched(libc::SYS_splice, "write", Place::Fd(2), Effect::Grow),
    watched(libc::SYS_fallocate, "allocate", Place::Fd(0), Effect::Grow),
    watched(libc::SYS_truncate, "truncate", Place::Path(0), Effect::Change),
    watched(libc::SYS_ftruncate, "truncate", Place::Fd(0), Effect::Change),
    watched(libc::SYS_fsync, "sync", Place::Fd(0), Effect::Sync),
    watched(libc::SYS_fdatasync, "sync", Place::Fd(0), Effect::Sync),
    watched(libc::SYS_syncfs, "sync all", Place::Fd(0), Effect::Sync),
    watched(libc::SYS_fchmod, "chmod", Place::Fd(0), Effect::Change),
    watched(libc::SYS_fchmodat, "chmod", Place::At(0, 1), Effect::Change),
    watched(libc::SYS_fchown, "chown", Place::Fd(0), Effect::Change),
    watched(libc::SYS_fchownat, "chown", Place::At(0, 1), Effect::Change),
    watched(libc::SYS_utimensat, "touch", Place::At(0, 1), Effect::Change),
    watched(libc::SYS_setxattr, "set attribute", Place::Path(0), Effect::Grow),
    watched(libc::SYS_lsetxattr, "set attribute", Place::Path(0), Effect::Grow),
    watched(libc::SYS_fsetxattr, "set attribute", Place::Fd(0), Effect::Grow),
    watched(libc::SYS_fremovexattr, "remove attribute", Place::Fd(0), Effect::Change),
];

/// Asks about what is watched and lets everything else pass. (The tests run one architecture's programs.)
fn filter() -> Vec<Instruction> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const HAS: u16 = 0x45;
    const ANSWER: u16 = 0x06;
    let instruction = |code, jump_true, jump_false, constant| Instruction { code, jump_true, jump_false, constant };
    let argument = |n: u32| 16 + 8 * n;
    let (ask, pass) = (instruction(ANSWER, 0, 0, 0x7fc0_0000), instruction(ANSWER, 0, 0, 0x7fff_0000));
    let mut program = vec![instruction(LOAD, 0, 0, 0)];
    for call in WATCHED {
        let number = u32::try_from(call.number).expect("numbers of calls are small");
        match call.only {
            None => program.extend([instruction(EQUAL, 0, 1, number), ask]),
            Some((n, only)) => {
                let test = match only {
                    Only::Bits(bits) => instruction(HAS, 0, 1, bits),
                    Only::Value(value) => instruction(EQUAL, 0, 1, value),
                };
                program.extend([
                    instruction(EQUAL, 0, 4, number),
                    instruction(LOAD, 0, 0, argument(n)),
                    test,
                    ask,
                    pass,
                ]);
            }
        }
    }
    program.push(pass);
    program
}

struct Watch<'a> {
    places: Vec<PathBuf>,
    fault: Fault,
    at: usize,
    target: &'a AtomicU32,
    journal: Journal,
}

impl Watch<'_> {
    fn serve(&mut self, supervisor: &Supervisor) -> io::Result<()> {
        while let Some(call) = supervisor.next()? {
            let verdict = self.judge(&call);
            supervisor.answer(call.id, verdict)?;
        }
        Ok(())
    }

    fn judge(&mut self, call: &SupervisedCall) -> Verdict {
        let process = Process(process_of(call.thread));
        if !self.is_target(process.0) {
            return Verdict::Continue;
        }
        let Some(watched) = WATCHED.iter().find(|w| w.number == call.number) else { return Verdict::Continue };
        let Some(path) = process.place(watched.place, &call.arguments) else { return Verdict::Continue };
        if !self.places.iter().any(|place| path.starts_with(place)) {
            return Verdict::Continue;
        }
        self.journal.calls.push(format!("{} {}", watched.name, path.display()));
        // What is there already needs no room to be opened.
        let grows = match watched.effect {
            Effect::Grow => watched.name != "create" || !path.exists(),
            effect => effect == Effect::Write,
        };
        let verdict = self.verdict(watched, grows, call, &process);
        if verdict == Verdict::Continue {
            self.note(watched, path);
        }
        verdict
    }

    /// Whether the process is the one that was started. It is known a moment after it begins.
    fn is_target(&self, process: u32) -> bool {
        if process == std::process::id() {
            return false;
        }
        loop {
            match self.target.load(Ordering::SeqCst) {
                0 => std::thread::yield_now(),
                target => return target == process,
            }
        }
    }

    fn verdict(&mut self, watched: &Watched, grows: bool, call: &SupervisedCall, process: &Process) -> Verdict {
        let now = self.journal.calls.len();
        if self.fault == Fault::Full && self.at > 0 && now >= self.at {
            self.journal.hit |= grows;
            return if grows { Verdict::Fail(libc::ENOSPC) } else { Verdict::Continue };
        }
        if now != self.at {
            return Verdict::Continue;
        }
        match self.fault {
            Fault::Io => {
                self.journal.hit = true;
                Verdict::Fail(libc::EIO)
            }
            Fault::Short if watched.effect == Effect::Write => match process.write_half(call) {
                Some(written) => {
                    self.journal.hit = true;
                    Verdict::Return(written)
                }
                None => Verdict::Continue,
            },
            Fault::Kill => {
                self.journal.hit = true;
                process.kill();
                Verdict::Fail(libc::EINTR)
            }
            Fault::Short | Fault::Full => Verdict::Continue,
        }
    }

    /// Keeps account of what a power cut would take.
    fn note(&mut self, watched: &Watched, path: PathBuf) {
        match (watched.effect, watched.name) {
            (Effect::Sync, "sync all") => self.journal.unsynced.clear(),
            (Effect::Sync, _) => {
                self.journal.unsynced.remove(&path);
            }
            (_, "write" | "truncate" | "clone" | "allocate") => {
                let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
                self.journal.unsynced.entry(path).or_insert(size);
            }
            _ => {}
        }
    }
}

/// A process that is watched.
struct Process(u32);

impl Process {
    fn kill(&self) {
        let pid = i32::try_from(self.0).ok().and_then(rustix::process::Pid::from_raw).expect("a process that lives");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a child can be killed");
    }

    fn place(&self, place: Place, arguments: &[u64; 6]) -> Option<PathBuf> {
        match place {
            Place::Fd(n) => self.descriptor(arguments[n]),
            Place::Path(n) => Some(clean(&self.link("cwd")?.join(self.path(arguments[n])?))),
            Place::At(dir, n) => {
                let path = if arguments[n] == 0 { PathBuf::new() } else { self.path(arguments[n])? };
                if path.is_absolute() {
                    return Some(clean(&path));
                }
                let dir = match arguments[dir] as i32 {
                    libc::AT_FDCWD => self.link("cwd")?,
                    _ => self.descriptor(arguments[dir])?,
                };
                Some(clean(&dir.join(path)))
            }
        }
    }

    fn descriptor(&self, fd: u64) -> Option<PathBuf> {
        self.link(&format!("fd/{fd}"))
    }

    fn link(&self, name: &str) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/{}/{name}", self.0)).ok()?;
        Some(match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
            Some(path) => PathBuf::from(path),
            None => path,
        })
    }

    fn memory(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/mem", self.0))
    }

    fn path(&self, at: u64) -> Option<PathBuf> {
        let mut bytes = vec![0; 4096];
        let read = self.memory().ok()?.read_at(&mut bytes, at).ok()?;
        bytes.truncate(read);
        let end = bytes.iter().position(|b| *b == 0)?;
        bytes.truncate(end);
        Some(std::ffi::OsString::from_vec(bytes).into())
    }

    /// Does the first half of a write in the process's stead.
    fn write_half(&self, call: &SupervisedCall) -> Option<i64> {
        let [fd, buffer, length, offset, ..] = call.arguments;
        let half = usize::try_from(length / 2).ok().filter(|half| *half > 0)?;
        let mut bytes = vec![0; half];
        self.memory().ok()?.read_exact_at(&mut bytes, buffer).ok()?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0).ok()?)?;
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let file = rustix::process::pidfd_getfd(handle, i32::try_from(fd).ok()?, flags).ok()?;
        let written = match call.number {
            libc::SYS_pwrite64 => rustix::io::pwrite(file, &bytes, offset),
            _ => rustix::io::write(file, &bytes),
        };
        i64::try_from(written.ok()?).ok()
    }
}

/// The process of a thread.
fn process_of(thread: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|tgid| tgid.trim().parse().ok()).unwrap_or(0)
}

/// Without dots.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            other => cleaned.push(other),
        }
    }
    cleaned
}
