//! How a registry is reached: the scheme it speaks, and a client with its certificates.

use crate::RegistryError;
use crate::certificates::{self, Certificates};
use reqwest::{Method, RequestBuilder, Url};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What is known of the registries of one client.
#[derive(Debug)]
pub(crate) struct Transports {
    certificates: Certificates,
    /// For http.
    plain: reqwest::Client,
    /// For hosts that nothing special is known of; set up at first use, since reading the machine's certificates takes longer
    /// than a cached build.
    usual: OnceLock<reqwest::Client>,
    /// Clients by `HOST[:PORT]`.
    own: Mutex<HashMap<String, reqwest::Client>>,
    /// What hosts on loopback turned out to speak.
    spoken: Mutex<HashMap<String, Scheme>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Transports {
    pub(crate) fn new(certificates: Certificates) -> Result<Arc<Self>, reqwest::Error> {
        // It trusts nobody, so nothing has to be read.
        let plain = builder().tls_certs_only([]).build()?;
        Ok(Arc::new(Self {
            certificates,
            plain,
            usual: OnceLock::new(),
            own: Mutex::default(),
            spoken: Mutex::default(),
        }))
    }

    /// The scheme to begin with: http on loopback, unless there are certificates for it; https everywhere else.
    pub(crate) fn scheme(&self, host: &str) -> &'static str {
        match is_loopback(host) && self.certificates.directory(host).is_none() {
            true => "http",
            false => "https",
        }
    }

    /// A request to [the actual address](Self::actual).
    pub(crate) fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, RegistryError> {
        let url = self.actual(url);
        Ok(self.client(&url)?.request(method, url))
    }

    /// The address over https if that is what its host turned out to speak.
    pub(crate) fn actual(&self, url: Url) -> Url {
        match self.spoken(&url) {
            Some(Scheme::Https) => secure(url),
            _ => url,
        }
    }

    /// What a host on loopback that http was begun with speaks, as far as that is known.
    pub(crate) fn spoken(&self, url: &Url) -> Option<Scheme> {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner).get(&authority(url)).copied()
    }

    pub(crate) fn remember(&self, url: &Url, scheme: Scheme) {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner).insert(authority(url), scheme);
    }

    fn client(&self, url: &Url) -> Result<reqwest::Client, RegistryError> {
        if url.scheme() != "https" {
            return Ok(self.plain.clone());
        }
        let host = authority(url);
        if let Some(client) = self.own.lock().unwrap_or_else(PoisonError::into_inner).get(&host) {
            return Ok(client.clone());
        }
        let client = match self.certificates.directory(&host) {
            Some(directory) => built(&host, builder().tls_backend_preconfigured(certificates::settings(&directory)?))?,
            // Nobody but this machine answers here, and plain http would do: the name in a certificate adds nothing.
            None if is_loopback(&host) => built(&host, builder().tls_danger_accept_invalid_certs(true))?,
            None => self.usual(&host)?,
        };
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert(host, client.clone());
        Ok(client)
    }

    fn usual(&self, host: &str) -> Result<reqwest::Client, RegistryError> {
        if let Some(client) = self.usual.get() {
            return Ok(client.clone());
        }
        let client = built(host, builder())?;
        Ok(self.usual.get_or_init(|| client).clone())
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .user_agent(concat!("xbuild/", env!("CARGO_PKG_VERSION")))
}

fn built(host: &str, builder: reqwest::ClientBuilder) -> Result<reqwest::Client, RegistryError> {
    let what = "secure connection".to_owned();
    builder.build().map_err(|source| RegistryError::Transport { what, host: host.to_owned(), source })
}

/// `HOST[:PORT]` of an address.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The same address over https.
pub(crate) fn secure(mut url: Url) -> Url {
    // It fails for addresses without a host, which http has none of.
    let _ = url.set_scheme("https");
    url
}

/// Whether `host[:port]` is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_for_loopback_without_certificates() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("localhost:5001")).unwrap();
        let transports = Transports::new(Certificates::of(vec![directory.path().to_owned()])).unwrap();
        for (host, scheme) in [
            ("localhost:5000", "http"),
            ("localhost:5001", "https"),
            ("127.0.0.1:1", "http"),
            ("[::1]:5000", "http"),
            ("10.0.0.1:5000", "https"),
        ] {
            assert_eq!(transports.scheme(host), scheme, "{host}");
        }
    }
}
