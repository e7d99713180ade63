//! Reading tar: ustar, PAX and GNU, with one meaning for every byte.
//!
//! Stricter than most: a header with a wrong checksum, a number that is no number, a malformed PAX record or a stream that
//! ends early is an error, since two readers that disagree about an archive are how files get hidden in one.

use super::error::{Result, TreeError};
use super::meta::{Kind, Time};
use std::io::{self, Read};

pub(crate) const BLOCK: usize = 512;
/// Longest PAX header, GNU long name or sparse map that is read.
const MAX_META: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// File, directory, link or special file.
    Node(Kind),
    /// Another name of the file with this name in the archive.
    HardLink,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub(crate) struct TarEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) link: Vec<u8>,
    pub(crate) rdev: u64,
    /// From `SCHILY.xattr.*`.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Stretches of data (offset, length) if the file has holes.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// A reader of entries; the content of the current one is read through [`TarReader::read`].
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    inner: R,
    /// Content of the current entry that was not read.
    left: u64,
    padding: u64,
}

#[derive(Default)]
struct Extra {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extra {
    /// The last record with the key counts.
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v.as_slice())
    }

    fn number(&self, key: &str, name: &[u8]) -> Result<Option<u64>> {
        self.get(key).map(|v| decimal(v).ok_or_else(|| TreeError::entry(name, format!("bad {key}")))).transpose()
    }
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> TarReader<R> {
        TarReader { inner, left: 0, padding: 0 }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; what is left of the current one is skipped. None at the end.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>> {
        let mut extra = Extra::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136]).ok_or_else(|| bad(&header, "bad size"))?;
            match header[156] {
                b'x' => {
                    let body = self.meta(&header, size)?;
                    extra.records.extend(pax_records(&body).ok_or_else(|| bad(&header, "malformed PAX record"))?);
                }
                b'g' => drop(self.meta(&header, size)?),
                b'L' => extra.long_name = Some(until_nul(&self.meta(&header, size)?).to_vec()),
                b'K' => extra.long_link = Some(until_nul(&self.meta(&header, size)?).to_vec()),
                _ => return self.entry(&header, size, &extra).map(Some),
            }
        }
    }

    /// Reads content of the current entry, as it is in the archive.
    pub(crate) fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(room.len()).min(room.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut room[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }

    fn skip(&mut self) -> Result<()> {
        let all = self.left + self.padding;
        if all > 0 {
            let skipped = io::copy(&mut (&mut self.inner).take(all), &mut io::sink()).map_err(TreeError::Archive)?;
            if skipped < all {
                return Err(TreeError::Archive(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block; none at the end of the stream or at two blocks of zeros.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0_u8; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            return match self.block(&mut block)? {
                true if block != [0; BLOCK] => Err(TreeError::entry(b"", "data after the end mark")),
                _ => Ok(None),
            };
        }
        let stored = number(&block[148..156]).ok_or_else(|| bad(&block, "bad checksum"))?;
        let plain = |b: &[u8]| b.iter().map(|b| u64::from(*b)).sum::<u64>();
        let signed = |b: &[u8]| b.iter().map(|b| i64::from(b.cast_signed())).sum::<i64>();
        let unsigned_sum = plain(&block[..148]) + 8 * 32 + plain(&block[156..]);
        let signed_sum = signed(&block[..148]) + 8 * 32 + signed(&block[156..]);
        if stored != unsigned_sum && i64::try_from(stored) != Ok(signed_sum) {
            return Err(bad(&block, "bad checksum"));
        }
        Ok(Some(block))
    }

    /// Reads one block; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(TreeError::Archive(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TreeError::Archive(e)),
            }
        }
        Ok(true)
    }

    fn meta(&mut self, header: &[u8; BLOCK], size: u64) -> Result<Vec<u8>> {
        if size > MAX_META {
            return Err(bad(header, "extended header is too long"));
        }
        let mut body = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut body).map_err(TreeError::Archive)?;
        if body.len() as u64 != size {
            return Err(TreeError::Archive(io::ErrorKind::UnexpectedEof.into()));
        }
        self.padding = pad(size);
        Ok(body)
    }

    fn entry(&mut self, header: &[u8; BLOCK], stored: u64, extra: &Extra) -> Result<TarEntry> {
        let name = entry_name(header, extra);
        let fail = |problem: &str| TreeError::entry(&name, problem);
        if name.contains(&0) {
            return Err(fail("name holds a zero byte"));
        }
        let kind = entry_kind(header[156], &name).ok_or_else(|| fail(&format!("unknown type {:#x}", header[156])))?;
        let has_content = matches!(kind, EntryKind::Node(Kind::File));
        let mut size = extra.number("size", &name)?.unwrap_or(stored);
        self.left = if has_content { size } else { 0 };
        if header[156] == 0 && !has_content && size > 0 {
            return Err(fail("directory with content"));
        }
        if !has_content && header[156] != b'1' {
            // Old tars give directories and links a size without content; what follows is the next header.
            size = 0;
        }
        if i64::try_from(self.left).is_err() {
            return Err(fail("bad size"));
        }
        self.padding = pad(self.left);
        let sparse = if has_content { self.sparse(header, extra, &name, &mut size)? } else { None };
        let id = |key: &str, field: &[u8]| -> Result<u32> {
            let value =
                extra.number(key, &name)?.or_else(|| number(field)).ok_or_else(|| fail(&format!("bad {key}")))?;
            match u32::try_from(value) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(fail(&format!("{key} is out of range"))),
            }
        };
        let mtime = match extra.get("mtime") {
            Some(text) => pax_time(text).ok_or_else(|| fail("bad mtime"))?,
            None => Time::from_seconds(signed_number(&header[136..148]).ok_or_else(|| fail("bad mtime"))?),
        };
        let mode = number(&header[100..108]).ok_or_else(|| fail("bad mode"))?;
        let link = match (extra.get("linkpath"), &extra.long_link) {
            (Some(link), _) => link.to_vec(),
            (None, Some(link)) => link.clone(),
            (None, None) => until_nul(&header[157..257]).to_vec(),
        };
        if link.contains(&0) {
            return Err(fail("link target holds a zero byte"));
        }
        let device =
            |field: &[u8]| number(field).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| fail("bad device number"));
        let rdev = match kind {
            EntryKind::Node(Kind::Char | Kind::Block) => {
                rustix::fs::makedev(device(&header[329..337])?, device(&header[337..345])?)
            }
            _ => 0,
        };
        let xattrs = extra
            .records
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix(b"SCHILY.xattr.")?.to_vec(), v.clone())))
            .collect();
        Ok(TarEntry {
            kind,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id("uid", &header[108..116])?,
            gid: id("gid", &header[116..124])?,
            size,
            mtime,
            link,
            rdev,
            xattrs,
            sparse,
            name,
        })
    }

    /// The map of a file with holes, in any of the four ways there are to write one.
    fn sparse(
        &mut self,
        header: &[u8; BLOCK],
        extra: &Extra,
        name: &[u8],
        size: &mut u64,
    ) -> Result<Option<Vec<(u64, u64)>>> {
        let fail = |problem: &str| TreeError::entry(name, problem);
        let version = (extra.get("GNU.sparse.major"), extra.get("GNU.sparse.minor"));
        let map = if header[156] == b'S' {
            let real = number(&header[483..495]).ok_or_else(|| fail("bad sparse size"))?;
            let map = self.old_sparse_map(header).ok_or_else(|| fail("bad sparse map"))?;
            *size = real;
            map
        } else if version == (Some(b"1"), Some(b"0")) {
            let real = extra.number("GNU.sparse.realsize", name)?.ok_or_else(|| fail("sparse file without a size"))?;
            let map = self.sparse_map_in_content().ok_or_else(|| fail("bad sparse map"))?;
            *size = real;
            map
        } else if let Some(real) = extra.number("GNU.sparse.size", name)? {
            let numbers: Option<Vec<u64>> = match extra.get("GNU.sparse.map") {
                Some(map) => map.split(|b| *b == b',').map(decimal).collect(),
                None => extra
                    .records
                    .iter()
                    .filter(|(k, _)| k == b"GNU.sparse.offset" || k == b"GNU.sparse.numbytes")
                    .map(|(_, v)| decimal(v))
                    .collect(),
            };
            *size = real;
            pairs(&numbers.ok_or_else(|| fail("bad sparse map"))?).ok_or_else(|| fail("bad sparse map"))?
        } else {
            return Ok(None);
        };
        let mut end = 0_u64;
        let mut data = 0_u64;
        for (offset, length) in &map {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= *size);
            end = next.ok_or_else(|| fail("bad sparse map"))?;
            data += length;
        }
        if data != self.left || i64::try_from(*size).is_err() {
            return Err(fail("bad sparse map"));
        }
        Ok(Some(map))
    }

    fn old_sparse_map(&mut self, header: &[u8; BLOCK]) -> Option<Vec<(u64, u64)>> {
        let mut map = Vec::new();
        let mut read = |fields: &[u8]| -> Option<()> {
            for pair in fields.chunks_exact(24) {
                if pair[0] == 0 {
                    break;
                }
                map.push((number(&pair[..12])?, number(&pair[12..])?));
            }
            Some(())
        };
        read(&header[386..482])?;
        let mut more = header[482] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            let mut block = [0_u8; BLOCK];
            if blocks > MAX_META / BLOCK as u64 || !self.block(&mut block).ok()? {
                return None;
            }
            read(&block[..504])?;
            more = block[504] != 0;
        }
        Some(map)
    }

    fn sparse_map_in_content(&mut self) -> Option<Vec<(u64, u64)>> {
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut used = 0;
        loop {
            while let Some(end) = text[used..].iter().position(|b| *b == b'\n') {
                let value = decimal(&text[used..used + end])?;
                used += end + 1;
                if wanted.is_none() {
                    wanted = Some(value.checked_mul(2).filter(|n| *n <= MAX_META / 2)?);
                } else {
                    numbers.push(value);
                }
                if wanted == Some(numbers.len() as u64) {
                    return pairs(&numbers);
                }
            }
            let mut block = [0_u8; BLOCK];
            if text.len() as u64 > MAX_META || self.left < BLOCK as u64 || !self.block(&mut block).ok()? {
                return None;
            }
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
        }
    }
}

