//! A client of the OCI distribution API: resolve, pull, push.
//!
//! One [`Client`] a process; it keeps tokens per (host, scope) and bounds what a registry can make it do: manifests of at most
//! 4 MiB, at most [`ATTEMPTS`] tries a request, at most [`REDIRECTS`] redirects, error texts of at most 64 KiB. Credentials go
//! only to the host they belong to and never along a redirect. https is spoken, but on loopback http
//! to those who understand it.

mod account;
mod auth;
mod certificates;
mod client;
mod error;
mod pull;
mod push;
mod transport;

pub use account::{Hit, erase, store};
pub use auth::{CredentialError, Credentials};
pub use certificates::{CertificateError, Certificates};
pub use client::Client;
pub use error::RegistryError;
pub use pull::Fetched;

/// Most tries of one request.
pub const ATTEMPTS: u32 = 5;
/// Most redirects of one request.
pub const REDIRECTS: u32 = 5;
