//! Flags of `run` and `create`, and what they ask for.

use super::limits::LimitFlags;
use super::values::{self, Envelope};
use crate::cli::report;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use xbuild_engine::container::CreateRequest;
use xbuild_graph::Platform;
use xbuild_oci::Healthcheck;
use xbuild_runner::container::config::{Config, Endpoint, HostConfig, LogConfig, MountRequest, Nothing};

/// Flags of `run` and `create`.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct CreateFlags {
    #[command(flatten)]
    limits: LimitFlags,
    /// Add a line to /etc/hosts (`NAME:ADDRESS`)
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long, value_name = "STREAM")]
    pub(crate) attach: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Parent of the control group
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Namespace of control groups: `host` or `private`
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// Write the container's ID to a file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<String>,
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    pub(crate) detach_keys: Option<String>,
    /// Give it a device of the host (`HOST[:CONTAINER][:rwm]`)
    #[arg(long)]
    device: Vec<String>,
    /// DNS server
    #[arg(long)]
    dns: Vec<String>,
    /// Option of the resolver
    #[arg(long, alias = "dns-opt")]
    dns_option: Vec<String>,
    /// Domain to search
    #[arg(long)]
    dns_search: Vec<String>,
    /// NIS domain name
    #[arg(long)]
    domainname: Option<String>,
    /// Program in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Set a variable (`NAME=value`, or `NAME` to take it from the environment)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Say that a port is served
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Further groups of the user
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Command that checks health
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// Failures that make it unhealthy
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    health_retries: Option<i64>,
    /// Time between two checks at the start
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<String>,
    /// Time at the start in which failures do not count
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// Time that one check may take
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// Run an init that passes signals on and reaps processes
    #[arg(long)]
    init: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Namespace of IPC: `host`, `private`, `shareable` or `container:NAME`
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<String>,
    /// Where output is kept: `json-file`, `local` or `none`
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log (`max-size=10m`, `max-file=3`)
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// Hardware address
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Mount something (`type=bind,source=…,target=…`)
    #[arg(long, value_name = "SPEC")]
    mount: Vec<String>,
    /// Name of the container
    #[arg(long)]
    name: Option<String>,
    /// Network to join
    #[arg(long, alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Further name in the network
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// No health check, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
    /// Have its processes made by another OCI runtime (`runc`, `crun`, a path)
    #[arg(long, visible_alias = "runtime", value_name = "RUNTIME")]
    oci_runtime: Option<String>,
    /// Adjust the kernel's choice when memory runs out, -1000 to 1000
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Namespace of processes: `host` or `container:NAME`
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// Platform of the image
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// All capabilities and devices
    #[arg(long)]
    privileged: bool,
    /// Publish a port (`[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`)
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish all ports that the image exposes
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Pull the image: `always`, `missing` or `never`
    #[arg(long, default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub(crate) pull: String,
    /// Print no progress of a pull
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Read-only root file system
    #[arg(long)]
    read_only: bool,
    /// When to start it again: `no`, `on-failure[:N]`, `always` or `unless-stopped`
    #[arg(long, default_value = "no", value_name = "POLICY")]
    restart: String,
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Option of the sandbox (`no-new-privileges`, `seccomp=unconfined`)
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Signal that asks it to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds until it is killed when it is stopped
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<i64>,
    /// Setting of the kernel
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Mount a memory file system (`PATH[:OPTIONS]`)
    #[arg(long, value_name = "PATH")]
    tmpfs: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Resource limit (`NAME=SOFT[:HARD]`)
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// User, `name|uid[:group|gid]`
    #[arg(short, long)]
    user: Option<String>,
    /// Namespace of users: `host`
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Namespace of host names: `host`
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// Mount a volume or directory (`[SOURCE:]TARGET[:OPTIONS]`)
    #[arg(short, long, value_name = "SPEC")]
    volume: Vec<String>,
    /// Mounts of another container
    #[arg(long, value_name = "CONTAINER")]
    volumes_from: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Image, by name or ID, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "IMAGE [COMMAND...]")]
    pub(crate) image_and_command: Vec<String>,
}

