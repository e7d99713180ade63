//! Values of flags, in docker's spellings.

use crate::cli::values::{fields, pairs};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use xbuild_runner::Propagation;
use xbuild_runner::container::config::{Device, MountRequest, PortBinding, RestartPolicy, Ulimit};
use xbuild_runner::container::log::parse_size;

/// `KEY=VALUE`; a key alone has an empty value.
pub(crate) fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// Entries of the form `NAME[=VALUE]`, none without a name; `what` they are.
pub(crate) fn named<'a>(entries: &'a [String], what: &str) -> Result<&'a [String]> {
    match entries.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        Some(entry) => bail!("invalid {what}: {entry:?} has no name"),
        None => Ok(entries),
    }
}

/// Variables: names alone are taken from the environment, or taken away if that has none.
pub(crate) fn environment(entries: &[String]) -> Vec<String> {
    let one = |entry: &String| match entry.contains('=') {
        true => entry.clone(),
        false => std::env::var(entry).map_or_else(|_| entry.clone(), |value| format!("{entry}={value}")),
    };
    entries.iter().map(one).collect()
}

/// Bytes that a file of variables or labels may have.
const MOST_TEXT: u64 = 16 << 20;

/// Lines of a file that are neither empty nor comments.
pub(crate) fn lines_of(path: &str) -> Result<Vec<String>> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("open {path}"))?;
    file.take(MOST_TEXT + 1).read_to_string(&mut text).with_context(|| format!("read {path}"))?;
    if text.len() as u64 > MOST_TEXT {
        bail!("{path} has more than {} MiB", MOST_TEXT >> 20);
    }
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_start);
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

/// Variables of a file; names that the environment lacks are left out.
pub(crate) fn env_file(path: &str) -> Result<Vec<String>> {
    let lines = lines_of(path)?;
    for line in &lines {
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!("no variable name on line '{line}' of {path}");
        }
        if name.contains(char::is_whitespace) {
            bail!("variable '{name}' contains whitespaces, in {path}");
        }
    }
    Ok(environment(&lines).into_iter().filter(|entry| entry.contains('=')).collect())
}

/// Bytes, in docker's units.
pub(crate) fn bytes(text: &str) -> Result<u64> {
    parse_size(text).ok_or_else(|| anyhow!("invalid size: '{text}'"))
}

/// A number of processors in billionths.
pub(crate) fn nano_cpus(text: &str) -> Result<i64> {
    let cpus: f64 = text.parse().map_err(|_| anyhow!("failed to parse {text} as a rational number"))?;
    let most = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    if !(0.0..=most).contains(&cpus) || (cpus > 0.0 && cpus < 0.01) {
        bail!("Range of CPUs is from 0.01 to {most:.2}, as there are only {most} CPUs available");
    }
    Ok((cpus * 1e9).round() as i64)
}

/// The first and last number of each part of `0-3,5`.
fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').map(part).collect()
}

/// Checks that `0-3,5` are among what the host has online, if that is known; `what` names them.
pub(crate) fn check_cpuset(text: &str, what: &str, online: Option<&str>) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let Some(wanted) = ranges(text) else { bail!("Invalid value {text} for cpuset {what}") };
    let Some(online) = online.map(str::trim) else { return Ok(()) };
    let there = ranges(online).unwrap_or_default();
    let is_there = |n: u32| there.iter().any(|(first, last)| (*first..=*last).contains(&n));
    if wanted.iter().any(|(first, last)| first > last || !is_there(*first) || !is_there(*last)) {
        bail!("Requested {what} are not available - requested {text}, available: {online}");
    }
    Ok(())
}

/// An address of IPv4 or IPv6, as it was written.
pub(crate) fn address(text: &str) -> Result<String> {
    match text.trim().parse::<std::net::IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => bail!("IP address is not correctly formatted: {text}"),
    }
}

/// Go's durations (`1m30s`, `500ms`), in nanoseconds.
pub(crate) fn nanoseconds(text: &str) -> Result<i64> {
    let wrong = || anyhow!("time: invalid duration \"{text}\"");
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    if text.is_empty() || total > i64::MAX as f64 { Err(wrong()) } else { Ok(total as i64) }
}

