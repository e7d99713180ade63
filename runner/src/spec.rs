//! What a sandbox is: plain data, complete, with nothing left to look up by name.

use crate::Propagation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Everything that decides what one sandboxed process sees and may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The root file system.
    pub root: Rootfs,
    /// Program and arguments; the first is looked up in the `PATH` of `env` when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value` entries; entries without `=` carry nothing and are left out.
    pub env: Vec<String>,
    /// Working directory inside the root. Missing directories are made, 0755 and owned by root, and stay.
    pub cwd: String,
    /// Numeric identity of the process.
    pub user: Identity,
    /// A user to look up in the root's own files when everything is mounted, in place of `user`.
    pub account: Option<Account>,
    /// Mounts over the root, in order.
    pub mounts: Vec<MountSpec>,
    /// Network of the process.
    pub network: Network,
    /// How much the process may do.
    pub security: Security,
    /// Host name in the process's own UTS namespace.
    pub hostname: String,
    /// NIS domain name in that namespace; the default when empty.
    pub domainname: String,
    /// Which namespaces besides mount and network are its own.
    pub namespaces: Namespaces,
    /// No writes to the root file system; mounts over it decide for themselves.
    pub readonly_root: bool,
    /// Device nodes to make below `/dev`, besides the usual ones.
    pub devices: Vec<DeviceNode>,
    /// Kernel settings of the process's own namespaces, by dotted name.
    pub sysctls: Vec<(String, String)>,
    /// Badness for the kernel's choice when memory runs out, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Show the control groups of version 1 below `/sys/fs/cgroup`, too.
    pub show_cgroups: bool,
    /// Content of `/etc/hosts` (mounted read-only, never in the layer).
    pub hosts_file: Option<Vec<u8>>,
    /// Content of `/etc/resolv.conf` (mounted read-only, never in the layer).
    pub resolv_conf: Option<Vec<u8>>,
    /// Size of `/dev/shm` in bytes; 64 MiB when absent, and none at all when 0.
    pub shm_size: Option<u64>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Control group to run in; the engine's own when absent.
    pub cgroup: Option<CgroupSpec>,
    /// Standard input is the terminal the process is to be controlled by.
    pub tty: bool,
    /// A new terminal for the process, with rows and columns: standard input is a socket, and the terminal's controlling
    /// side is sent over it. The terminal belongs to the sandbox's own `/dev/pts`.
    pub console: Option<(u16, u16)>,
    /// Keep a tiny init as process 1, which reaps and ends with the command's status. Otherwise the command itself is
    /// process 1, as in BuildKit.
    pub init: bool,
}

impl Spec {
    /// A sandbox for `args` in `root` with the defaults of a RUN step: root user, working directory `/`, no network.
    #[must_use]
    pub fn new(root: Rootfs, args: Vec<String>) -> Spec {
        Spec {
            root,
            args,
            env: vec![format!("PATH={DEFAULT_PATH}")],
            cwd: "/".to_owned(),
            user: Identity::default(),
            account: None,
            mounts: Vec::new(),
            network: Network::None,
            security: Security::Sandbox,
            hostname: "buildkitsandbox".to_owned(),
            domainname: String::new(),
            namespaces: Namespaces::default(),
            readonly_root: false,
            devices: Vec::new(),
            sysctls: Vec::new(),
            oom_score_adj: None,
            show_cgroups: false,
            hosts_file: None,
            resolv_conf: None,
            shm_size: None,
            rlimits: Vec::new(),
            cgroup: None,
            tty: false,
            console: None,
            init: false,
        }
    }
}

/// `PATH` of images that set none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the root file system comes from. Paths are host paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Rootfs {
    /// Read-only directories with a writable one over them.
    Overlay {
        /// The topmost first. With [`crate::skeleton`] as the last, no mount points need to be made for hosts and
        /// resolv.conf in images that lack them.
        lower: Vec<PathBuf>,
        /// Receives the changes.
        upper: PathBuf,
        /// Empty directory on the file system of `upper`.
        work: PathBuf,
        /// No syncing, also not at unmount: a crash may lose the upper directory, which is then thrown away. The kernel
        /// marks `work` by it and refuses it another time until `work/incompat` is removed.
        volatile: bool,
        /// Keep overlay's own attributes in `user.*`, as rootless users must.
        userxattr: bool,
    },
    /// Read-only directories only, the topmost first.
    ReadOnlyOverlay {
        /// The topmost first.
        lower: Vec<PathBuf>,
    },
    /// One directory, written in place.
    Directory(PathBuf),
}

/// A user, resolved to numbers. See [`crate::users`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id; becomes part of the supplementary groups too.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// A user by name, as the root's own files know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// `user[:group]`, names or numbers; root when empty.
    pub user: String,
    /// Further groups, names or numbers.
    pub groups: Vec<String>,
}

/// Where a namespace comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// A new one.
    #[default]
    Own,
    /// The host's.
    Host,
    /// That of a process, by its id on the host.
    Of(u32),
}

/// Namespaces besides mount (always own) and network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespaces {
    /// Process ids.
    pub pid: Space,
    /// System V objects and message queues; `/dev/shm` goes with it.
    pub ipc: Space,
    /// Host name.
    pub uts: Space,
    /// Root of the control groups.
    pub cgroup: Space,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    /// Path below `/dev`.
    pub path: String,
    /// A block device; a character device otherwise.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What control groups let it be used for: of `r`, `w`, `m`.
    pub access: String,
}

