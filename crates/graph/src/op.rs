//! What a vertex does. The ops mirror LLB one to one; every field here takes part in the vertex digest unless it says otherwise.

use crate::Platform;
use std::collections::BTreeMap;

/// The work of one vertex.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Brings something in from outside; has no inputs.
    Source(SourceOp),
    /// Runs a process in a sandbox.
    Exec(Box<ExecOp>),
    /// Changes files without running anything.
    File(FileOp),
    /// Overlays the inputs, the last on top.
    Merge,
    /// What input 1 has beyond input 0.
    Diff,
}

/// Where a source's files come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceOp {
    /// A base image whose manifest and configuration have been resolved.
    Image(ImageSource),
    /// A directory on the client's side. Known only by its content.
    Local(LocalSource),
    /// A commit of a repository.
    Git(GitSource),
    /// One file by http(s).
    Http(HttpSource),
}

/// A resolved image. Only `chain_id` takes part in the digest: the same files by another name or packing are the same source.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// The name as it is shown, with tag and digest. Not part of the digest.
    pub reference: String,
    /// Digest of the manifest. Not part of the digest.
    pub manifest: String,
    /// Chain ID of the last layer (OCI image-spec, `config.md#layer-chainid`); empty for an image without layers.
    pub chain_id: String,
    /// Handle by which the resolver finds layers again (registry, layout directory, image store). Not part of the digest.
    pub origin: String,
    /// The image's platform. Not part of the digest.
    pub platform: Option<Platform>,
}

impl PartialEq for ImageSource {
    fn eq(&self, other: &Self) -> bool {
        self.chain_id == other.chain_id
    }
}
impl Eq for ImageSource {}
impl std::hash::Hash for ImageSource {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.chain_id.hash(state);
    }
}

/// A local directory, by the name it was passed under: `context`, or that of a named context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalSource {
    /// Name of the build context.
    pub name: String,
    /// Patterns of `.dockerignore`; a path they exclude does not exist.
    pub excludes: Vec<String>,
}

/// A repository at a reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitSource {
    /// URL or path understood by git, without fragment.
    pub remote: String,
    /// Branch, tag, full reference or commit; empty for the remote's HEAD.
    pub reference: String,
    /// Directory inside the repository to take as the root; empty for all.
    pub subdir: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Commit (or its prefix) that `reference` must resolve to.
    pub checksum: Option<String>,
    /// Do not check out submodules.
    pub skip_submodules: bool,
}

/// A remote file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpSource {
    /// The address, http or https.
    pub url: String,
    /// Digest that the content must have.
    pub checksum: Option<String>,
    /// Name for the file; derived from headers or the URL if absent.
    pub filename: Option<String>,
}

/// A process and its surroundings. Input n of the vertex is mounted where a mount with `input: Some(n)` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExecOp {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory, absolute; made if absent.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved in the root; empty for root.
    pub user: String,
    /// The root (`destination == "/"`) and everything else that is mounted; the root comes first.
    pub mounts: Vec<Mount>,
    /// Which network the process sees.
    pub network: NetworkMode,
    /// How far the process is confined.
    pub security: SecurityMode,
    /// Lines for `/etc/hosts`: (name, address), sorted.
    pub extra_hosts: Vec<(String, String)>,
    /// Host name inside; empty for the default.
    pub hostname: String,
    /// Secrets given as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Resource limits, sorted by name.
    pub ulimits: Vec<Ulimit>,
    /// Parent cgroup.
    pub cgroup_parent: String,
    /// Proxy variables, set in the environment but not part of the digest.
    pub proxy_env: Unkeyed<BTreeMap<String, String>>,
    /// Emulated or native platform of the process.
    pub platform: Option<Platform>,
}

/// A value that takes no part in equality, hashing or vertex digests.
#[derive(Clone, Debug, Default)]
pub struct Unkeyed<T>(pub T);

impl<T> PartialEq for Unkeyed<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<T> Eq for Unkeyed<T> {}
impl<T> std::hash::Hash for Unkeyed<T> {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// A soft and hard limit, -1 for unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// A secret as an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretEnv {
    /// Identifier of the secret.
    pub id: String,
    /// Name of the variable.
    pub name: String,
    /// A missing secret is no error.
    pub optional: bool,
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The sandbox's own network.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `RUN --security`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// Capabilities, seccomp and masks as Docker's defaults.
    #[default]
    Sandbox,
    /// All capabilities, no filter.
    Insecure,
}

