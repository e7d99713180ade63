//! Network clients, set up at first use: a cached build never pays for TLS.

use crate::EngineError;
use std::sync::OnceLock;
use std::time::Duration;
use xbuild_registry::{Certificates, Client, Credentials};

/// Most redirects of a download.
const REDIRECTS: usize = 10;

/// The clients of one engine.
#[derive(Debug)]
pub(crate) struct Net {
    credentials: Credentials,
    certificates: Certificates,
    registry: OnceLock<Client>,
    http: OnceLock<reqwest::Client>,
}

impl Net {
    pub(crate) fn new(credentials: Credentials, certificates: Certificates) -> Self {
        Self { credentials, certificates, registry: OnceLock::new(), http: OnceLock::new() }
    }

    /// The registry client.
    pub(crate) fn registry(&self) -> Result<&Client, EngineError> {
        if let Some(client) = self.registry.get() {
            return Ok(client);
        }
        let client = Client::new(self.credentials.clone(), self.certificates.clone()).map_err(|e| no_tls(&e))?;
        Ok(self.registry.get_or_init(|| client))
    }

    /// The client for plain downloads; it has no credentials.
    pub(crate) fn http(&self) -> Result<&reqwest::Client, EngineError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("xbuild/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| no_tls(&e))?;
        Ok(self.http.get_or_init(|| client))
    }
}

fn no_tls(error: &reqwest::Error) -> EngineError {
    EngineError::Internal(format!("the network client cannot be set up: {error}"))
}
