//! Configuration, manifest and index of an image.

use crate::Item;
use crate::layers::Layer;
use std::collections::BTreeMap;
use xbuild_oci::{Descriptor, ImageConfig, Index, Manifest, MediaType, PlatformSpec};

/// Annotations by where they go.
#[derive(Clone, Debug, Default)]
pub struct Annotations {
    /// On the manifest.
    pub manifest: BTreeMap<String, String>,
    /// On the manifest's descriptor in the index.
    pub manifest_descriptor: BTreeMap<String, String>,
    /// On the index.
    pub index: BTreeMap<String, String>,
    /// On the index's descriptor in a layout.
    pub index_descriptor: BTreeMap<String, String>,
}

/// A complete image of one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Item,
    /// The configuration.
    pub config: Item,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
    /// The manifest's platform.
    pub platform: PlatformSpec,
    /// Manifests that are about this one (attestations), with what they name.
    pub attached: Vec<Attached>,
}

/// A manifest about another one.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The manifest.
    pub manifest: Item,
    /// Its configuration and layers.
    pub items: Vec<Item>,
}

impl Image {
    /// Puts an image together. `config.rootfs` is set from the layers.
    pub fn new(mut config: ImageConfig, layers: Vec<Layer>, oci: bool, annotations: &Annotations) -> Self {
        config.rootfs.diff_ids = layers.iter().map(|l| l.diff_id).collect();
        let platform = PlatformSpec {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            variant: config.variant.clone(),
            os_version: config.os_version.clone(),
        };
        let (config_type, manifest_type) = match oci {
            true => (MediaType::OCI_CONFIG, MediaType::OCI_MANIFEST),
            false => (MediaType::DOCKER_CONFIG, MediaType::DOCKER_MANIFEST),
        };
        let config = Item::of(config_type, json(&config));
        let manifest = Manifest {
            schema_version: 2,
            media_type: manifest_type.to_owned(),
            config: config.descriptor.clone(),
            layers: layers.iter().map(|l| l.item.descriptor.clone()).collect(),
            annotations: annotations.manifest.clone(),
        };
        let mut manifest = Item::of(manifest_type, json(&manifest));
        manifest.descriptor.annotations = annotations.manifest_descriptor.clone();
        manifest.descriptor.platform = Some(platform.clone());
        Self { manifest, config, layers, platform, attached: Vec::new() }
    }

    /// Everything that the manifest names, and the manifests about it.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        let own = self.layers.iter().map(|l| &l.item).chain([&self.config, &self.manifest]);
        own.chain(self.attached.iter().flat_map(|a| a.items.iter().chain([&a.manifest])))
    }
}

/// What is exported under one name: an image alone, or several under an index.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The images.
    pub images: Vec<Image>,
    /// The index, if there is more than one manifest.
    pub index: Option<Item>,
}

impl Bundle {
    /// Makes an index where one is needed: for several manifests, or where `always`.
    pub fn new(images: Vec<Image>, oci: bool, always: bool, annotations: &Annotations) -> Self {
        let manifests: Vec<Descriptor> = images
            .iter()
            .map(|i| &i.manifest)
            .chain(images.iter().flat_map(|i| i.attached.iter().map(|a| &a.manifest)))
            .map(|item| item.descriptor.clone())
            .collect();
        if manifests.len() == 1 && !always {
            return Self { images, index: None };
        }
        let media_type = if oci { MediaType::OCI_INDEX } else { MediaType::DOCKER_LIST };
        let index = Index {
            schema_version: 2,
            media_type: media_type.to_owned(),
            manifests,
            annotations: annotations.index.clone(),
        };
        let mut index = Item::of(media_type, json(&index));
        index.descriptor.annotations = annotations.index_descriptor.clone();
        Self { images, index: Some(index) }
    }

    /// The index, or the only manifest.
    pub fn root(&self) -> &Item {
        match &self.index {
            Some(index) => index,
            None => &self.images[0].manifest,
        }
    }

    /// Every item once, each before those that name it.
    pub fn items(&self) -> Vec<&Item> {
        let mut seen = std::collections::BTreeSet::new();
        let all = self.images.iter().flat_map(Image::items).chain(&self.index);
        all.filter(|item| seen.insert(item.digest())).collect()
    }
}

/// Canonical JSON: declared field order, sorted maps.
pub fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own documents have string keys and no failing serialisers")
}
