//! Repositories: runs `git`, which knows every transport and credential.
//!
//! Addresses and references come from Dockerfiles, so nothing of them may be taken for an option: a leading `-` is refused and
//! `--` ends the options. Only https, http, ssh and git are spoken, and hooks, templates and host configuration stay out.

use crate::EngineError;
use std::path::Path;
use xbuild_graph::GitSource;

/// A commit that a reference pointed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// 40 (or 64) hex digits.
    pub(crate) id: String,
    /// Full name of the reference, for fetching.
    pub(crate) reference: String,
}

/// Asks the remote what `source.reference` is now.
pub(crate) fn resolve(source: &GitSource, ssh: Option<&Path>) -> Result<Commit, EngineError> {
    check(source)?;
    if is_commit(&source.reference) {
        return Ok(Commit { id: source.reference.clone(), reference: source.reference.clone() });
    }
    let wanted = if source.reference.is_empty() { "HEAD" } else { &source.reference };
    let pattern = format!("{wanted}^{{}}");
    let listing = run(None, ssh, &["ls-remote", "--", &source.remote, wanted, &pattern])?;
    let listing = String::from_utf8_lossy(&listing);
    let lines: Vec<(&str, &str)> = listing.lines().filter_map(|l| l.split_once('\t')).collect();
    let forms = [wanted.to_owned(), format!("refs/tags/{wanted}"), format!("refs/heads/{wanted}")];
    let named = forms.iter().find(|form| lines.iter().any(|(_, name)| name == form));
    let reference = named.ok_or_else(|| {
        EngineError::Source(format!("repository `{}` has no reference `{wanted}`", redacted(&source.remote)))
    })?;
    // An annotated tag is listed once more with the commit that it names.
    let peeled = format!("{reference}^{{}}");
    let find = |name: &str| lines.iter().find(|(_, n)| *n == name).map(|(id, _)| (*id).to_owned());
    let id = find(&peeled).or_else(|| find(reference)).unwrap_or_default();
    let commit = Commit { id, reference: reference.clone() };
    check_commit(source, &commit, find(reference).as_deref())?;
    Ok(commit)
}

/// `--checksum` names the commit or the tag object, whole or by its first digits.
fn check_commit(source: &GitSource, commit: &Commit, tag: Option<&str>) -> Result<(), EngineError> {
    match &source.checksum {
        Some(sum) if !commit.id.starts_with(sum.as_str()) && !tag.is_some_and(|t| t.starts_with(sum.as_str())) => {
            Err(EngineError::Source(format!(
                "expected checksum to match {sum}, got {} for `{}`",
                commit.id,
                redacted(&source.remote)
            )))
        }
        _ => Ok(()),
    }
}

/// Checks a commit out into the empty directory `target`, its `subdir` alone if there is one.
pub(crate) fn checkout(
    source: &GitSource,
    commit: &Commit,
    target: &Path,
    work: &Path,
    ssh: Option<&Path>,
) -> Result<(), EngineError> {
    let repository = work.join("repository");
    std::fs::create_dir_all(&repository).map_err(|e| EngineError::io("make", &repository, e))?;
    let git = |arguments: &[&str]| run(Some(&repository), ssh, arguments);
    git(&["init", "-q", "--template=", "."])?;
    git(&["remote", "add", "--", "origin", &source.remote])?;
    let spec =
        if is_commit(&commit.reference) { commit.id.clone() } else { format!("{}:refs/xbuild/head", commit.reference) };
    let shallow = git(&["fetch", "-q", "--depth=1", "--no-tags", "--", "origin", &spec]);
    if shallow.is_err() {
        // A server that does not serve commits by number, or no shallow clones.
        git(&["fetch", "-q", "--tags", "--", "origin", "+refs/*:refs/remotes/origin/*"])?;
    }
    git(&["-c", "advice.detachedHead=false", "checkout", "-q", "--detach", &commit.id, "--"])?;
    let head = String::from_utf8_lossy(&git(&["rev-parse", "HEAD"])?).trim().to_owned();
    check_commit(source, &Commit { id: head, reference: String::new() }, None).or_else(|e| {
        if source.checksum.as_deref().is_some_and(|s| commit.id.starts_with(s)) || !is_commit(&commit.reference) {
            Ok(())
        } else {
            Err(e)
        }
    })?;
    if !source.skip_submodules && repository.join(".gitmodules").is_file() {
        git(&["submodule", "update", "-q", "--init", "--recursive", "--depth=1"])?;
    }
    let git_dir = repository.join(".git");
    if !source.keep_git_dir {
        std::fs::remove_dir_all(&git_dir).map_err(|e| EngineError::io("remove", &git_dir, e))?;
    }
    let from = subdirectory(&repository, &source.subdir)?;
    if target.exists() {
        std::fs::remove_dir(target).map_err(|e| EngineError::io("remove", target, e))?;
    }
    std::fs::rename(&from, target).map_err(|e| EngineError::io("move", &from, e))
}

