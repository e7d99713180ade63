//! Uploads: only what the registry does not have.

use crate::client::{Call, protocol, transport};
use crate::{Client, RegistryError};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method, Url};
use xbuild_oci::{Descriptor, Digest, Reference};

impl Client {
    /// Whether the repository has a blob.
    pub async fn has_blob(&self, reference: &Reference, digest: Digest) -> Result<bool, RegistryError> {
        let call = self.push_call(reference, Method::HEAD, &format!("blobs/{digest}"), format!("blob {digest}"))?;
        match self.send(&call).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob whose bytes `open` gives, from the beginning each time it is called.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        open: impl Fn() -> std::io::Result<Body>,
    ) -> Result<(), RegistryError> {
        let what = format!("blob {} to {}", blob.digest, reference.name());
        let start = self.push_call(reference, Method::POST, "blobs/uploads/", what.clone())?;
        let response = self.send(&start).await?;
        let place = response.headers().get(LOCATION).and_then(|l| start.url.join(l.to_str().ok()?).ok());
        let mut place: Url = place.ok_or_else(|| protocol(&start, "opened an upload without a place"))?;
        if place.host_str() != start.url.host_str() && place.scheme() != "https" {
            return Err(protocol(&start, "wants the upload at an address that is not https"));
        }
        place.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let body = open().map_err(|source| RegistryError::Sink { what, source })?;
        let own_host = place.host_str() == start.url.host_str() && place.port() == start.url.port();
        let mut request = self.request(Method::PUT, place).map_err(|source| transport(&start, source))?;
        if let (Some(token), true) = (self.known_token(&start), own_host) {
            request = request.header(reqwest::header::AUTHORIZATION, token);
        }
        let request =
            request.header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, blob.size).body(body);
        let response = request.send().await.map_err(|source| transport(&start, source))?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(Self::refused(&start, response).await),
        }
    }

    /// Uploads a manifest or index under the reference's tag, or its digest if it has none.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let name = match &reference.tag {
            Some(tag) => tag.clone(),
            None => Digest::of(&bytes).to_string(),
        };
        let mut call = self.push_call(reference, Method::PUT, &format!("manifests/{name}"), reference.to_string())?;
        let media_type =
            HeaderValue::from_str(media_type).map_err(|_| protocol(&call, "cannot be sent this media type"))?;
        call.headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        call.body = Some(bytes);
        self.send(&call).await.map(drop)
    }

    fn push_call<'a>(
        &self,
        reference: &'a Reference,
        method: Method,
        path: &str,
        what: String,
    ) -> Result<Call<'a>, RegistryError> {
        Ok(Call {
            method,
            url: self.url(reference, path)?,
            headers: HeaderMap::new(),
            body: None,
            what,
            host: &reference.host,
            scope: format!("repository:{}:pull,push", reference.repository),
        })
    }
}