/// One mount over the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// Where: a path inside the root, resolved there, made for the time of the run if missing.
    pub destination: String,
    /// No writes through this mount.
    pub readonly: bool,
}

/// What is mounted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum MountSource {
    /// A directory or file of the host.
    Bind {
        /// Host path.
        path: PathBuf,
        /// Path inside it, resolved with it as the root; empty for all of it.
        selector: String,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A directory of the host, of which mounts made later on one side are seen on the other.
    Propagated {
        /// Host path.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// What is passed on.
        propagation: Propagation,
    },
    /// Directories laid over each other.
    Overlay {
        /// The topmost first.
        lower: Vec<PathBuf>,
        /// Scratch for changes, which nobody keeps: upper and work directory. Read-only without.
        scratch: Option<(PathBuf, PathBuf)>,
        /// Path inside it, resolved with it as the root; empty for all of it.
        selector: String,
    },
    /// Empty memory file system.
    Tmpfs {
        /// Limit in bytes.
        size: Option<u64>,
        /// Mode of its root directory.
        mode: u32,
        /// Programs in it cannot be executed.
        noexec: bool,
        /// Further options of the file system, such as `uid` or `nr_inodes`.
        options: Vec<(String, String)>,
    },
    /// A file held in memory: a secret or an inline script.
    File {
        /// Its bytes. They never reach a disk, a log or a command line.
        data: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A unix socket of the host, made for this purpose: its mode and owner are changed to the ones given.
    Socket {
        /// Host path.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl fmt::Debug for MountSource {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountSource::Bind { path, selector, recursive } => to
                .debug_struct("Bind")
                .field("path", path)
                .field("selector", selector)
                .field("recursive", recursive)
                .finish(),
            MountSource::Propagated { path, recursive, propagation } => to
                .debug_struct("Propagated")
                .field("path", path)
                .field("recursive", recursive)
                .field("propagation", propagation)
                .finish(),
            MountSource::Overlay { lower, scratch, selector } => to
                .debug_struct("Overlay")
                .field("lower", lower)
                .field("scratch", scratch)
                .field("selector", selector)
                .finish(),
            MountSource::Tmpfs { size, mode, noexec, options } => to
                .debug_struct("Tmpfs")
                .field("size", size)
                .field("mode", mode)
                .field("noexec", noexec)
                .field("options", options)
                .finish(),
            // The bytes may be a secret.
            MountSource::File { mode, uid, gid, .. } => {
                to.debug_struct("File").field("mode", mode).field("uid", uid).field("gid", gid).finish_non_exhaustive()
            }
            MountSource::Socket { path, mode, uid, gid } => to
                .debug_struct("Socket")
                .field("path", path)
                .field("mode", mode)
                .field("uid", uid)
                .field("gid", gid)
                .finish(),
        }
    }
}

/// Network of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's network namespace.
    Host,
    /// A namespace with loopback only.
    None,
    /// The namespace that this path leads to, e.g. [`crate::network::Namespace::path`] or `/proc/PID/ns/net`.
    Namespace(PathBuf),
}

/// How much the process may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Docker's default capabilities and system-call policy, masked kernel files.
    Sandbox,
    /// All capabilities the engine has, no filter, no masks.
    Insecure,
    /// What a container was given one by one.
    Custom(Privileges),
}

/// Docker's default capabilities, one bit for each number.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// What a process may do, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privileges {
    /// One bit for each capability that it may have.
    pub capabilities: u64,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Programs cannot give it more than it has.
    pub no_new_privileges: bool,
    /// Secrets of the kernel are hidden, and its settings read-only.
    pub masked: bool,
    /// All devices may be used, not only docker's and those of [`Spec::devices`].
    pub all_devices: bool,
}

/// Which system calls a process may make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's default policy for its capabilities.
    Default,
    /// All.
    Unconfined,
    /// What a policy says, as JSON in the words of the runtime specification.
    Profile(String),
}

impl Security {
    /// The same, one by one.
    #[must_use]
    pub fn privileges(&self) -> Privileges {
        match self {
            Security::Sandbox => Privileges {
                capabilities: DEFAULT_CAPABILITIES,
                seccomp: Seccomp::Default,
                no_new_privileges: false,
                masked: true,
                all_devices: false,
            },
            Security::Insecure => Privileges {
                capabilities: u64::MAX,
                seccomp: Seccomp::Unconfined,
                no_new_privileges: false,
                masked: false,
                all_devices: true,
            },
            Security::Custom(privileges) => privileges.clone(),
        }
    }
}

/// One resource limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Docker's name: `nofile`, `nproc`, `memlock`…
    pub name: String,
    /// Soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// Hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// A control group made for one run and removed after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupSpec {
    /// Path of the parent below each hierarchy's root, e.g. `xbuild`.
    pub parent: String,
    /// One component.
    pub name: String,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// CPU time per period in microseconds.
    pub cpu_quota: Option<u64>,
    /// Period in microseconds; 100,000 when absent.
    pub cpu_period: Option<u64>,
    /// Relative weight, in docker's 2–262144 (default 1024).
    pub cpu_shares: Option<u64>,
    /// CPUs, e.g. `0-1`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Memory and swap together, in bytes; -1 is no limit.
    pub memory_swap: Option<i64>,
    /// Memory below which the kernel reclaims less, in bytes.
    pub memory_reservation: Option<u64>,
    /// Relative weight of block input and output, 10–1000.
    pub blkio_weight: Option<u64>,
    /// A group in every hierarchy, also where no limit is asked for: to count, freeze and find what runs in it.
    pub everywhere: bool,
}
