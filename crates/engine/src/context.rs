//! Build contexts: where files and the Dockerfile come from.

use crate::net::Net;
use crate::request::{ContextInput, DockerfileInput, Request};
use crate::{EngineError, git, http};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use xbuild_cache::tree::{self, CopyOptions, CopySource, DiffWriter, Marks, View};
use xbuild_cache::{Staging, Store};
use xbuild_frontend::ignore;
use xbuild_graph::GitSource;

/// Largest Dockerfile and `.dockerignore`.
const TEXT_MAX: u64 = 16 << 20;
/// Largest archive that is a context.
const STREAM_MAX: u64 = 64 << 30;

/// A directory to read from.
#[derive(Debug)]
pub(crate) struct LocalContext {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Patterns of its `.dockerignore`.
    pub(crate) excludes: Vec<String>,
    /// Holds an unpacked archive or a checkout for as long as the build lasts.
    _staging: Option<Staging>,
}

/// The Dockerfile as it was found.
#[derive(Debug)]
pub(crate) struct Dockerfile {
    /// Name for messages.
    pub(crate) name: String,
    /// The text.
    pub(crate) bytes: Vec<u8>,
}

/// The main context and the Dockerfile of a request.
#[derive(Debug)]
pub(crate) struct MainInput {
    pub(crate) context: LocalContext,
    pub(crate) dockerfile: Dockerfile,
}

/// Whether a context argument is a repository rather than a path or file: `git@…`, `git://`, `….git[#ref]`, `github.com/…`.
pub fn is_git_url(text: &str) -> bool {
    let address = text.split(['#', '?']).next().unwrap_or(text);
    let by_scheme = ["git://", "ssh://"].iter().any(|s| text.starts_with(s));
    let by_ending = ["http://", "https://"].iter().any(|s| text.starts_with(s)) && address.ends_with(".git");
    let scp_like = text.starts_with("git@") && text.contains(':');
    by_scheme || by_ending || scp_like || text.starts_with("github.com/")
}

/// `URL#ref:subdir`, also `URL?ref=…&subdir=…`.
pub(crate) fn parse_git(text: &str) -> GitSource {
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let remote = if address.starts_with("github.com/") { format!("https://{address}") } else { address.to_owned() };
    GitSource {
        remote,
        reference: reference.to_owned(),
        subdir: subdir.trim_matches('/').to_owned(),
        keep_git_dir: false,
        checksum: None,
        skip_submodules: false,
    }
}

/// Prepares the main context and reads the Dockerfile.
pub(crate) fn load(
    request: &Request,
    store: &Store,
    runtime: &tokio::runtime::Handle,
    net: &Net,
) -> Result<MainInput, EngineError> {
    let ssh = request.ssh.get("default").map(PathBuf::as_path);
    let (path, staging, remote) = match &request.context {
        ContextInput::Directory(path) => (path.clone(), None, false),
        ContextInput::Git(url) => {
            let staging = checkout(store, &parse_git(url), ssh)?;
            (staging.path().join("fs"), Some(staging), true)
        }
        ContextInput::Stream(stream) => return load_stream(request, store, stream),
        ContextInput::Http(url) => {
            let file = runtime.block_on(http::fetch(net.http()?, store, url))?;
            let path = store.blob_path(file.digest);
            let open = File::open(&path).map_err(|e| EngineError::io("open", &path, e))?;
            return load_stream(request, store, &open);
        }
    };
    finish(request, path, staging, remote)
}