/// `no`, `on-failure[:N]`, `always`, `unless-stopped`.
pub(crate) fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
    let name = if name.is_empty() { "no" } else { name };
    let maximum_retry_count = match (name, count) {
        ("on-failure", Some(count)) => count
            .parse()
            .map_err(|_| anyhow!("invalid restart policy format: maximum retry count must be an integer"))?,
        ("no" | "on-failure" | "always" | "unless-stopped", None) => 0,
        ("no" | "always" | "unless-stopped", Some(_)) => {
            bail!("invalid restart policy: maximum retry count can only be used with 'on-failure'")
        }
        _ => bail!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ),
    };
    Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count })
}

/// `HOST[:CONTAINER][:rwm]`.
pub(crate) fn device(text: &str) -> Result<Device> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
    let (host, container, access) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, access] if is_access(access) => (*host, *host, *access),
        [host, container] => (*host, *container, "rwm"),
        [host, container, access] if is_access(access) => (*host, *container, *access),
        [_, _, access] => bail!("bad mode specified: {access}"),
        _ => bail!("invalid device specification: {text}"),
    };
    Ok(Device {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: access.to_owned(),
    })
}

/// `NAME=SOFT[:HARD]`; -1 is unlimited.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit> {
    let xbuild_graph::Ulimit { name, soft, hard } = crate::cli::values::ulimit(text)?;
    Ok(Ulimit { name, soft, hard })
}

/// `PATH[:OPTIONS]`.
pub(crate) fn path_and_options(text: &str) -> (String, String) {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    (path.to_owned(), options.to_owned())
}

/// Parts of `[SOURCE:]TARGET[:OPTIONS]`.
fn volume_parts(text: &str) -> Result<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [target] if !target.is_empty() => Ok(("", target, "")),
        [source, target] if !source.is_empty() => Ok((source, target, "")),
        [source, target, options] if !source.is_empty() => Ok((source, target, options)),
        _ => bail!("invalid volume specification: '{text}'"),
    }
}

/// A source as the engine takes it: names as they are, paths absolute.
fn source(text: &str) -> Result<String> {
    if text == "." || text == ".." || text.starts_with("./") || text.starts_with("../") {
        let absolute = std::path::absolute(text).with_context(|| format!("invalid volume source {text}"))?;
        return Ok(absolute.canonicalize().unwrap_or(absolute).display().to_string());
    }
    if let Some(rest) = text.strip_prefix("~/") {
        return Ok(std::env::var("HOME").map_or_else(|_| text.to_owned(), |home| format!("{home}/{rest}")));
    }
    if text.contains('/') && !text.starts_with('/') {
        bail!(
            "create {text}: \"{text}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" \
             are allowed. If you intended to pass a host directory, use absolute path"
        );
    }
    Ok(text.to_owned())
}

/// Whether this says how mounts of the host and the container are to be connected.
fn is_propagation(text: &str) -> bool {
    Propagation::parse(text).is_some_and(|propagation| !propagation.is_unbindable())
}

/// `-v`.
pub(crate) fn volume(text: &str) -> Result<MountRequest> {
    let (from, target, options) = volume_parts(text)?;
    let from = source(from)?;
    if !target.starts_with('/') {
        bail!("invalid volume specification: '{text}': invalid mount config: mount path must be absolute");
    }
    let bind = from.contains('/');
    let mut mount = MountRequest {
        kind: if bind { "bind" } else { "volume" }.to_owned(),
        source: if bind && from.len() > 1 { from.trim_end_matches('/').to_owned() } else { from },
        target: target.to_owned(),
        create_mountpoint: true,
        ..MountRequest::default()
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" if !bind => mount.no_copy = true,
            _ if bind && is_propagation(option) => mount.propagation = option.to_owned(),
            _ => bail!("invalid mode: {option}"),
        }
    }
    Ok(mount)
}

/// `-v` as `inspect` shows it.
pub(crate) fn bind_text(text: &str) -> Result<String> {
    let (from, target, options) = volume_parts(text)?;
    let text = format!("{}:{target}", source(from)?);
    Ok(if options.is_empty() { text } else { format!("{text}:{options}") })
}

