//! Ways out of a network namespace for those who may not change the host's network: a program of the user takes what comes
//! out of a namespace, and does the same with sockets of its own.
//!
//! The program is `slirp4netns`. It ends with this process, however that ends.

use super::error::{NetworkError, Trying};
use super::namespace::Namespace;
use super::nftables::Protocol;
use super::ports::PortBinding;
use serde_json::json;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Address inside.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The way out.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Length of the network's prefix.
pub(super) const PREFIX: u8 = 24;
/// Name of the link inside.
pub(super) const LINK: &str = "eth0";

const PROGRAM: &str = "slirp4netns";
/// Where `slirp4netns` is told of ports, in its working directory.
const PORTS_SOCKET: &str = "ports.socket";
const MTU: &str = "65520";

/// Directories of programs, besides those of `PATH`.
const MORE: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];

/// The program, if it is installed.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(MORE.map(PathBuf::from));
    places.map(|place| place.join(PROGRAM)).find(|file| file.is_file())
}

/// Whether a namespace can be connected here.
///
/// # Errors
/// Why not, and what would allow it.
pub fn check() -> Result<(), String> {
    if program().is_none() {
        return Err("`slirp4netns` is not installed; the package of that name gives a network of its own".to_owned());
    }
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.map(drop)
        .map_err(|error| format!("/dev/net/tun cannot be opened ({error}); `chmod 666 /dev/net/tun` allows it"))
}

/// The way out of one namespace; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Outlet {
    child: Child,
    /// The program ends with the other end of its standard input.
    _alive: PipeWriter,
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outlet {
    /// Connects `namespace`, and leads ports of the host into it. Blocks until it is of use.
    ///
    /// # Errors
    /// There is no program for it, or it says why it cannot; a port that the host's user may not take.
    pub(super) fn connect(namespace: &Namespace, ports: &[PortBinding]) -> Result<Self, NetworkError> {
        check().map_err(NetworkError::Outlet)?;
        let program = program().unwrap_or_else(|| PROGRAM.into());
        let action = || format!("start `{}`", program.display());
        let (stdin, alive) = io::pipe().trying(action)?;
        let (said, stderr) = io::pipe().trying(action)?;
        let mut command = Command::new(&program);
        arguments(&mut command, namespace, !ports.is_empty());
        command.stdin(stdin).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().trying(action)?;
        // Its copies of our pipes.
        drop(command);
        let outlet = Self { child, _alive: alive };
        wait_until_ready(said).map_err(NetworkError::Outlet)?;
        ports.iter().try_for_each(publish)?;
        // Nobody else is to publish anything.
        let _ = std::fs::remove_file(PORTS_SOCKET);
        Ok(outlet)
    }
}

fn arguments(command: &mut Command, namespace: &Namespace, with_ports: bool) {
    command.args(["--configure", "--mtu", MTU, "--disable-host-loopback", "--exit-fd=0", "--ready-fd=2"]);
    if with_ports {
        // A socket of a container that was killed may still be there.
        let _ = std::fs::remove_file(PORTS_SOCKET);
        command.args(["--api-socket", PORTS_SOCKET]);
    }
    command.arg("--netns-type=path").arg(namespace.path()).arg(LINK);
}

/// The program says `1` when the namespace is connected; anything else is why it is not.
fn wait_until_ready(mut said: PipeReader) -> Result<(), String> {
    let (mut text, mut room) = (Vec::new(), [0; 512]);
    loop {
        match said.read(&mut room) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&room[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
        if text.rsplit(|byte| *byte == b'\n').next() == Some(b"1") {
            return Ok(());
        }
    }
    let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(|line| line.trim().to_owned()).collect();
    Err(if lines.is_empty() { "it ended without a word".to_owned() } else { lines.join(", ") })
}

fn publish(binding: &PortBinding) -> Result<(), NetworkError> {
    let at = || format!("publish {}:{}", binding.host_address, binding.host_port);
    let request = json!({"execute": "add_hostfwd", "arguments": {
        "proto": protocol(binding.protocol),
        "host_addr": binding.host_address,
        "host_port": binding.host_port,
        "guest_addr": ADDRESS,
        "guest_port": binding.container_port,
    }});
    let mut answer = String::new();
    let mut socket = UnixStream::connect(PORTS_SOCKET).trying(at)?;
    socket.write_all(request.to_string().as_bytes()).trying(at)?;
    socket.shutdown(Shutdown::Write).trying(at)?;
    socket.read_to_string(&mut answer).trying(at)?;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    match answer["error"]["desc"].as_str() {
        None => Ok(()),
        Some(why) => Err(NetworkError::Outlet(format!("cannot {}: {why}", at()))),
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// An address of the host that is not its loopback.
pub(super) fn host_address() -> Option<Ipv4Addr> {
    // Nothing is sent: the kernel only chooses the address it would send from.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