fn pairs(numbers: &[u64]) -> Option<Vec<(u64, u64)>> {
    numbers.len().is_multiple_of(2).then(|| numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

fn entry_name(header: &[u8; BLOCK], extra: &Extra) -> Vec<u8> {
    if let Some(name) = extra.get("GNU.sparse.name").or_else(|| extra.get("path")) {
        return name.to_vec();
    }
    if let Some(name) = &extra.long_name {
        return name.clone();
    }
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}

fn entry_kind(flag: u8, name: &[u8]) -> Option<EntryKind> {
    Some(EntryKind::Node(match flag {
        0 if name.ends_with(b"/") => Kind::Dir,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => return Some(EntryKind::HardLink),
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        _ => return None,
    }))
}

fn bad(header: &[u8; BLOCK], problem: &str) -> TreeError {
    TreeError::entry(until_nul(&header[..100]), problem)
}

fn pad(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// A field of octal digits or of base 256. Empty is 0.
fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(signed_number(field)?).ok()
}

fn signed_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x7f) - if negative { 128 } else { 0 };
        let value = rest.iter().try_fold(start, |v, b| v.checked_mul(256)?.checked_add(i128::from(*b)))?;
        return i64::try_from(value).ok();
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0_i64, |v, b| match b {
        b'0'..=b'7' => v.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// `LENGTH KEY=VALUE\n`, again and again.
fn pax_records(mut body: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let space = body.iter().take(20).position(|b| *b == b' ')?;
        let length = usize::try_from(decimal(&body[..space])?).ok()?;
        if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
            return None;
        }
        let record = &body[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        records.push((key.to_vec(), value.to_vec()));
        body = &body[length..];
    }
    Some(records)
}

/// Seconds with an optional fraction.
fn pax_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(halves.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = halves.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"00x0644\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 8]), None);
        assert_eq!(signed_number(&[0xff; 8]), Some(-1));
        assert_eq!(number(&[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]), None);
    }

    #[test]
    fn pax_records_are_read_strictly() {
        assert_eq!(pax_records(b"6 a=b\n"), Some(vec![(b"a".to_vec(), b"b".to_vec())]));
        for text in
            [&b"7 a=b\n"[..], b"5 a=b\n", b"6 ab\n\n", b"99999999999999999999 a=b\n", b"6 =bc\n", b"x a=b\n", b"3 \n"]
        {
            assert_eq!(pax_records(text), None, "{text:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(pax_time(b"-1.25"), Some(Time { seconds: -2, nanos: 750_000_000 }));
        assert_eq!(pax_time(b"1500000000.75"), Some(Time { seconds: 1_500_000_000, nanos: 750_000_000 }));
        assert_eq!(pax_time(b"1.2x"), None);
    }
}
