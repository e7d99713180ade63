//! Caches in directories: `--cache-to type=local` and `--cache-from type=local`, in BuildKit's form.
//!
//! A cache is an OCI layout. Its index has an entry tagged `latest`, an image manifest whose layers are the blobs of all
//! results and whose configuration is the [`document`]: layers that stand on each other, and records that say which of
//! them each step made. A record's digest is our definition key, so records of other builders are read and never hit.
//!
//! # What is trusted
//! That a record's key belongs to its layers is the word of who wrote the directory, as for every cache that one asks
//! for; except for base images, whose key is their chain ID. Everything else is checked: documents and blobs against their
//! digests, unpacked layers against their diff IDs, sizes and depths against bounds.

mod document;
mod import;
mod layout;
mod save;

pub(crate) use import::Imports;
pub(crate) use save::Saver;

/// Annotation of a layer: digest of its tar.
const DIFF_ID: &str = "containerd.io/uncompressed";
/// Annotation of a layer: when it was made.
const CREATED: &str = "buildkit/createdat";
/// The tag of a cache's entry in the layout's index.
const TAG: &str = "latest";
/// Annotation that holds the tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
