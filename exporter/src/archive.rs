//! OCI layouts and docker archives, as directories or tars.

use crate::image::{Bundle, json};
use crate::layers::LayerTar;
use crate::{Content, ExportError, Item};
use serde_json::json as value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use xbuild_cache::Store;
use xbuild_oci::{Descriptor, Index, MediaType};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where files of an archive go.
trait Sink {
    fn file(
        &mut self,
        name: &str,
        size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()>;
    fn has(&self, name: &str) -> bool;
}

/// A tar. Entries have fixed times and modes, so equal content gives equal bytes.
struct TarSink<W: Write> {
    out: W,
    names: BTreeSet<String>,
}

impl<W: Write> TarSink<W> {
    fn header(&mut self, name: &str, size: u64, directory: bool) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }
}

impl<W: Write> Sink for TarSink<W> {
    fn file(
        &mut self,
        name: &str,
        size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let parents: Vec<String> = name.match_indices('/').map(|(at, _)| name[..=at].to_owned()).collect();
        for parent in parents {
            if self.names.insert(parent.clone()) {
                self.header(&parent, 0, true)?;
            }
        }
        self.header(name, size, false)?;
        let mut exact = Exact { inner: &mut self.out, left: size };
        write(&mut exact)?;
        if exact.left != 0 {
            return Err(io::Error::other(format!("`{name}` became shorter while it was written")));
        }
        let padding = (512 - size % 512) % 512;
        self.out.write_all(&[0; 512][..padding as usize])?;
        self.names.insert(name.to_owned());
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// Refuses bytes beyond what the header promised.
struct Exact<'a> {
    inner: &'a mut dyn Write,
    left: u64,
}

impl Write for Exact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.left =
            self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("content grew while it was written"))?;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A directory; blobs that are there already are kept.
struct DirSink(PathBuf);

impl Sink for DirSink {
    fn file(
        &mut self,
        name: &str,
        _size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let mut out = io::BufWriter::new(File::create(&part)?);
        write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?;
        fs::rename(&part, &path)
    }

    fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }
}

/// A bundle and the full names under which an archive shows it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The images.
    pub bundle: Bundle,
    /// The names; none for a bundle that is known by its digest alone.
    pub names: Vec<String>,
}

/// Writes an OCI layout as a tar. With `docker` also the `manifest.json` that `docker load` of every age reads.
pub fn write_tar(
    out: impl Write,
    bundles: &[Named],
    docker: bool,
    store: &Store,
    tar: &dyn LayerTar,
) -> Result<(), ExportError> {
    let here = Path::new("the archive");
    let mut sink = TarSink { out, names: BTreeSet::new() };
    put_all(&mut sink, bundles, docker, store, tar).map_err(ExportError::io("write", here))?;
    sink.out.write_all(&[0; 1024]).and_then(|()| sink.out.flush()).map_err(ExportError::io("write", here))
}

/// Writes an OCI layout into a directory, beside what is there: blobs are shared, names given here replace equal ones.
pub fn write_directory(
    path: &Path,
    bundles: &[Named],
    docker: bool,
    store: &Store,
    tar: &dyn LayerTar,
) -> Result<(), ExportError> {
    fs::create_dir_all(path).map_err(ExportError::io("make", path))?;
    let mut sink = DirSink(path.to_owned());
    put_all(&mut sink, bundles, docker, store, tar).map_err(ExportError::io("write", path))
}

fn put_all(sink: &mut dyn Sink, bundles: &[Named], docker: bool, store: &Store, tar: &dyn LayerTar) -> io::Result<()> {
    for item in bundles.iter().flat_map(|b| b.bundle.items()) {
        let name = blob_name(item);
        if !sink.has(&name) {
            sink.file(&name, item.descriptor.size, &mut |out| write_content(item, store, tar, out))?;
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX.to_owned(),
        manifests: bundles.iter().flat_map(|b| entries(b.bundle.root(), &b.names)).collect(),
        annotations: Default::default(),
    };
    if docker {
        let manifest = json(&bundles.iter().flat_map(docker_manifest).collect::<Vec<_>>());
        sink.file("manifest.json", manifest.len() as u64, &mut |out| out.write_all(&manifest))?;
    }
    let index = json(&index);
    sink.file("index.json", index.len() as u64, &mut |out| out.write_all(&index))?;
    sink.file("oci-layout", LAYOUT.len() as u64, &mut |out| out.write_all(LAYOUT))
}

/// One entry a name; one without a name if there is none.
fn entries(root: &Item, names: &[String]) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![root.descriptor.clone()];
    }
    let named = names.iter().map(|name| {
        let mut descriptor = root.descriptor.clone();
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor.annotations.insert("io.containerd.image.name".into(), name.clone());
        descriptor.annotations.insert("org.opencontainers.image.ref.name".into(), tag.to_owned());
        descriptor
    });
    named.collect()
}

/// Entries of `manifest.json` of `docker save`.
fn docker_manifest(named: &Named) -> Vec<serde_json::Value> {
    let tags: Vec<&str> = named.names.iter().map(|n| familiar(n)).collect();
    let images = named.bundle.images.iter().map(|image| {
        let layers: Vec<String> = image.layers.iter().map(|l| blob_name(&l.item)).collect();
        value!({"Config": blob_name(&image.config), "RepoTags": tags, "Layers": layers})
    });
    images.collect()
}

fn familiar(name: &str) -> &str {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").unwrap_or(short)
}

fn blob_name(item: &Item) -> String {
    format!("blobs/sha256/{}", item.digest().hex())
}

/// Writes the bytes of an item.
pub fn write_content(item: &Item, store: &Store, tar: &dyn LayerTar, out: &mut dyn Write) -> io::Result<()> {
    match &item.content {
        Content::Bytes(bytes) => out.write_all(bytes),
        Content::File(path) => {
            let failed = |e: io::Error| io::Error::new(e.kind(), format!("cannot read `{}`: {e}", path.display()));
            io::copy(&mut File::open(path).map_err(failed)?, out).map(drop)
        }
        Content::Layer { tree, clamp } => {
            let layer = store.tree(*tree).map_err(io::Error::other)?;
            tar.write_layer(&layer, *clamp, out)
        }
    }
}