impl CreateFlags {
    /// The request, with streams that `run` without `-d` attaches to.
    pub(crate) fn request(&self, attached: bool) -> Result<CreateRequest> {
        let (image, command) = self.image_and_command.split_first().context("\"run\" requires at least 1 argument")?;
        if image.starts_with('-') {
            bail!("unknown flag: {image}");
        }
        if self.name.as_deref() == Some("") {
            // A script that has lost a name is not to get another one.
            bail!("Invalid container name (), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
        }
        let networks = self.networks()?;
        Ok(CreateRequest {
            image: image.clone(),
            platform: given(&self.platform).map(Platform::parse).transpose()?,
            name: self.name.as_deref().map(|name| name.strip_prefix('/').unwrap_or(name).to_owned()),
            config: self.config(command, attached)?,
            entrypoint: self.entrypoint.as_ref().map(|own| match own.as_str() {
                "" => Vec::new(),
                own => vec![own.to_owned()],
            }),
            host: self.host()?,
            oci_runtime: given(&self.oci_runtime).map_or(Ok(String::new()), values::oci_runtime)?,
            mounts: self.mounts()?,
            networks,
        })
    }

    /// Where the ID goes; the file must not be there yet.
    pub(crate) fn cidfile(&self) -> Result<Option<&str>> {
        match given(&self.cidfile) {
            Some(path) if std::path::Path::new(path).exists() => {
                bail!("container ID file found, make sure the other container isn't running or delete {path}")
            }
            path => Ok(path),
        }
    }

    fn config(&self, command: &[String], attached: bool) -> Result<Config> {
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(values::env_file(file)?);
        }
        env.extend(values::environment(values::named(&self.env, "environment variable")?));
        let mut labels = BTreeMap::new();
        for file in &self.label_file {
            labels.extend(values::lines_of(file)?.iter().map(|line| values::pair(line)));
        }
        labels.extend(values::named(&self.label, "label")?.iter().map(|label| values::pair(label)));
        let mut exposed_ports = BTreeMap::new();
        for port in &self.expose {
            exposed_ports.extend(values::ports(port)?.into_iter().map(|port| (port, Nothing {})));
        }
        for (port, _) in values::bindings(&self.publish)? {
            exposed_ports.insert(port, Nothing {});
        }
        if let Some(directory) = given(&self.workdir)
            && !directory.starts_with('/')
        {
            bail!("the working directory '{directory}' is invalid, it needs to be an absolute path");
        }
        for text in self.hostname.iter().chain(&self.domainname).chain(&self.dns_search).chain(&self.dns_option) {
            // They become lines of files.
            if text.contains(char::is_control) {
                bail!("invalid name: {text:?}");
            }
        }
        if let Some(signal) = given(&self.stop_signal)
            && xbuild_runner::container::signals::parse(signal).is_none()
        {
            bail!("invalid signal: {signal}");
        }
        let is_stream = |text: &&String| ["stdin", "stdout", "stderr"].iter().any(|own| text.eq_ignore_ascii_case(own));
        if let Some(unknown) = self.attach.iter().find(|text| !is_stream(text)) {
            bail!("invalid argument {unknown:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR");
        }
        let wants = |stream: &str| match self.attach.is_empty() {
            true => attached && (stream != "stdin" || self.interactive),
            false => self.attach.iter().any(|own| own.eq_ignore_ascii_case(stream)),
        };
        Ok(Config {
            hostname: self.hostname.clone().unwrap_or_default(),
            domainname: self.domainname.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            attach_stdin: wants("stdin"),
            attach_stdout: wants("stdout"),
            attach_stderr: wants("stderr"),
            exposed_ports,
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && wants("stdin"),
            env,
            cmd: Some(command.to_vec()).filter(|command| !command.is_empty()),
            healthcheck: self.healthcheck()?,
            volumes: Some(self.plain_volumes()).filter(|volumes| !volumes.is_empty()),
            working_dir: self.workdir.clone().unwrap_or_default(),
            labels,
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            stop_timeout: self.stop_timeout,
            ..Config::default()
        })
    }