/// `--mount`.
pub(crate) fn mount(text: &str) -> Result<MountRequest> {
    let mut mount = MountRequest { kind: "volume".to_owned(), ..MountRequest::default() };
    for field in fields(text)? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        let truth = || match value {
            None => Ok(true),
            Some(value) => crate::cli::values::boolean(value),
        };
        let given = || value.ok_or_else(|| anyhow!("invalid field '{field}' must be a key=value pair"));
        match key.to_lowercase().as_str() {
            "type" => mount.kind = given()?.to_lowercase(),
            "source" | "src" => mount.source = source(given()?)?,
            "target" | "dst" | "destination" => mount.target = given()?.to_owned(),
            "readonly" | "ro" => mount.read_only = truth()?,
            "volume-nocopy" => mount.no_copy = truth()?,
            "volume-label" => {
                mount.labels.extend([pair(given()?)]);
            }
            "bind-nonrecursive" => mount.non_recursive = truth()?,
            "bind-recursive" => mount.non_recursive = given()? == "disabled",
            "bind-create-src" => mount.create_mountpoint = truth()?,
            "tmpfs-size" => mount.tmpfs_size = Some(bytes(given()?)?),
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(given()?, 8);
                mount.tmpfs_mode = Some(mode.map_err(|_| anyhow!("invalid value for tmpfs-mode: {field}"))?);
            }
            "consistency" => {}
            "bind-propagation" if value.is_some_and(is_propagation) => {
                mount.propagation = given()?.to_owned();
            }
            "bind-propagation" => bail!("invalid propagation value: {}", given()?),
            "volume-driver" if value == Some("local") => {}
            "volume-driver" | "volume-opt" | "volume-subpath" => {
                bail!("--mount: `{field}` is not supported")
            }
            _ => bail!("unexpected key '{key}' in '{field}'"),
        }
    }
    if !matches!(mount.kind.as_str(), "bind" | "volume" | "tmpfs") {
        bail!("--mount: mount type `{}` is unknown", mount.kind);
    }
    if mount.target.is_empty() {
        bail!("target is required");
    }
    if mount.kind == "bind" && mount.source.is_empty() {
        bail!("invalid mount config for type \"bind\": field Source must not be empty");
    }
    if mount.kind == "tmpfs" && !mount.source.is_empty() {
        bail!("invalid mount config for type \"tmpfs\": source must not be specified");
    }
    Ok(mount)
}

/// A network with what is asked for in it.
#[derive(Debug, Default)]
pub(crate) struct Envelope {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) ip: Option<String>,
    pub(crate) ip6: Option<String>,
    pub(crate) mac: Option<String>,
}

/// `--network NAME` or `--network name=NAME,alias=…`.
pub(crate) fn network(text: &str) -> Result<Envelope> {
    if !text.contains('=') {
        return Ok(Envelope { name: text.to_owned(), ..Envelope::default() });
    }
    let mut network = Envelope::default();
    for field in fields(text)? {
        let (key, value) = pair(&field);
        match key.to_lowercase().as_str() {
            "name" => network.name = value,
            "alias" => network.aliases.push(value),
            "ip" => network.ip = Some(value),
            "ip6" => network.ip6 = Some(value),
            "mac-address" => network.mac = Some(value),
            _ => bail!("invalid field key {key} in --network"),
        }
    }
    Ok(network)
}

/// Ports of `--expose`: `80`, `8000-8010/udp`.
pub(crate) fn ports(text: &str) -> Result<Vec<String>> {
    let (range, protocol) = protocol(text)?;
    Ok(self::range(range)?.map(|port| format!("{port}/{protocol}")).collect())
}

fn protocol(text: &str) -> Result<(&str, String)> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        Ok((rest, protocol))
    } else {
        bail!("Invalid proto: {protocol}")
    }
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>> {
    let wrong = || anyhow!("Invalid containerPort: {text}");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first == 0 || last < first { Err(wrong()) } else { Ok(first..=last) }
}

