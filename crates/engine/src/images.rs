//! Images of the store: what they are, and bringing them in and out.

use crate::event::{Events, Sink};
use crate::{Engine, EngineError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use xbuild_cache::{Tree, TreeId};
use xbuild_graph::Platform;
use xbuild_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, Reference, RunConfig};
use xbuild_solver::Cancel;

/// A line of `images`.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Full name with tag; none for an image that lost its name.
    pub name: Option<String>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Digest of the configuration of the host's platform, or of the first one.
    pub id: Digest,
    /// Digest of manifest or index.
    pub target: Digest,
    /// The digest that its repository knows it by, where it came from there or went there.
    pub repository_digest: Option<Digest>,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// When it was last named, in milliseconds since 1970.
    pub updated: i64,
    /// Bytes of its files.
    pub size: u64,
    /// Bytes of those that other images have, too.
    pub shared: u64,
}

/// A line of `history`.
#[derive(Clone, Debug)]
pub struct HistoryLine {
    /// When, RFC 3339.
    pub created: String,
    /// The instruction.
    pub created_by: String,
    /// Bytes of the layer's files; 0 without a layer.
    pub size: u64,
    /// Remark.
    pub comment: String,
}

/// A manifest of the store with its parsed parts.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) target: Digest,
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
}

impl Engine {
    /// All images, the last named first.
    pub fn list(&self) -> Result<Vec<Summary>, EngineError> {
        let sizes = self.tree_sizes()?;
        let mut list: Vec<Summary> = Vec::new();
        let mut layers_of = Vec::new();
        let images = self.store().images()?;
        let parsed: Vec<Option<Reference>> = images.iter().map(|image| image.name.parse().ok()).collect();
        for (image, name) in images.iter().zip(&parsed) {
            let beside = |other: &Reference| name.as_ref().is_some_and(|own| own.name() == other.name());
            let others = images.iter().zip(&parsed).filter(|(other, _)| other.target == image.target);
            let mut others = others.filter_map(|(_, other)| other.as_ref()).filter(|other| beside(other));
            // A digest is shown with the tag of its repository, if there is one.
            if name.as_ref().is_some_and(|own| own.tag.is_none()) && others.clone().any(|other| other.tag.is_some()) {
                continue;
            }
            let found = self.find_target(&image.name, image.target, &Platform::host())?;
            let layers = self.store().layers(self.tree_of(&found)?)?;
            list.push(Summary {
                name: image.is_named().then(|| image.name.clone()),
                labels: found.config.config.labels,
                id: found.manifest.config.digest,
                target: image.target,
                repository_digest: others.find_map(|other| other.digest),
                created: found.config.created,
                updated: image.updated,
                size: layers.iter().map(|layer| sizes.get(&layer.id).copied().unwrap_or(0)).sum(),
                shared: 0,
            });
            layers_of.push(layers.into_iter().map(|layer| layer.id).collect::<Vec<_>>());
        }
        // The images that have a layer, as far as it matters: one, or several.
        let mut owner: HashMap<TreeId, Option<Digest>> = HashMap::new();
        for (image, layers) in list.iter().zip(&layers_of) {
            for layer in layers {
                let first = owner.entry(*layer).or_insert(Some(image.id));
                *first = first.filter(|id| *id == image.id);
            }
        }
        for (image, layers) in list.iter_mut().zip(&layers_of) {
            let shared = layers.iter().filter(|layer| owner.get(layer) == Some(&None));
            image.shared = shared.map(|layer| sizes.get(layer).copied().unwrap_or(0)).sum();
        }
        Ok(list)
    }

    pub(crate) fn tree_sizes(&self) -> Result<HashMap<TreeId, u64>, EngineError> {
        let number = |id: &str| id.strip_prefix("tree-")?.parse::<i64>().ok().map(TreeId::from);
        Ok(self.store().usage()?.into_iter().filter_map(|u| Some((number(&u.id)?, u.size))).collect())
    }

