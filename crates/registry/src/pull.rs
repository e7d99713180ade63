//! Manifests and blobs, verified while they come in.

use crate::client::{Call, bounded, protocol, transport};
use crate::{ATTEMPTS, Client, RegistryError};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use std::io;
use xbuild_oci::{Descriptor, Digest, Document, MediaType, Reference};

/// A manifest or index as it came.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What the registry calls them.
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
}

impl Client {
    /// Fetches the manifest or index that a reference names. A digest in the reference is checked.
    pub async fn manifest(&self, reference: &Reference) -> Result<Fetched, RegistryError> {
        let call = self.manifest_call(reference, Method::GET)?;
        let response = self.send(&call).await?;
        let media_type = header(response.headers(), CONTENT_TYPE.as_str());
        let stated: Option<Digest> = header(response.headers(), "docker-content-digest").parse().ok();
        let bytes = bounded(&call, response, Document::MAX_SIZE).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = stated.filter(|d| *d != digest) {
            return Err(RegistryError::Digest { what: call.what, found: digest, expected });
        }
        if let Some(expected) = reference.digest.filter(|d| *d != digest) {
            return Err(RegistryError::Digest { what: call.what, found: digest, expected });
        }
        Ok(Fetched { bytes, media_type, digest })
    }

    /// The digest that a tag points to now, without fetching it.
    pub async fn resolve(&self, reference: &Reference) -> Result<Option<Digest>, RegistryError> {
        if reference.digest.is_some() {
            return Ok(reference.digest);
        }
        let call = self.manifest_call(reference, Method::HEAD)?;
        let response = self.send(&call).await?;
        Ok(header(response.headers(), "docker-content-digest").parse().ok())
    }

    fn manifest_call<'a>(&self, reference: &'a Reference, method: Method) -> Result<Call<'a>, RegistryError> {
        let which = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        };
        let accept = HeaderValue::from_str(&MediaType::MANIFESTS.join(", ")).expect("media types are ASCII");
        Ok(Call {
            method,
            url: self.url(reference, &format!("manifests/{which}"))?,
            headers: HeaderMap::from_iter([(ACCEPT, accept)]),
            body: None,
            what: reference.to_string(),
            host: &reference.host,
            scope: format!("repository:{}:pull", reference.repository),
        })
    }

    /// Streams a blob into `sink`, going on where a broken connection stopped. Size and digest are the caller's to trust only
    /// when this returns `Ok`: both were checked.
    pub async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let mut hash = xbuild_oci::Sha256Writer::new(io::sink());
        let what = format!("blob {} of {}", blob.digest, reference.name());
        let mut attempt = 0;
        while hash.size() < blob.size || attempt == 0 {
            attempt += 1;
            let before = hash.size();
            match self.blob_part(reference, blob, &what, &mut hash, &mut sink).await {
                Ok(()) => {}
                Err(error) if attempt < ATTEMPTS && error.is_temporary() && hash.size() > before => {}
                Err(error) => return Err(error),
            }
            if hash.size() < blob.size && attempt >= ATTEMPTS {
                return Err(RegistryError::Size { what, found: hash.size(), expected: blob.size });
            }
        }
        match hash.finish() {
            (_, found, _) if found != blob.digest => Err(RegistryError::Digest { what, found, expected: blob.digest }),
            _ => Ok(()),
        }
    }

    async fn blob_part(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        what: &str,
        hash: &mut xbuild_oci::Sha256Writer<io::Sink>,
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let from = hash.size();
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are ASCII");
            headers.insert(RANGE, range);
        }
        let call = Call {
            method: Method::GET,
            url: self.url(reference, &format!("blobs/{}", blob.digest))?,
            headers,
            body: None,
            what: what.to_owned(),
            host: &reference.host,
            scope: format!("repository:{}:pull", reference.repository),
        };
        let mut response = self.send(&call).await?;
        // A registry that ignores the range sends everything again: skip what is known.
        let mut skip = match response.status().as_u16() {
            206 if header(response.headers(), "content-range").starts_with(&format!("bytes {from}-")) => 0,
            206 if from > 0 => return Err(protocol(&call, "sent another part than was asked for")),
            _ => from,
        };
        while let Some(chunk) = response.chunk().await.map_err(|source| transport(&call, source))? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let fresh = &chunk[skipped as usize..];
            if hash.size() + fresh.len() as u64 > blob.size {
                let found = hash.size() + fresh.len() as u64;
                return Err(RegistryError::Size { what: call.what, found, expected: blob.size });
            }
            io::Write::write_all(hash, fresh)
                .and_then(|()| sink(fresh))
                .map_err(|source| RegistryError::Sink { what: call.what.clone(), source })?;
        }
        Ok(())
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}
