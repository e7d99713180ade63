use crate::Digest;
use std::fmt;
use std::str::FromStr;

/// A full image name: host, repository, tag and digest, with Docker's defaults filled in.
///
/// `busybox` is `docker.io/library/busybox:latest`. See the reference grammar of distribution.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`.
    pub host: String,
    /// `library/busybox`.
    pub repository: String,
    /// Tag; `latest` where neither tag nor digest were given.
    pub tag: Option<String>,
    /// Digest.
    pub digest: Option<Digest>,
}

/// An image name that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: `{name}` {why}")]
pub struct ReferenceError {
    name: String,
    why: &'static str,
}

const DOCKER_HOST: &str = "docker.io";
/// Longest repository, `library/` counted.
const REPOSITORY_MAX: usize = 255;

impl Reference {
    /// The name as people write it: Docker's default host and `library/` left out.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
            None => full,
        }
    }

    /// Host and repository without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { name: text.chars().take(300).collect(), why };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| fail("has a digest that is not sha256"))?)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|t| !valid_tag(t)) {
            return Err(fail("has a tag with other characters than [A-Za-z0-9_.-], or one of over 128"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DOCKER_HOST, name),
        };
        let host = if host == "index.docker.io" { DOCKER_HOST } else { host };
        if !valid_host(host) {
            return Err(fail("has a host that is no name or address with an optional port"));
        }
        if path.is_empty() {
            return Err(fail("has no repository"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("has upper-case letters; repository names are lower case"));
        }
        let repository = match host == DOCKER_HOST && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        if repository.len() > REPOSITORY_MAX || !path.split('/').all(valid_component) {
            return Err(fail(
                "is not a repository name (at most 255 lower-case letters and digits, separated by `.`, `_`, `-`, `/`)",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let name_ok = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(address) => address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    name_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len()) && word(tag.as_bytes()[0]) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Letters and digits with single `.`, one or two `_`, or any number of `-` between them.
fn valid_component(component: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_ok = bytes.first().is_some_and(|&b| plain(b)) && bytes.last().is_some_and(|&b| plain(b));
    ends_ok
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
        }
    }

    #[test]
    fn rubbish_is_refused() {
        for bad in
            ["", "A", "a//b", "a:", "a:b c", "-a", "a..b", "x@sha256:12", "http://x/y", "a/b:tag/x", "host:99999/x"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        // The full name of what is taken can be read again.
        assert!("f".repeat(247).parse::<Reference>().is_ok());
        assert!("f".repeat(248).parse::<Reference>().is_err());
    }
}