    /// Finds an image by name, or by (the first digits of) its ID.
    pub(crate) fn find(&self, name: &str, platform: &Platform) -> Result<(Vec<String>, Found), EngineError> {
        let reference: Option<Reference> = name.parse().ok();
        let shown = reference.as_ref().map_or_else(|| name.to_owned(), Reference::familiar);
        let missing = || EngineError::NoImage(shown.clone());
        if let Some(image) = reference.and_then(|r| self.store().image(&r.to_string()).transpose()).transpose()? {
            let found = self.find_target(name, image.target, platform)?;
            return Ok((vec![image.name], found));
        }
        if let Some((repository, digest)) = name.split_once('@')
            && let (Ok(reference), Ok(digest)) = (repository.parse::<Reference>(), digest.parse::<Digest>())
        {
            let same = |image: &xbuild_cache::StoredImage| {
                image.target == digest
                    && image.name.parse::<Reference>().is_ok_and(|own| own.name() == reference.name())
            };
            if let Some(image) = self.store().images()?.into_iter().find(same) {
                let found = self.find_target(name, image.target, platform)?;
                return Ok((vec![image.name], found));
            }
        }
        let wanted = name.trim_start_matches("sha256:");
        if wanted.len() < 4 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut matches: Option<(Vec<String>, Found)> = None;
        for image in self.store().images()? {
            let found = self.find_target(&image.name, image.target, platform)?;
            let same = found.manifest.config.digest.hex().starts_with(wanted) || image.target.hex().starts_with(wanted);
            match &mut matches {
                Some((names, first)) if same && first.digest == found.digest => names.push(image.name),
                Some(_) if same => {
                    return Err(EngineError::Source(format!("several images have an ID that begins with {wanted}")));
                }
                None if same => matches = Some((vec![image.name], found)),
                _ => {}
            }
        }
        matches.ok_or_else(missing)
    }

