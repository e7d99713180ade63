//! What RUN sees of the network's configuration.

/// Files and addresses of the host that go into sandboxes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Content of `/etc/resolv.conf`.
    pub(crate) resolv_conf: Vec<u8>,
}

impl Settings {
    /// Reads the host's settings; a host without a resolver has none to give.
    pub(crate) fn of_host() -> Self {
        let read = |path| std::fs::read(path).ok();
        // systemd-resolved's own file lists the real servers; the stub on loopback is of no use in another network.
        let own = read("/etc/resolv.conf").unwrap_or_default();
        let stub = own.windows(10).any(|w| w == b"127.0.0.53");
        let resolv_conf = if stub { read("/run/systemd/resolve/resolv.conf").unwrap_or(own) } else { own };
        Self { resolv_conf }
    }
}

/// `/etc/hosts` with the extra lines.
pub(crate) fn hosts_file(hostname: &str, extra: &[(String, String)]) -> Vec<u8> {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text.into_bytes()
}