/// Something mounted for an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mount {
    /// Where, absolute.
    pub destination: String,
    /// Which of the vertex's inputs; none for an empty root, a cache without origin, tmpfs, secret or ssh.
    pub input: Option<usize>,
    /// Path inside the input.
    pub selector: String,
    /// Output number that what the process leaves here becomes; none where writes are discarded or not allowed.
    pub output: Option<u32>,
    /// No writing.
    pub readonly: bool,
    /// What kind of mount.
    pub kind: MountKind,
}

/// Kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MountKind {
    /// An input's files.
    Bind,
    /// A directory that outlives the build.
    Cache {
        /// Identifier; equal ids are one directory, if it began alike. Not part of the digest: a step's result does not
        /// depend on which cache it had.
        id: Unkeyed<String>,
        /// Whether it has another identifier than the directory's path.
        named: bool,
        /// Who may use it at once. Not part of the digest.
        sharing: Unkeyed<CacheSharing>,
        /// Mode of the directory when it is made.
        mode: u32,
        /// Owner of the directory when it is made.
        uid: u32,
        /// Group of the directory when it is made.
        gid: u32,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; none for no limit of its own.
        size: Option<u64>,
    },
    /// A secret's value as a file.
    Secret {
        /// Identifier of the secret.
        id: String,
        /// File mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// A missing secret is no error.
        optional: bool,
    },
    /// The socket of an ssh agent.
    Ssh {
        /// Identifier of the agent, `default` if not given.
        id: String,
        /// Mode of the socket.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// A missing agent is no error.
        optional: bool,
    },
}

/// Who may use a cache mount at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// Everybody.
    #[default]
    Shared,
    /// Everybody, each with an own directory.
    Private,
    /// One after another.
    Locked,
}

/// A sequence of changes; the last action's tree is output 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileOp {
    /// The tree that is changed; none to start from nothing.
    pub base: Option<usize>,
    /// In order, each applied to what the one before it left.
    pub actions: Vec<FileAction>,
}

/// One change of files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileAction {
    /// Copies from an input.
    Copy(Box<CopyAction>),
    /// Makes a directory.
    Mkdir {
        /// Absolute path.
        path: String,
        /// Mode of what is made.
        mode: u32,
        /// Make missing parents, and take an existing directory as it is.
        parents: bool,
        /// Owner of what is made.
        owner: Option<Owner>,
    },
    /// Writes a file.
    Mkfile {
        /// Absolute path.
        path: String,
        /// Mode.
        mode: u32,
        /// Content.
        data: Vec<u8>,
        /// Owner.
        owner: Option<Owner>,
    },
    /// Removes a file or tree.
    Remove {
        /// Absolute path.
        path: String,
        /// Absence is no error.
        allow_missing: bool,
        /// `path` is a pattern.
        wildcard: bool,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What the link says.
        target: String,
        /// Absolute path of the link.
        path: String,
        /// Owner.
        owner: Option<Owner>,
    },
}

/// Copies paths of an input. One COPY instruction with several sources is one action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopyAction {
    /// Number of the vertex's input that is read.
    pub input: usize,
    /// What to copy, in order.
    pub sources: Vec<CopySource>,
    /// Absolute destination, with a trailing slash where the instruction had one (or `.`).
    pub destination: String,
    /// Owner of what is copied; none for 0:0 of local contexts and archives as they are, see `keep_owner`.
    pub owner: Option<Owner>,
    /// Keep the source's owners where `owner` is none.
    pub keep_owner: bool,
    /// Octal or symbolic mode, as written.
    pub mode: Option<String>,
    /// Unpack local archives (ADD).
    pub unpack: bool,
    /// Keep parent directories of sources, from the `/./` pivot on.
    pub parents: bool,
    /// Patterns, relative to the source, that are left out.
    pub excludes: Vec<String>,
    /// Copy files alone into a destination: the result does not depend on what the base holds (`--link`).
    pub link: bool,
    /// Time for everything that is copied, in seconds; none to keep the source's.
    pub mtime: Option<i64>,
}

/// One source of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CopySource {
    /// A path or pattern inside the input.
    Path {
        /// Path or pattern, slash-separated, absolute.
        path: String,
        /// The path may hold wildcards; without a match nothing is copied.
        wildcard: bool,
        /// The path itself must exist.
        required: bool,
    },
    /// A file given in the Dockerfile (heredoc).
    Inline {
        /// Name in the destination directory.
        name: String,
        /// Content.
        data: Vec<u8>,
    },
    /// The only file of another input (a downloaded one), or, for a repository, all of it.
    Input {
        /// Number of the vertex's input.
        input: usize,
        /// A repository's tree: its content is copied into the destination directory.
        directory: bool,
    },
}

/// `--chown`: user and group, names or numbers; names are looked up in the base's `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User.
    pub user: String,
    /// Group; none for the user's number, or 0.
    pub group: Option<String>,
}
