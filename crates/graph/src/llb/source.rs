//! Sources: an identifier with a scheme, and attributes.

use super::{LlbError, ResolveImage, malformed, unsupported};
use crate::{GitSource, HttpSource, LocalSource, Platform, SourceOp};
use bollard_buildkit_proto::pb;
use std::collections::BTreeMap;

const IMAGE: &str = "docker-image://";
const LOCAL: &str = "local://";
const GIT: &str = "git://";

const EXCLUDES: &str = "local.excludepatterns";
/// How a client finds and compares its files; the same files come of any.
const LOCAL_HINTS: &[&str] = &["local.session", "local.unique", "local.sharedkeyhint", "local.differ"];

const GIT_URL: &str = "git.fullurl";
const GIT_KEEP: &str = "git.keepgitdir";
const GIT_CHECKSUM: &str = "git.checksum";
const GIT_NO_SUBMODULES: &str = "git.skipsubmodules";
/// Names of secrets and sockets that a client offers; those that the build was given are used.
const GIT_HINTS: &[&str] = &["git.authtokensecret", "git.authheadersecret", "git.knownsshhosts", "git.mountsshsock"];

const HTTP_CHECKSUM: &str = "http.checksum";
const HTTP_NAME: &str = "http.filename";

/// When a registry is asked; the resolver's choice.
const IMAGE_HINTS: &[&str] = &["image.resolvemode", "image.recordtype"];

type Attributes = BTreeMap<String, String>;

/// A source with the platform that its op is for.
pub(super) fn write(source: &SourceOp) -> (pb::op::Op, Option<Platform>) {
    let mut attrs = Attributes::new();
    let mut set = |name: &str, value: &str| attrs.insert(name.to_owned(), value.to_owned());
    let (identifier, platform) = match source {
        SourceOp::Image(image) => (format!("{IMAGE}{}", image.reference), image.platform.clone()),
        SourceOp::Local(local) => {
            if !local.excludes.is_empty() {
                // A list of strings always has a JSON form.
                set(EXCLUDES, &serde_json::to_string(&local.excludes).unwrap_or_default());
            }
            (format!("{LOCAL}{}", local.name), None)
        }
        SourceOp::Git(git) => {
            set(GIT_URL, &git.remote);
            [(git.keep_git_dir, GIT_KEEP), (git.skip_submodules, GIT_NO_SUBMODULES)]
                .iter()
                .filter(|(given, _)| *given)
                .for_each(|(_, name)| drop(set(name, "true")));
            git.checksum.iter().for_each(|checksum| drop(set(GIT_CHECKSUM, checksum)));
            let place = git.remote.split_once("://").map_or(git.remote.as_str(), |(_, rest)| rest);
            let place = place.split('#').next().unwrap_or_default();
            let subdir = if git.subdir.is_empty() { String::new() } else { format!(":{}", git.subdir) };
            (format!("{GIT}{place}#{}{subdir}", git.reference), None)
        }
        SourceOp::Http(http) => {
            http.checksum.iter().for_each(|checksum| drop(set(HTTP_CHECKSUM, checksum)));
            http.filename.iter().for_each(|name| drop(set(HTTP_NAME, name)));
            (http.url.clone(), None)
        }
    };
    (pb::op::Op::Source(pb::SourceOp { identifier, attrs }), platform)
}

/// The source of an identifier. Attributes that change what the source is and that are not known here are refused.
pub(super) fn read(
    source: pb::SourceOp,
    platform: Option<Platform>,
    images: ResolveImage<'_>,
) -> Result<SourceOp, LlbError> {
    let pb::SourceOp { identifier, mut attrs } = source;
    let mut rest = |hints: &[&str]| attrs.retain(|name, _| !hints.contains(&name.as_str()));
    let op = if let Some(reference) = identifier.strip_prefix(IMAGE) {
        rest(IMAGE_HINTS);
        let platform = platform.unwrap_or_else(Platform::host);
        let found = images(reference, &platform);
        SourceOp::Image(found.map_err(|why| LlbError::Image { reference: reference.to_owned(), why })?)
    } else if let Some(name) = identifier.strip_prefix(LOCAL) {
        rest(LOCAL_HINTS);
        SourceOp::Local(local(name, &mut attrs)?)
    } else if let Some(place) = identifier.strip_prefix(GIT) {
        rest(GIT_HINTS);
        SourceOp::Git(git(place, &mut attrs))
    } else if identifier.starts_with("http://") || identifier.starts_with("https://") {
        let (checksum, filename) = (attrs.remove(HTTP_CHECKSUM), attrs.remove(HTTP_NAME));
        SourceOp::Http(HttpSource { url: identifier, checksum, filename })
    } else {
        return Err(unsupported(format!("the source {identifier:?}")));
    };
    match attrs.into_keys().next() {
        Some(name) => Err(unsupported(format!("the attribute {name:?} of a source"))),
        None => Ok(op),
    }
}

fn local(name: &str, attrs: &mut Attributes) -> Result<LocalSource, LlbError> {
    // Which paths a client sends at all: the op that copies says them again, so more may be there.
    attrs.remove("local.followpaths");
    let excludes = attrs.remove(EXCLUDES).map(|text| serde_json::from_str(&text)).transpose();
    let excludes = excludes.map_err(|e| malformed(format!("{EXCLUDES}: {e}")))?.unwrap_or_default();
    Ok(LocalSource { name: name.to_owned(), excludes })
}

fn git(place: &str, attrs: &mut Attributes) -> GitSource {
    let (place, fragment) = place.split_once('#').unwrap_or((place, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut given = |name| attrs.remove(name).is_some_and(|value| value == "true");
    let (keep_git_dir, skip_submodules) = (given(GIT_KEEP), given(GIT_NO_SUBMODULES));
    GitSource {
        remote: attrs.remove(GIT_URL).unwrap_or_else(|| format!("https://{place}")),
        reference: reference.to_owned(),
        subdir: subdir.to_owned(),
        keep_git_dir,
        checksum: attrs.remove(GIT_CHECKSUM),
        skip_submodules,
    }
}

/// What a source without a name is called in the progress display.
pub(super) fn title(source: &SourceOp) -> String {
    match source {
        SourceOp::Image(image) => format!("{IMAGE}{}", image.reference),
        SourceOp::Local(local) => format!("{LOCAL}{}", local.name),
        SourceOp::Git(git) => git.remote.clone(),
        SourceOp::Http(http) => http.url.clone(),
    }
}
