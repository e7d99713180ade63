//! Containers: what they are, where they lie, and the process that looks after each.
//!
//! There is no daemon. Every container that runs has one small *monitor*: this program executed again (see
//! [`monitor::main_if_requested`]), with one thread. It starts the process through the sandbox, owns its standard
//! streams, writes the log and the state, runs health checks and other processes in the container, and starts it again
//! as the restart policy says. Commands are clients of it, over a socket in the container's directory.
//!
//! ```text
//! ROOT/containers/
//!   .names/NAME        the id that has the name
//!   .lock              held while names change
//!   .events            journal, one JSON object a line
//!   .skeleton/         mount points that images may lack; the lowest layer of every container
//!   ID/                mode 0700
//!     config.json      what it is; replaced by renaming
//!     state.json       what has become of it; written by who holds the lock
//!     lock             flock: held by the monitor, or by a command that changes a container without one
//!     socket           of the monitor
//!     json.log[.N]     output
//!     fs, work         upper and work directory
//!     hosts, hostname, resolv.conf
//! ```
//!
//! # Invariants
//! - A container with a state that says it is alive and a lock that nobody holds has lost its monitor; its processes ended
//!   with it, since process 1 dies with its parent. Whoever looks first writes that down.
//! - The monitor never has a second thread, so it may fork.
//! - A container's directory appears whole and goes whole, by renaming.

pub mod archive;
mod child;
mod client;
pub mod clock;
pub mod config;
mod error;
pub mod events;
mod external;
mod files;
pub mod inside;
pub mod log;
pub mod monitor;
mod networking;
mod policy;
mod removal;
pub mod signals;
mod state;
pub mod volumes;
mod wire;

pub use client::{Connection, Event, IdleMonitor};
pub use error::ContainerError;
pub(crate) use external::rootfs_of_bundle;
pub use files::{Containers, Found, Lock, is_id, is_name};
pub use removal::remove;
pub use state::{Health, Probe, State, Status};
pub use wire::{Answer, ExecRequest, Request, Streams};

use crate::spec::CgroupSpec;
use config::Container;

/// The control group of a container, with its limits.
#[must_use]
pub fn group_of(container: &Container) -> CgroupSpec {
    let host = &container.host_config;
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |list: &String| Some(list.clone()).filter(|list| !list.is_empty());
    let (quota, period) = match positive(host.nano_cpus) {
        // Billionths of a processor to microseconds of 100 ms.
        Some(nanos) => (Some(nanos / 10_000), Some(100_000)),
        None => (positive(host.cpu_quota), positive(host.cpu_period)),
    };
    let memory = positive(host.memory);
    CgroupSpec {
        parent: match host.cgroup_parent.trim_matches('/') {
            "" => "xbuild".to_owned(),
            parent => parent.to_owned(),
        },
        name: container.id.clone(),
        memory,
        memory_swap: match (host.memory_swap, memory) {
            // As docker: as much swap as memory where nothing is said.
            (0, Some(memory)) => i64::try_from(memory.saturating_mul(2)).ok(),
            (0, None) => None,
            (swap, _) => Some(swap),
        },
        memory_reservation: positive(host.memory_reservation),
        cpu_quota: quota,
        cpu_period: period,
        cpu_shares: positive(host.cpu_shares),
        cpuset_cpus: text(&host.cpuset_cpus),
        cpuset_mems: text(&host.cpuset_mems),
        pids: host.pids_limit.and_then(positive),
        blkio_weight: positive(i64::from(host.blkio_weight)),
        everywhere: true,
    }
}

/// Changes the limits of a container that runs.
pub fn update_limits(container: &Container) -> Result<(), ContainerError> {
    crate::cgroup::update(&group_of(container)).map_err(|failure| ContainerError::Sandbox(failure.into()))
}

/// The ids of a container's processes, as the host sees them.
#[must_use]
pub fn processes_of(container: &Container) -> Vec<i32> {
    crate::cgroup::processes(&group_of(container))
}

/// The directory of a container's control group in the hierarchy of a controller, and whether that is version 2.
#[must_use]
pub fn group_directory(container: &Container, controller: &str) -> Option<(std::path::PathBuf, bool)> {
    crate::cgroup::directory(&group_of(container), controller)
}
