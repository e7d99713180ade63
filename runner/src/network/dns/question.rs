//! Messages of DNS, as far as names of containers need them. RFC 1035.

use std::net::Ipv4Addr;

pub(in crate::network) const HEADER: usize = 12;
const ADDRESS: u16 = 1;
const POINTER: u16 = 12;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// Seconds for which an answer may be kept: names move with containers.
const KEEP: u32 = 5;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Question {
    /// In lower case, without the final dot.
    pub(in crate::network) name: String,
    kind: u16,
    /// Where the question ends in its message.
    end: usize,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) enum Record {
    /// An address of it.
    Address(Ipv4Addr),
    /// The name that an address has.
    Name(String),
}

impl Question {
    /// Reads a message that asks one thing. Others are somebody else's.
    pub(in crate::network) fn parse(message: &[u8]) -> Option<Self> {
        let plain_query = message.get(2)? & 0xf8 == 0;
        if !plain_query || message.get(4..6)? != [0, 1] {
            return None;
        }
        let (mut name, mut at) = (String::new(), HEADER);
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length).filter(|_| length < 64)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&std::str::from_utf8(label).ok()?.to_ascii_lowercase());
            at += length;
        }
        let word = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
        let kind = word(at)?;
        (word(at + 2)? == INTERNET).then_some(Self { name, kind, end: at + 4 })
    }

    /// The address whose name is asked for.
    pub(in crate::network) fn reversed(&self) -> Option<Ipv4Addr> {
        let digits = self.name.strip_suffix(".in-addr.arpa").filter(|_| self.kind == POINTER)?;
        let parts: Vec<u8> = digits.split('.').rev().map(|part| part.parse().ok()).collect::<Option<_>>()?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(parts).ok()?))
    }

    /// The answer to `message`, of those records that were asked for: a name may be known and have no such record.
    pub(in crate::network) fn answer(&self, message: &[u8], records: &[Record]) -> Vec<u8> {
        let mut answer = message[..self.end].to_vec();
        let wanted: Vec<(u16, Vec<u8>)> = records
            .iter()
            .map(|record| match record {
                Record::Address(address) => (ADDRESS, address.octets().to_vec()),
                Record::Name(name) => (POINTER, labels(name)),
            })
            .filter(|(kind, _)| [*kind, ANY].contains(&self.kind))
            .collect();
        // An answer, with recursion if it was desired, and available.
        answer[2] |= 0x80;
        answer[3] = 0x80;
        let count = u16::try_from(wanted.len()).unwrap_or(u16::MAX);
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        answer[8..HEADER].fill(0);
        for (kind, data) in wanted.iter().take(usize::from(count)) {
            const NAME_OF_QUESTION: [u8; 2] = [0xc0, HEADER as u8];
            answer.extend_from_slice(&NAME_OF_QUESTION);
            answer.extend_from_slice(&kind.to_be_bytes());
            answer.extend_from_slice(&INTERNET.to_be_bytes());
            answer.extend_from_slice(&KEEP.to_be_bytes());
            answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
            answer.extend_from_slice(data);
        }
        answer
    }
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

/// "Server failure" to a question.
pub(in crate::network) fn failure(message: &[u8]) -> Vec<u8> {
    const SERVER_FAILURE: u8 = 2;
    let mut answer = message.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | SERVER_FAILURE;
    answer
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A question for records of a kind.
    pub(in crate::network) fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(labels(name));
        message.extend([kind.to_be_bytes(), [0, 1]].concat());
        message
    }

    #[test]
    fn questions_are_read_in_lower_case() {
        let question = Question::parse(&ask("Web.My-Net", ADDRESS)).unwrap();
        assert_eq!((question.name.as_str(), question.kind), ("web.my-net", 1));
        assert_eq!(question.reversed(), None);
        let reverse = Question::parse(&ask("4.3.2.1.in-addr.arpa", POINTER)).unwrap();
        assert_eq!(reverse.reversed(), Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(Question::parse(&ask("3.2.1.in-addr.arpa", POINTER)).unwrap().reversed(), None);
    }

    #[test]
    fn damaged_messages_are_nobodys() {
        let good = ask("web", ADDRESS);
        for end in 0..good.len() {
            assert_eq!(Question::parse(&good[..end]), None, "{end}");
        }
        let mut endless = good.clone();
        endless[HEADER] = 0xc0;
        assert_eq!(Question::parse(&endless), None);
        let mut answer = good;
        answer[2] |= 0x80;
        assert_eq!(Question::parse(&answer), None);
    }

    #[test]
    fn a_known_name_without_such_a_record_is_no_error() {
        let message = ask("web", 28);
        let records = [Record::Address(Ipv4Addr::new(1, 2, 3, 4))];
        let answer = Question::parse(&message).unwrap().answer(&message, &records);
        assert_eq!(answer[..8], [0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 0]);
        let message = ask("web", ADDRESS);
        let answer = Question::parse(&message).unwrap().answer(&message, &records);
        assert_eq!(answer[6..8], [0, 1]);
        assert!(answer.ends_with(&[0, 4, 1, 2, 3, 4]));
    }
}
