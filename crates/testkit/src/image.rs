//! Reading image layouts, and refusing those that are not whole.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What an entry of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `file`, `dir`, `link`, `hardlink`, or another.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u64, u64),
    /// Seconds since 1970.
    pub time: u64,
    /// Content of a file, target of a link.
    pub data: Vec<u8>,
}

/// Entries by path, without slashes at the ends.
pub type Tree = BTreeMap<String, Entry>;

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its entries.
    pub entries: Tree,
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the manifest.
    pub digest: String,
    /// Digest of the configuration, the image's ID.
    pub id: String,
    /// The configuration.
    pub config: Value,
    /// The manifest.
    pub manifest: Value,
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// SHA-256 in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Entries of a tar. Each path may be there once, and stays inside.
pub fn entries(tar: &[u8]) -> Tree {
    let mut tree = Tree::new();
    for entry in tar::Archive::new(tar).entries().expect("a tar has entries") {
        let mut entry = entry.expect("an entry can be read");
        let path = String::from_utf8(entry.path_bytes().into_owned()).expect("paths of tests are UTF-8");
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "the path `{path}` leads out");
        let header = entry.header().clone();
        let link = |entry: &tar::Entry<'_, _>| entry.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
        let (kind, data) = match header.entry_type() {
            tar::EntryType::Directory => ("dir", Vec::new()),
            tar::EntryType::Symlink => ("link", link(&entry)),
            tar::EntryType::Link => ("hardlink", link(&entry)),
            kind if kind.is_file() => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).expect("a file of a tar can be read");
                ("file", data)
            }
            _ => ("special", Vec::new()),
        };
        let number = |field: std::io::Result<u64>| field.expect("a header has numbers");
        let found = Entry {
            kind,
            mode: header.mode().expect("a header has numbers") & 0o7777,
            owner: (number(header.uid()), number(header.gid())),
            time: number(header.mtime()),
            data,
        };
        if !path.is_empty() {
            assert!(tree.insert(path.clone(), found).is_none(), "`{path}` is twice in a tar");
        }
    }
    tree
}

impl Image {
    /// The only image of a layout that lies in a directory or in a tar.
    pub fn only(path: &Path) -> Self {
        let mut all = Self::all(path);
        assert_eq!(all.len(), 1, "images in {}", path.display());
        all.remove(0)
    }

    /// All images of a layout that lies in a directory or in a tar.
    pub fn all(path: &Path) -> Vec<Self> {
        if path.is_dir() {
            return Layout::read(path).images();
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        tar::Archive::new(file).unpack(dir.path()).expect("an archive can be unpacked");
        Layout::read(dir.path()).images()
    }

    /// The files of all layers on top of each other.
    pub fn files(&self) -> Tree {
        let mut tree = Tree::new();
        for layer in &self.layers {
            for path in layer.entries.keys() {
                let (dir, name) = path.rsplit_once('/').map_or((String::new(), path.as_str()), |(d, n)| (d.into(), n));
                let join = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
                if name == ".wh..wh..opq" {
                    tree.retain(|p, _| !p.starts_with(&join("")));
                } else if let Some(name) = name.strip_prefix(".wh.") {
                    remove(&mut tree, &join(name));
                }
            }
            for (path, entry) in layer.entries.iter().filter(|(p, _)| !p.split('/').any(|n| n.starts_with(".wh."))) {
                if entry.kind != "dir" {
                    remove(&mut tree, path);
                }
                tree.insert(path.clone(), entry.clone());
            }
        }
        tree
    }

    /// Content of a file, without white space at the ends.
    pub fn text(&self, path: &str) -> String {
        let files = self.files();
        let entry = files.get(path).unwrap_or_else(|| panic!("`{path}` is not in the image: {:?}", files.keys()));
        String::from_utf8_lossy(&entry.data).trim().to_owned()
    }

    /// Diff IDs, the lowest first.
    pub fn diff_ids(&self) -> Vec<String> {
        strings(&self.config["rootfs"]["diff_ids"])
    }
}

fn remove(tree: &mut Tree, path: &str) {
    let below = format!("{path}/");
    tree.retain(|p, _| p != path && !p.starts_with(&below));
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list} is no list"));
    list.iter().map(|v| v.as_str().unwrap_or_else(|| panic!("{v} is no text")).to_owned()).collect()
}

/// A layout whose files are still to be looked at.
struct Layout {
    dir: PathBuf,
    used: BTreeSet<String>,
}

impl Layout {
    fn read(dir: &Path) -> Self {
        let layout = Self { dir: dir.to_owned(), used: BTreeSet::new() };
        assert_eq!(layout.json("oci-layout")["imageLayoutVersion"], "1.0.0");
        layout
    }

