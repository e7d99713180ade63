//! The canonical encoding that vertex digests are made of.
//!
//! Rules: a tag byte before every variant, lengths as little-endian `u64` before bytes and lists, integers at fixed width,
//! options as 0 or 1 and the value. [`SALT`] changes whenever the meaning of a byte does. Because the encoder takes every
//! derived [`Hash`] field in order, a field is part of the digest exactly if it is part of equality.

use std::hash::{Hash, Hasher};

/// Format of the encoding; part of every digest.
const SALT: &[u8] = b"xbuild/op/v1";

/// Feeds derived `Hash` calls into blake3 in a fixed-width form.
struct Canonical(blake3::Hasher);

impl Hasher for Canonical {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
    fn write_u8(&mut self, n: u8) {
        self.0.update(&[n]);
    }
    fn write_u32(&mut self, n: u32) {
        self.0.update(&n.to_le_bytes());
    }
    fn write_u64(&mut self, n: u64) {
        self.0.update(&n.to_le_bytes());
    }
    fn write_i64(&mut self, n: i64) {
        self.0.update(&n.to_le_bytes());
    }
    fn write_usize(&mut self, n: usize) {
        self.0.update(&(n as u64).to_le_bytes());
    }
    fn write_isize(&mut self, n: isize) {
        self.0.update(&(n as i64).to_le_bytes());
    }
}

/// Hashes a value by its derived [`Hash`].
pub(crate) fn digest_of(value: &impl Hash) -> blake3::Hash {
    let mut canonical = Canonical(blake3::Hasher::new());
    canonical.0.update(SALT);
    value.hash(&mut canonical);
    canonical.0.finalize()
}
