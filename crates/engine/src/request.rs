//! What a build is asked to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use xbuild_cache::Packing;
use xbuild_graph::{NetworkMode, Platform, Ulimit};

/// Where the main context comes from.
#[derive(Clone, Debug)]
pub enum ContextInput {
    /// A directory.
    Directory(PathBuf),
    /// Read to its end (standard input): an archive, or a Dockerfile alone.
    Stream(Arc<File>),
    /// A repository: `URL#ref:subdir`.
    Git(String),
    /// A remote archive or Dockerfile.
    Http(String),
}

/// Where the Dockerfile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileInput {
    /// A file of the client's, or, for remote contexts, one in the context.
    Path(PathBuf),
    /// `Dockerfile` in the context.
    Default,
    /// Bytes from standard input.
    Bytes(Vec<u8>),
}

/// A value that must not be printed; has no `Debug` of its content.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(pub Vec<u8>);

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue")
    }
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// What is written.
    pub kind: OutputKind,
    /// Names besides those of `--tag`.
    pub names: Vec<String>,
    /// Packing of layers.
    pub packing: Packing,
    /// Pack again what is packed differently.
    pub force_compression: bool,
    /// OCI media types instead of Docker's; none for the kind's default.
    pub oci_media_types: Option<bool>,
    /// Clamp times to SOURCE_DATE_EPOCH.
    pub rewrite_timestamp: bool,
    /// Annotations as `[level:]key=value` pairs.
    pub annotations: BTreeMap<String, String>,
    /// One directory a platform (`local`, `tar`).
    pub platform_split: Option<bool>,
}

/// Kinds of outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Records only.
    CacheOnly,
    /// A name in the store, and a push.
    Image {
        /// Send it to the registry.
        push: bool,
        /// Keep it under its names here.
        store: bool,
    },
    /// An OCI layout.
    Oci {
        /// Where to.
        dest: Destination,
        /// A tar rather than a directory.
        tar: bool,
    },
    /// An archive for `docker load`.
    Docker {
        /// Where to.
        dest: Destination,
        /// A tar rather than a directory.
        tar: bool,
    },
    /// The files as a tar.
    Tar {
        /// Where to.
        dest: Destination,
    },
    /// The files in a directory.
    Local {
        /// Where to.
        dest: PathBuf,
        /// Remove what the result does not have.
        delete: bool,
    },
}

/// A file or standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A file or directory.
    Path(PathBuf),
    /// Standard output.
    Stdout,
}

/// `--cache-to` and `--cache-from type=local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCache {
    /// An OCI layout directory.
    pub path: PathBuf,
    /// Every step rather than those of the result (`mode=max`).
    pub all: bool,
}

/// `--provenance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provenance {
    /// None.
    #[default]
    Off,
    /// What was built from what.
    Min,
    /// Also how.
    Max,
}

/// `--no-cache`, `--no-cache-filter`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// Records are used.
    #[default]
    None,
    /// No records are used.
    All,
    /// None for these stages.
    Stages(Vec<String>),
}

/// `--resource`: limits of every RUN step, in the units of docker's flags of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Microseconds in a period.
    pub cpu_quota: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Relative weight.
    pub cpu_shares: Option<u64>,
    /// `0-1`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
}

/// A build.
#[derive(Clone, Debug)]
pub struct Request {
    /// The main context.
    pub context: ContextInput,
    /// The Dockerfile.
    pub dockerfile: DockerfileInput,
    /// `--build-context`, in order.
    pub named_contexts: Vec<(String, String)>,
    /// Full image names.
    pub tags: Vec<String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--annotation`, as given.
    pub annotations: Vec<String>,
    /// `--platform`.
    pub platforms: Vec<Platform>,
    /// Whether records are used.
    pub no_cache: NoCache,
    /// `--pull`: ask registries even for what is known.
    pub pull: bool,
    /// `--network`.
    pub network: NetworkMode,
    /// `--allow`.
    pub allow: BTreeSet<String>,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size`, bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: String,
    /// `--resource`.
    pub resources: Resources,
    /// `--secret`.
    pub secrets: BTreeMap<String, SecretValue>,
    /// `--ssh`: id to socket.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What to write.
    pub outputs: Vec<Output>,
    /// Caches to write.
    pub cache_to: Vec<LocalCache>,
    /// Caches to read.
    pub cache_from: Vec<LocalCache>,
    /// Attestation.
    pub provenance: Provenance,
    /// Most execs at once.
    pub max_parallelism: usize,
    /// SOURCE_DATE_EPOCH, seconds.
    pub source_date_epoch: Option<i64>,
    /// Owner of the files of `type=local`; none keeps those of the image.
    pub output_owner: Option<(u32, u32)>,
    /// Where credentials are (`$DOCKER_CONFIG`).
    pub docker_config: Option<PathBuf>,
}
