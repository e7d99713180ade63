//! nf_tables without the `nft` program: tables, chains and rules as one transaction.
//!
//! Only what NAT, forwarding and published ports need. All tables are of family `ip`.

use super::address::Net4;
use super::netlink::{ACK, APPEND, CREATE, DUMP, EXCL, Message, Netlink, REQUEST, Subject, attributes, text};
use rustix::io::Errno;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const IPV4: u8 = 2;
/// Attributes of a rule.
const HANDLE: u16 = 3;
const USER_DATA: u16 = 7;
/// In user data: what `nft` shows as a comment.
const COMMENT: u8 = 0;

/// Where in a packet's way a chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// NAT of destinations of packets that arrive.
    PreroutingNat,
    /// NAT of destinations of the host's own packets.
    OutputNat,
    /// NAT of sources.
    PostroutingNat,
    /// Packets on arrival, before connections are looked up.
    PreroutingRaw,
    /// Packets that pass through.
    Forward,
}

impl Hook {
    /// Name of a chain there, its type, the hook's number and the priority.
    fn facts(self) -> (&'static str, &'static str, u32, i32) {
        match self {
            Hook::PreroutingNat => ("prerouting", "nat", 0, -100),
            Hook::OutputNat => ("output", "nat", 3, -100),
            Hook::PostroutingNat => ("postrouting", "nat", 4, 100),
            Hook::PreroutingRaw => ("raw", "filter", 0, -300),
            Hook::Forward => ("forward", "filter", 2, 0),
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Conditions and what follows when all hold, in order.
#[derive(Debug, Default)]
pub(super) struct Rule {
    expressions: Vec<(&'static str, Message)>,
}

/// Register that all comparisons use.
const REGISTER: u32 = 1;

impl Rule {
    /// A rule without conditions.
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(&mut Message)) -> Self {
        let mut data = Message::new(0, 0, &[]);
        fill(&mut data);
        self.expressions.push((name, data));
        self
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        self.with("cmp", |m| {
            m.be32(1, REGISTER).be32(2, u32::from(!equal)).nest(3, |data| {
                data.attr(1, value);
            });
        })
    }

    fn load(self, base: u32, offset: u32, length: u32) -> Self {
        self.with("payload", |m| {
            m.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        let zero = vec![0; mask.len()];
        self.with("bitwise", |m| {
            m.be32(1, REGISTER).be32(2, REGISTER).be32(3, mask.len() as u32);
            m.nest(4, |data| {
                data.attr(1, mask);
            });
            m.nest(5, |data| {
                data.attr(1, &zero);
            });
        })
    }

    fn meta(self, key: u32) -> Self {
        self.with("meta", |m| {
            m.be32(1, REGISTER).be32(2, key);
        })
    }

    fn address(self, offset: u32, equal: bool, net: Net4) -> Self {
        self.load(1, offset, 4).mask(&net.mask().octets()).compare(equal, &net.first().octets())
    }

    /// The source is in `net`, or is not.
    pub(super) fn source(self, inside: bool, net: Net4) -> Self {
        self.address(12, inside, net)
    }

    /// The destination is in `net`, or is not.
    pub(super) fn destination(self, inside: bool, net: Net4) -> Self {
        self.address(16, inside, net)
    }

    /// Arrives through a link whose name begins so, or through another.
    pub(super) fn in_links(self, yes: bool, prefix: &str) -> Self {
        self.meta(6).compare(yes, prefix.as_bytes())
    }

    /// Leaves through a link whose name begins so, or through another.
    pub(super) fn out_links(self, yes: bool, prefix: &str) -> Self {
        self.meta(7).compare(yes, prefix.as_bytes())
    }

    /// Arrives through this link, or through another.
    pub(super) fn in_link(self, yes: bool, name: &str) -> Self {
        self.meta(6).compare(yes, &link_name(name))
    }

    /// Leaves through this link, or through another.
    pub(super) fn out_link(self, yes: bool, name: &str) -> Self {
        self.meta(7).compare(yes, &link_name(name))
    }

    /// The destination is one of the host's own addresses.
    pub(super) fn for_host(self) -> Self {
        const LOCAL: u32 = 2;
        self.with("fib", |m| {
            m.be32(1, REGISTER).be32(2, 3).be32(3, 2);
        })
        .compare(true, &LOCAL.to_ne_bytes())
    }

    /// Goes to this port.
    pub(super) fn port(self, protocol: Protocol, port: u16) -> Self {
        let number = match protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        };
        self.meta(16).compare(true, &[number as u8]).load(2, 2, 2).compare(true, &port.to_be_bytes())
    }

    /// Belongs to no connection that is known, nor to one that a known one has announced.
    pub(super) fn unasked(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.with("ct", |m| {
            m.be32(1, REGISTER).be32(2, 0);
        })
        .mask(&ESTABLISHED_OR_RELATED.to_ne_bytes())
        .compare(true, &[0; 4])
    }

    /// Its destination was changed.
    pub(super) fn translated(self) -> Self {
        self.destination_nat(true)
    }

    /// Goes where it was sent.
    pub(super) fn untranslated(self) -> Self {
        self.destination_nat(false)
    }

    fn destination_nat(self, yes: bool) -> Self {
        const STATUS: u32 = 2;
        const DESTINATION_NAT: u32 = 1 << 5;
        self.with("ct", |m| {
            m.be32(1, REGISTER).be32(2, STATUS);
        })
        .mask(&DESTINATION_NAT.to_ne_bytes())
        .compare(!yes, &[0; 4])
    }

    /// Leaves with the address of the link it leaves through.
    pub(super) fn masquerade(self) -> Self {
        self.with("masq", |_| {})
    }

    /// Goes to this address and port instead.
    pub(super) fn send_to(self, address: Ipv4Addr, port: u16) -> Self {
        const PORT_REGISTER: u32 = 2;
        self.value(REGISTER, &address.octets()).value(PORT_REGISTER, &port.to_be_bytes()).with("nat", |m| {
            m.be32(1, 1).be32(2, IPV4.into()).be32(3, REGISTER).be32(5, PORT_REGISTER);
        })
    }

    /// Goes nowhere.
    pub(super) fn drop(self) -> Self {
        const DROP: u32 = 0;
        self.verdict(DROP)
    }

    /// Goes on, as far as this chain is concerned.
    pub(super) fn accept(self) -> Self {
        const ACCEPT: u32 = 1;
        self.verdict(ACCEPT)
    }

    fn verdict(self, number: u32) -> Self {
        self.with("immediate", |m| {
            m.be32(1, 0).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.be32(1, number);
                });
            });
        })
    }

