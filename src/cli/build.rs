//! `xbuild build`: flags → request → engine → result.

use super::values::{boolean, fields, host, pairs, size, ulimit};
use super::{Global, Outcome};
use crate::progress::{Mode, Progress};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use xbuild_cache::Packing;
use xbuild_engine::request::{
    ContextInput, Destination, DockerfileInput, LocalCache, NoCache, Output, OutputKind, Provenance, Request,
    Resources, SecretValue,
};
use xbuild_graph::{NetworkMode, Platform};

/// Builds an image from a Dockerfile.
#[derive(clap::Args, Debug)]
pub(crate) struct BuildArgs {
    /// Build context: a directory, `-` for standard input, a Git URL, or the URL of an archive
    #[arg(value_name = "PATH | URL | -")]
    context: String,
    /// Name of the Dockerfile (default: `CONTEXT/Dockerfile`; `-` for standard input)
    #[arg(short, long, value_name = "PATH")]
    file: Option<String>,
    /// Image name, `name[:tag]`
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    /// Set a build-time variable (`NAME=value`, or `NAME` to take it from the environment)
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Additional build context (`name=path`, `name=oci-layout://dir`, `name=docker-image://ref`, `name=URL`, `name=target:stage`)
    #[arg(long, value_name = "NAME=CONTEXT")]
    build_context: Vec<String>,
    /// Target build stage
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Target platforms, separated by commas
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Annotation (`[manifest|index|manifest-descriptor|index-descriptor:]key=value`)
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Do not use recorded steps
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    no_cache: Option<String>,
    /// Do not use recorded steps of these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Ask registries again for all base images
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pull: Option<String>,
    /// Network of RUN: `default`, `none`, `host`
    #[arg(long, value_name = "MODE", default_value = "default")]
    network: String,
    /// Grant an entitlement: `network.host`, `security.insecure`
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    allow: Vec<String>,
    /// Add a line to /etc/hosts of RUN (`host:ip`)
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Size of /dev/shm of RUN
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Resource limit of RUN (`name=soft[:hard]`)
    #[arg(long, value_name = "ULIMIT")]
    ulimit: Vec<String>,
    /// Parent cgroup of RUN
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Limit of every RUN step: `memory`, `cpu-quota`, `cpu-period`, `cpu-shares`, `cpuset-cpus`, `cpuset-mems` (`name=value`)
    #[arg(long, value_name = "NAME=VALUE")]
    resource: Vec<String>,
    /// Secret for RUN (`id=mysecret[,src=/local/file|,env=NAME]`)
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// SSH agent for RUN (`default` or `id=socket`)
    #[arg(long, value_name = "SSH")]
    ssh: Vec<String>,
    /// Output (`type=image|oci|docker|tar|local|registry|cacheonly,dest=…`, or a directory)
    #[arg(short, long, value_name = "OUTPUT")]
    output: Vec<String>,
    /// Shorthand for `--output=type=registry`
    #[arg(long)]
    push: bool,
    /// Shorthand for `--output=type=image`: keep the image in xbuild's store
    #[arg(long)]
    load: bool,
    /// Read recorded steps from here (`type=local,src=DIR`)
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Write recorded steps here (`type=local,dest=DIR[,mode=max]`)
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<String>,
    /// Provenance attestation: `true`, `false`, `mode=min`, `mode=max`
    #[arg(long, value_name = "ATTEST")]
    provenance: Option<String>,
    /// SBOM attestation: `false`; making one is not there yet
    #[arg(long, value_name = "ATTEST")]
    sbom: Option<String>,
    /// Attestation (`type=provenance,mode=…`)
    #[arg(long, value_name = "ATTEST")]
    attest: Vec<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write the result's metadata to a file, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, env = "BUILDKIT_PROGRESS")]
    progress: Mode,
    /// Print only the image ID
    #[arg(short, long)]
    quiet: bool,
    /// Answer a question instead of building: `build`, `check`, `outline`, `targets` (`,format=json`)
    #[arg(long, value_name = "METHOD", default_value = "build")]
    call: String,
    /// Shorthand for `--call=check`
    #[arg(long)]
    check: bool,
    /// Most RUN steps at once
    #[arg(long, value_name = "N")]
    max_parallelism: Option<usize>,
}

