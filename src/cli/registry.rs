//! `login`, `logout`, `pull`, `push`, `search`.

use super::build::full_name;
use super::format::{self, Shape};
use super::{Global, Outcome, docker_config};
use crate::progress::{Mode, Progress};
use anyhow::{Context, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read, Write};
use xbuild_graph::Platform;
use xbuild_oci::Reference;

/// Flags of `login`.
#[derive(clap::Args, Debug)]
pub(crate) struct LoginArgs {
    /// Password; it is safer to give it by --password-stdin
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// User
    #[arg(short, long)]
    username: Option<String>,
    /// Registry (docker.io if there is none)
    server: Option<String>,
}

/// Flags of `logout`.
#[derive(clap::Args, Debug)]
pub(crate) struct LogoutArgs {
    /// Registry (docker.io if there is none)
    server: Option<String>,
}

/// Flags of `pull`.
#[derive(clap::Args, Debug)]
pub(crate) struct PullArgs {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Platform to fetch
    #[arg(long)]
    platform: Option<String>,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    /// Name
    name: String,
}

/// Flags of `push`.
#[derive(clap::Args, Debug)]
pub(crate) struct PushArgs {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Name
    name: String,
}

/// Flags of `search`.
#[derive(clap::Args, Debug)]
pub(crate) struct SearchArgs {
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Most results
    #[arg(long, default_value_t = 25)]
    limit: usize,
    /// Do not shorten descriptions
    #[arg(long)]
    no_trunc: bool,
    /// Part of a name; with a registry before it (`HOST/TERM`) there
    term: String,
}

/// Docker's registry, as `config.json` calls it.
const DOCKER: &str = "https://index.docker.io/v1/";

/// The host to talk to, and the name that its login is kept under.
fn server(given: Option<&str>) -> (String, String) {
    match given.map(|text| text.trim_start_matches("https://").trim_start_matches("http://")) {
        None | Some("docker.io" | "index.docker.io" | "index.docker.io/v1/" | "registry-1.docker.io") => {
            ("docker.io".to_owned(), DOCKER.to_owned())
        }
        Some(other) => {
            let host = other.split('/').next().unwrap_or(other).to_owned();
            (host.clone(), host)
        }
    }
}

pub(crate) fn login(args: &LoginArgs, global: &Global) -> Result<Outcome> {
    let (host, kept_as) = server(args.server.as_deref());
    if args.password.is_some() && args.password_stdin {
        bail!("--password and --password-stdin are mutually exclusive");
    }
    if args.password_stdin && args.username.as_deref().unwrap_or_default().is_empty() {
        bail!("must provide --username with --password-stdin");
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("Username: ", false)?,
    };
    super::keep_out_of_dumps();
    let password = match &args.password {
        _ if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the password")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        Some(password) => {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        None => ask("Password: ", true)?,
    };
    if user.is_empty() || password.is_empty() {
        bail!("username and password are required");
    }
    global
        .engine()?
        .check_login(&host, &user, &password)
        .with_context(|| format!("login attempt to {host} failed: unauthorized, or the registry cannot be reached"))?;
    let directory =
        docker_config().context("neither DOCKER_CONFIG nor HOME is set: there is no place for the login")?;
    xbuild_engine::keep_login(&directory, &kept_as, &user, &password)?;
    writeln!(std::io::stdout(), "Login Succeeded")?;
    Ok(Outcome::Success)
}

/// Asks the user; what is secret is not shown.
fn ask(what: &str, secret: bool) -> Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("cannot perform an interactive login from a non TTY device: use --username and --password-stdin");
    }
    eprint!("{what}");
    let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
    if secret {
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &quiet).context("cannot set the terminal")?;
    }
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    tcsetattr(&stdin, OptionalActions::Now, &before).context("cannot set the terminal")?;
    if secret {
        eprintln!();
    }
    read.context("cannot read the answer")?;
    Ok(answer.trim_end_matches(['\n', '\r']).to_owned())
}