    /// Writes itself into a message that makes it.
    fn put(&self, message: &mut Message) {
        message.nest(4, |list| {
            for (name, data) in &self.expressions {
                list.nest(1, |expression| {
                    expression.text(1, name).nest(2, |inner| {
                        inner.raw(data.content());
                    });
                });
            }
        });
    }

    fn value(self, register: u32, value: &[u8]) -> Self {
        self.with("immediate", |m| {
            m.be32(1, register).nest(2, |data| {
                data.attr(1, value);
            });
        })
    }
}

/// A link's name as the kernel compares it.
fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

/// Changes that are made together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    messages: Vec<Message>,
}

impl Batch {
    /// No changes.
    pub(super) fn new() -> Self {
        Self { messages: vec![limit(BATCH_BEGIN)] }
    }

    /// Makes a table, which must not be there.
    pub(super) fn add_table(&mut self, table: &str) -> &mut Self {
        let mut message = message(NEW_TABLE, CREATE | EXCL);
        message.text(1, table).be32(2, 0);
        self.push(message)
    }

    /// Makes a table that ends with the socket that made it, however that comes (Linux 5.12).
    pub(super) fn own_table(&mut self, table: &str) -> &mut Self {
        const OWNER: u32 = 2;
        let mut message = message(NEW_TABLE, CREATE);
        message.text(1, table).be32(2, OWNER);
        self.push(message)
    }

    /// Removes a table with all that is in it.
    pub(super) fn remove_table(&mut self, table: &str) -> &mut Self {
        let mut message = message(DELETE_TABLE, 0);
        message.text(1, table);
        self.push(message)
    }

    /// Makes the chain of a hook, with its rules.
    pub(super) fn add_chain(&mut self, table: &str, hook: Hook, rules: impl IntoIterator<Item = Rule>) -> &mut Self {
        let (name, kind, number, priority) = hook.facts();
        let mut chain = message(NEW_CHAIN, CREATE);
        chain.text(1, table).text(3, name).text(7, kind).nest(4, |place| {
            place.be32(1, number).be32(2, priority.cast_unsigned());
        });
        self.push(chain);
        for rule in rules {
            let mut message = message(NEW_RULE, CREATE | APPEND);
            rule.put(message.text(1, table).text(2, name));
            self.push(message);
        }
        self
    }