/// Runs the command.
pub(crate) fn run(args: &BuildArgs, global: &Global) -> Result<Outcome> {
    let request = request(args)?;
    let method = if args.check { "check" } else { &args.call };
    let mut method = method.split(',');
    let call = method.next().unwrap_or("build");
    if call != "build" {
        let json = method.any(|m| m == "format=json");
        return super::call::run(call, json, &request, global);
    }
    let mode = if args.quiet { Mode::Quiet } else { args.progress };
    let progress = Progress::start(mode);
    let cancel = super::signals::cancel_on_interrupt()?;
    let engine = global.engine()?;
    let result = engine.build(&request, progress.sink(), &cancel);
    progress.finish();
    let response = match result {
        Ok(response) => response,
        Err(error) => return Ok(super::report::build_error(&error)),
    };
    response.warnings.iter().for_each(|warning| super::report::note(warning));
    if let Some(path) = &args.iidfile {
        write_file(path, response.image_id.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        let text = serde_json::to_vec_pretty(&response.metadata)?;
        write_file(path, &text)?;
    }
    if let (true, Some(id)) = (args.quiet, &response.image_id) {
        writeln!(std::io::stdout(), "{id}")?;
    }
    global.sweep_later(&engine);
    Ok(Outcome::Success)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    super::write_whole(path, 0o666, |out| {
        out.write_all(bytes).with_context(|| format!("cannot write `{}`", path.display()))
    })
}

/// Turns flags into a request.
fn request(args: &BuildArgs) -> Result<Request> {
    let (context, dockerfile) = inputs(args)?;
    let build_args = named_values(&args.build_arg, true)?;
    let source_date_epoch = match build_args.get("SOURCE_DATE_EPOCH").cloned().or_else(|| env("SOURCE_DATE_EPOCH")) {
        Some(text) if !text.is_empty() => Some(
            text.parse().with_context(|| format!("invalid SOURCE_DATE_EPOCH: `{text}` is not a number of seconds"))?,
        ),
        _ => None,
    };
    let tags = args.tag.iter().map(|t| full_name(t)).collect::<Result<Vec<_>>>()?;
    let no_cache = match args.no_cache.as_deref().map(boolean).transpose()? {
        Some(true) => NoCache::All,
        _ if !args.no_cache_filter.is_empty() => NoCache::Stages(args.no_cache_filter.clone()),
        _ => NoCache::None,
    };
    Ok(Request {
        context,
        dockerfile,
        named_contexts: named_values(&args.build_context, false)?.into_iter().collect(),
        outputs: outputs(args)?,
        target: args.target.clone(),
        source_date_epoch,
        build_args,
        labels: named_values(&args.label, false)?,
        annotations: args.annotation.clone(),
        platforms: args.platform.iter().map(|p| platform(p)).collect::<Result<_>>()?,
        tags,
        no_cache,
        pull: args.pull.as_deref().map(boolean).transpose()?.unwrap_or(false),
        network: match args.network.as_str() {
            "" | "default" => NetworkMode::Default,
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            other => bail!("network mode `{other}` is not supported (default, none, host)"),
        },
        allow: args.allow.iter().map(|a| entitlement(a)).collect::<Result<_>>()?,
        extra_hosts: args.add_host.iter().map(|h| host(h)).collect::<Result<_>>()?,
        shm_size: args.shm_size.as_deref().map(size).transpose()?,
        ulimits: args.ulimit.iter().map(|u| ulimit(u)).collect::<Result<_>>()?,
        cgroup_parent: args.cgroup_parent.clone().unwrap_or_default(),
        resources: resources(&args.resource)?,
        secrets: args.secret.iter().map(|s| secret(s)).collect::<Result<_>>()?,
        ssh: args.ssh.iter().map(|s| ssh(s)).collect::<Result<_>>()?,
        cache_to: args.cache_to.iter().map(|c| cache(c, "dest")).collect::<Result<_>>()?,
        cache_from: args.cache_from.iter().map(|c| cache(c, "src")).collect::<Result<_>>()?,
        provenance: provenance(args)?,
        max_parallelism: args.max_parallelism.unwrap_or(0),
        output_owner: Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
        docker_config: super::docker_config(),
    })
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn platform(text: &str) -> Result<Platform> {
    if text == "local" {
        return Ok(Platform::host());
    }
    Ok(Platform::parse(text)?)
}

fn entitlement(text: &str) -> Result<String> {
    match text {
        "network.host" | "security.insecure" => Ok(text.to_owned()),
        other => bail!("unknown entitlement `{other}` (network.host, security.insecure)"),
    }
}

/// Full image name with tag, as it is stored and pushed.
pub(crate) fn full_name(text: &str) -> Result<String> {
    let reference: xbuild_oci::Reference = text.parse().with_context(|| format!("invalid tag \"{text}\""))?;
    if reference.digest.is_some() {
        bail!("invalid tag \"{text}\": a tag cannot have a digest");
    }
    Ok(reference.to_string())
}

/// `NAME=value` pairs; with `from_env` a name alone takes the variable of the environment, if it is set.
fn named_values(list: &[String], from_env: bool) -> Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for text in list {
        match text.split_once('=') {
            Some(("", _)) => bail!("`{text}` has no name before the `=`"),
            Some((name, value)) => {
                values.insert(name.to_owned(), value.to_owned());
            }
            None if from_env => values.extend(env(text).map(|value| (text.clone(), value))),
            None => {
                values.insert(text.clone(), String::new());
            }
        }
    }
    Ok(values)
}

/// Context and Dockerfile; standard input is read here if one of them is `-`.
fn inputs(args: &BuildArgs) -> Result<(ContextInput, DockerfileInput)> {
    let from_stdin = args.file.as_deref() == Some("-");
    if from_stdin && args.context == "-" {
        bail!("the context and the Dockerfile cannot both be read from standard input");
    }
    let dockerfile_from_stdin = || -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limited = &mut std::io::stdin().lock().take(DOCKERFILE_MAX + 1);
        limited.read_to_end(&mut bytes).context("cannot read standard input")?;
        if bytes.len() as u64 > DOCKERFILE_MAX {
            bail!("the Dockerfile on standard input has more than {DOCKERFILE_MAX} bytes");
        }
        Ok(bytes)
    };
    let stdin = || -> Result<std::fs::File> {
        Ok(std::io::stdin().as_fd().try_clone_to_owned().context("cannot use standard input")?.into())
    };
    let context = match args.context.as_str() {
        "-" => ContextInput::Stream(std::sync::Arc::new(stdin()?)),
        url if xbuild_engine::context::is_git_url(url) => ContextInput::Git(url.to_owned()),
        url if url.starts_with("http://") || url.starts_with("https://") => ContextInput::Http(url.to_owned()),
        path => {
            let path = PathBuf::from(path);
            if !path.is_dir() {
                bail!("unable to prepare context: path \"{}\" not found or not a directory", path.display());
            }
            ContextInput::Directory(path)
        }
    };
    let dockerfile = match args.file.as_deref() {
        None | Some("") => DockerfileInput::Default,
        Some("-") => DockerfileInput::Bytes(dockerfile_from_stdin()?),
        Some(path) => DockerfileInput::Path(PathBuf::from(path)),
    };
    Ok((context, dockerfile))
}

