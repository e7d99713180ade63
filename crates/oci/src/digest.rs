use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

/// A sha256 digest of bytes that exist. OCI image-spec, `descriptor.md#digests`; other algorithms are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A digest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest `{0}`: only sha256:<64 hex digits> is supported")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From the raw 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Chain ID of a layer above `parent` (OCI image-spec, `config.md#layer-chainid`).
    pub fn chain(parent: Option<Digest>, diff_id: Digest) -> Digest {
        match parent {
            None => diff_id,
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }
}

/// Checks that bytes have the digest `expected`: sha256, sha384 or sha512 with hex digits (OCI image-spec,
/// `descriptor.md#registered-algorithms`, and sha384, which `ADD --checksum` takes too).
///
/// `Ok(Err(found))` tells the digest that the bytes have instead; an unknown algorithm is an error of kind `Unsupported`.
pub fn verify_checksum(expected: &str, mut bytes: impl io::Read) -> io::Result<Result<(), String>> {
    let algorithm = expected.split(':').next().unwrap_or_default();
    let hex = match algorithm {
        "sha256" => hex_digest::<Sha256>(&mut bytes)?,
        "sha384" => hex_digest::<Sha384>(&mut bytes)?,
        "sha512" => hex_digest::<Sha512>(&mut bytes)?,
        other => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("unknown digest algorithm `{other}`"))),
    };
    let found = format!("{algorithm}:{hex}");
    Ok(if found == expected { Ok(()) } else { Err(found) })
}

fn hex_digest<H: sha2::Digest>(bytes: &mut dyn io::Read) -> io::Result<String> {
    let mut hash = H::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match bytes.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let fail = || DigestError(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(fail)?.as_bytes();
        if hex.len() != 64 || !hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(fail());
        }
        let nibble = |b: u8| if b <= b'9' { b - b'0' } else { b - b'a' + 10 };
        Ok(Self(std::array::from_fn(|i| nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]))))
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Passes bytes on and takes their digest and count on the way.
pub struct Sha256Writer<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> fmt::Debug for Sha256Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sha256Writer").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<W: Write> Sha256Writer<W> {
    /// Starts with nothing hashed.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// Bytes passed on so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The writer below, the digest, and the number of bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.size)
    }
}

impl<W: Write> Write for Sha256Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_all_algorithms_are_verified() {
        let sha384 =
            "sha384:38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b";
        assert_eq!(verify_checksum(sha384, &b""[..]).unwrap(), Ok(()));
        assert_eq!(verify_checksum(&Digest::of(b"x").to_string(), &b"x"[..]).unwrap(), Ok(()));
        let found = verify_checksum("sha512:00", &b"x"[..]).unwrap().unwrap_err();
        assert!(found.starts_with("sha512:a4abd4448c49562d"), "{found}");
        assert!(verify_checksum("md5:00", &b""[..]).is_err());
    }

    #[test]
    fn text_form_round_trips_and_rejects_rubbish() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in
            ["", "sha256:", "sha512:00", "sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
