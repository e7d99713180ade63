//! Limits of a container's resources, as flags of `run`, `create` and `update` say them.

use super::values;
use anyhow::{Result, bail};
use xbuild_runner::container::config::HostConfig;

/// Docker's lowest limit of memory.
const LEAST_MEMORY: i64 = 6 << 20;

/// The flags.
#[derive(clap::Args, Debug, Default, PartialEq)]
pub(crate) struct LimitFlags {
    /// Weight of block input and output, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// CPU period in microseconds
    #[arg(long)]
    cpu_period: Option<i64>,
    /// CPU time per period in microseconds
    #[arg(long)]
    cpu_quota: Option<i64>,
    /// Relative weight of CPU time
    #[arg(short = 'c', long, allow_hyphen_values = true)]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long)]
    cpus: Option<String>,
    /// CPUs to run on (`0-3`, `0,1`)
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Limit of memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory that it is guaranteed
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Limit of memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Limit of processes; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
}

impl LimitFlags {
    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == LimitFlags::default()
    }

    /// Sets what is said, and checks that it fits together.
    pub(crate) fn apply(&self, host: &mut HostConfig) -> Result<()> {
        let bytes = |text: &str| values::bytes(text).and_then(|bytes| Ok(i64::try_from(bytes)?));
        if let Some(text) = &self.memory {
            host.memory = bytes(text)?;
        }
        match self.memory_swap.as_deref() {
            Some("-1") => host.memory_swap = -1,
            Some(text) => host.memory_swap = bytes(text)?,
            // As docker: twice the memory, unless the user says otherwise.
            None if self.memory.is_some() && host.memory > 0 => host.memory_swap = host.memory.saturating_mul(2),
            None => {}
        }
        if let Some(text) = &self.memory_reservation {
            host.memory_reservation = bytes(text)?;
        }
        if host.memory > 0 && host.memory < LEAST_MEMORY {
            bail!("Minimum memory limit allowed is 6MB");
        }
        if host.memory_swap > 0 && host.memory == 0 {
            bail!("You should always set the Memory limit when using Memoryswap limit, see usage");
        }
        if host.memory_swap > 0 && host.memory_swap < host.memory {
            bail!("Minimum memoryswap limit should be larger than memory limit, see usage");
        }
        if host.memory > 0 && host.memory_reservation > host.memory {
            bail!("Minimum memory limit can not be less than memory reservation limit, see usage");
        }
        if let Some(text) = &self.cpus {
            host.nano_cpus = values::nano_cpus(text)?;
        }
        if self.cpu_shares.is_some_and(|shares| shares < 0) {
            bail!("shares: invalid argument");
        }
        host.cpu_shares = self.cpu_shares.unwrap_or(host.cpu_shares);
        host.cpu_period = self.cpu_period.unwrap_or(host.cpu_period);
        host.cpu_quota = self.cpu_quota.unwrap_or(host.cpu_quota);
        if host.nano_cpus > 0 && (host.cpu_period > 0 || host.cpu_quota > 0) {
            bail!("Conflicting options: Nano CPUs and CPU Period or CPU Quota cannot both be set");
        }
        let cpus = (&mut host.cpuset_cpus, &self.cpuset_cpus, "CPUs", "/sys/devices/system/cpu/online");
        let mems = (&mut host.cpuset_mems, &self.cpuset_mems, "memory nodes", "/sys/devices/system/node/online");
        for (own, text, what, online) in [cpus, mems] {
            if let Some(text) = text {
                values::check_cpuset(text, what, std::fs::read_to_string(online).ok().as_deref())?;
                text.clone_into(own);
            }
        }
        host.pids_limit = self.pids_limit.or(host.pids_limit);
        if let Some(weight) = self.blkio_weight {
            if weight != 0 && !(10..=1000).contains(&weight) {
                bail!("Range of blkio weight is from 10 to 1000");
            }
            host.blkio_weight = weight;
        }
        Ok(())
    }

    /// Changes what is said of a container that has limits already.
    pub(crate) fn update(&self, host: &mut HostConfig) -> Result<()> {
        if let (Some(text), None) = (&self.memory, &self.memory_swap)
            && host.memory_swap > 0
            && values::bytes(text)? > u64::try_from(host.memory_swap)?
        {
            bail!(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
            );
        }
        self.apply(host)
    }
}