    fn healthcheck(&self) -> Result<Option<Healthcheck>> {
        let own = [
            &self.health_cmd,
            &self.health_interval,
            &self.health_start_interval,
            &self.health_start_period,
            &self.health_timeout,
        ];
        let asked = own.iter().any(|flag| flag.is_some()) || self.health_retries.is_some();
        if self.health_retries.is_some_and(|retries| retries < 0) {
            bail!("--health-retries cannot be negative");
        }
        if self.no_healthcheck {
            if asked {
                bail!("--no-healthcheck conflicts with --health-* options");
            }
            return Ok(Some(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() }));
        }
        if !asked {
            return Ok(None);
        }
        const LEAST: i64 = 1_000_000;
        let time = |what: &str, flag: &Option<String>| match flag.as_deref().map_or(Ok(0), values::nanoseconds)? {
            short if short != 0 && short < LEAST => bail!("{what} in Healthcheck cannot be less than 1ms"),
            nanos => Ok(nanos),
        };
        Ok(Some(Healthcheck {
            test: self.health_cmd.iter().flat_map(|command| ["CMD-SHELL".to_owned(), command.clone()]).collect(),
            interval: time("Interval", &self.health_interval)?,
            timeout: time("Timeout", &self.health_timeout)?,
            start_period: time("StartPeriod", &self.health_start_period)?,
            start_interval: time("StartInterval", &self.health_start_interval)?,
            retries: self.health_retries.unwrap_or(0),
        }))
    }

    /// `-v /path` without a source.
    fn plain_volumes(&self) -> BTreeMap<String, Nothing> {
        let plain = self.volume.iter().filter(|spec| !spec.contains(':'));
        plain.map(|path| (path.clone(), Nothing {})).collect()
    }

    fn mounts(&self) -> Result<Vec<MountRequest>> {
        let mut mounts = Vec::new();
        for spec in &self.volume {
            mounts.push(values::volume(spec)?);
        }
        for spec in &self.mount {
            mounts.push(values::mount(spec)?);
        }
        Ok(mounts)
    }

    fn networks(&self) -> Result<BTreeMap<String, Endpoint>> {
        let mut networks = BTreeMap::new();
        for network in &self.network {
            let Envelope { name, aliases, ip, ip6, mac } = values::network(network)?;
            let own = Endpoint {
                aliases: aliases.into_iter().chain(self.network_alias.iter().cloned()).collect(),
                ipv4_address: ip.or(self.ip.clone()).unwrap_or_default(),
                ipv6_address: ip6.or(self.ip6.clone()).unwrap_or_default(),
                mac_address: mac.or(self.mac_address.clone()).unwrap_or_default(),
            };
            networks.insert(name, own);
        }
        if self.network.is_empty() {
            let own = Endpoint {
                aliases: self.network_alias.clone(),
                ipv4_address: self.ip.clone().unwrap_or_default(),
                ipv6_address: self.ip6.clone().unwrap_or_default(),
                mac_address: self.mac_address.clone().unwrap_or_default(),
            };
            networks.insert("bridge".to_owned(), own);
        }
        let shared = |name: &String| matches!(name.as_str(), "host" | "none") || name.starts_with("container:");
        if networks.keys().any(shared) {
            if networks.len() > 1 {
                bail!("conflicting options: cannot attach both user-defined and non-user-defined network-modes");
            }
            networks.clear();
        }
        Ok(networks)
    }

    /// Whether the container is to have a network of its own, as far as the flags are right.
    pub(super) fn is_networked(&self) -> bool {
        self.networks().is_ok_and(|networks| !networks.is_empty())
    }

    fn network_mode(&self) -> Result<String> {
        match self.network.first() {
            None => Ok("default".to_owned()),
            Some(first) => Ok(values::network(first)?.name),
        }
    }

    fn host(&self) -> Result<HostConfig> {
        let mode = |own: &Option<String>, default: &str| given(own).unwrap_or(default).to_owned();
        let port_bindings = values::bindings(&self.publish)?;
        let network_mode = self.network_mode()?;
        if network_mode == "host" && !port_bindings.is_empty() {
            report::plain("WARNING: Published ports are discarded when using host network mode");
        }
        self.check_conflicts(&network_mode)?;
        if let Some(userns) = given(&self.userns).filter(|mode| *mode != "host") {
            bail!("--userns: invalid USER mode `{userns}`: only `host` is supported");
        }
        for (flag, value, allowed) in
            [("--uts", &self.uts, &["host"][..]), ("--cgroupns", &self.cgroupns, &["host", "private"])]
        {
            if let Some(value) = given(value).filter(|value| !allowed.contains(value)) {
                bail!("{flag}: invalid mode `{value}`");
            }
        }
        let restart_policy = values::restart_policy(&self.restart)?;
        if self.rm && restart_policy.name != "no" {
            bail!("Conflicting options: --restart and --rm");
        }
        let mut host = HostConfig {
            binds: Some(self.binds()?).filter(|binds| !binds.is_empty()),
            container_id_file: self.cidfile.clone().unwrap_or_default(),
            log_config: self.log_config()?,
            network_mode,
            port_bindings,
            restart_policy,
            auto_remove: self.rm,
            volumes_from: list(&self.volumes_from),
            cap_add: list(&self.cap_add),
            cap_drop: list(&self.cap_drop),
            cgroupns_mode: mode(&self.cgroupns, "private"),
            dns: self.dns.iter().map(|server| values::address(server)).collect::<Result<_>>()?,
            dns_options: self.dns_option.clone(),
            dns_search: self.dns_search.clone(),
            extra_hosts: list(&self.extra_hosts()?),
            group_add: list(&self.group_add),
            ipc_mode: mode(&self.ipc, "private"),
            oom_score_adj: self.oom_score_adj.unwrap_or(0),
            pid_mode: self.pid.clone().unwrap_or_default(),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: list(&self.security_opts()?),
            uts_mode: self.uts.clone().unwrap_or_default(),
            userns_mode: self.userns.clone().unwrap_or_default(),
            shm_size: self.shm_size.as_deref().map_or(Ok(64 << 20), values::bytes)?,
            sysctls: self.sysctl.iter().map(|entry| values::pair(entry)).collect(),
            tmpfs: self.tmpfs.iter().map(|spec| values::path_and_options(spec)).collect(),
            runtime: mode(&self.oci_runtime, values::OWN_RUNTIME),
            devices: self.device.iter().map(|spec| values::device(spec)).collect::<Result<_>>()?,
            ulimits: self.ulimit.iter().map(|spec| values::ulimit(spec)).collect::<Result<_>>()?,
            mounts: self.mount.iter().map(|spec| values::mount(spec)).collect::<Result<_>>()?,
            init: self.init.then_some(true),
            ..HostConfig::default()
        };
        self.limits.apply(&mut host)?;
        Ok(host)
    }

    /// Refuses flags that say something of what another container, or the host, decides.
    fn check_conflicts(&self, network_mode: &str) -> Result<()> {
        let of_container = [
            (!self.publish.is_empty() || self.publish_all, "port publishing and the container type network mode"),
            (!self.expose.is_empty(), "port exposing and the container type network mode"),
            (given(&self.hostname).is_some(), "hostname and the network mode"),
            (!self.dns.is_empty(), "dns and the network mode"),
            (!self.add_host.is_empty(), "custom host-to-IP mapping and the network mode"),
            (given(&self.mac_address).is_some(), "mac-address and the network mode"),
        ];
        let of_container = of_container.into_iter().filter(|_| network_mode.starts_with("container:"));
        let on_default = matches!(network_mode, "" | "default" | "bridge");
        if on_default && !self.network_alias.is_empty() {
            bail!("network-scoped alias is supported only for containers in user defined networks");
        }
        let uts = given(&self.uts) == Some("host") && given(&self.hostname).is_some();
        match of_container.chain([(uts, "hostname and the UTS mode")]).find(|(conflicts, _)| *conflicts) {
            Some((_, what)) => bail!("conflicting options: {what}"),
            None => Ok(()),
        }
    }

    /// Policies are kept with the container, as docker does, so that the file may change or go.
    fn security_opts(&self) -> Result<Vec<String>> {
        let one = |option: &String| match option.strip_prefix("seccomp=").or_else(|| option.strip_prefix("seccomp:")) {
            None | Some("unconfined" | "builtin") => Ok(option.clone()),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("opening seccomp profile ({file}) failed"))?;
                let value: serde_json::Value = serde_json::from_str(&text)
                    .with_context(|| format!("compacting json for seccomp profile ({file}) failed"))?;
                Ok(format!("seccomp={value}"))
            }
        };
        self.security_opt.iter().map(one).collect()
    }

    fn binds(&self) -> Result<Vec<String>> {
        let named = self.volume.iter().filter(|spec| spec.contains(':'));
        named.map(|spec| values::bind_text(spec)).collect()
    }

    fn log_config(&self) -> Result<LogConfig> {
        let kind = given(&self.log_driver).unwrap_or("json-file").to_owned();
        if !matches!(kind.as_str(), "json-file" | "local" | "none") {
            bail!("logger: no log driver named '{kind}' is registered");
        }
        let config: BTreeMap<String, String> = self.log_opt.iter().map(|entry| values::pair(entry)).collect();
        for (key, value) in &config {
            match key.as_str() {
                "max-size" if xbuild_runner::container::log::parse_size(value).is_some() => {}
                "max-file" if value.parse::<u32>().is_ok_and(|count| count > 0) => {}
                "max-size" | "max-file" => bail!("invalid value for log option {key}: {value}"),
                "mode" | "max-buffer-size" | "compress" | "labels" | "env" | "tag" => {
                    bail!("log option '{key}' is not supported")
                }
                _ => bail!("unknown log opt '{key}' for {kind} log driver"),
            }
        }
        Ok(LogConfig { kind, config })
    }

    fn extra_hosts(&self) -> Result<Vec<String>> {
        let one = |entry: &String| match entry.split_once([':', '=']) {
            Some((name, address)) if !name.is_empty() && !address.is_empty() => {
                let address = address.trim_start_matches('[').trim_end_matches(']');
                if address != "host-gateway" && address.parse::<std::net::IpAddr>().is_err() {
                    bail!("invalid IP address in add-host: \"{address}\"");
                }
                Ok(format!("{name}:{address}"))
            }
            _ => bail!("bad format for add-host: \"{entry}\""),
        };
        self.add_host.iter().map(one).collect()
    }
}

/// The value of a flag; an empty one is as good as none, as scripts write it.
fn given(flag: &Option<String>) -> Option<&str> {
    flag.as_deref().filter(|value| !value.is_empty())
}

fn list(values: &[String]) -> Option<Vec<String>> {
    Some(values.to_vec()).filter(|values| !values.is_empty())
}
