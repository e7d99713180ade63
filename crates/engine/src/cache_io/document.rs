//! The document of a cache: BuildKit's `cache/remotecache/v1` configuration.

use crate::image::LAYERS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use xbuild_oci::Digest;

/// Media type of the document.
pub(super) const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// Layers, and the records that point at them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheConfig {
    /// Every layer once for each place where it stands.
    #[serde(default)]
    pub(super) layers: Vec<CacheLayer>,
    /// Steps, inputs before their users.
    #[serde(default)]
    pub(super) records: Vec<CacheRecord>,
}

/// A layer on its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheLayer {
    /// Its blob.
    pub(super) blob: Digest,
    /// Position of the layer below; -1 at the bottom. Go leaves a zero out.
    #[serde(default)]
    pub(super) parent: i64,
    /// What else is known of the blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<LayerAnnotations>,
}

/// What is known of a layer's blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerAnnotations {
    /// Its media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) media_type: String,
    /// Digest of its tar.
    #[serde(rename = "diffID", default, skip_serializing_if = "Option::is_none")]
    pub(super) diff_id: Option<Digest>,
    /// Its size in bytes.
    #[serde(default)]
    pub(super) size: u64,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheRecord {
    /// Its key. Text, because other builders write digests of other kinds.
    #[serde(default)]
    pub(super) digest: String,
    /// For each input the records that may stand there. Go writes `null` for an empty list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Option<Vec<CacheInput>>>,
    /// What it made, by the topmost layer.
    #[serde(rename = "layers", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) results: Vec<CacheResult>,
    /// What it made, with every layer named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) chains: Vec<ChainedResult>,
}

/// An input of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheInput {
    /// Which part of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) selector: String,
    /// Position of its record.
    #[serde(default)]
    pub(super) link: usize,
}

/// A result that is a chain of parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheResult {
    /// Position of its topmost layer.
    #[serde(default)]
    pub(super) layer: usize,
    /// When it was made.
    #[serde(rename = "createdAt", default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// A result that is a list of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChainedResult {
    /// Positions of its layers, the lowest first.
    #[serde(default)]
    pub(super) layers: Vec<usize>,
    /// When it was made.
    #[serde(rename = "createdAt", default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// Why a document is of no use; one sentence without its subject.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadDocument {
    /// Not JSON, or fields of the wrong type.
    #[error("its cache configuration cannot be read: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A number that points nowhere.
    #[error("its cache configuration names the {what} {at}, which is not there")]
    Range {
        /// Layer or record.
        what: &'static str,
        /// The number.
        at: i64,
    },
    /// A chain without end, or nearly.
    #[error("its cache configuration has more than {LAYERS_MAX} layers above each other")]
    Deep,
}