    fn find_target(&self, name: &str, target: Digest, platform: &Platform) -> Result<Found, EngineError> {
        let mut digest = target;
        loop {
            match Document::parse(&self.store().read_blob(digest)?, "")
                .map_err(|e| EngineError::Source(format!("{name}: {e}")))?
            {
                Document::Index(index) => {
                    let real = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os != "unknown");
                    let fits = |d: &&Descriptor| {
                        let own =
                            d.platform.as_ref().map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref()));
                        own.is_none_or(|own| platform.accepts(&own).is_some())
                    };
                    let mut manifests = index.manifests.iter().filter(real);
                    let chosen = manifests.clone().find(fits).or_else(|| manifests.next());
                    digest =
                        chosen.ok_or_else(|| EngineError::Source(format!("{name}: an index without images")))?.digest;
                }
                Document::Manifest(manifest) => {
                    let config = self.store().read_blob(manifest.config.digest)?;
                    let config =
                        serde_json::from_slice(&config).map_err(|e| EngineError::Source(format!("{name}: {e}")))?;
                    return Ok(Found { target, digest, manifest, config });
                }
            }
        }
    }

    /// The files of an image of the store.
    pub(crate) fn tree_of(&self, found: &Found) -> Result<TreeId, EngineError> {
        if let Some(tree) = self.store().manifest_tree(found.digest)? {
            return Ok(tree);
        }
        let chain = found.config.rootfs.diff_ids.iter().fold(None, |below, id| Some(Digest::chain(below, *id)));
        let Some(chain) = chain else {
            return Ok(TreeId::EMPTY);
        };
        let tree = self.store().tree_by_chain(chain)?;
        tree.ok_or_else(|| EngineError::Source(format!("the files of {} are not unpacked", found.digest)))
    }

    /// What `inspect` shows, in docker's form.
    pub fn inspect(&self, name: &str) -> Result<Value, EngineError> {
        let (_, found) = self.find(name, &Platform::host())?;
        let names: Vec<Reference> = self.names_of(found.target)?.iter().filter_map(|name| name.parse().ok()).collect();
        let tags: Vec<String> = names.iter().filter(|r| r.digest.is_none()).map(Reference::familiar).collect();
        let digests: Vec<String> = names.iter().filter(|r| r.digest.is_some()).map(Reference::familiar).collect();
        let sizes = self.tree_sizes()?;
        let layers = self.store().layers(self.tree_of(&found)?)?;
        let size: u64 = layers.iter().map(|l| sizes.get(&l.id).copied().unwrap_or(0)).sum();
        let config = &found.config;
        Ok(json!({
            "Id": found.manifest.config.digest,
            "RepoTags": tags,
            "RepoDigests": digests,
            "Comment": config.history.last().map(|h| h.comment.clone()).unwrap_or_default(),
            "Created": config.created,
            "Author": config.author.clone().unwrap_or_default(),
            "Architecture": config.architecture,
            "Variant": config.variant,
            "Os": config.os,
            "Size": size,
            "Config": whole(&config.config),
            "Parent": "",
            "DockerVersion": "",
            "RootFS": {"Type": "layers", "Layers": config.rootfs.diff_ids},
            "Descriptor": {"mediaType": found.manifest.media_type, "digest": found.digest},
        }))
    }

    /// What `history` shows, the last step first.
    pub fn history(&self, name: &str) -> Result<Vec<HistoryLine>, EngineError> {
        let (_, found) = self.find(name, &Platform::host())?;
        let layers: Vec<Tree> = self.store().layers(self.tree_of(&found)?)?;
        let mut layers = layers.iter();
        let mut lines = Vec::new();
        for step in &found.config.history {
            let size = if step.empty_layer { 0 } else { layers.next().map_or(0, Self::layer_size) };
            lines.push(HistoryLine {
                created: step.created.clone().unwrap_or_default(),
                created_by: step.created_by.clone(),
                size,
                comment: step.comment.clone(),
            });
        }
        lines.reverse();
        Ok(lines)
    }

    /// Gives an image another name.
    pub fn tag(&self, from: &str, to: &str) -> Result<(), EngineError> {
        let (_, found) = self.find(from, &Platform::host())?;
        self.store().name_image(&[to.to_owned()], found.target)?;
        let shown = to.parse::<Reference>().map_or(to.to_owned(), |reference| reference.familiar());
        self.image_event("tag", &found.manifest.config.digest.to_string(), &shown);
        Ok(())
    }

    /// The names that people gave an image.
    fn names_of(&self, target: Digest) -> Result<Vec<String>, EngineError> {
        let images = self.store().images()?;
        Ok(images
            .into_iter()
            .filter(|image| image.target == target && image.is_named())
            .map(|image| image.name)
            .collect())
    }

    /// Removes a name, or with an ID all names; an image without names is gone. Returns what was said of it.
    pub fn remove(&self, name: &str, force: bool) -> Result<Vec<String>, EngineError> {
        let (_, found) = self.find(name, &Platform::host())?;
        let id = found.manifest.config.digest;
        let names = self.names_of(found.target)?;
        let by_name = name
            .parse::<Reference>()
            .ok()
            .map(|reference| reference.to_string())
            .filter(|full| names.contains(full))
            .or_else(|| names.iter().find(|own| name.contains('@') && own.contains('@')).cloned());
        let going = match &by_name {
            Some(one) => with_digests(one, &names),
            None => names.clone(),
        };
        let short = |text: &str| text.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let has_tag = |name: &&String| name.parse::<Reference>().is_ok_and(|own| own.tag.is_some());
        if by_name.is_none() && names.iter().filter(has_tag).count() > 1 && !force {
            return Err(EngineError::Source(format!(
                "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                short(&id.to_string())
            )));
        }
        let mut goes = going.len() == names.len();
        if goes {
            let by_name = by_name.is_some().then_some(name);
            goes = self.may_go(&found, by_name, force)?;
        }
        let mut said = Vec::new();
        for name in &going {
            self.store().forget_image(name)?;
            let shown = name.parse::<Reference>().map_or(name.clone(), |reference| reference.familiar());
            said.push(format!("Untagged: {shown}"));
            self.image_event("untag", &id.to_string(), &shown);
        }
        if goes {
            self.store().forget_image(&format!("@{}", found.target))?;
            said.push(format!("Deleted: {id}"));
            self.image_event("delete", &id.to_string(), &id.to_string());
        }
        Ok(said)
    }

    /// Whether an image that has lost its names may go: one whose container runs stays if only its name is to be taken away.
    /// An error where that is not what was asked for; `name` is the name that was.
    fn may_go(&self, found: &Found, name: Option<&str>, force: bool) -> Result<bool, EngineError> {
        let manifest = found.digest.to_string();
        let image: String = found.manifest.config.digest.hex().chars().take(12).collect();
        let refused = |why: String| Err(EngineError::Source(format!("conflict: unable to {why}")));
        let mut runs = false;
        for user in self.containers().list()?.into_iter().filter(|one| one.container.manifest == manifest) {
            let id = user.container.short_id();
            let alive = user.state.status.is_alive();
            match name {
                Some(name) if !force => {
                    return refused(format!(
                        "remove repository reference \"{name}\" (must force) - container {id} is using its referenced image {image}"
                    ));
                }
                None if alive => {
                    let why =
                        format!("delete {image} (cannot be forced) - image is being used by running container {id}");
                    return refused(why);
                }
                None if !force => {
                    let why =
                        format!("delete {image} (must be forced) - image is being used by stopped container {id}");
                    return refused(why);
                }
                _ => runs |= alive,
            }
        }
        Ok(!runs)
    }

    /// Notes an event of an image.
    pub(crate) fn image_event(&self, action: &str, id: &str, name: &str) {
        let attributes = [("name".to_owned(), name.to_owned())].into();
        self.containers().events().add("image", action, id, attributes);
    }

    /// Fetches an image and unpacks it; gives its manifest and whether that is another one than before.
    pub fn pull(
        &self,
        name: &str,
        platform: Option<&Platform>,
        sink: Arc<Sink>,
    ) -> Result<(Digest, bool), EngineError> {
        let reference: Reference =
            name.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let before = self.store().image(&reference.to_string())?.map(|image| image.target);
        let events = Events::new(sink);
        let cancel = Cancel::new();
        let images = self.images(&cancel)?;
        let resolved = events.step(&format!("pulling {reference}"), |step| {
            let resolved = images.resolve(name, &platform, true)?;
            let tree = images.unpack(&resolved.source, &events, step)?;
            let manifest: Digest =
                resolved.source.manifest.parse().map_err(|e| EngineError::Internal(format!("{e}")))?;
            self.store().set_manifest_tree(manifest, tree)?;
            Ok::<_, EngineError>(manifest)
        })?;
        self.store().sync()?;
        let by_digest = Reference { tag: None, digest: Some(resolved), ..reference.clone() };
        self.store().name_image(&[reference.to_string(), by_digest.to_string()], resolved)?;
        self.image_event("pull", &reference.familiar(), &reference.familiar());
        Ok((resolved, before != Some(resolved)))
    }

    /// All tags that a registry has of a repository.
    pub fn remote_tags(&self, name: &str) -> Result<Vec<String>, EngineError> {
        let reference: Reference =
            name.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
        let client = self.net().registry()?;
        Ok(self.runtime()?.block_on(client.tags(&reference))?)
    }

    /// Asks a registry whether it takes a login.
    pub fn check_login(&self, host: &str, user: &str, password: &str) -> Result<(), EngineError> {
        Ok(self.runtime()?.block_on(self.net().registry()?.log_in(host, user, password))?)
    }

    /// Repositories of a registry by a part of their names.
    pub fn search(&self, host: &str, term: &str, limit: usize) -> Result<Vec<xbuild_registry::Hit>, EngineError> {
        let client = self.net().registry()?;
        Ok(self.runtime()?.block_on(client.search(host, term, limit))?)
    }

    /// Names of images of the store in a repository.
    pub fn names_in(&self, repository: &str) -> Result<Vec<String>, EngineError> {
        let wanted: Reference =
            repository.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
        let images = self.store().images()?.into_iter().map(|image| image.name);
        let inside =
            |name: &String| name.parse::<Reference>().is_ok_and(|own| own.name() == wanted.name() && own.tag.is_some());
        Ok(images.filter(inside).collect())
    }

    /// Bytes of regular files in one layer, as they are long.
    fn layer_size(layer: &Tree) -> u64 {
        fn walk(path: &std::path::Path) -> u64 {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let size = |entry: std::fs::DirEntry| match std::fs::symlink_metadata(entry.path()) {
                Ok(about) if about.is_dir() => walk(&entry.path()),
                Ok(about) if about.is_file() => about.len(),
                _ => 0,
            };
            entries.map(size).sum()
        }
        layer.dirs.iter().map(|directory| walk(directory)).sum()
    }
}

