//! `linux.resources`: what goes into the files of control groups.

use crate::cgroup::{self, Setting};
use crate::error::Failure;
use crate::spec::CgroupSpec;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};
use std::path::Path;

/// The group that a configuration names, or one of ours.
pub(super) fn group(path: Option<&Path>, id: &str) -> Result<CgroupSpec, Failure> {
    let path = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => format!("xbuild-oci/{id}"),
        Some(path) => path.to_str().unwrap_or_default().trim_matches('/').to_owned(),
    };
    if path.contains(':') && path.ends_with(id) && path.split(':').count() == 3 {
        return Err(Failure::Refused(format!(
            "linux.cgroupsPath `{path}` is one of systemd's; use the cgroupfs driver, this runtime does not talk to systemd"
        )));
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let group =
        CgroupSpec { parent: parent.to_owned(), name: name.to_owned(), everywhere: true, ..CgroupSpec::default() };
    cgroup::check_names(&group)?;
    Ok(group)
}

/// All limits, in the order in which they are set.
pub(super) fn settings(resources: Option<&LinuxResources>) -> Result<Vec<Setting>, Failure> {
    let Some(resources) = resources else { return Ok(Vec::new()) };
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut settings);
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        // Zero and less are no limit.
        let most = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
        settings.push(Setting::same("pids", ["pids.max", "pids.max"], &most));
    }
    if let Some(block) = resources.block_io() {
        block_settings(block, &mut settings);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let files =
            [format!("hugetlb.{}.limit_in_bytes", page.page_size()), format!("hugetlb.{}.max", page.page_size())];
        settings.push(Setting::same("hugetlb", [&files[0], &files[1]], &page.limit().to_string()));
    }
    if let Some(network) = resources.network() {
        let only_legacy = |controller, file: &str, value: String| Setting {
            controller,
            legacy: Some((file.to_owned(), value)),
            unified: None,
        };
        settings.extend(network.class_id().map(|id| only_legacy("net_cls", "net_cls.classid", id.to_string())));
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            settings.push(only_legacy("net_prio", "net_prio.ifpriomap", value));
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let parts = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
        let parts = parts.iter().filter_map(|(name, most)| most.map(|most| format!(" {name}={most}")));
        let value = format!("{device}{}", parts.collect::<String>());
        settings.push(Setting::same("rdma", ["rdma.max", "rdma.max"], &value));
    }
    for (file, value) in resources.unified().iter().flatten() {
        settings.push(unified(file, value)?);
    }
    Ok(settings)
}

fn cpu_settings(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.push(Setting::same("cpuset", [file, file], list));
        }
    }
    settings.extend(cpu.shares().filter(|shares| *shares > 0).map(cgroup::cpu_shares));
    // Zero says nothing.
    settings
        .extend(cgroup::cpu_time(cpu.period().filter(|period| *period > 0), cpu.quota().filter(|quota| *quota != 0)));
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::same("cpu", ["cpu.cfs_burst_us", "cpu.max.burst"], &burst.to_string()));
    }
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::same("cpu", ["cpu.idle", "cpu.idle"], &idle.to_string()));
    }
    let real_time = [
        ("cpu.rt_period_us", cpu.realtime_period().filter(|period| *period > 0).map(|period| period.to_string())),
        ("cpu.rt_runtime_us", cpu.realtime_runtime().filter(|time| *time != 0).map(|time| time.to_string())),
    ];
    for (file, value) in real_time {
        let legacy = value.map(|value| (file.to_owned(), value));
        settings.extend(legacy.map(|legacy| Setting { controller: "cpu", legacy: Some(legacy), unified: None }));
    }
}

fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), Failure> {
    let shown = |bytes: i64| if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    if let Some(bytes) = limit {
        let values = [bytes.to_string(), shown(bytes)];
        settings.push(Setting::new("memory", ["memory.limit_in_bytes", "memory.max"], values));
    }
    if let Some(total) = memory.swap().filter(|bytes| *bytes != 0) {
        settings.push(cgroup::swap(total, limit.and_then(|bytes| u64::try_from(bytes).ok())));
    }
    if let Some(bytes) = memory.reservation().filter(|bytes| *bytes != 0) {
        let values = [bytes.to_string(), shown(bytes)];
        settings.push(Setting::new("memory", ["memory.soft_limit_in_bytes", "memory.low"], values));
    }
    let only_legacy = |file: &str, value: String| Setting {
        controller: "memory",
        legacy: Some((file.to_owned(), value)),
        unified: None,
    };
    if let Some(bytes) = memory.kernel_tcp().filter(|bytes| *bytes != 0) {
        settings.push(only_legacy("memory.kmem.tcp.limit_in_bytes", bytes.to_string()));
    }
    settings.extend(memory.swappiness().map(|value| only_legacy("memory.swappiness", value.to_string())));
    if memory.disable_oom_killer() == Some(true) {
        settings.push(only_legacy("memory.oom_control", "1".to_owned()));
    }
    // The kernel has none any more and the specification says that it is to be passed over: `kernel`. `useHierarchy` is
    // how it is in any case, and `checkBeforeUpdate` is what the kernel does.
    match memory.use_hierarchy() {
        Some(false) => Err(Failure::Refused("linux.resources.memory.useHierarchy=false is not supported".to_owned())),
        _ => Ok(()),
    }
}

fn block_settings(block: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = block.weight().filter(|weight| *weight > 0) {
        settings.push(Setting::same("blkio", ["blkio.bfq.weight", "io.bfq.weight"], &weight.to_string()));
    }
    let leaf = block.leaf_weight().filter(|weight| *weight > 0).map(|weight| Setting {
        controller: "blkio",
        legacy: Some(("blkio.leaf_weight".to_owned(), weight.to_string())),
        unified: None,
    });
    settings.extend(leaf);
    for device in block.weight_device().iter().flatten() {
        let value = format!("{}:{} {}", device.major(), device.minor(), device.weight().unwrap_or(0));
        settings.push(Setting::same("blkio", ["blkio.bfq.weight_device", "io.bfq.weight"], &value));
    }
    let throttles: [(&str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("blkio.throttle.read_bps_device", "rbps", block.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "wbps", block.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "riops", block.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "wiops", block.throttle_write_iops_device()),
    ];
    for (file, key, devices) in throttles {
        for device in devices.iter().flatten() {
            let which = format!("{}:{}", device.major(), device.minor());
            let values = [format!("{which} {}", device.rate()), format!("{which} {key}={}", device.rate())];
            settings.push(Setting::new("blkio", [file, "io.max"], values));
        }
    }
}

/// A file of version 2 by its name.
fn unified(file: &str, value: &str) -> Result<Setting, Failure> {
    const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];
    let controller = file.split('.').next().and_then(|name| CONTROLLERS.iter().find(|known| **known == name));
    match controller {
        Some(controller) if !file.contains('/') => {
            Ok(Setting { controller, legacy: None, unified: Some((file.to_owned(), value.to_owned())) })
        }
        _ => Err(Failure::Refused(format!("linux.resources.unified: `{file}` is not a file of a controller"))),
    }
}

/// Rules of devices as version 1 takes them: file and entry, in order.
pub(super) fn device_rules(rules: &[LinuxDeviceCgroup]) -> Vec<(&'static str, String)> {
    let number = |number: Option<i64>| match number {
        Some(number) if number >= 0 => number.to_string(),
        _ => "*".to_owned(),
    };
    let entry = |rule: &LinuxDeviceCgroup| {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => "b",
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
            _ => "a",
        };
        let access = rule.access().clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        if kind == "a" {
            // The kernel takes no more of these than the letter.
            return (file, "a".to_owned());
        }
        (file, format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor())))
    };
    rules.iter().map(entry).collect()
}