impl CacheConfig {
    /// Reads a document and checks that its numbers point at something.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadDocument> {
        let config: Self = serde_json::from_slice(bytes)?;
        let layer = |at: i64| match usize::try_from(at) {
            Ok(n) if n < config.layers.len() => Ok(()),
            _ => Err(BadDocument::Range { what: "layer", at }),
        };
        for parent in config.layers.iter().map(|l| l.parent).filter(|p| *p != -1) {
            layer(parent)?;
        }
        for record in &config.records {
            let tops = record.results.iter().map(|r| r.layer);
            let all = tops.chain(record.chains.iter().flat_map(|c| c.layers.iter().copied()));
            for at in all {
                layer(i64::try_from(at).unwrap_or(i64::MAX))?;
            }
        }
        Ok(config)
    }

    /// The bytes of the document.
    pub(super) fn encode(&self) -> Result<Vec<u8>, BadDocument> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The records that hold results, by definition key; the first of equal ones.
    pub(super) fn by_key(&self) -> HashMap<[u8; 32], usize> {
        let mut found = HashMap::new();
        for (n, record) in self.records.iter().enumerate() {
            let empty = record.results.is_empty() && record.chains.is_empty();
            if let (false, Ok(digest)) = (empty, record.digest.parse::<Digest>()) {
                found.entry(*digest.as_bytes()).or_insert(n);
            }
        }
        found
    }

    /// Positions of the layers of a record's first result, the lowest first, and when it was made.
    pub(super) fn chain(&self, record: &CacheRecord) -> Result<(Vec<usize>, Option<String>), BadDocument> {
        if let Some(result) = record.results.first() {
            return Ok((self.down_from(result.layer)?, result.created_at.clone()));
        }
        match record.chains.first() {
            Some(chain) if chain.layers.len() > LAYERS_MAX => Err(BadDocument::Deep),
            Some(chain) => Ok((chain.layers.clone(), chain.created_at.clone())),
            None => Ok((Vec::new(), None)),
        }
    }

    fn down_from(&self, top: usize) -> Result<Vec<usize>, BadDocument> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(at) = next {
            let out_of_range = || BadDocument::Range { what: "layer", at: i64::try_from(at).unwrap_or(i64::MAX) };
            let layer = self.layers.get(at).ok_or_else(out_of_range)?;
            if chain.len() == LAYERS_MAX {
                return Err(BadDocument::Deep);
            }
            chain.push(at);
            next = usize::try_from(layer.parent).ok();
        }
        chain.reverse();
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Reads JSON in which `@` stands for a digest and says the chain of the first record, or the error.
    fn chain_of(json: &str) -> String {
        let json = json.replace('@', &format!("\"{A}\""));
        let chain = CacheConfig::decode(json.as_bytes()).and_then(|config| {
            let record = config.records.first().cloned().unwrap_or_default();
            config.chain(&record)
        });
        match chain {
            Ok((layers, created)) => format!("{layers:?} {}", created.unwrap_or_default()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn chains_are_followed_within_bounds() {
        let table = [
            // As Go writes it: a parent of 0 is left out, and so is the layer 0.
            (
                r#"{"layers":[{"blob":@,"parent":-1},{"blob":@}],"records":[{"digest":@,"layers":[{"layer":1,"createdAt":"t"}]}]}"#,
                "[0, 1] t",
            ),
            (r#"{"layers":[{"blob":@,"parent":-1}],"records":[{"digest":@,"inputs":[null],"layers":[{}]}]}"#, "[0] "),
            (r#"{"layers":[{"blob":@,"parent":-1}],"records":[{"chains":[{"layers":[0,0]}]}]}"#, "[0, 0] "),
            (r#"{}"#, "[] "),
            (
                r#"{"layers":[{"blob":@,"parent":1},{"blob":@,"parent":0}],"records":[{"layers":[{"layer":1}]}]}"#,
                "its cache configuration has more than 500 layers above each other",
            ),
            (r#"{"layers":[{"blob":@,"parent":7}]}"#, "its cache configuration names the layer 7, which is not there"),
            (
                r#"{"layers":[{"blob":@,"parent":-2}]}"#,
                "its cache configuration names the layer -2, which is not there",
            ),
            (
                r#"{"records":[{"layers":[{"layer":0}]}]}"#,
                "its cache configuration names the layer 0, which is not there",
            ),
        ];
        for (json, expected) in table {
            assert_eq!(chain_of(json), expected, "{json}");
        }
        assert!(chain_of("[").contains("cannot be read"));
        assert!(chain_of(r#"{"layers":[{"blob":"sha256:../../x"}]}"#).contains("invalid digest"));
    }

    #[test]
    fn documents_have_buildkits_form() -> Result<(), Box<dyn std::error::Error>> {
        let blob: Digest = A.parse()?;
        let config = CacheConfig {
            layers: vec![CacheLayer {
                blob,
                parent: -1,
                annotations: Some(LayerAnnotations {
                    media_type: "m".into(),
                    diff_id: Some(blob),
                    size: 3,
                    created_at: Some("t".into()),
                }),
            }],
            records: vec![
                CacheRecord { digest: A.into(), ..CacheRecord::default() },
                CacheRecord {
                    digest: A.into(),
                    inputs: vec![Some(vec![CacheInput { selector: String::new(), link: 0 }])],
                    results: vec![CacheResult { layer: 0, created_at: Some("t".into()) }],
                    chains: Vec::new(),
                },
            ],
        };
        let bytes = config.encode()?;
        let expected = r#"{"layers":[{"blob":@,"parent":-1,"annotations":{"mediaType":"m","diffID":@,"size":3,"createdAt":"t"}}],"records":[{"digest":@},{"digest":@,"inputs":[[{"link":0}]],"layers":[{"layer":0,"createdAt":"t"}]}]}"#;
        assert_eq!(String::from_utf8(bytes.clone())?, expected.replace('@', &format!("\"{A}\"")));
        assert_eq!(CacheConfig::decode(&bytes)?, config);
        assert_eq!(config.by_key().get(blob.as_bytes()), Some(&1));
        Ok(())
    }
}