/// Each component must be a real directory: a link could lead out of the checkout.
fn subdirectory(repository: &Path, subdir: &str) -> Result<std::path::PathBuf, EngineError> {
    let mut path = repository.to_owned();
    for component in subdir.split('/').filter(|c| !c.is_empty() && *c != ".") {
        path.push(component);
        let real = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        if component == ".." || component == ".git" || !real {
            return Err(EngineError::Source(format!("`{subdir}` is not a directory of the repository")));
        }
    }
    Ok(path)
}

fn check(source: &GitSource) -> Result<(), EngineError> {
    let allowed = ["https://", "http://", "ssh://", "git://"].iter().any(|s| source.remote.starts_with(s));
    let scp_like = source.remote.split_once(':').is_some_and(|(host, _)| host.contains('@') && !host.contains('/'));
    let bad = |text: &str| text.starts_with('-') || text.chars().any(char::is_control);
    if !(allowed || scp_like) || bad(&source.remote) {
        return Err(EngineError::Source(format!(
            "`{}` is not a repository address (https, http, ssh, git)",
            redacted(&source.remote)
        )));
    }
    if bad(&source.reference)
        || source.reference.contains("..")
        || source.reference.contains([':', '*', '?', '[', '\\', ' ', '~', '^'])
    {
        return Err(EngineError::Source(format!("`{}` is not a git reference", source.reference)));
    }
    Ok(())
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Runs git with a clean environment; its error text, shortened, is the error.
fn run(directory: Option<&Path>, ssh: Option<&Path>, arguments: &[&str]) -> Result<Vec<u8>, EngineError> {
    let mut command = xbuild_runner::rootless::command("git");
    command
        .args(["-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=user", "-c", "safe.directory=*"])
        .args(arguments);
    command.current_dir(directory.unwrap_or(Path::new("/")));
    for inherited in
        ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_SSH_COMMAND"]
    {
        command.env_remove(inherited);
    }
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_ALLOW_PROTOCOL", "https:http:ssh:git").env("LC_ALL", "C").stdin(std::process::Stdio::null());
    match ssh {
        Some(socket) => command.env("SSH_AUTH_SOCK", socket),
        None => command.env_remove("SSH_AUTH_SOCK"),
    };
    let output = command
        .output()
        .map_err(|e| EngineError::Source(format!("cannot run git: {e}; install it to use repositories")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text: String = redacted(text.trim()).chars().filter(|c| !c.is_control() || *c == '\n').take(600).collect();
    Err(EngineError::Source(format!("git {} failed: {text}", arguments.first().unwrap_or(&""))))
}

/// A text without the passwords of addresses in it.
pub(crate) fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(['/', ' ', '\n', '\'', '"', '?', '#']).unwrap_or(tail.len());
        rest = match tail[..end].rfind('@') {
            Some(user_end) => &tail[user_end + 1..],
            None => tail,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_addresses_are_not_shown() {
        assert_eq!(redacted("get https://u:p@host/x failed"), "get https://host/x failed");
        assert_eq!(redacted("https://host/a@b"), "https://host/a@b");
    }

    #[test]
    fn options_and_local_paths_are_refused() {
        let source = |remote: &str, reference: &str| GitSource {
            remote: remote.into(),
            reference: reference.into(),
            subdir: String::new(),
            keep_git_dir: false,
            checksum: None,
            skip_submodules: false,
        };
        for (remote, reference) in [
            ("--upload-pack=x", ""),
            ("/etc", ""),
            ("file:///etc", ""),
            ("ext::sh -c x", ""),
            ("https://host/x.git", "--output=x"),
        ] {
            assert!(check(&source(remote, reference)).is_err(), "{remote} {reference}");
        }
        assert!(check(&source("git@host:a/b.git", "v1")).is_ok());
    }
}
