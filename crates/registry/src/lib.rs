//! A client of the OCI distribution API: resolve, pull, push.
//!
//! One [`Client`] a process; it keeps tokens per (host, scope) and bounds what a registry can make it do: manifests of at most
//! 4 MiB, at most [`ATTEMPTS`] tries a request, at most [`REDIRECTS`] redirects, error texts of at most 64 KiB. Credentials go
//! only to the host they belong to and never along a redirect. http is spoken on loopback, https everywhere else.

mod account;
mod auth;
mod client;
mod error;
mod pull;
mod push;

pub use account::{Hit, erase, store};
pub use auth::{CredentialError, Credentials};
pub use client::Client;
pub use error::RegistryError;
pub use pull::Fetched;

/// Most tries of one request.
pub const ATTEMPTS: u32 = 5;
/// Most redirects of one request.
pub const REDIRECTS: u32 = 5;
