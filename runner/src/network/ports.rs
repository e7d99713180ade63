//! Published ports: a port of the host is taken, and its packets go to a container.
//!
//! The port is held by a socket, so that nobody else can take it and a taken one is found out. The rules are in a table
//! that belongs to the process which holds them: when that is killed, they are gone, as the sockets are.

use super::address::Net4;
use super::error::{NetworkError, Trying};
use super::nftables::{Batch, Filters, Hook, Protocol, Rule};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// A port of a container that is to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRequest {
    /// Address of the host; 0.0.0.0 is all of them.
    pub host_address: Ipv4Addr,
    /// First and last port of the host that may be taken; (0, 0) is any.
    pub host_ports: (u16, u16),
    /// Port of the container.
    pub container_port: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}

/// A port of a container that is reached through one of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortBinding {
    /// Address of the host; 0.0.0.0 is all of them.
    pub host_address: Ipv4Addr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}

/// Keeps ports taken while it lives.
#[derive(Debug)]
pub(super) struct Published {
    bindings: Vec<PortBinding>,
    sockets: Vec<Socket>,
    filters: Option<(Filters, String)>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "held so that nobody else can bind the port")]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Published {
    /// Takes the ports of the host.
    pub(super) fn reserve(wanted: &[PortRequest]) -> Result<Self, NetworkError> {
        let (mut bindings, mut sockets) = (Vec::new(), Vec::new());
        for request in wanted {
            let (binding, socket) = take_one(request)?;
            bindings.push(binding);
            sockets.push(socket);
        }
        Ok(Self { bindings, sockets, filters: None })
    }

    /// The ports, with those of the host that were found.
    pub(super) fn bindings(&self) -> &[PortBinding] {
        &self.bindings
    }

    /// Lets go of the ports, for somebody else to take.
    pub(super) fn hand_over(&mut self) -> Vec<PortBinding> {
        self.sockets.clear();
        self.bindings.clone()
    }

    /// Sends their packets to a container.
    pub(super) fn lead_to(&mut self, container: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        if self.bindings.is_empty() {
            return Ok(());
        }
        let table = format!("xbuild-ports-{}", container.get(..12).unwrap_or(container));
        let mut filters = Filters::open().trying(|| "open a socket to nf_tables".to_owned())?;
        let rules = || self.bindings.iter().map(|binding| rule(binding, address));
        let mut batch = Batch::new();
        batch.own_table(&table);
        batch.add_chain(&table, Hook::PreroutingNat, rules()).add_chain(&table, Hook::OutputNat, rules());
        filters.commit(batch).trying(|| format!("make the table `{table}` of nf_tables"))?;
        self.filters = Some((filters, table));
        Ok(())
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some((filters, table)) = &mut self.filters {
            // Closing the socket does the same, later.
            let mut batch = Batch::new();
            batch.remove_table(table);
            let _ = filters.commit(batch);
        }
    }
}

/// Takes the first port that is free.
fn take_one(request: &PortRequest) -> Result<(PortBinding, Socket), NetworkError> {
    let PortRequest { host_address, host_ports: (first, last), container_port, protocol } = *request;
    for port in first..=last.max(first) {
        match bind(host_address, port, protocol) {
            Ok((socket, host_port)) => {
                return Ok((PortBinding { host_address, host_port, container_port, protocol }, socket));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).trying(|| format!("bind {host_address}:{port}")),
        }
    }
    Err(NetworkError::PortTaken { address: host_address, port: first })
}

fn bind(address: Ipv4Addr, port: u16, protocol: Protocol) -> io::Result<(Socket, u16)> {
    let at = (address, port);
    Ok(match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::bind(at)?;
            let port = socket.local_addr()?.port();
            (Socket::Tcp(socket), port)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(at)?;
            let port = socket.local_addr()?.port();
            (Socket::Udp(socket), port)
        }
    })
}

fn rule(binding: &PortBinding, to: Ipv4Addr) -> Rule {
    let rule = Rule::new().for_host();
    let rule = match binding.host_address {
        Ipv4Addr::UNSPECIFIED => rule,
        address => rule.destination(true, Net4::new(address, 32)),
    };
    rule.port(binding.protocol, binding.host_port).send_to(to, binding.container_port)
}
