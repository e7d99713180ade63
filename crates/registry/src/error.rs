use xbuild_oci::Digest;

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such name, tag or blob.
    #[error("{what}: not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// Refused for lack of rights.
    #[error("{what}: access denied by `{host}`{detail}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Which registry.
        host: String,
        /// What it said.
        detail: String,
    },
    /// Another refusal.
    #[error("{what}: `{host}` answered {status}{detail}")]
    Status {
        /// What was asked for.
        what: String,
        /// Which registry.
        host: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// No answer, or the connection broke.
    #[error("{what}: no answer from `{host}`, or the connection closed too early")]
    Transport {
        /// What was asked for.
        what: String,
        /// Which registry.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The bytes are not those that were promised.
    #[error("{what}: got bytes with digest {found}, expected {expected}")]
    Digest {
        /// What was fetched.
        what: String,
        /// What came.
        found: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// The size is not the one that was promised.
    #[error("{what}: size mismatch, got {found} bytes, expected {expected}")]
    Size {
        /// What was fetched.
        what: String,
        /// Bytes that came, or were announced.
        found: u64,
        /// What was promised.
        expected: u64,
    },
    /// The answer breaks the protocol.
    #[error("{what}: `{host}` {why}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// Which registry.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The caller's side failed while bytes came in.
    #[error("{what}: cannot keep what was fetched")]
    Sink {
        /// What was fetched.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate that it shows is nobody's that is trusted here.
    #[error(
        "{what}: `{host}` shows a certificate that is not trusted; if it is right, put its authority's into \
         `certs.d/{host}/ca.crt` beside docker's config.json"
    )]
    Untrusted {
        /// What was asked for.
        what: String,
        /// Which registry.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Certificates could not be used.
    #[error(transparent)]
    Certificates(#[from] crate::CertificateError),
    /// Credentials could not be read.
    #[error(transparent)]
    Credentials(#[from] crate::CredentialError),
}

impl RegistryError {
    /// Whether trying again can help.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}
