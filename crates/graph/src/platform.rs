use std::fmt;

/// An operating system and processor pair, as in an image index.
///
/// Always held in normal form (`x86_64` → `amd64`, `aarch64` and `arm64/v8` → `arm64`, `arm` → `arm/v7`), so equal platforms
/// compare equal. See OCI image-spec, `image-index.md`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Platform {
    /// `linux`, as in `GOOS`.
    pub os: String,
    /// `amd64`, `arm64`, …, as in `GOARCH`.
    pub architecture: String,
    /// `v7` of `arm/v7`; absent where the architecture has one form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A platform specifier that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform: {why}")]
pub struct PlatformError {
    text: String,
    why: &'static str,
}

impl Platform {
    /// Makes a platform in normal form from its parts.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = architecture.to_lowercase();
        let variant = variant.map(str::to_lowercase).filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
            ("x86_64" | "x86-64", Some(v)) => ("amd64".to_owned(), Some(v.to_owned())),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
            ("aarch64", Some(v)) => ("arm64".to_owned(), Some(v.to_owned())),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386".to_owned(), None),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            ("arm", Some("5")) => ("arm".to_owned(), Some("v5".to_owned())),
            ("arm", Some("6")) => ("arm".to_owned(), Some("v6".to_owned())),
            _ => (architecture, variant),
        };
        let os = match os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        Self { os, architecture, variant }
    }

    /// The platform this program runs on.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// Reads `os/arch[/variant]`, or one part alone (`arm64`, `linux`) with the rest taken from the host. An operating
    /// system may have its version behind it, which is left out: `windows(10.0.17763)/amd64`.
    ///
    /// # Errors
    /// More than 128 bytes, empty parts, more than three parts, characters outside `[A-Za-z0-9_.-]`, dots in the name of the
    /// operating system, or parts of dots alone.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        const LONGEST: usize = 128;
        let fail = |why| PlatformError { text: text.to_owned(), why };
        if text.len() > LONGEST {
            let text = text.chars().take(LONGEST).chain(['…']).collect();
            return Err(PlatformError { text, why: "it has more than 128 bytes" });
        }
        let parts: Vec<&str> = text.split('/').collect();
        let (first, others) = parts.split_first().ok_or_else(|| fail("it is empty"))?;
        let Some(first) = without_version(first).filter(|os| is_part(os) && !os.contains('.')) else {
            return Err(fail("an operating system is letters, digits, `_` or `-`"));
        };
        if !others.iter().all(|part| is_part(part)) {
            return Err(fail("each part is letters, digits, `_`, `-` or `.`"));
        }
        let host = Self::host();
        match (first, others) {
            (one, []) if KNOWN_OS.contains(&one.to_lowercase().as_str()) => {
                Ok(Self::new(one, &host.architecture, host.variant.as_deref()))
            }
            (one, []) if KNOWN_ARCHITECTURES.contains(&one.to_lowercase().as_str()) => {
                Ok(Self::new("linux", one, None))
            }
            (_, []) => Err(fail("unknown operating system or architecture")),
            (os, [architecture]) => Ok(Self::new(os, architecture, None)),
            (os, [architecture, variant]) => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(fail("expected os/architecture[/variant]")),
        }
    }

    /// Says whether an image made for `other` runs on this platform, and how well (lower is better).
    ///
    /// `arm/v7` takes `v7`, `v6`, `v5` in this order; `amd64` takes only itself.
    pub fn accepts(&self, other: &Self) -> Option<u8> {
        if self == other {
            return Some(0);
        }
        let level = |p: &Self| p.variant.as_deref().and_then(|v| v.strip_prefix('v')?.parse::<u8>().ok());
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        match (self.architecture.as_str(), level(self), level(other)) {
            ("arm", Some(mine), Some(theirs)) if theirs < mine => Some(mine - theirs),
            ("amd64", Some(_), None) => Some(9),
            _ => None,
        }
    }

    /// The name of this platform's directory in a `local` output: `linux_arm_v7`.
    pub fn directory(&self) -> String {
        self.to_string().replace('/', "_")
    }
}

/// An operating system without the version in parentheses behind it; none if they are not closed or hold other characters.
fn without_version(text: &str) -> Option<&str> {
    let Some((os, version)) = text.split_once('(') else {
        return Some(text);
    };
    version.strip_suffix(')').filter(|v| v.bytes().all(is_plain)).map(|_| os)
}

/// Whether a text is a part of a platform, and no `.` or `..` that would mean a directory.
fn is_part(text: &str) -> bool {
    text.bytes().all(is_plain) && text.bytes().any(|b| b != b'.')
}

fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"_.-".contains(&b)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "linux",
    "macos",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
];

const KNOWN_ARCHITECTURES: &[&str] = &[
    "386", "aarch64", "amd64", "arm", "arm64", "armel", "armhf", "i386", "loong64", "mips", "mips64", "mips64le",
    "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm", "x86_64",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_take_their_normal_form() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("arm64", "linux/arm64"),
            ("LINUX/ARM/V6", "linux/arm/v6"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), want, "{text}");
        }
        for (text, want) in [("windows(10.0.17763)/amd64", "windows/amd64"), ("a/b.c/v1_2-3", "a/b.c/v1_2-3")] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), want, "{text}");
        }
        let long = format!("linux/{}", "a".repeat(5000));
        for bad in [
            "",
            "/",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "nosuch",
            "linux/am d64",
            "../../x",
            "../x",
            "linux/..",
            "linux/amd64/.",
            "a.b/c",
            "linux(1/amd64",
            "linux(1))/amd64",
            "(1)/amd64",
            "linux/amd64(1)",
            "linux/é",
            "linux/*",
            &long,
        ] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        assert!(Platform::parse(&long).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn newer_arm_runs_older_arm() {
        let v7 = Platform::new("linux", "arm", None);
        assert!(v7.accepts(&Platform::new("linux", "arm", Some("v6"))).is_some());
        assert!(Platform::new("linux", "arm", Some("v6")).accepts(&v7).is_none());
    }
}
