//! Images of the store as they leave it: whole indexes, with every platform and the statements about them.

use crate::event::{Events, Sink};
use crate::export::StoreLayers;
use crate::images::Found;
use crate::{Engine, EngineError, provenance, push};
use std::io::Write;
use std::sync::Arc;
use xbuild_cache::Packing;
use xbuild_exporter::archive::{self, Named};
use xbuild_exporter::image::{Annotations, Attached, Bundle, Image};
use xbuild_exporter::layers::{self, Layer, LayerOptions};
use xbuild_exporter::{Content, Item};
use xbuild_graph::Platform;
use xbuild_oci::{Descriptor, Digest, Document, ImageConfig, Index, Manifest, MediaType, Reference};

impl Engine {
    /// Writes images as one archive that `docker load` and every OCI tool read. A name without a tag stands for all its tags,
    /// an ID for the image without names.
    pub fn save(&self, names: &[String], out: &mut dyn Write) -> Result<(), EngineError> {
        let mut wanted: Vec<(Digest, Vec<String>)> = Vec::new();
        for name in names {
            for (target, full) in self.to_save(name)? {
                match wanted.iter_mut().find(|(known, _)| *known == target) {
                    Some((_, all)) => all.extend(full.filter(|name| !all.contains(name))),
                    None => wanted.push((target, full.into_iter().collect())),
                }
            }
        }
        let bundles = wanted.into_iter().map(|(target, names)| Ok(Named { bundle: self.stored(target)?, names }));
        let bundles: Vec<Named> = bundles.collect::<Result<_, EngineError>>()?;
        Ok(archive::write_tar(out, &bundles, true, self.store(), &StoreLayers(self.store()))?)
    }

    /// What one argument of `save` stands for: targets, each with its name.
    fn to_save(&self, name: &str) -> Result<Vec<(Digest, Option<String>)>, EngineError> {
        let reference: Option<Reference> = name.parse().ok();
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        if let Some(reference) = reference.filter(|_| !tagged) {
            let prefix = format!("{}:", reference.to_string().trim_end_matches(":latest"));
            let images = self.store().images()?.into_iter();
            let all: Vec<_> =
                images.filter(|i| i.name.starts_with(&prefix)).map(|i| (i.target, Some(i.name))).collect();
            if !all.is_empty() {
                return Ok(all);
            }
        }
        let (full, found) = self.find(name, &Platform::host())?;
        let by_name = full.into_iter().find(|_| tagged && !name.starts_with("sha256:"));
        Ok(vec![(found.target, by_name)])
    }

    /// Sends an image of the store to the registry of its name.
    pub fn push(&self, name: &str, sink: Arc<Sink>) -> Result<Digest, EngineError> {
        let (names, found) = self.find(name, &Platform::host())?;
        let name = names.first().cloned().unwrap_or_default();
        let events = Events::new(sink);
        let bundle = self.packed(self.stored(found.target)?)?;
        let pusher = push::Pusher { net: self.net(), runtime: self.runtime()?, store: self.store(), events: &events };
        events.step(&format!("pushing {name}"), |step| pusher.push(&name, &bundle, step))?;
        let digest = bundle.root().digest();
        if let Ok(reference) = name.parse::<Reference>() {
            // What others know it by there.
            let by_digest = Reference { tag: None, digest: Some(digest), ..reference };
            self.store().name_image(&[by_digest.to_string()], found.target)?;
        }
        self.image_event("push", &name, &name);
        Ok(digest)
    }

    /// Everything under a manifest or index of the store: layers from blobs where they are, from trees elsewhere.
    fn stored(&self, target: Digest) -> Result<Bundle, EngineError> {
        let bytes = self.store().read_blob(target)?;
        match parse(target, &bytes)? {
            Document::Manifest(manifest) => {
                let descriptor = Descriptor::of(typed(&manifest.media_type, MediaType::OCI_MANIFEST), &bytes);
                Ok(Bundle { images: vec![self.stored_image(descriptor, bytes, manifest)?], index: None })
            }
            Document::Index(index) => {
                let images = self.stored_images(&index)?;
                Ok(Bundle { images, index: Some(Item::of(typed(&index.media_type, MediaType::OCI_INDEX), bytes)) })
            }
        }
    }

    fn stored_images(&self, index: &Index) -> Result<Vec<Image>, EngineError> {
        let about = |d: &Descriptor| d.annotations.get(provenance::SUBJECT).cloned();
        let mut images: Vec<Image> = Vec::new();
        for descriptor in index.manifests.iter().filter(|d| about(d).is_none()) {
            let bytes = self.store().read_blob(descriptor.digest)?;
            let Document::Manifest(manifest) = parse(descriptor.digest, &bytes)? else {
                return Err(EngineError::Source(format!("{} is an index in an index", descriptor.digest)));
            };
            images.push(self.stored_image(descriptor.clone(), bytes, manifest)?);
        }
        for descriptor in &index.manifests {
            let image = images.iter_mut().find(|i| about(descriptor) == Some(i.manifest.digest().to_string()));
            if let Some(image) = image {
                image.attached.push(self.stored_statement(descriptor)?);
            }
        }
        Ok(images)
    }

