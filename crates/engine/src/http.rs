//! Remote files: conditional download into the store.

use crate::{EngineError, git::redacted};
use reqwest::header::{CONTENT_DISPOSITION, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use std::io::Write;
use xbuild_cache::{RemoteFile, Store, StoreError};

/// Largest remote file, in bytes.
const MAX: u64 = 16 << 30;

/// Brings the file at `url` into the store, or finds that the one there is still right.
pub(crate) async fn fetch(http: &reqwest::Client, store: &Store, url: &str) -> Result<RemoteFile, EngineError> {
    let known = store.remote_file(url)?;
    let shown = redacted(url);
    let failed = |why: String| EngineError::Source(format!("cannot download `{shown}`: {why}"));
    let mut request = http.get(url);
    if let Some(known) = &known {
        if let Some(etag) = &known.etag {
            request = request.header(IF_NONE_MATCH, etag);
        } else if let Some(modified) = &known.modified {
            request = request.header(IF_MODIFIED_SINCE, modified);
        }
    }
    let mut response = request.send().await.map_err(|e| failed(reason(&e)))?;
    if let (304, Some(known)) = (response.status().as_u16(), known) {
        return Ok(known);
    }
    if !response.status().is_success() {
        let status = response.status();
        // Redirects to http and https were followed.
        let hint = if status.is_redirection() { ", a redirect to an unsupported address" } else { "" };
        return Err(failed(format!("invalid response status {}{hint}", status.as_u16())));
    }
    let (etag, modified) = (text(response.headers(), ETAG.as_str()), text(response.headers(), LAST_MODIFIED.as_str()));
    let name = text(response.headers(), CONTENT_DISPOSITION.as_str()).and_then(|d| file_name(&d));
    let promised = response.content_length();
    if promised.is_some_and(|n| n > MAX) {
        return Err(failed(format!("it has more than {MAX} bytes")));
    }
    let mut blob = store.write_blob()?;
    while let Some(chunk) = response.chunk().await.map_err(|e| failed(reason(&e)))? {
        if blob.size() + chunk.len() as u64 > MAX {
            return Err(failed(format!("it has more than {MAX} bytes")));
        }
        let wrote = blob.write_all(&chunk);
        wrote.map_err(|source| StoreError::Io { action: "write", path: store.root().join("staging"), source })?;
    }
    if promised.is_some_and(|n| n != blob.size()) {
        return Err(failed("the answer ended early".to_owned()));
    }
    let (digest, _) = blob.finish(None)?;
    let file = RemoteFile { etag, modified, name, digest };
    store.set_remote_file(url, &file)?;
    Ok(file)
}

/// The last component of the address's path, or `download`.
pub(crate) fn name_of(url: &str) -> String {
    let path = reqwest::Url::parse(url).ok().map(|u| u.path().to_owned()).unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    safe(last).unwrap_or_else(|| "download".to_owned())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// `filename` of a `Content-Disposition`, as one harmless component.
fn file_name(disposition: &str) -> Option<String> {
    let value = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename="))?;
    safe(value.trim_matches('"').rsplit(['/', '\\']).next()?)
}

/// One path component without control characters.
fn safe(name: &str) -> Option<String> {
    let good =
        !name.is_empty() && name != "." && name != ".." && name.len() < 256 && !name.chars().any(char::is_control);
    good.then(|| name.to_owned())
}

fn reason(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    if text.is_empty() { redacted(&error.to_string()) } else { redacted(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_component() {
        assert_eq!(name_of("https://h/a/b.txt?x=1"), "b.txt");
        assert_eq!(name_of("https://h/"), "download");
        assert_eq!(file_name("attachment; filename=\"../../etc/passwd\"").as_deref(), Some("passwd"));
        assert_eq!(file_name("attachment; filename=\"..\""), None);
    }
}
