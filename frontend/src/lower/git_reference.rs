//! Addresses of repositories: `https://host/repo.git#ref:subdir`, `git@host:repo`, `ssh://…`, and the `?ref=…` form.

use crate::parse::go_bool;
use xbuild_graph::GitSource;

/// A repository's address, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitReference {
    /// The address without fragment and known query keys.
    pub remote: String,
    /// Branch, tag or commit; empty for the default.
    pub reference: String,
    /// Directory inside; empty for all.
    pub subdir: String,
    /// Commit that the reference must be.
    pub checksum: Option<String>,
    /// `keep-git-dir=` of the query.
    pub keep_git_dir: Option<bool>,
    /// `submodules=` of the query.
    pub submodules: Option<bool>,
}

impl GitReference {
    /// Reads an address; none if it is not one of a repository.
    ///
    /// # Errors
    /// A repository whose query or fragment makes no sense.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (address, fragment) = match text.split_once('#') {
            Some((address, fragment)) => (address, Some(fragment)),
            None => (text, None),
        };
        let (address, query) = match address.split_once('?') {
            Some((address, query)) => (address, Some(query)),
            None => (address, None),
        };
        if !is_repository(address) {
            return Ok(None);
        }
        let mut git = Self { remote: address.to_owned(), ..Self::default() };
        if let Some(fragment) = fragment {
            let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
            git.reference = reference.to_owned();
            git.subdir = subdir.to_owned();
        }
        if let Some(query) = query {
            git.query(query)?;
        }
        git.subdir = git.subdir.trim_matches('/').to_owned();
        if git.subdir.split('/').any(|part| part == "..") {
            return Err(format!("the directory `{}` is outside of the repository", git.subdir));
        }
        Ok(Some(git))
    }

    fn query(&mut self, query: &str) -> Result<(), String> {
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let switch = || match value {
                "" => Ok(Some(true)),
                value => go_bool(value).map(Some).ok_or_else(|| format!("invalid value for {key}: `{value}`")),
            };
            match key {
                "ref" | "tag" | "branch" | "commit" if !self.reference.is_empty() && self.reference != value => {
                    return Err(format!("`{key}={value}` contradicts the reference `{}`", self.reference));
                }
                "ref" => self.reference = value.to_owned(),
                "tag" => self.reference = format!("refs/tags/{value}"),
                "branch" => self.reference = format!("refs/heads/{value}"),
                "subdir" => self.subdir = value.to_owned(),
                "checksum" | "commit" => self.checksum = Some(value.to_owned()),
                "keep-git-dir" => self.keep_git_dir = switch()?,
                "submodules" => self.submodules = switch()?,
                _ => kept.push(pair),
            }
        }
        if !kept.is_empty() {
            return Err(format!("unexpected query `{}` in the address of a repository", kept.join("&")));
        }
        Ok(())
    }

    /// As a source.
    pub fn source(self) -> GitSource {
        GitSource {
            remote: self.remote,
            reference: self.reference,
            subdir: self.subdir,
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            checksum: self.checksum,
            skip_submodules: self.submodules == Some(false),
        }
    }
}

fn is_repository(address: &str) -> bool {
    if let Some(rest) = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://")) {
        return rest.ends_with(".git");
    }
    if address.starts_with("git://") || address.starts_with("ssh://") {
        return true;
    }
    let Some((host, path)) = address.split_once(':') else {
        return false;
    };
    let Some((user, host)) = host.split_once('@') else {
        return false;
    };
    !user.is_empty() && !host.is_empty() && !host.contains('/') && !path.is_empty() && !path.starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let read = |text| GitReference::parse(text).unwrap();
        let git = read("https://h/r.git#v1:a/b/").unwrap();
        assert_eq!(
            (git.remote.as_str(), git.reference.as_str(), git.subdir.as_str()),
            ("https://h/r.git", "v1", "a/b")
        );
        let git = read("https://h/r.git?tag=v1&subdir=x&submodules=false").unwrap();
        assert_eq!((git.reference.as_str(), git.subdir.as_str(), git.submodules), ("refs/tags/v1", "x", Some(false)));
        assert!(read("git@github.com:a/b.git").is_some() && read("ssh://h/r").is_some());
        assert!(read("https://h/file.txt").is_none() && read("a@b").is_none() && read("dir/file").is_none());
        assert!(GitReference::parse("https://h/r.git#x:../y").is_err());
    }
}
