//! Pushing a bundle: blobs that are missing, then manifests, then the name.

use crate::EngineError;
use crate::event::{EventKind, Events, StepId};
use crate::net::Net;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use xbuild_cache::Store;
use xbuild_exporter::image::Bundle;
use xbuild_exporter::{Content, Item, archive};
use xbuild_oci::{MediaType, Reference};

/// Pushes to registries.
#[derive(Clone, Copy)]
pub(crate) struct Pusher<'a> {
    pub(crate) net: &'a Net,
    pub(crate) runtime: &'a tokio::runtime::Handle,
    pub(crate) store: &'a Arc<Store>,
    pub(crate) events: &'a Events,
}

/// Blobs uploaded at once.
const UPLOADS: usize = 4;
/// Bytes handed to the network at once.
const CHUNK: usize = 256 << 10;

impl Pusher<'_> {
    /// Makes `name` mean `bundle` in its registry.
    pub(crate) fn push(&self, name: &str, bundle: &Bundle, step: StepId) -> Result<(), EngineError> {
        let reference: Reference =
            name.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
        let root = bundle.root().digest();
        let (mut blobs, mut manifests) = (Vec::new(), Vec::new());
        for item in bundle.items() {
            match MediaType::is_manifest(&item.descriptor.media_type)
                || MediaType::is_index(&item.descriptor.media_type)
            {
                true => manifests.push(item),
                false => blobs.push(item),
            }
        }
        self.runtime.block_on(async {
            let uploads = blobs.iter().map(|item| self.blob(&reference, item, step));
            stream::iter(uploads).buffer_unordered(UPLOADS).try_collect::<()>().await?;
            for item in manifests {
                let Content::Bytes(bytes) = &item.content else {
                    continue;
                };
                let tag = reference.tag.clone().filter(|_| item.digest() == root);
                let place = Reference { tag, digest: None, ..reference.clone() };
                self.net.registry()?.push_manifest(&place, &item.descriptor.media_type, bytes.clone()).await?;
            }
            Ok(())
        })
    }

    async fn blob(&self, reference: &Reference, item: &Item, step: StepId) -> Result<(), EngineError> {
        let short: String = item.digest().hex().chars().take(12).collect();
        let total = item.descriptor.size;
        let report = |name: &str| {
            self.events
                .send(step, EventKind::Transfer { name: format!("{name} sha256:{short}"), current: total, total });
        };
        if self.net.registry()?.has_blob(reference, item.digest()).await? {
            report("exists");
            return Ok(());
        }
        self.net.registry()?.push_blob(reference, &item.descriptor, || Ok(self.body(item))).await?;
        report("pushed");
        Ok(())
    }

    /// The bytes of an item as a stream; a thread makes them while the network takes them.
    fn body(&self, item: &Item) -> reqwest::Body {
        if let Content::Bytes(bytes) = &item.content {
            return bytes.clone().into();
        }
        let (send, receive) = channel::<io::Result<Vec<u8>>>(4);
        let (item, store) = (item.clone(), self.store.clone());
        std::thread::spawn(move || {
            let mut out = io::BufWriter::with_capacity(CHUNK, ChannelWriter(send.clone()));
            let written = archive::write_content(&item, &store, &crate::export::StoreLayers(&store), &mut out)
                .and_then(|()| out.flush());
            if let Err(error) = written {
                // The other side is gone if this cannot be told.
                let _ = send.blocking_send(Err(error));
            }
        });
        let next = |mut receive: Receiver<_>| async move { receive.recv().await.map(|chunk| (chunk, receive)) };
        reqwest::Body::wrap_stream(stream::unfold(receive, next))
    }
}

struct ChannelWriter(Sender<io::Result<Vec<u8>>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes.to_vec()));
        sent.map(|()| bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