    fn json(&self, name: &str) -> Value {
        let bytes = std::fs::read(self.dir.join(name)).unwrap_or_else(|e| panic!("cannot read `{name}`: {e}"));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("`{name}` is no JSON: {e}"))
    }

    /// The bytes that a descriptor names.
    fn blob(&mut self, descriptor: &Value) -> (String, Vec<u8>) {
        let digest = descriptor["digest"].as_str().unwrap_or_else(|| panic!("{descriptor} has no digest")).to_owned();
        let hex_digest = digest.strip_prefix("sha256:").unwrap_or_else(|| panic!("{digest} is not SHA-256"));
        let path = self.dir.join("blobs/sha256").join(hex_digest);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("the blob {digest} is missing: {e}"));
        assert_eq!(hex(&bytes), hex_digest, "the content of a blob does not fit its name");
        assert_eq!(descriptor["size"], bytes.len(), "size of {digest}");
        self.used.insert(hex_digest.to_owned());
        (digest, bytes)
    }

    fn images(mut self) -> Vec<Image> {
        let index = self.json("index.json");
        let images = self.index(&index);
        let there = std::fs::read_dir(self.dir.join("blobs/sha256")).expect("a layout has blobs");
        for name in there.map(|entry| entry.expect("a directory can be read").file_name()) {
            let name = name.to_str().expect("names of blobs are ASCII");
            assert!(self.used.contains(name), "nothing names the blob {name}");
        }
        self.docker(&images);
        images
    }

    fn index(&mut self, index: &Value) -> Vec<Image> {
        assert_eq!(index["schemaVersion"], 2);
        let mut images = Vec::new();
        for descriptor in index["manifests"].as_array().expect("an index has manifests").clone() {
            let (digest, bytes) = self.blob(&descriptor);
            let value: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
            assert_eq!(value["mediaType"], descriptor["mediaType"], "media type of {digest}");
            assert_eq!(value["schemaVersion"], 2);
            if value.get("manifests").is_some() {
                images.extend(self.index(&value));
            } else {
                let image = self.image(digest, value);
                if let Some(platform) = descriptor.get("platform").filter(|p| p["os"] != "unknown") {
                    assert_eq!(platform["os"], image.config["os"]);
                    assert_eq!(platform["architecture"], image.config["architecture"]);
                }
                images.push(image);
            }
        }
        images
    }

    fn image(&mut self, digest: String, manifest: Value) -> Image {
        let (id, bytes) = self.blob(&manifest["config"]);
        let config: Value = serde_json::from_slice(&bytes).expect("a configuration is JSON");
        let descriptors = manifest["layers"].as_array().expect("a manifest has layers").clone();
        let diff_ids = strings(&config["rootfs"]["diff_ids"]);
        assert_eq!(config["rootfs"]["type"], "layers");
        assert_eq!(diff_ids.len(), descriptors.len(), "diff IDs and layers of {digest}");
        let layers = descriptors.iter().zip(&diff_ids).map(|(descriptor, diff_id)| self.layer(descriptor, diff_id));
        let layers: Vec<_> = layers.collect();
        for key in ["os", "architecture"] {
            assert!(config[key].as_str().is_some_and(|v| !v.is_empty()), "the configuration has no `{key}`");
        }
        if let Some(history) = config["history"].as_array() {
            let filled = history.iter().filter(|entry| entry["empty_layer"] != true).count();
            assert_eq!(filled, layers.len(), "history and layers of {digest}");
        }
        Image { digest, id, config, manifest, layers }
    }

    fn layer(&mut self, descriptor: &Value, diff_id: &str) -> Layer {
        let (digest, blob) = self.blob(descriptor);
        let media_type = descriptor["mediaType"].as_str().expect("a layer has a media type").to_owned();
        let gzip = media_type.ends_with("+gzip") || media_type.ends_with(".gzip");
        let mut tar = Vec::new();
        if media_type.contains("in-toto") {
            return Layer { digest, media_type, entries: Tree::new() };
        } else if gzip {
            flate2::read::MultiGzDecoder::new(&*blob).read_to_end(&mut tar).expect("a layer can be unpacked");
        } else if media_type.ends_with("zstd") {
            tar = zstd::decode_all(&*blob).expect("a layer can be unpacked");
        } else {
            tar = blob;
        }
        assert_eq!(format!("sha256:{}", hex(&tar)), diff_id, "diff ID of {digest}");
        Layer { digest, media_type, entries: entries(&tar) }
    }

    /// `manifest.json` names the same image, if it is there.
    fn docker(&self, images: &[Image]) {
        if !self.dir.join("manifest.json").exists() {
            return;
        }
        let list = self.json("manifest.json");
        let [entry] = list.as_array().expect("manifest.json is a list").as_slice() else {
            panic!("manifest.json names not one image: {list}");
        };
        let blob = |path: &str| path.replace("blobs/sha256/", "sha256:");
        assert_eq!(images.len(), 1, "an archive for docker has one image");
        assert_eq!(blob(entry["Config"].as_str().expect("Config is a path")), images[0].id);
        let layers: Vec<_> = strings(&entry["Layers"]).iter().map(|path| blob(path)).collect();
        assert_eq!(layers, images[0].layers.iter().map(|l| l.digest.clone()).collect::<Vec<_>>());
    }
}
