//! `top`, `stats`, `port`.

use super::lifecycle::say;
use crate::cli::format::{self, Shape, binary, human};
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use xbuild_runner::container::{Containers, Found, Status, group_directory, processes_of};

/// Flags of `top`.
#[derive(clap::Args, Debug)]
pub(crate) struct TopArgs {
    /// Container, by name or ID, and options of ps
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONTAINER [PS OPTIONS]")]
    container_and_options: Vec<String>,
}

/// Flags of `port`.
#[derive(clap::Args, Debug)]
pub(crate) struct PortArgs {
    /// Name or ID
    container: String,
    /// Port of the container (`80`, `53/udp`)
    port: Option<String>,
}

/// Flags of `stats`.
#[derive(clap::Args, Debug)]
pub(crate) struct StatsArgs {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Only once
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Names or IDs; all that run if there are none
    containers: Vec<String>,
}

pub(crate) fn top(args: &TopArgs, global: &Global) -> Result<Outcome> {
    let (name, options) = args.container_and_options.split_first().context("\"top\" requires at least 1 argument")?;
    let found = global.containers()?.find(name)?;
    if !matches!(found.state.status, Status::Running | Status::Paused) {
        bail!("container {} is not running", found.container.id);
    }
    let inside = processes_of(&found.container);
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output =
        std::process::Command::new("ps").args(options).output().context("cannot run `ps`: is procps installed?")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = header.iter().position(|name| *name == "PID");
    let column = column.context("couldn't find PID field in ps output")?;
    let mut rows = vec![header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
    for line in lines {
        let cells = split_columns(line, header.len());
        if cells.get(column).and_then(|pid| pid.parse().ok()).is_some_and(|pid: i32| inside.contains(&pid)) {
            rows.push(cells);
        }
    }
    format::write_table(&mut std::io::stdout().lock(), &rows)?;
    Ok(Outcome::Success)
}

/// Words of a line; the last column takes all that is left.
fn split_columns(line: &str, count: usize) -> Vec<String> {
    let mut cells = Vec::new();
    let mut rest = line.trim();
    while cells.len() + 1 < count {
        let Some((word, after)) = rest.split_once(char::is_whitespace) else {
            break;
        };
        cells.push(word.to_owned());
        rest = after.trim_start();
    }
    cells.push(rest.to_owned());
    cells
}

pub(crate) fn port(args: &PortArgs, global: &Global) -> Result<Outcome> {
    let found = global.containers()?.find(&args.container)?;
    let published = super::network::published(&found);
    let wanted = args.port.as_ref().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    let asked = args.port.as_deref().unwrap_or_default();
    let mut any = false;
    for (port, address) in published {
        match &wanted {
            Some(wanted) if *wanted == port => say(&address)?,
            Some(_) => continue,
            None => say(&format!("{port} -> {address}"))?,
        }
        any = true;
    }
    match wanted {
        Some(_) if !any => bail!("No public port '{asked}' published for {}", args.container),
        _ => Ok(Outcome::Success),
    }
}

const HEADERS: [(&str, &str); 9] = [
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];
const DEFAULT: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
/// Between two looks at the time that a container has used.
const INTERVAL: Duration = Duration::from_millis(500);

pub(crate) fn stats(args: &StatsArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    for name in &args.containers {
        containers.find(name)?;
    }
    let shape = Shape { headers: &HEADERS, default: DEFAULT, quiet: "{{.ID}}" };
    loop {
        let watched = watched(args, &containers)?;
        let before: Vec<u64> = watched.iter().map(processor_time).collect();
        let began = Instant::now();
        std::thread::sleep(INTERVAL);
        let passed = began.elapsed().as_nanos().max(1) as f64;
        let rows: Vec<Value> = watched
            .iter()
            .zip(before)
            .map(|(found, before)| {
                let used = processor_time(found).saturating_sub(before) as f64;
                row(found, used / passed * 100.0, args.no_trunc)
            })
            .collect();
        let mut out = std::io::stdout().lock();
        if !args.no_stream && args.format.is_none() {
            use std::io::Write;
            // To the top of the screen, and nothing below.
            write!(out, "\x1b[2J\x1b[H")?;
        }
        format::print(&mut out, &shape, args.format.as_deref(), false, &rows)?;
        if args.no_stream {
            return Ok(Outcome::Success);
        }
        drop(out);
        std::thread::sleep(INTERVAL);
    }
}

fn watched(args: &StatsArgs, containers: &Containers) -> Result<Vec<Found>> {
    if !args.containers.is_empty() {
        return Ok(args.containers.iter().filter_map(|name| containers.find(name).ok()).collect());
    }
    let all = containers.list()?.into_iter();
    Ok(all.filter(|found| args.all || matches!(found.state.status, Status::Running | Status::Paused)).collect())
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A number behind a word, in a file of such lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Nanoseconds that a container has used of all processors.
fn processor_time(found: &Found) -> u64 {
    let container = &found.container;
    let used = match (group_directory(container, "cpuacct"), group_directory(container, "cpu")) {
        (Some((group, false)), _) => number(&group.join("cpuacct.usage")),
        (_, Some((group, true))) => field(&group.join("cpu.stat"), "usage_usec").map(|micros| micros * 1000),
        _ => None,
    };
    used.unwrap_or(0)
}

fn row(found: &Found, percent: f64, whole: bool) -> Value {
    let container = &found.container;
    let (used, limit) = memory(found);
    let share = if limit == 0 { 0.0 } else { used as f64 / limit as f64 * 100.0 };
    let (received, sent) = network(found.state.pid);
    let (read, written) = block(found);
    let pids =
        group_directory(container, "pids").and_then(|(group, _)| number(&group.join("pids.current"))).unwrap_or(0);
    json!({
        "Container": container.short_id(),
        "ID": if whole { container.id.as_str() } else { container.short_id() },
        "Name": container.name,
        "CPUPerc": format!("{percent:.2}%"),
        "MemUsage": format!("{} / {}", binary(used), binary(limit)),
        "MemPerc": format!("{share:.2}%"),
        "NetIO": format!("{} / {}", human(received), human(sent)),
        "BlockIO": format!("{} / {}", human(read), human(written)),
        "PIDs": pids.to_string(),
    })
}

/// Memory in use without what could be given back at once, and its limit: that of the machine if it has none.
fn memory(found: &Found) -> (u64, u64) {
    let machine = field(Path::new("/proc/meminfo"), "MemTotal:").unwrap_or_else(|| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        total.unwrap_or(0) * 1024
    });
    let Some((group, unified)) = group_directory(&found.container, "memory") else {
        return (0, machine);
    };
    let (usage, limit, cache) = match unified {
        true => ("memory.current", "memory.max", "inactive_file"),
        false => ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
    };
    let used = number(&group.join(usage)).unwrap_or(0);
    let used = used.saturating_sub(field(&group.join("memory.stat"), cache).unwrap_or(0).min(used));
    let limit = number(&group.join(limit)).filter(|limit| *limit < machine).unwrap_or(machine);
    (used, limit)
}

/// Bytes received and sent by all interfaces but loopback.
fn network(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut total = (0, 0);
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else {
            continue;
        };
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        if let (false, Some(received), Some(sent)) = (name.trim() == "lo", counters.first(), counters.get(8)) {
            total = (total.0 + received, total.1 + sent);
        }
    }
    total
}

/// Bytes read from and written to disks.
fn block(found: &Found) -> (u64, u64) {
    let Some((group, false)) = group_directory(&found.container, "blkio") else {
        return (0, 0);
    };
    let text = std::fs::read_to_string(group.join("blkio.throttle.io_service_bytes")).unwrap_or_default();
    let sum = |kind: &str| {
        let of_kind =
            text.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(kind)?.trim().parse::<u64>().ok());
        of_kind.sum()
    };
    (sum("Read "), sum("Write "))
}