    /// Puts a rule with a comment first in somebody's chain.
    pub(super) fn insert_rule(&mut self, table: &str, chain: &str, comment: &str, rule: Rule) -> &mut Self {
        let mut message = message(NEW_RULE, CREATE);
        rule.put(message.text(1, table).text(2, chain));
        let mut data = vec![COMMENT, comment.len() as u8 + 1];
        data.extend(comment.bytes().chain([0]));
        message.attr(USER_DATA, &data);
        self.push(message)
    }

    /// Removes a rule.
    pub(super) fn remove_rule(&mut self, table: &str, chain: &str, handle: u64) -> &mut Self {
        let mut message = message(DELETE_RULE, 0);
        message.text(1, table).text(2, chain).attr(HANDLE, &handle.to_be_bytes());
        self.push(message)
    }

    fn push(&mut self, message: Message) -> &mut Self {
        self.messages.push(message);
        self
    }
}

/// A connection to nf_tables of one network namespace.
#[derive(Debug)]
pub(super) struct Filters {
    netlink: Netlink,
}

/// A chain of somebody's that looks at packets which pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    /// It is of family `ip`.
    pub(super) ipv4: bool,
    /// Its table.
    pub(super) table: String,
    /// Its name.
    pub(super) chain: String,
}

impl Filters {
    /// Opens that of the calling thread's namespace.
    pub(super) fn open() -> Result<Self, Errno> {
        Ok(Self { netlink: Netlink::open(Subject::Netfilter)? })
    }

    /// Makes changes.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Result<(), Errno> {
        batch.messages.push(limit(BATCH_END));
        self.netlink.send(batch.messages).map_err(|refused| refused.errno)
    }

    /// Chains that drop what passes through unless one of their rules lets it.
    pub(super) fn barriers(&mut self) -> Result<Vec<Barrier>, Errno> {
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        let mut request = Message::new(SUBSYSTEM << 8 | GET_CHAIN, REQUEST | DUMP, &[0; 4]);
        request.raw(&[]);
        let barrier = |body: &[u8]| {
            let family = *body.first()?;
            let find = |wanted| attributes(body, 4).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            let hook = attributes(find(HOOK)?, 0).find(|(kind, _)| *kind == 1)?.1;
            const INET: u8 = 1;
            let forwards = [INET, IPV4].contains(&family) && hook == 2u32.to_be_bytes();
            let drops = find(POLICY)? == 0u32.to_be_bytes();
            let ipv4 = family == IPV4;
            (forwards && drops).then(|| Some(Barrier { ipv4, table: text(find(1)?), chain: text(find(3)?) }))?
        };
        Ok(self.netlink.dump(request)?.iter().filter_map(|answer| barrier(&answer.body)).collect())
    }

    /// Handles and comments of the rules of a chain.
    pub(super) fn rules(&mut self, table: &str, chain: &str) -> Result<Vec<(u64, String)>, Errno> {
        let mut request = Message::new(SUBSYSTEM << 8 | GET_RULE, REQUEST | DUMP, &[IPV4, 0, 0, 0]);
        request.text(1, table).text(2, chain);
        let rule = |body: &[u8]| {
            let find = |wanted| attributes(body, 4).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            let handle = u64::from_be_bytes(find(HANDLE)?.try_into().ok()?);
            let comment = match find(USER_DATA).unwrap_or_default() {
                [COMMENT, length, data @ ..] => data.get(..usize::from(*length)).map(text).unwrap_or_default(),
                _ => String::new(),
            };
            Some((handle, comment))
        };
        Ok(self.netlink.dump(request)?.iter().filter_map(|answer| rule(&answer.body)).collect())
    }
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, REQUEST | ACK | flags, &[IPV4, 0, 0, 0])
}

/// Begin or end of a transaction.
fn limit(kind: u16) -> Message {
    let subsystem = SUBSYSTEM.to_be_bytes();
    Message::new(kind, REQUEST, &[0, 0, subsystem[0], subsystem[1]])
}
