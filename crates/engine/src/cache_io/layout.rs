//! Writing into a cache's directory: blobs that are missing, the index by rename, and nothing left that none needs.

use super::{REF_NAME, TAG};
use crate::EngineError;
use crate::image::{layout_blob, read_bounded};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use xbuild_oci::{Descriptor, Digest, Document, MediaType, Sha256Writer};

/// Begin of the names of files that are being written.
const PART: &str = ".part-";

/// A cache's directory, held against other writers.
#[derive(Debug)]
pub(super) struct Layout {
    path: PathBuf,
    /// BuildKit's clients take the same lock.
    _lock: File,
}

impl Layout {
    /// Makes the directory if there is none, and waits until no other process writes to it.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|e| EngineError::io("make", &blobs, e))?;
        let lock_path = path.join("index.json.lock");
        let lock = File::create(&lock_path).map_err(|e| EngineError::io("make", &lock_path, e))?;
        lock.lock().map_err(|e| EngineError::io("lock", &lock_path, e))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Writes a blob unless it is there.
    ///
    /// # Errors
    /// Also when the bytes are not those that `blob` promises.
    pub(super) fn put(
        &self,
        blob: &Descriptor,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), EngineError> {
        let path = layout_blob(&self.path, blob.digest);
        if fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == blob.size) {
            return Ok(());
        }
        let part = self.path.join("blobs/sha256").join(format!("{PART}{}", blob.digest.hex()));
        let fail = |e| EngineError::io("write", &part, e);
        let mut out = Sha256Writer::new(File::create(&part).map_err(fail)?);
        write(&mut out).map_err(fail)?;
        let (file, found, _) = out.finish();
        if found != blob.digest {
            let why = format!("has digest {found}, expected {}", blob.digest);
            return Err(fail(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        file.sync_data().map_err(fail)?;
        fs::rename(&part, &path).map_err(|e| EngineError::io("rename", &part, e))
    }

    /// Makes `root` the layout's `latest`, and removes blobs that nothing in the index needs any more.
    pub(super) fn publish(&self, root: &Descriptor) -> Result<(), EngineError> {
        let entries = self.entries(root)?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_INDEX,
            "manifests": entries,
        });
        self.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.replace("index.json", index.to_string().as_bytes())?;
        match self.needed(&entries) {
            Some(needed) => self.sweep(&needed),
            None => Ok(()),
        }
    }

    /// Entries of the new index: the old ones but the old `latest`, as they are, and `root`.
    fn entries(&self, root: &Descriptor) -> Result<Vec<Value>, EngineError> {
        let mut root = json!(root);
        root["annotations"] = json!({ REF_NAME: TAG });
        let path = self.path.join("index.json");
        if !path.exists() {
            return Ok(vec![root]);
        }
        let bytes = read_bounded(&path, Document::MAX_SIZE as u64)?;
        let old: Option<Value> = serde_json::from_slice(&bytes).ok();
        let Some(Value::Array(mut entries)) = old.and_then(|mut o| Some(o.get_mut("manifests")?.take())) else {
            let why =
                format!("`{}` is not the index of an OCI layout; give another directory or remove it", path.display());
            return Err(EngineError::Source(why));
        };
        entries.retain(|e| e["annotations"][REF_NAME].as_str() != Some(TAG));
        entries.push(root);
        Ok(entries)
    }

    /// A file appears whole or not at all.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let part = self.path.join(format!("{PART}{name}"));
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        written.map_err(|e| EngineError::io("write", &part, e))?;
        fs::rename(&part, self.path.join(name)).map_err(|e| EngineError::io("rename", &part, e))
    }

    /// Every blob that the index leads to; `None` if that cannot be told, and then nothing may go.
    fn needed(&self, entries: &[Value]) -> Option<BTreeSet<Digest>> {
        let mut needed = BTreeSet::new();
        let mut open = entries.to_vec();
        while let Some(entry) = open.pop() {
            let digest: Digest = entry["digest"].as_str()?.parse().ok()?;
            let kind = entry["mediaType"].as_str().unwrap_or_default();
            if !needed.insert(digest) || !(MediaType::is_index(kind) || MediaType::is_manifest(kind)) {
                continue;
            }
            let bytes = read_bounded(&layout_blob(&self.path, digest), Document::MAX_SIZE as u64).ok()?;
            let document: Value = serde_json::from_slice(&bytes).ok()?;
            for list in ["manifests", "layers"] {
                open.extend(document[list].as_array().into_iter().flatten().cloned());
            }
            for single in ["config", "subject"] {
                open.extend(document.get(single).filter(|v| v.is_object()).cloned());
            }
        }
        Some(needed)
    }

    /// Removes blobs that are not needed and what dead writers left. Files with other names are not ours.
    fn sweep(&self, needed: &BTreeSet<Digest>) -> Result<(), EngineError> {
        let blobs = self.path.join("blobs/sha256");
        for entry in fs::read_dir(&blobs).map_err(|e| EngineError::io("read", &blobs, e))?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let unneeded = format!("sha256:{name}").parse().is_ok_and(|d: Digest| !needed.contains(&d));
            if unneeded || name.starts_with(PART) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|e| EngineError::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(layout: &Layout, kind: &str, bytes: &[u8]) -> Result<Descriptor, EngineError> {
        let blob = Descriptor::of(kind, bytes);
        layout.put(&blob, |out| out.write_all(bytes))?;
        Ok(blob)
    }

    fn manifest(layout: &Layout, layers: &[&Descriptor]) -> Result<Descriptor, EngineError> {
        let document = json!({"schemaVersion": 2, "layers": layers}).to_string();
        put(layout, MediaType::OCI_MANIFEST, document.as_bytes())
    }

    #[test]
    fn what_no_entry_needs_is_swept() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let layout = Layout::open(dir.path())?;
        let (old, kept, new) = (put(&layout, "", b"old")?, put(&layout, "", b"kept")?, put(&layout, "", b"new")?);
        layout.publish(&manifest(&layout, &[&old, &kept])?)?;
        // Another tag, as BuildKit's `tag=` writes it.
        let index = fs::read_to_string(dir.path().join("index.json"))?;
        assert!(!layout_blob(dir.path(), new.digest).exists());
        fs::write(dir.path().join("index.json"), index.replace("\"latest\"", "\"other\""))?;
        let (later, stray) = (put(&layout, "", b"later")?, dir.path().join("blobs/sha256/notes"));
        fs::write(&stray, "")?;
        fs::write(dir.path().join("blobs/sha256/.part-dead"), "")?;
        layout.publish(&manifest(&layout, &[&later])?)?;
        for (blob, there) in [(&old, true), (&kept, true), (&later, true)] {
            assert_eq!(layout_blob(dir.path(), blob.digest).exists(), there);
        }
        layout.publish(&manifest(&layout, &[])?)?;
        assert!(layout_blob(dir.path(), old.digest).exists());
        assert!(!layout_blob(dir.path(), later.digest).exists());
        assert!(stray.exists());
        assert!(!dir.path().join("blobs/sha256/.part-dead").exists());
        Ok(())
    }

    #[test]
    fn a_blob_with_other_bytes_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let layout = Layout::open(dir.path())?;
        let blob = Descriptor::of("", b"right");
        assert!(layout.put(&blob, |out| out.write_all(b"wrong")).is_err());
        assert!(!layout_blob(dir.path(), blob.digest).exists());
        fs::write(dir.path().join("index.json"), "rubbish")?;
        assert!(layout.publish(&blob).is_err());
        Ok(())
    }
}
