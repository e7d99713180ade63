//! The vocabulary of OCI: digests, descriptors, references, media types, image configurations and manifests.
//!
//! Data only, no I/O. Raw bytes stay the truth: a [`Digest`] is always of bytes that exist, and the parsed forms here are for
//! reading and for writing new documents, never for re-serialising somebody else's.

mod config;
mod digest;
mod manifest;
mod reference;

pub use config::{Empty, Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use digest::{Digest, DigestError, Sha256Writer, verify_checksum};
pub use manifest::{Descriptor, Document, DocumentError, Index, Manifest, MediaType, PlatformSpec};
pub use reference::{Reference, ReferenceError};