/// `id=NAME[,src=FILE|,env=VAR][,type=file|env]`.
fn secret(text: &str) -> Result<(String, SecretValue)> {
    super::keep_out_of_dumps();
    let mut id = None;
    let (mut file, mut variable, mut kind) = (None, None, None);
    for (key, value) in pairs(text)? {
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if value == "file" || value == "env" => kind = Some(value),
            "type" => bail!("unsupported secret type \"{value}\""),
            other => bail!("unexpected key '{other}' in '{text}'"),
        }
    }
    let id = id.or_else(|| file.clone()).with_context(|| format!("the secret `{text}` has no id"))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    let from_env = |name: &str| env(name).map(String::into_bytes);
    let value = match (variable, file) {
        (Some(name), _) => {
            from_env(&name).with_context(|| format!("the variable `{name}` of secret `{id}` is not set"))?
        }
        (None, Some(path)) => read_secret(&id, Path::new(&path))?,
        (None, None) => match from_env(&id) {
            Some(value) => value,
            None => read_secret(&id, Path::new(&id))?,
        },
    };
    Ok((id, SecretValue(value)))
}

/// Largest Dockerfile on standard input.
const DOCKERFILE_MAX: u64 = 16 << 20;
/// Largest secret, as in BuildKit.
const SECRET_MAX: u64 = 500 << 10;

