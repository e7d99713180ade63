//! Archives of images coming in: OCI layouts, and what `docker save` wrote before it wrote layouts.

use crate::event::{Events, Sink};
use crate::{Engine, EngineError};
use serde::Deserialize;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xbuild_cache::tree::{self, Limits, Marks, View};
use xbuild_exporter::image::json;
use xbuild_graph::Platform;
use xbuild_oci::{Descriptor, Digest, Document, Index, Manifest, MediaType, Reference, Sha256Writer};
use xbuild_solver::Cancel;

/// Largest `manifest.json`, `index.json`, or configuration of an archive, in bytes.
const DOCUMENT_MAX: u64 = 8 << 20;
/// The annotation with an image's full name.
const NAME: &str = "io.containerd.image.name";

impl Engine {
    /// Reads an archive of `save`, `docker save` or an OCI layout; returns the names it gave.
    /// It may be compressed.
    pub fn load_archive(&self, input: &mut dyn Read, sink: Arc<Sink>) -> Result<Vec<String>, EngineError> {
        let staging = self.store().staging()?;
        let layout = staging.path().join("layout");
        fs::create_dir(&layout).map_err(|e| EngineError::io("make", &layout, e))?;
        let none = || View::layers::<&Path>(&[], Marks::Plain);
        let mut plain =
            tree::decompress(input).map_err(|e| EngineError::Source(format!("the archive cannot be read: {e}")))?;
        tree::unpack_layer(&mut plain, &layout, &none, Marks::Plain, Limits::default())?;
        let view = View::context(&layout, None)?;
        let parsed = match view.read_small("index.json", DOCUMENT_MAX)?.map(|index| Document::parse(&index, "")) {
            None => None,
            Some(Ok(Document::Index(index))) => Some(index),
            Some(_) => return Err(EngineError::Source("the archive's index.json is not an index".into())),
        };
        let parsed = match (parsed, view.read_small("manifest.json", DOCUMENT_MAX)?) {
            (Some(index), _) if !index.manifests.is_empty() => index,
            (_, Some(manifest)) => docker_layout(&layout, &view, &manifest)?,
            (Some(index), None) => index,
            (None, None) => {
                let why =
                    "the archive is no image: it has neither index.json (OCI layout) nor manifest.json (docker save)";
                return Err(EngineError::Source(why.into()));
            }
        };
        if parsed.manifests.is_empty() {
            return Err(EngineError::Source("the archive holds no image: its list of images is empty".into()));
        }
        let path = layout.join("index.json");
        fs::write(&path, json(&parsed)).map_err(|e| EngineError::io("write", &path, e))?;
        let events = Events::new(sink);
        let names = parsed.manifests.iter().map(|entry| self.load_entry(&layout, entry, &events));
        let names = names.collect::<Result<_, _>>()?;
        self.store().sync()?;
        Ok(names)
    }

    fn load_entry(&self, layout: &Path, entry: &Descriptor, events: &Events) -> Result<String, EngineError> {
        let cancel = Cancel::new();
        let images = self.images(&cancel)?;
        let resolved = images.resolve_layout(layout, Some(&entry.digest.to_string()), &Platform::host())?;
        let tree = events.step("loading layers", |step| images.unpack(&resolved.source, events, step))?;
        let manifest: Digest = resolved.source.manifest.parse().map_err(|e| EngineError::Internal(format!("{e}")))?;
        self.store().set_manifest_tree(manifest, tree)?;
        let name = entry.annotations.get(NAME);
        let tag = entry.annotations.get("org.opencontainers.image.ref.name").filter(|t| t.contains(['/', ':']));
        match name.or(tag) {
            Some(name) => {
                let full: Reference =
                    name.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
                self.store().name_image(&[full.to_string()], manifest)?;
                Ok(full.familiar())
            }
            None => Ok(manifest.to_string()),
        }
    }
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Turns an unpacked archive of `docker save` into a layout: files become blobs, and each image gets the manifest that the
/// archive does not have. Nothing of it is believed: the layers' diff IDs are checked when they are unpacked.
fn docker_layout(layout: &Path, view: &View, manifest: &[u8]) -> Result<Index, EngineError> {
    let bad = |e: serde_json::Error| EngineError::Source(format!("the archive's manifest.json cannot be read: {e}"));
    let saved: Vec<Saved> = serde_json::from_slice(manifest).map_err(bad)?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|e| EngineError::io("make", &blobs, e))?;
    let mut manifests = Vec::new();
    for image in saved {
        let config = blob(layout, view, &blobs, &image.config, MediaType::DOCKER_CONFIG)?;
        let layers = image.layers.unwrap_or_default();
        let layers = layers.iter().map(|name| blob(layout, view, &blobs, name, MediaType::DOCKER_LAYER));
        let manifest = json(&Manifest {
            schema_version: 2,
            media_type: MediaType::DOCKER_MANIFEST.to_owned(),
            config,
            layers: layers.collect::<Result<_, _>>()?,
            annotations: Default::default(),
        });
        let mut descriptor = Descriptor::of(MediaType::DOCKER_MANIFEST, &manifest);
        let path = blobs.join(descriptor.digest.hex());
        fs::write(&path, &manifest).map_err(|e| EngineError::io("write", &path, e))?;
        let tags = image.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            manifests.push(descriptor.clone());
        }
        for tag in tags {
            descriptor.annotations.insert(NAME.to_owned(), tag);
            manifests.push(descriptor.clone());
        }
    }
    let media_type = MediaType::OCI_INDEX.to_owned();
    Ok(Index { schema_version: 2, media_type, manifests, annotations: Default::default() })
}

/// Makes the file `name` of the archive a blob of the layout. Layers that two images share are links in such archives.
fn blob(layout: &Path, view: &View, blobs: &Path, name: &str, media_type: &str) -> Result<Descriptor, EngineError> {
    let node = view.require(name, true)?;
    let path: PathBuf = layout.join(&node.path);
    if !node.meta.is_file() {
        return Err(EngineError::Source(format!("the archive's `{name}` is not a file")));
    }
    let mut hash = Sha256Writer::new(std::io::sink());
    let mut file = fs::File::open(&path).map_err(|e| EngineError::io("open", &path, e))?;
    std::io::copy(&mut file, &mut hash).map_err(|e| EngineError::io("read", &path, e))?;
    let (_, digest, size) = hash.finish();
    let target = blobs.join(digest.hex());
    if !target.exists() {
        fs::hard_link(&path, &target).map_err(|e| EngineError::io("link", &target, e))?;
    }
    Ok(Descriptor { media_type: media_type.to_owned(), digest, size, annotations: Default::default(), platform: None })
}
