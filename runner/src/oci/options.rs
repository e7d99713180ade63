//! Options of mounts, as mount(8) and the runtime specification name them.

use crate::Propagation;
use crate::error::Failure;
use oci_spec::runtime::Mount;

/// What the options of one mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Attributes of the mount itself, and of all below it.
    pub(super) own: Attributes,
    pub(super) recursive: Attributes,
    /// A directory or file of the host, and whether with the mounts below it.
    pub(super) bind: Option<bool>,
    /// `MS_*` bits with whether they go for the mounts below, too; in order.
    pub(super) propagation: Vec<Propagation>,
    /// A tmpfs begins with what it covers.
    pub(super) copy_up: bool,
    /// What is left is for the file system; options without a value are flags.
    pub(super) data: Vec<(String, String)>,
}

/// Attributes of mounts to set and to clear, in the kernel's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Attributes {
    fn change(&mut self, mask: u64, set: u64) {
        // The kernel wants the kinds of access times cleared together.
        let clear = if mask == libc::MOUNT_ATTR__ATIME { mask } else { mask & !set };
        self.clear = (self.clear & !mask) | clear;
        self.set = (self.set & !mask) | set;
    }

    pub(super) fn is_readonly(self) -> bool {
        self.set & libc::MOUNT_ATTR_RDONLY != 0
    }
}

/// Names of attributes: the bits that they are about, and their value.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR_RDONLY),
    ("rw", libc::MOUNT_ATTR_RDONLY, 0),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, libc::MOUNT_ATTR_NOSUID),
    ("suid", libc::MOUNT_ATTR_NOSUID, 0),
    ("nodev", libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_NODEV),
    ("dev", libc::MOUNT_ATTR_NODEV, 0),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    ("exec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    ("diratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("relatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_RELATIME),
    ("norelatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_STRICTATIME),
    ("noatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_NOATIME),
    ("atime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_RELATIME),
    ("strictatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_STRICTATIME),
    ("nostrictatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_RELATIME),
];

impl Options {
    pub(super) fn parse(mount: &Mount) -> Result<Options, Failure> {
        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options.add(option).map_err(|why| {
                Failure::Refused(format!("mounts: `{}`: option `{option}` {why}", mount.destination().display()))
            })?;
        }
        // Without a type a mount with a source is one of the host's files.
        if mount.typ().as_deref() == Some("bind") && options.bind.is_none() {
            options.bind = Some(false);
        }
        if options.bind.is_some() && !options.data.is_empty() {
            let (name, _) = &options.data[0];
            return Err(Failure::Refused(format!(
                "mounts: `{}`: option `{name}` is not one of a bind mount",
                mount.destination().display()
            )));
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Result<(), &'static str> {
        if let Some((_, mask, set)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            self.own.change(*mask, *set);
            return Ok(());
        }
        let recursive = option.strip_prefix('r').and_then(|rest| ATTRIBUTES.iter().find(|(name, ..)| *name == rest));
        if let Some((_, mask, set)) = recursive {
            self.recursive.change(*mask, *set);
            return Ok(());
        }
        if let Some(propagation) = Propagation::parse(option) {
            self.propagation.push(propagation);
            return Ok(());
        }
        match option {
            "defaults" | "" | "async" | "nomand" | "nolazytime" | "loud" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "idmap" | "ridmap" | "remount" | "mand" | "iversion" | "noiversion" | "silent" => {
                return Err("is not supported");
            }
            // These are the file system's own flags.
            other => {
                let (key, value) = other.split_once('=').unwrap_or((other, ""));
                self.data.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(())
    }
}

/// All options that mean something here, whatever the file system.
pub(super) fn names() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().map(|(name, ..)| *name);
    let recursive = attributes.clone().map(|name| format!("r{name}"));
    let others = ["async", "bind", "defaults", "rbind", "tmpcopyup"];
    let plain = attributes.chain(others).map(str::to_owned).chain(Propagation::names());
    let mut all: Vec<String> = plain.chain(recursive).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, options: &[&str]) -> Result<Options, Failure> {
        let mount = serde_json::json!({ "destination": "/x", "type": kind, "source": "/s", "options": options });
        Options::parse(&serde_json::from_value(mount).unwrap())
    }

    #[test]
    fn the_last_option_about_an_attribute_counts() {
        let options = parse("tmpfs", &["ro", "noexec", "rw", "strictatime", "noatime", "size=1m", "huge"]).unwrap();
        assert_eq!(options.own.set, libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.own.clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME);
        assert_eq!(options.data, [("size".to_owned(), "1m".to_owned()), ("huge".to_owned(), String::new())]);
    }

    #[test]
    fn binds_and_recursive_attributes_are_told_apart() {
        let options = parse("bind", &["rbind", "rro", "rslave", "nosuid"]).unwrap();
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.own.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.propagation, [Propagation::RSLAVE]);
        assert_eq!(parse("bind", &[]).unwrap().bind, Some(false));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (kind, option) in [("bind", "size=1m"), ("tmpfs", "remount"), ("bind", "idmap")] {
            assert!(parse(kind, &[option]).is_err(), "{kind} {option}");
        }
    }
}