fn read_secret(id: &str, path: &Path) -> Result<Vec<u8>> {
    let meta =
        std::fs::metadata(path).with_context(|| format!("cannot read the secret `{id}` from `{}`", path.display()))?;
    if !meta.is_file() {
        bail!("the secret `{id}`: `{}` is not a file", path.display());
    }
    if meta.len() > SECRET_MAX {
        bail!("the secret `{id}` has {} bytes; at most {SECRET_MAX} are allowed", meta.len());
    }
    std::fs::read(path).with_context(|| format!("cannot read the secret `{id}` from `{}`", path.display()))
}

/// `default`, `default=SOCKET`, `id=SOCKET`.
fn ssh(text: &str) -> Result<(String, PathBuf)> {
    let (id, path) = match text.split_once('=') {
        Some((id, path)) => (id, PathBuf::from(path)),
        None => (
            text,
            env("SSH_AUTH_SOCK").map(PathBuf::from).with_context(|| {
                format!("invalid empty ssh agent socket for `{text}`: make sure SSH_AUTH_SOCK is set")
            })?,
        ),
    };
    use std::os::unix::fs::FileTypeExt;
    let meta = std::fs::metadata(&path).with_context(|| format!("cannot use the ssh agent `{}`", path.display()))?;
    if !meta.file_type().is_socket() {
        bail!(
            "`{}` is not the socket of an ssh agent; private key files are not supported: start an agent and add the key",
            path.display()
        );
    }
    Ok((if id.is_empty() { "default" } else { id }.to_owned(), path))
}

fn resources(list: &[String]) -> Result<Resources> {
    let mut limits = Resources::default();
    for text in list {
        for (name, value) in pairs(text)? {
            let number = || value.parse::<u64>().with_context(|| format!("`{value}` of `{text}` is not a number"));
            match name.as_str() {
                "memory" => limits.memory = Some(size(&value)?),
                "cpu-quota" => limits.cpu_quota = Some(number()?),
                "cpu-period" => limits.cpu_period = Some(number()?),
                "cpu-shares" => limits.cpu_shares = Some(number()?),
                "cpuset-cpus" => limits.cpuset_cpus = Some(value),
                "cpuset-mems" => limits.cpuset_mems = Some(value),
                other => bail!("unknown resource `{other}` in `{text}`"),
            }
        }
    }
    Ok(limits)
}

fn cache(text: &str, place: &str) -> Result<LocalCache> {
    let pairs = pairs(text)?;
    match pairs.get("type").map(String::as_str) {
        Some("local") => {}
        Some(other) => bail!("cache type `{other}` is not there yet; `local` is"),
        None => bail!("`{text}` has no type; write type=local,{place}=DIR"),
    }
    let path = pairs.get(place).with_context(|| format!("`{text}` has no {place}"))?;
    let all = match pairs.get("mode").map(String::as_str) {
        None | Some("min") => false,
        Some("max") => true,
        Some(other) => bail!("unknown cache mode `{other}` (min, max)"),
    };
    if let Some(other) = pairs.keys().find(|k| !matches!(k.as_str(), "type" | "mode") && *k != place) {
        bail!("`{other}` of `{text}` is not supported");
    }
    Ok(LocalCache { path: PathBuf::from(path), all })
}