pub(crate) fn logout(args: &LogoutArgs) -> Result<Outcome> {
    let (host, kept_as) = server(args.server.as_deref());
    let directory = docker_config().context("neither DOCKER_CONFIG nor HOME is set: there are no logins")?;
    let mut out = std::io::stdout();
    if xbuild_engine::forget_login(&directory, &kept_as)? {
        writeln!(out, "Removing login credentials for {host}")?;
    } else {
        writeln!(out, "Not logged in to {host}")?;
    }
    Ok(Outcome::Success)
}

pub(crate) fn pull(args: &PullArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let platform = args.platform.as_deref().map(Platform::parse).transpose()?;
    let names = match args.all_tags {
        false => vec![args.name.clone()],
        true => {
            let reference: Reference = args.name.parse()?;
            if args.name.contains('@') || args.name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
                bail!("tag can't be used with --all-tags/-a");
            }
            let tags = engine.remote_tags(&args.name)?;
            let with = |tag: String| Reference { tag: Some(tag), digest: None, ..reference.clone() }.to_string();
            tags.into_iter().map(with).collect()
        }
    };
    let mut out = std::io::stdout().lock();
    for name in names {
        let progress = Progress::start(if args.quiet { Mode::Quiet } else { Mode::Auto });
        let pulled = engine.pull(&name, platform.as_ref(), progress.sink());
        progress.finish();
        let (digest, new) = pulled?;
        let shown = name.parse::<Reference>()?;
        if args.quiet {
            writeln!(out, "{}", shown.familiar())?;
            continue;
        }
        let status = if new { "Downloaded newer image for" } else { "Image is up to date for" };
        writeln!(out, "Digest: {digest}\nStatus: {status} {}\n{shown}", shown.familiar())?;
    }
    Ok(Outcome::Success)
}

pub(crate) fn push(args: &PushArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let names = match args.all_tags {
        false => vec![full_name(&args.name)?],
        true if args.name.rsplit('/').next().is_some_and(|last| last.contains(':')) => {
            bail!("tag can't be used with --all-tags/-a")
        }
        true => engine.names_in(&args.name)?,
    };
    if names.is_empty() {
        bail!("An image does not exist locally with the tag: {}", args.name);
    }
    for name in names {
        let progress = Progress::start(if args.quiet { Mode::Quiet } else { Mode::Auto });
        let pushed = engine.push(&name, progress.sink());
        progress.finish();
        let digest = pushed?;
        let tag = name.parse::<Reference>()?.tag.unwrap_or_default();
        if !args.quiet {
            writeln!(std::io::stdout(), "{tag}: digest: {digest}")?;
        }
    }
    Ok(Outcome::Success)
}

const HEADERS: [(&str, &str); 4] =
    [("Name", "NAME"), ("Description", "DESCRIPTION"), ("StarCount", "STARS"), ("IsOfficial", "OFFICIAL")];

pub(crate) fn search(args: &SearchArgs, global: &Global) -> Result<Outcome> {
    let (host, term) = match args.term.split_once('/') {
        Some((host, term)) if host.contains(['.', ':']) || host == "localhost" => (host, term),
        _ => ("docker.io", args.term.as_str()),
    };
    let hits = global.engine()?.search(host, term, args.limit)?;
    let rows: Vec<Value> = hits
        .into_iter()
        .map(|hit| {
            let description = match args.no_trunc || hit.description.chars().count() <= 45 {
                true => hit.description,
                false => hit.description.chars().take(44).chain(['…']).collect(),
            };
            json!({
                "Name": hit.name,
                "Description": description,
                "StarCount": hit.stars.to_string(),
                "IsOfficial": if hit.official { "[OK]" } else { "" },
            })
        })
        .collect();
    let shape = Shape {
        headers: &HEADERS,
        default: "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}",
        quiet: "{{.Name}}",
    };
    format::print(&mut std::io::stdout().lock(), &shape, args.format.as_deref(), false, &rows)?;
    Ok(Outcome::Success)
}