/// A stream is an archive with everything, or a Dockerfile alone.
fn load_stream(request: &Request, store: &Store, mut stream: &File) -> Result<MainInput, EngineError> {
    let staging = store.staging()?;
    let (path, holder) = (staging.path().join("fs"), staging.path().join("stream"));
    for directory in [&path, &holder] {
        std::fs::create_dir(directory).map_err(|e| EngineError::io("make", directory, e))?;
    }
    let whole = holder.join("stream");
    let open = || File::open(&whole).map_err(|e| EngineError::io("open", &whole, e));
    let spooled =
        File::create(&whole).and_then(|mut file| std::io::copy(&mut (&mut stream).take(STREAM_MAX), &mut file));
    let size = spooled.map_err(|e| EngineError::io("write", &whole, e))?;
    if size == STREAM_MAX {
        return Err(EngineError::Source(format!("the context has more than {STREAM_MAX} bytes")));
    }
    if tree::is_archive(open()?) {
        unpack(&holder, &path)?;
        std::fs::remove_dir_all(&holder).map_err(|e| EngineError::io("remove", &holder, e))?;
        return finish(request, path, Some(staging), true);
    }
    if let DockerfileInput::Path(path) = &request.dockerfile {
        return Err(EngineError::Source(format!(
            "standard input is a Dockerfile, so `{}` cannot be used as one; give an archive or leave -f out",
            path.display()
        )));
    }
    let dockerfile = Dockerfile { name: "Dockerfile".into(), bytes: read_regular(&whole)? };
    Ok(MainInput { context: LocalContext { path, excludes: Vec::new(), _staging: Some(staging) }, dockerfile })
}

/// Unpacks the archive `stream` of any known compression.
fn unpack(holder: &Path, target: &Path) -> Result<(), EngineError> {
    let options = CopyOptions { unpack: true, ..CopyOptions::faithful(Path::new("/")) };
    let empty: [&Path; 0] = [];
    let writer = DiffWriter::new(target, &View::layers(&empty, Marks::Plain)?, Marks::Plain)?;
    let view = View::context(holder, None)?;
    let source = CopySource::Path { view: &view, path: Path::new("/stream"), wildcard: false, required: true };
    writer.copy(&[source], &options)?;
    Ok(writer.finish()?)
}

fn finish(request: &Request, path: PathBuf, staging: Option<Staging>, remote: bool) -> Result<MainInput, EngineError> {
    let context = View::context(&path, None)?;
    let (dockerfile, own_ignore) = match &request.dockerfile {
        DockerfileInput::Bytes(bytes) => (Dockerfile { name: "Dockerfile".into(), bytes: bytes.clone() }, None),
        DockerfileInput::Path(file) if !remote => {
            let inside = path.join(file);
            // docker takes -f relative to the working directory, and to the context where there is no such file.
            let file = if file.exists() || !inside.exists() { file.clone() } else { inside };
            let name = file.file_name().map_or("Dockerfile".into(), |n| n.to_string_lossy().into_owned());
            let bytes = read_regular(&file)?;
            let mut beside = file.clone().into_os_string();
            beside.push(".dockerignore");
            (Dockerfile { name, bytes }, read_optional(Path::new(&beside))?)
        }
        DockerfileInput::Path(file) => in_context(&context, &file.to_string_lossy())?,
        DockerfileInput::Default => match in_context(&context, "Dockerfile") {
            Err(EngineError::Source(message)) => {
                in_context(&context, "dockerfile").map_err(|_| EngineError::Source(message))?
            }
            found => found?,
        },
    };
    let ignore_text = match own_ignore {
        Some(text) => Some(text),
        None => context.read_small(".dockerignore", TEXT_MAX)?,
    };
    let excludes = parse_ignore(ignore_text)?;
    Ok(MainInput { context: LocalContext { path, excludes, _staging: staging }, dockerfile })
}

fn in_context(context: &View, name: &str) -> Result<(Dockerfile, Option<Vec<u8>>), EngineError> {
    let bytes = context.read_small(name, TEXT_MAX)?.ok_or_else(|| {
        EngineError::Source(format!("failed to read dockerfile: open {name}: no such file or directory"))
    })?;
    let short = name.rsplit('/').next().unwrap_or(name).to_owned();
    let own_ignore = context.read_small(format!("{name}.dockerignore"), TEXT_MAX)?;
    Ok((Dockerfile { name: short, bytes }, own_ignore))
}

fn parse_ignore(text: Option<Vec<u8>>) -> Result<Vec<String>, EngineError> {
    let bad = |e: ignore::IgnoreError| EngineError::Source(e.to_string());
    let patterns = text.map(|t| ignore::parse(&t)).transpose().map_err(bad)?.unwrap_or_default();
    ignore::Matcher::new(&patterns).map_err(bad)?;
    Ok(patterns)
}