fn provenance(args: &BuildArgs) -> Result<Provenance> {
    let mut texts: Vec<String> = args.provenance.iter().map(|p| format!("type=provenance,{p}")).collect();
    if let Some(sbom) = args.sbom.as_deref().filter(|s| !matches!(boolean(s), Ok(false))) {
        bail!("SBOM attestations are not there yet: `--sbom={sbom}`");
    }
    texts.extend(args.attest.iter().cloned());
    let mut provenance = Provenance::Off;
    for text in texts {
        let pairs = pairs(&text)?;
        match pairs.get("type").map(String::as_str) {
            Some("provenance") => {}
            Some("sbom") => bail!("SBOM attestations are not there yet"),
            other => bail!("unknown attestation type `{}`", other.unwrap_or_default()),
        }
        let off = pairs.contains_key("false") || pairs.get("disabled").is_some_and(|d| d.is_empty() || d == "true");
        provenance = match pairs.get("mode").map(String::as_str) {
            _ if off => Provenance::Off,
            None | Some("min") => Provenance::Min,
            Some("max") => Provenance::Max,
            Some(other) => bail!("unknown provenance mode `{other}` (min, max)"),
        };
    }
    Ok(provenance)
}

fn outputs(args: &BuildArgs) -> Result<Vec<Output>> {
    let mut outputs = args.output.iter().map(|o| output(o)).collect::<Result<Vec<_>>>()?;
    if args.push {
        match outputs
            .iter_mut()
            .find_map(|o| if let OutputKind::Image { push, .. } = &mut o.kind { Some(push) } else { None })
        {
            Some(push) => *push = true,
            None => outputs.push(output("type=registry")?),
        }
    }
    if args.load {
        outputs.push(output("type=image")?);
    }
    if outputs.is_empty() {
        outputs.push(output(if args.tag.is_empty() { "type=cacheonly" } else { "type=image" })?);
        if args.tag.is_empty() {
            outputs[0].kind = OutputKind::Image { push: false, store: true };
        }
    }
    let to_stdout = |o: &&Output| {
        matches!(
            o.kind,
            OutputKind::Oci { dest: Destination::Stdout, .. }
                | OutputKind::Docker { dest: Destination::Stdout, .. }
                | OutputKind::Tar { dest: Destination::Stdout }
        )
    };
    if outputs.iter().filter(to_stdout).count() > 1 {
        bail!("only one output can go to standard output");
    }
    Ok(outputs)
}

