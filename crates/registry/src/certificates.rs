//! Certificates of registries, in docker's form of `certs.d`.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories; below each, a directory `HOST[:PORT]` holds certificates that are trusted as `*.crt`, and certificates to be
/// shown as `*.cert`, each with a `*.key` beside it.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    directories: Vec<PathBuf>,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read the certificate `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("`{path}` holds no certificate or key in PEM form")]
    Form {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The TLS library takes none of it.
    #[error("the certificates in `{path}` cannot be used")]
    Refused {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl Certificates {
    /// Those of the first directory that has some for a host.
    pub fn of(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// The directory of a host.
    pub(crate) fn directory(&self, host: &str) -> Option<PathBuf> {
        let plain = !host.is_empty() && !host.contains('/') && !host.starts_with('.');
        let mut places = self.directories.iter().filter(|_| plain).map(|directory| directory.join(host));
        places.find(|directory| directory.is_dir())
    }
}

/// Settings for a host: what the system trusts is trusted, and what its directory has.
pub(crate) fn settings(directory: &Path) -> Result<ClientConfig, CertificateError> {
    let refused = |source| CertificateError::Refused { path: directory.display().to_string(), source };
    let entries = fs::read_dir(directory).map_err(|source| unreadable(directory, source))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let (mut trusted, mut shown) = (Vec::new(), None);
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trusted.extend(chain(&path)?),
            Some("cert") => shown = Some((chain(&path)?, key(&path.with_extension("key"))?)),
            _ => {}
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(trusted, &provider).map_err(refused)?;
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(refused)?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    match shown {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(refused),
        None => Ok(config.with_no_client_auth()),
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> CertificateError {
    CertificateError::Read { path: path.display().to_string(), source }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    let malformed = |source| CertificateError::Form { path: path.display().to_string(), source };
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    if found.is_empty() {
        return Err(malformed(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|source| CertificateError::Form { path: path.display().to_string(), source })
}

/// Takes what the system takes with more authorities, and a server that shows exactly one of the trusted certificates: one
/// that was made by `openssl req -x509` is its own authority, which the usual rules forbid.
#[derive(Debug)]
struct Verifier {
    usual: rustls_platform_verifier::Verifier,
    trusted: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(trusted: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let roots = trusted.iter().cloned();
        let usual = rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider.clone())?;
        Ok(Self { usual, trusted })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.trusted.iter().any(|own| own == end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let ask = || settings(directory.path()).map(drop).map_err(|error| error.to_string());
        let own = |name: &str| directory.path().join(name);
        fs::write(own("ca.crt"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(ask().unwrap_err().contains("ca.crt"));
        fs::write(own("ca.crt"), "").unwrap();
        assert!(ask().unwrap_err().contains("ca.crt"));
        fs::write(own("ca.crt"), include_str!("../../../tests/e2e/another-authority.crt")).unwrap();
        ask().unwrap();
        fs::copy(own("ca.crt"), own("client.cert")).unwrap();
        assert!(ask().unwrap_err().contains("client.key"));
    }

    #[test]
    fn a_directory_is_a_hosts_own() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("localhost:5001")).unwrap();
        let certificates = Certificates::of(vec![directory.path().join("missing"), directory.path().to_owned()]);
        for (host, has) in [("localhost:5001", true), ("localhost", false), ("..", false), ("", false), ("a/b", false)]
        {
            assert_eq!(certificates.directory(host).is_some(), has, "{host}");
        }
    }
}