/// Reads a file of the client's; a pipe or device would hang the build.
fn read_regular(path: &Path) -> Result<Vec<u8>, EngineError> {
    let meta = std::fs::metadata(path).map_err(|e| {
        EngineError::Source(format!("failed to read dockerfile: open {}: {}", path.display(), plain(&e)))
    })?;
    if !meta.is_file() || meta.len() > TEXT_MAX {
        return Err(EngineError::Source(format!(
            "failed to read dockerfile: {} is not a file within the size limit of 16 MiB",
            path.display()
        )));
    }
    std::fs::read(path).map_err(|e| EngineError::io("read", path, e))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => read_regular(path).map(Some),
        _ => Ok(None),
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".into(),
        _ => error.to_string(),
    }
}

fn checkout(store: &Store, source: &GitSource, ssh: Option<&Path>) -> Result<Staging, EngineError> {
    let staging = store.staging()?;
    let commit = git::resolve(source, ssh)?;
    let work = staging.path().join("work");
    git::checkout(source, &commit, &staging.path().join("fs"), &work, ssh)?;
    Ok(staging)
}

/// What `--build-context NAME=VALUE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Directory(PathBuf),
    Layout { path: PathBuf, reference: Option<String> },
    Image(String),
    Git(GitSource),
    Http(String),
    Stage(String),
}

impl Named {
    pub(crate) fn parse(value: &str) -> Result<Self, EngineError> {
        if let Some(rest) = value.strip_prefix("oci-layout://") {
            let split = rest.rfind([':', '@']).filter(|at| !rest[*at..].contains('/'));
            let (path, reference) = match split {
                // `@sha256:…` has a colon of its own.
                Some(_) if rest.contains("@sha256:") => {
                    let (path, digest) = rest.split_once('@').unwrap_or((rest, ""));
                    (path, Some(digest.to_owned()))
                }
                Some(at) => (&rest[..at], Some(rest[at + 1..].to_owned())),
                None => (rest, None),
            };
            return Ok(Self::Layout { path: PathBuf::from(path), reference });
        }
        if let Some(image) = value.strip_prefix("docker-image://") {
            return Ok(Self::Image(image.to_owned()));
        }
        if let Some(stage) = value.strip_prefix("target:") {
            return Ok(Self::Stage(stage.to_owned()));
        }
        if is_git_url(value) {
            return Ok(Self::Git(parse_git(value)));
        }
        if value.starts_with("http://") || value.starts_with("https://") {
            return Ok(Self::Http(value.to_owned()));
        }
        let path = PathBuf::from(value);
        if !path.is_dir() {
            return Err(EngineError::Source(format!(
                "build context `{value}` is not a directory, and no address of a known kind"
            )));
        }
        Ok(Self::Directory(path))
    }
}

/// Local directories of a build by name.
#[derive(Debug, Default)]
pub(crate) struct Contexts(pub(crate) BTreeMap<String, LocalContext>);

impl Contexts {
    /// Makes a named directory usable as a context.
    pub(crate) fn add_directory(&mut self, name: &str, path: &Path) -> Result<Vec<String>, EngineError> {
        let view = View::context(path, None)?;
        let excludes = parse_ignore(view.read_small(".dockerignore", TEXT_MAX)?)?;
        let context = LocalContext { path: path.to_owned(), excludes: excludes.clone(), _staging: None };
        self.0.insert(name.to_owned(), context);
        Ok(excludes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_paths_and_files() {
        for (text, yes) in [
            ("https://host/x.git", true),
            ("https://host/x.git#v1:dir", true),
            ("git@host:a/b", true),
            ("https://host/x.tar.gz", false),
            ("./x.git", false),
        ] {
            assert_eq!(is_git_url(text), yes, "{text}");
        }
        let git = parse_git("https://host/x.git#v1:a/b/");
        assert_eq!((git.reference.as_str(), git.subdir.as_str()), ("v1", "a/b"));
    }

    #[test]
    fn layouts_may_name_a_tag_or_digest() {
        let layout = |path: &str, reference: Option<&str>| Named::Layout {
            path: path.into(),
            reference: reference.map(str::to_owned),
        };
        assert_eq!(Named::parse("oci-layout:///a/b").unwrap(), layout("/a/b", None));
        assert_eq!(Named::parse("oci-layout:///a/b:1").unwrap(), layout("/a/b", Some("1")));
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(Named::parse(&format!("oci-layout:///a/b@{digest}")).unwrap(), layout("/a/b", Some(&digest)));
    }
}