/// A name, and with the last tag of a repository the digests that it has there.
fn with_digests(name: &str, names: &[String]) -> Vec<String> {
    let parsed = |text: &String| text.parse::<Reference>().ok();
    let Some(own) = parsed(&name.to_owned()) else {
        return vec![name.to_owned()];
    };
    let beside: Vec<&String> = names
        .iter()
        .filter(|other| *other != name && parsed(other).is_some_and(|other| other.name() == own.name()))
        .collect();
    let mut going = vec![name.to_owned()];
    if !beside.iter().any(|other| parsed(other).is_some_and(|other| other.tag.is_some())) {
        going.extend(beside.into_iter().cloned());
    }
    going
}

/// Whether a name fits a pattern of Go's `path.Match`, in which `*` stops at slashes.
pub fn name_fits(pattern: &str, name: &str) -> bool {
    xbuild_frontend::glob_match(pattern, name)
}
/// A configuration with the fields that docker shows of every image.
fn whole(config: &RunConfig) -> Value {
    let mut shown = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false, "AttachStderr": false,
        "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null, "Image": "", "Volumes": null,
        "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    });
    // A configuration always has a JSON form.
    if let (Value::Object(shown), Ok(Value::Object(own))) = (&mut shown, serde_json::to_value(config)) {
        shown.extend(own);
    }
    shown
}
