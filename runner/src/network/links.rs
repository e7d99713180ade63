//! Links, addresses and routes of one network namespace.

use super::address::Net4;
use super::netlink::{ACK, CREATE, DUMP, EXCL, Message, Netlink, REQUEST, Refused, Subject, attributes, number};
use rustix::io::Errno;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_FAMILIES: u16 = 26;
const LINK_NAMESPACE: u16 = 28;
const LINK_SEND_QUEUES: u16 = 31;
const LINK_RECEIVE_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const INET6_GENERATE: u16 = 8;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_OUT: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

const IPV4: u8 = libc::AF_INET as u8;
const IPV6: u16 = libc::AF_INET6 as u16;
const ETHERNET_MTU: u32 = 1500;
const TABLE_MAIN: u8 = 254;
const UP: u32 = libc::IFF_UP as u32;
/// The loopback link's index in every namespace.
const LOOPBACK: u32 = 1;

/// One end of a pair that goes into another namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer<'a> {
    /// Its name there.
    pub(super) name: &'a str,
    /// The namespace.
    pub(super) namespace: BorrowedFd<'a>,
    /// Hardware address; the kernel's choice if none.
    pub(super) mac: Option<[u8; 6]>,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Where it leads; all addresses for a default route.
    pub(super) to: Net4,
    /// Index of the link it leaves through.
    pub(super) link: u32,
}

/// The links of the namespace in which this was opened.
#[derive(Debug)]
pub(super) struct Links {
    netlink: Netlink,
    /// For questions by name.
    socket: OwnedFd,
}