/// One `--output`: a list of attributes, `-`, or a directory.
fn output(text: &str) -> Result<Output> {
    let mut attributes = match fields(text)?.as_slice() {
        [one] if one == "-" => BTreeMap::from([("type".into(), "tar".into()), ("dest".into(), "-".into())]),
        [one] if !one.contains('=') => BTreeMap::from([("type".into(), "local".into()), ("dest".into(), one.clone())]),
        _ => pairs(text)?,
    };
    let kind = attributes.remove("type").with_context(|| format!("type is required for output `{text}`"))?;
    let dest = attributes.remove("dest").filter(|d| !d.is_empty());
    let flag = |attributes: &mut BTreeMap<String, String>, name: &str| -> Result<Option<bool>> {
        attributes.remove(name).map(|v| boolean(&v).with_context(|| format!("`{name}` of output `{text}`"))).transpose()
    };
    let tar = flag(&mut attributes, "tar")?.unwrap_or(true);
    let push = flag(&mut attributes, "push")?.unwrap_or(false);
    let delete = match attributes.remove("mode").as_deref() {
        None | Some("copy") => false,
        Some("delete") => true,
        Some(other) => bail!("unknown mode `{other}` of output `{text}`"),
    };
    let kind = output_kind(&kind, dest, tar, push, delete, text)?;
    let mut output = Output {
        kind,
        names: match attributes.remove("name") {
            Some(names) => names.split(',').map(full_name).collect::<Result<_>>()?,
            None => Vec::new(),
        },
        packing: packing(attributes.remove("compression"), attributes.remove("compression-level"))?,
        force_compression: flag(&mut attributes, "force-compression")?.unwrap_or(false),
        oci_media_types: flag(&mut attributes, "oci-mediatypes")?,
        rewrite_timestamp: flag(&mut attributes, "rewrite-timestamp")?.unwrap_or(false),
        platform_split: flag(&mut attributes, "platform-split")?,
        annotations: BTreeMap::new(),
    };
    // Accepted because they say what xbuild does anyway.
    for harmless in ["unpack", "store", "context", "registry.insecure", "name-canonical", "dangling-name-prefix"] {
        if let Some(value) = attributes.remove(harmless)
            && (harmless == "context" || boolean(&value).is_err())
        {
            bail!("`{harmless}={value}` of output `{text}` is not supported");
        }
    }
    for (key, value) in attributes {
        match key.strip_prefix("annotation") {
            Some(rest) => {
                let (level, name) = rest.split_once('.').with_context(|| format!("unknown attribute `{key}`"))?;
                let level = level.trim_start_matches('-');
                output
                    .annotations
                    .insert(format!("{}:{name}", if level.is_empty() { "manifest" } else { level }), value);
            }
            None => bail!("unknown attribute `{key}` of output `{text}`"),
        }
    }
    Ok(output)
}

fn output_kind(
    kind: &str,
    dest: Option<String>,
    tar: bool,
    push: bool,
    delete: bool,
    text: &str,
) -> Result<OutputKind> {
    let place = |dest: Option<String>| match dest.as_deref() {
        None | Some("-") => Destination::Stdout,
        Some(path) => Destination::Path(PathBuf::from(path)),
    };
    let needs_dest = |dest: &Option<String>| {
        dest.as_deref()
            .filter(|d| *d != "-")
            .map(PathBuf::from)
            .with_context(|| format!("dest is required for output `{text}`"))
    };
    if delete && kind != "local" {
        bail!("mode=delete is for type=local only");
    }
    Ok(match kind {
        "cacheonly" => OutputKind::CacheOnly,
        "image" => OutputKind::Image { push, store: true },
        "registry" => OutputKind::Image { push: true, store: false },
        "local" => OutputKind::Local { dest: needs_dest(&dest)?, delete },
        "tar" => OutputKind::Tar { dest: place(dest) },
        "oci" if !tar => OutputKind::Oci { dest: Destination::Path(needs_dest(&dest)?), tar },
        "oci" => OutputKind::Oci { dest: place(dest), tar },
        "docker" if dest.is_none() => OutputKind::Image { push: false, store: true },
        "docker" if !tar => OutputKind::Docker { dest: Destination::Path(needs_dest(&dest)?), tar },
        "docker" => OutputKind::Docker { dest: place(dest), tar },
        other => bail!("output type `{other}` is not supported (image, registry, oci, docker, tar, local, cacheonly)"),
    })
}

fn packing(name: Option<String>, level: Option<String>) -> Result<Packing> {
    let level: Option<i32> =
        level.map(|l| l.parse().with_context(|| format!("compression level `{l}` is not a number"))).transpose()?;
    let within = |level: i32, low: i32, high: i32| -> Result<i32> {
        if !(low..=high).contains(&level) {
            bail!("compression level {level} is not between {low} and {high}");
        }
        Ok(level)
    };
    Ok(match name.as_deref() {
        None | Some("" | "gzip") => Packing::Gzip(within(level.unwrap_or(6), 0, 9)?),
        Some("zstd") => Packing::Zstd(within(level.unwrap_or(3), 0, 22)?),
        Some("uncompressed") => Packing::Plain,
        Some("estargz") => bail!("estargz compression is not there yet (gzip, zstd, uncompressed)"),
        Some(other) => bail!("unknown compression `{other}` (gzip, zstd, uncompressed)"),
    })
}
