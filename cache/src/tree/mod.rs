//! Trees of files: reading them, writing new ones, and their forms as archives and digests.
//!
//! A *tree* is an ordered list of immutable diff directories in overlayfs form: a character device 0:0 is a whiteout, the
//! attribute `trusted.overlay.opaque` (`user.overlay.opaque` for mounts with `userxattr`) on a directory hides what lies
//! below. A step writes its changes into a new diff directory, from user space and without a mount.
//!
//! - [`View`] shows a list of diff directories as one tree, or a build context as a closed root.
//! - [`DiffWriter`] applies file actions, COPY and ADD on top of a view.
//! - [`View::digest`] and [`selection_digest`] hash what steps read, with a [`StatIndex`] to read only what changed.
//! - [`write_layer`] and [`unpack_layer`] turn diff directories into layer tars and back.
//!
//! Invariants: every path is resolved beneath a directory descriptor and never leaves its root; files of diff directories
//! are never changed after the writer is finished, so their inodes may be shared between trees; memory grows with the
//! number of entries of one directory, or of hard-linked files, never with content. Everything here blocks, and wide work
//! uses the current rayon pool. A walk holds a descriptor for each directory it is in and each diff directory there: raise
//! the soft limit of descriptors in programs that use this.

mod archive;
mod content;
mod copy;
mod delta;
mod digest;
mod dir;
mod error;
mod flatten;
mod index;
mod layer;
mod link;
mod listing;
mod meta;
mod mode;
mod native;
mod owner;
mod remove;
mod select;
mod tar_read;
mod tar_write;
mod unchanged;
mod unpack;
mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use archive::{decompress, is_archive};
pub use copy::{CopyOptions, CopySource, Excludes, Matcher, export_to_directory};
pub use delta::{Changes, changes, fits};
pub use digest::{TreeDigest, selection_digest, selection_listing};
pub use dir::Marks;
pub use error::{Result, TreeError};
pub use flatten::{Fill, flatten};
pub use index::{FileDigests, NoDigests, StatIndex, StatKey};
pub use layer::{TarOptions, write_changes, write_layer, write_root};
pub use listing::{Listing, ListingWriter};
pub use meta::{Kind, Meta, Time};
pub use mode::{Clause, ModeChange};
pub use native::{copy_out, take_changes};
pub use owner::{claim, set_owner};
pub use remove::{move_away, remove_tree};
pub use unpack::{Base, Limits, Unpacked, unpack_layer};
pub use view::{Filter, Node, View, Visibility};
pub use writer::{DiffWriter, Ids};