impl Links {
    /// Opens the calling thread's namespace.
    pub(super) fn open() -> Result<Self, Errno> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { netlink: Netlink::open(Subject::Route)?, socket })
    }

    /// A link's index.
    pub(super) fn index(&self, name: &str) -> Result<u32, Errno> {
        rustix::net::netdevice::name_to_index(&self.socket, name)
    }

    /// A link's name.
    pub(super) fn name(&self, index: u32) -> Result<String, Errno> {
        rustix::net::netdevice::index_to_name(&self.socket, index)
    }

    /// Makes a pair: `name` here and the peer elsewhere, both down.
    pub(super) fn add_pair(&mut self, name: &str, peer: &Peer<'_>, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &link_header(0, 0, 0));
        // As many queues as are used anyway: the kernel makes one for each processor, and waits for all of them to take them down.
        message.text(LINK_NAME, name).u32(LINK_MTU, mtu).u32(LINK_SEND_QUEUES, 1).u32(LINK_RECEIVE_QUEUES, 1);
        message.nest(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
                data.nest(VETH_PEER, |end| {
                    end.raw(&link_header(0, 0, 0)).text(LINK_NAME, peer.name).u32(LINK_MTU, mtu);
                    end.u32(LINK_SEND_QUEUES, 1).u32(LINK_RECEIVE_QUEUES, 1);
                    end.u32(LINK_NAMESPACE, peer.namespace.as_raw_fd().cast_unsigned());
                    if let Some(mac) = peer.mac {
                        end.attr(LINK_ADDRESS, &mac);
                    }
                });
            });
        });
        self.send([message])
    }

    /// Makes a bridge, down.
    pub(super) fn add_bridge(&mut self, name: &str, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &link_header(0, 0, 0));
        message.text(LINK_NAME, name).u32(LINK_MTU, mtu).nest(LINK_INFO, |info| {
            info.text(INFO_KIND, "bridge");
        });
        self.send([message])
    }

    /// Gives a link no address of IPv6, also no link-local one, and brings it up; `bridge` is what it becomes a port of.
    pub(super) fn start(&mut self, link: u32, bridge: Option<u32>) -> Result<(), Errno> {
        let mut quiet = Message::new(SET_LINK, REQUEST | ACK, &link_header(link, 0, 0));
        const NONE: u8 = 1;
        quiet.nest(LINK_FAMILIES, |families| {
            families.nest(IPV6, |family| {
                family.attr(INET6_GENERATE, &[NONE]);
            });
        });
        let mut up = Message::new(SET_LINK, REQUEST | ACK, &link_header(link, UP, UP));
        if let Some(bridge) = bridge {
            up.u32(LINK_MASTER, bridge);
        }
        match self.netlink.send(vec![quiet, up]) {
            // A kernel without IPv6 has nothing to be quiet about; the second message was carried out.
            Err(Refused { at: 0, errno: Errno::AFNOSUPPORT | Errno::OPNOTSUPP }) => Ok(()),
            answer => answer.map_err(|refused| refused.errno),
        }
    }

    /// Lets the bridge send packets back through the port that they came from.
    pub(super) fn allow_hairpin(&mut self, port: u32) -> Result<(), Errno> {
        const PORT_OPTIONS: u16 = 12;
        const HAIRPIN: u16 = 4;
        let mut message = Message::new(SET_LINK, REQUEST | ACK, &bridge_port_header(port));
        message.nest(PORT_OPTIONS, |options| {
            options.attr(HAIRPIN, &[1]);
        });
        self.send([message])
    }

    /// Brings loopback up.
    pub(super) fn start_loopback(&mut self) -> Result<(), Errno> {
        self.send([Message::new(SET_LINK, REQUEST | ACK, &link_header(LOOPBACK, UP, UP))])
    }

    /// Gives a link an address in its network.
    pub(super) fn add_address(&mut self, link: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
        const LOCAL: u16 = 2;
        const BROADCAST: u16 = 4;
        let header = [&[IPV4, prefix, 0, 0][..], &link.to_ne_bytes()].concat();
        let mut message = Message::new(NEW_ADDRESS, REQUEST | ACK | CREATE | EXCL, &header);
        message.attr(LOCAL, &address.octets()).attr(BROADCAST, &Net4::new(address, prefix).last().octets());
        self.send([message])
    }

    /// Sends everything that has no other route to `gateway`.
    pub(super) fn add_default_route(&mut self, gateway: Ipv4Addr) -> Result<(), Errno> {
        const BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        let header = [IPV4, 0, 0, 0, TABLE_MAIN, BOOT, 0, UNICAST, 0, 0, 0, 0];
        let mut message = Message::new(NEW_ROUTE, REQUEST | ACK | CREATE | EXCL, &header);
        message.attr(ROUTE_GATEWAY, &gateway.octets());
        self.send([message])
    }

    /// Removes a link.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), Errno> {
        let mut message = Message::new(DELETE_LINK, REQUEST | ACK, &link_header(0, 0, 0));
        message.text(LINK_NAME, name);
        self.send([message])
    }

    /// Largest packet of the link that the default route leaves through; 1500 if there is none.
    pub(super) fn mtu_of_default_route(&mut self, routes: &[Route]) -> Result<u32, Errno> {
        let Some(route) = routes.iter().find(|r| r.to.prefix() == 0 && r.link != 0) else {
            return Ok(ETHERNET_MTU);
        };
        self.mtu(route.link)
    }

    /// Largest packet of a link.
    pub(super) fn mtu(&mut self, link: u32) -> Result<u32, Errno> {
        let answers = self.netlink.dump(Message::new(GET_LINK, REQUEST | ACK, &link_header(link, 0, 0)))?;
        let mtu = |body: &[u8]| attributes(body, 16).find(|(kind, _)| *kind == LINK_MTU).and_then(|(_, v)| number(v));
        Ok(answers.iter().find_map(|answer| mtu(&answer.body)).unwrap_or(ETHERNET_MTU))
    }

    /// Routes of IPv4 in all tables but the kernel's own of local addresses.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, Errno> {
        const TABLE_LOCAL: u8 = 255;
        let header = [IPV4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let all = self.netlink.dump(Message::new(GET_ROUTE, REQUEST | DUMP, &header))?;
        let route = |body: &[u8]| {
            let prefix = *body.get(1)?;
            if *body.get(4)? == TABLE_LOCAL {
                return None;
            }
            let find = |wanted| attributes(body, 12).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            let to = match find(ROUTE_DESTINATION) {
                Some(bytes) => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?),
                None => Ipv4Addr::UNSPECIFIED,
            };
            let link = find(ROUTE_OUT).and_then(number).unwrap_or_default();
            Some(Route { to: Net4::new(to, prefix), link })
        };
        Ok(all.iter().filter(|a| a.kind == NEW_ROUTE).filter_map(|a| route(&a.body)).collect())
    }

    fn send<const N: usize>(&mut self, messages: [Message; N]) -> Result<(), Errno> {
        self.netlink.send(messages.into()).map_err(|refused| refused.errno)
    }
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifinfomsg` for the options of a bridge's port.
fn bridge_port_header(index: u32) -> [u8; 16] {
    let mut header = link_header(index, 0, 0);
    header[0] = libc::AF_BRIDGE as u8;
    header
}