    fn stored_image(&self, descriptor: Descriptor, bytes: Vec<u8>, manifest: Manifest) -> Result<Image, EngineError> {
        let config_bytes = self.store().read_blob(manifest.config.digest)?;
        let config: ImageConfig = serde_json::from_slice(&config_bytes)
            .map_err(|e| EngineError::Source(format!("the configuration {}: {e}", manifest.config.digest)))?;
        let diff_ids = config.rootfs.diff_ids.clone();
        let found = Found { target: descriptor.digest, digest: descriptor.digest, manifest: manifest.clone(), config };
        let trees = self.store().layers(self.tree_of(&found)?)?;
        let mut layers = Vec::new();
        for (n, (descriptor, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            let content = match (self.store().has_blob(descriptor.digest)?, trees.get(n)) {
                (Some(_), _) => Content::File(self.store().blob_path(descriptor.digest)),
                (None, Some(tree)) if descriptor.digest == diff_id => Content::Layer { tree: tree.id, clamp: None },
                _ => return Err(EngineError::Source(format!("the layer {} is not in the store", descriptor.digest))),
            };
            layers.push(Layer { diff_id, item: Item { descriptor: descriptor.clone(), content } });
        }
        Ok(Image {
            platform: descriptor.platform.clone().unwrap_or_default(),
            manifest: Item { descriptor, content: Content::Bytes(bytes) },
            config: Item { descriptor: manifest.config, content: Content::Bytes(config_bytes) },
            layers,
            attached: Vec::new(),
        })
    }

    fn stored_statement(&self, descriptor: &Descriptor) -> Result<Attached, EngineError> {
        let item = |descriptor: &Descriptor| {
            let content = Content::Bytes(self.store().read_blob(descriptor.digest)?);
            Ok::<_, EngineError>(Item { descriptor: descriptor.clone(), content })
        };
        let manifest = item(descriptor)?;
        let Document::Manifest(parsed) = parse(descriptor.digest, &self.store().read_blob(descriptor.digest)?)? else {
            return Err(EngineError::Source(format!("the statement {} is an index", descriptor.digest)));
        };
        let items = parsed.layers.iter().chain([&parsed.config]).map(item);
        Ok(Attached { items: items.collect::<Result<_, _>>()?, manifest })
    }

    /// The same images with their layers packed as registries expect them: as they came, or gzip.
    fn packed(&self, bundle: Bundle) -> Result<Bundle, EngineError> {
        let loose = |image: &Image| image.layers.iter().any(|l| matches!(l.item.content, Content::Layer { .. }));
        if !bundle.images.iter().any(loose) {
            return Ok(bundle);
        }
        let mut oci = true;
        let mut images = Vec::new();
        for image in bundle.images {
            oci = image.manifest.descriptor.media_type == MediaType::OCI_MANIFEST;
            images.push(if loose(&image) { self.packed_image(&image, oci)? } else { image });
        }
        let Some(index) = bundle.index else {
            return Ok(Bundle { images, index: None });
        };
        let mut annotations = Annotations { index_descriptor: index.descriptor.annotations, ..Annotations::default() };
        if let Content::Bytes(bytes) = &index.content
            && let Document::Index(parsed) = parse(index.descriptor.digest, bytes)?
        {
            annotations.index = parsed.annotations;
        }
        Ok(Bundle::new(images, oci, true, &annotations))
    }

    fn packed_image(&self, image: &Image, oci: bool) -> Result<Image, EngineError> {
        let (Content::Bytes(manifest), Content::Bytes(config)) = (&image.manifest.content, &image.config.content)
        else {
            return Err(EngineError::Internal("documents of an image are not in memory".into()));
        };
        let Document::Manifest(manifest) = parse(image.manifest.digest(), manifest)? else {
            return Err(EngineError::Internal("the manifest of an image is an index".into()));
        };
        let config: ImageConfig = serde_json::from_slice(config).map_err(|e| EngineError::Internal(e.to_string()))?;
        let digest = image.manifest.digest();
        let annotations = Annotations {
            manifest: manifest.annotations.clone(),
            manifest_descriptor: image.manifest.descriptor.annotations.clone(),
            ..Annotations::default()
        };
        let found = Found { target: digest, digest, manifest, config: config.clone() };
        let trees = self.store().layers(self.tree_of(&found)?)?;
        let options = LayerOptions { packing: Packing::Gzip(6), force: false, clamp: None, oci };
        let layers = layers::prepare(self.store(), &StoreLayers(self.store()), &trees, options)?;
        let mut packed = Image::new(config, layers, oci, &annotations);
        for statement in image.attached.iter().filter_map(provenance::predicate_of) {
            let attached = provenance::attach(&packed, &statement);
            packed.attached.push(attached);
        }
        Ok(packed)
    }
}

fn parse(digest: Digest, bytes: &[u8]) -> Result<Document, EngineError> {
    Document::parse(bytes, "").map_err(|e| EngineError::Source(format!("{digest}: {e}")))
}

/// The media type that a document states, or the one it has if it states none.
fn typed<'a>(stated: &'a str, otherwise: &'a str) -> &'a str {
    if stated.is_empty() { otherwise } else { stated }
}