/// Bindings of `-p` by container port.
pub(crate) fn bindings(specs: &[String]) -> Result<BTreeMap<String, Vec<PortBinding>>> {
    let mut all: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
    for spec in specs {
        for (port, binding) in binding(spec).with_context(|| format!("invalid port specification: \"{spec}\""))? {
            all.entry(port).or_default().push(binding);
        }
    }
    Ok(all)
}

fn binding(spec: &str) -> Result<Vec<(String, PortBinding)>> {
    if spec.contains('=') {
        return long_binding(spec);
    }
    let (rest, protocol) = protocol(spec)?;
    let (before, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (address, host) = match before.rsplit_once(':') {
        Some((address, host)) => (address.trim_start_matches('[').trim_end_matches(']'), host),
        // Only one part before the container's port: the host's port.
        None => ("", before),
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        bail!("Invalid ip address: {address}");
    }
    expand(address, host, container, &protocol)
}

fn expand(address: &str, host: &str, container: &str, protocol: &str) -> Result<Vec<(String, PortBinding)>> {
    let containers = range(container)?;
    let binding = |host_port: String| PortBinding { host_ip: address.to_owned(), host_port };
    if host.is_empty() || host == "0" {
        return Ok(containers.map(|port| (format!("{port}/{protocol}"), binding(String::new()))).collect());
    }
    let hosts = range(host).map_err(|_| anyhow!("Invalid hostPort: {host}"))?;
    if containers.len() == 1 && hosts.len() > 1 {
        return Ok(vec![(format!("{}/{protocol}", containers.start()), binding(host.to_owned()))]);
    }
    if hosts.len() != containers.len() {
        bail!("Invalid ranges specified for container and host Ports: {container} and {host}");
    }
    Ok(containers.zip(hosts).map(|(port, host)| (format!("{port}/{protocol}"), binding(host.to_string()))).collect())
}

/// `target=80,published=8080,protocol=tcp`.
fn long_binding(spec: &str) -> Result<Vec<(String, PortBinding)>> {
    let pairs = pairs(spec)?;
    let get = |key: &str| pairs.get(key).map(String::as_str);
    if let Some(key) = pairs.keys().find(|key| !matches!(key.as_str(), "target" | "published" | "protocol" | "mode")) {
        bail!("invalid field key {key}");
    }
    expand(
        "",
        get("published").unwrap_or(""),
        get("target").context("target is required")?,
        get("protocol").unwrap_or("tcp"),
    )
}

/// Durations like `10m` or times, as seconds and nanoseconds since 1970.
pub(crate) fn moment(text: &str) -> Result<(i64, u32)> {
    use xbuild_runner::container::clock;
    if let Some((seconds, nanos)) = text.split_once('.').or(Some((text, "0")))
        && let (Ok(seconds), true) = (seconds.parse::<i64>(), nanos.bytes().all(|byte| byte.is_ascii_digit()))
    {
        let nanos = format!("{nanos:0<9}");
        return Ok((seconds, nanos.get(..9).unwrap_or("0").parse()?));
    }
    if let Ok(span) = nanoseconds(text) {
        let (seconds, nanos) = clock::now();
        let now = i128::from(seconds) * 1_000_000_000 + i128::from(nanos) - i128::from(span);
        return Ok((i64::try_from(now.div_euclid(1_000_000_000))?, u32::try_from(now.rem_euclid(1_000_000_000))?));
    }
    clock::parse(text)
        .ok_or_else(|| anyhow!("invalid time `{text}`: expected a duration, seconds since 1970, or RFC 3339"))
}

/// The runtime that is this program's own sandbox.
pub(super) const OWN_RUNTIME: &str = "xbuild";

/// Directories of runtimes, besides those of `PATH`.
const RUNTIMES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `--oci-runtime`: the path of the program; empty for our own.
pub(super) fn oci_runtime(name: &str) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let executable =
        |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name == OWN_RUNTIME {
        return Ok(String::new());
    }
    let found = if name.contains('/') {
        Some(std::path::absolute(name)?).filter(|path| executable(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::env::split_paths(&path).chain(RUNTIMES.split(':').map(PathBuf::from));
        directories.filter(|directory| directory.is_absolute()).map(|d| d.join(name)).find(|path| executable(path))
    };
    match found.as_deref().and_then(Path::to_str) {
        Some(path) => Ok(path.to_owned()),
        None => bail!("unknown or invalid OCI runtime `{name}`: no such program; install it, or give its path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_in_every_spelling() {
        let of = |spec: &str| {
            let mut all = Vec::new();
            for (port, bindings) in bindings(&[spec.to_owned()]).unwrap() {
                all.extend(bindings.iter().map(|b| format!("{port}={}:{}", b.host_ip, b.host_port)));
            }
            all.join(" ")
        };
        assert_eq!(of("80"), "80/tcp=:");
        assert_eq!(of("8080:80/udp"), "80/udp=:8080");
        assert_eq!(of("127.0.0.1::80"), "80/tcp=127.0.0.1:");
        assert_eq!(of("127.0.0.1:8080:80"), "80/tcp=127.0.0.1:8080");
        assert_eq!(of("[::1]:8080:80"), "80/tcp=::1:8080");
        assert_eq!(of("9000-9001:80-81"), "80/tcp=:9000 81/tcp=:9001");
        assert_eq!(of("9000-9005:80"), "80/tcp=:9000-9005");
        assert_eq!(of("target=80,published=8080"), "80/tcp=:8080");
        for wrong in ["x", "1:2:3:4", "0", "70000", "80-90:1-2", "a:80", "80/icmp", "80-70"] {
            assert!(bindings(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn volumes_are_names_or_paths() {
        let named = volume("data:/v:ro,nocopy").unwrap();
        assert_eq!(
            (named.kind.as_str(), named.source.as_str(), named.read_only, named.no_copy),
            ("volume", "data", true, true)
        );
        let bound = volume("/host/:/v").unwrap();
        assert_eq!((bound.kind.as_str(), bound.source.as_str(), bound.create_mountpoint), ("bind", "/host", true));
        assert_eq!(volume("/only").unwrap().source, "");
        for wrong in ["", "a:b", "x:/y:nonsense", "a:b:c:d", ":/x"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mounts_name_their_keys() {
        let tmpfs = mount("type=tmpfs,destination=/t,tmpfs-size=2m,tmpfs-mode=1770").unwrap();
        assert_eq!((tmpfs.tmpfs_size, tmpfs.tmpfs_mode), (Some(2 << 20), Some(0o1770)));
        assert!(mount("type=bind,source=/x,target=/b,readonly").unwrap().read_only);
        for wrong in ["type=volume,nonsense=1,dst=/v", "type=volume,src=x", "type=odd,dst=/x", "type=bind,dst=/x"] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_and_limits() {
        assert_eq!(nanoseconds("1m30s").unwrap(), 90_000_000_000);
        assert_eq!(nanoseconds("500ms").unwrap(), 500_000_000);
        assert!(nanoseconds("5").is_err() && nanoseconds("").is_err() && nanoseconds("1x").is_err());
        assert_eq!(moment("1600000000.5").unwrap(), (1_600_000_000, 500_000_000));
        assert!(moment("soon").is_err());
        let limit = ulimit("nofile=1234:2345").unwrap();
        assert_eq!((limit.soft, limit.hard), (1234, 2345));
        assert!(ulimit("nofile=5:1").is_err() && ulimit("odd=1").is_err() && ulimit("core").is_err());
        assert_eq!(restart_policy("on-failure:3").unwrap().maximum_retry_count, 3);
        assert!(restart_policy("sometimes").is_err() && restart_policy("always:3").is_err());
        let check = |text| check_cpuset(text, "CPUs", Some("0-3,8\n")).map_err(|error| error.to_string());
        for fine in ["", "0", "0-1,3", "8"] {
            assert_eq!(check(fine), Ok(()));
        }
        for wrong in ["x", "4", "2-9", "3-1", "1-"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        let want = "Requested CPUs are not available - requested 4, available: 0-3,8";
        assert_eq!(check("4"), Err(want.to_owned()));
    }
}
