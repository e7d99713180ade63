//! What has become of a container: `state.json`.

use super::clock;
use serde::{Deserialize, Serialize};

/// Where a container stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It has ended and waits to be started again.
    Restarting,
    /// It has ended.
    Exited,
    /// It could not be removed.
    Dead,
}

impl Status {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }

    /// A monitor looks after it.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }
}

/// Written by whoever holds the container's lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// Where it stands.
    pub status: Status,
    /// Process 1, as the host sees it; 0 when there is none.
    pub pid: u32,
    /// Of the last run.
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    /// The kernel ended a process for want of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub finished_at: String,
    /// Restarts by the policy since it was last started by hand.
    pub restart_count: u32,
    /// What was told to stop by somebody stays so.
    pub stopped_by_hand: bool,
    /// Of the health check, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl Default for State {
    fn default() -> Self {
        State {
            status: Status::Created,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started_at: clock::NEVER.to_owned(),
            finished_at: clock::NEVER.to_owned(),
            restart_count: 0,
            stopped_by_hand: false,
            health: None,
        }
    }
}

/// How a container feels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last probes, the newest last.
    pub log: Vec<Probe>,
}

/// One look at a container's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Probe {
    /// RFC 3339.
    pub start: String,
    /// RFC 3339.
    pub end: String,
    /// Of the probe's command; -1 when it took too long.
    pub exit_code: i32,
    /// What it printed, cut short.
    pub output: String,
}
