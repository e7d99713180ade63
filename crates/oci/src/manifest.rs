use crate::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Media types that xbuild reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaType;

#[allow(missing_docs, reason = "the names say it; OCI image-spec, `media-types.md`")]
impl MediaType {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    pub const IN_TOTO: &str = "application/vnd.in-toto+json";

    /// Whether `media_type` names an index or manifest list.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// Whether `media_type` names an image manifest.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, Self::OCI_MANIFEST | Self::DOCKER_MANIFEST)
    }

    /// All manifest and index types, for `Accept`.
    pub const MANIFESTS: [&str; 4] = [Self::OCI_INDEX, Self::DOCKER_LIST, Self::OCI_MANIFEST, Self::DOCKER_MANIFEST];
}

/// Names content by type, digest and size. OCI image-spec, `descriptor.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformSpec>,
}

impl Descriptor {
    /// Describes `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// Platform of a descriptor, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformSpec {
    /// As in `GOARCH`.
    #[serde(default)]
    pub architecture: String,
    /// As in `GOOS`.
    #[serde(default)]
    pub os: String,
    /// Processor variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

/// An image manifest. OCI image-spec, `manifest.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Type of this document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index. OCI image-spec, `image-index.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Type of this document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Manifests or further indexes.
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest or an index, never both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// A document that is no manifest and no index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or fields of the wrong type.
    #[error("invalid manifest: the document is not an image manifest or index: {0}")]
    Syntax(serde_json::Error),
    /// Has the fields of both (CVE-2021-41190).
    #[error("invalid manifest: the document is ambiguous, a manifest and an index at once")]
    Ambiguous,
    /// Its `mediaType` contradicts its fields, or is none that is known.
    #[error("the document's media type `{0}` does not fit its content")]
    MediaType(String),
    /// Too large to be one.
    #[error("the manifest has {0} bytes; at most {max} are read", max = Document::MAX_SIZE)]
    TooLarge(usize),
}

impl Document {
    /// Largest document that is read, in bytes.
    pub const MAX_SIZE: usize = 4 << 20;

    /// Reads a manifest or index. `media_type` is what the place it came from calls it; empty if it says nothing.
    ///
    /// # Errors
    /// See [`DocumentError`]; a document with both `layers`/`config` and `manifests` is refused.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Self, DocumentError> {
        if bytes.len() > Self::MAX_SIZE {
            return Err(DocumentError::TooLarge(bytes.len()));
        }
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(bytes).map_err(DocumentError::Syntax)?;
        let own = fields.get("mediaType").and_then(|v| v.as_str()).unwrap_or_default();
        let is_index = fields.contains_key("manifests");
        if is_index && (fields.contains_key("layers") || fields.contains_key("config")) {
            return Err(DocumentError::Ambiguous);
        }
        for stated in [own, media_type] {
            let fits = if is_index { MediaType::is_index(stated) } else { MediaType::is_manifest(stated) };
            let says_something = MediaType::is_index(stated) || MediaType::is_manifest(stated);
            if !fits && (says_something || (stated == own && !own.is_empty())) {
                return Err(DocumentError::MediaType(stated.to_owned()));
            }
        }
        let value = serde_json::Value::Object(fields);
        Ok(match is_index {
            true => Self::Index(serde_json::from_value(value).map_err(DocumentError::Syntax)?),
            false => Self::Manifest(null_layers(value).map_err(DocumentError::Syntax)?),
        })
    }
}

/// BuildKit writes `"layers": null` for an image without files.
fn null_layers(mut value: serde_json::Value) -> Result<Manifest, serde_json::Error> {
    if value.get("layers").is_some_and(serde_json::Value::is_null) {
        value["layers"] = serde_json::Value::Array(Vec::new());
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_both_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(matches!(Document::parse(both, ""), Err(DocumentError::Ambiguous)));
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index, ""), Ok(Document::Index(_))));
        assert!(matches!(Document::parse(index, MediaType::OCI_MANIFEST), Err(DocumentError::MediaType(_))));
    }
}
