//! Containers of images: from a request to a process.
//!
//! [`create`] puts an image's configuration and a request together and writes the container down; [`start`] turns what was
//! written down into a sandbox and hands it to a monitor; [`commit`] makes an image of what a container has changed.

mod changes;
mod commit;
mod create;
mod mounts;
mod names;
pub mod networks;
mod start;

pub use commit::CommitRequest;
pub use create::CreateRequest;
pub use start::{StartRequest, environment, exec_privileges, host_name};

use crate::Engine;
use xbuild_runner::container::Containers;
use xbuild_runner::container::volumes::Volumes;

impl Engine {
    /// The containers of the store.
    pub fn containers(&self) -> Containers {
        Containers::of(self.store().root())
    }

    /// The volumes of the store.
    pub fn volumes(&self) -> Volumes {
        Volumes::of(self.store().root())
    }
}
